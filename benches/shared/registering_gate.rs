//! A gate in this process, with the circulation and the ledger behind it, but without listeners.

use std::time::Duration;

use loangate::circulation::{self, Circulation};
use loangate::clock::Clock;
use loangate::gate::{self, Gate, Request};
use loangate::ledger::{self, AuditKey, Ledger};
use loangate::lending::{self, Bokbasen};
use loangate::loan::{Borrower, LoanKey};
use loangate::process_handles::ProcessHandles;
use loangate::telemetry::{Metrics, Tracer};
use tokio::runtime::Handle;
use tokio::time::Instant;

/// A running gate.
pub(crate) struct RegisteringGate {
    gate: Gate,
    circulation: Circulation,
    ledger: Ledger,
}

impl RegisteringGate {
    /// Starts a gate with this ledger and this lending platform.
    pub(crate) async fn start(settings: &ledger::Settings, lending: &lending::Settings) -> Self {
        let (clock, metrics) = (Clock::system(), Metrics::new().unwrap());
        let key = AuditKey::new(&[2; 32]);
        let ledger =
            Ledger::open(settings, &[1; 32], key, clock.clone(), metrics.clone()).await.unwrap();
        let timing = circulation::Settings {
            settle: Duration::from_secs(30),
            refusal_ttl: Duration::from_secs(60),
            availability_ttl: Duration::from_secs(60),
            retention: Duration::from_secs(400 * 86_400),
            licences: circulation::Licences::default(),
            polls: 8,
        };
        let lending = Bokbasen::new(lending, clock.clone(), metrics.clone()).unwrap();
        let handles =
            ProcessHandles { clock, metrics, tracer: Tracer::default(), slow: Handle::current() };
        let circulation = Circulation::new(timing, ledger.clone(), lending, handles.clone());
        let gate = Gate::new(&gate::Settings::default(), circulation.clone(), handles);
        circulation.start();
        RegisteringGate { gate, circulation, ledger }
    }

    pub(crate) async fn end(self) {
        self.circulation.stop(Duration::from_secs(5)).await;
        self.ledger.close().await;
    }

    /// Returns the loan of a reader, and begins it if there is none. Returns whether it is new.
    pub(crate) async fn begin(&self, key: LoanKey) -> bool {
        let request = Request {
            key,
            alternative_titles: &[],
            issued: Some(Clock::system().now()),
            issued_ahead: false,
            continues: false,
            explicit: false,
        };
        self.gate.begin(&request).await.unwrap().1
    }

    /// Begins a loan of a new reader. Returns the time from its scheduled start to its acceptance.
    pub(crate) async fn register(&self, key: LoanKey, scheduled: Instant) -> Duration {
        assert!(self.begin(key).await);
        scheduled.elapsed()
    }
}

/// Returns the key of a loan of a reader with this number.
pub(crate) fn key_of(library: &str, number: u64) -> LoanKey {
    let mut borrower = [0; 16];
    // Spread over the index like pseudonyms, which are hashes.
    borrower[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    LoanKey {
        library: library.parse().unwrap(),
        borrower: Borrower::from_bytes(borrower),
        isbn: "9788299999014".parse().unwrap(),
    }
}
