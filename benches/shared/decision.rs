//! The decision about a request with a warm cache, without sockets and files: reader, title,
//! permit. As many decisions as needed are cached, each of a loan in a real ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use http::{HeaderMap, header::AUTHORIZATION};
use loangate::catalog::{Catalog, Target};
use loangate::circulation::Circulation;
use loangate::clock::{self, Clock};
use loangate::gate::{Gate, Permit, Request};
use loangate::ledger::{AuditKey, Cause, Intended, Ledger};
use loangate::lending::Bokbasen;
use loangate::loan::{Event, Isbn, Loan, LoanKey, Terms};
use loangate::path::RequestPath;
use loangate::process_handles::ProcessHandles;
use loangate::reader::{Reader, Readers};
use loangate::telemetry::{Metrics, Tracer, Via};
use tokio::runtime::Handle;

use crate::support::postgres::Database;
use crate::support::{BOOK, LIBRARY, Scene, Setting};

/// Number of loans begun concurrently, so that many share a sync.
const AT_ONCE: usize = 1024;

pub(crate) struct Decider {
    scene: Scene,
    ledger: Ledger,
    readers: Readers,
    catalog: Catalog,
    gate: Gate,
    path: String,
    /// Number of cached decisions.
    cached: u64,
}

impl Decider {
    /// With a database, that is the ledger, and the gate follows its change feed.
    pub(crate) async fn set_up(database: Option<&Database>) -> Decider {
        let scene = Scene::without_gate(Setting::default()).await;
        if let Some(database) = database {
            let url = format!("url = \"{}?sslmode=disable\"", database.url());
            scene.replace_in_config("url = \"sqlite:data/loangate.db\"", &url);
            scene.make_config_private();
        }
        let config = loangate::config::load(&scene.config_file()).unwrap().config;
        let (clock, metrics) = (Clock::system(), Metrics::new().unwrap());
        let readers = Readers::new(&config.readers, clock.clone()).unwrap();
        let catalog = Catalog::new(&config.catalog).unwrap();
        let (print, key) = (readers.key_fingerprint(), AuditKey::new(&readers.audit_key()));
        let ledger = Ledger::open(&config.ledger, &print, key, clock.clone(), metrics.clone())
            .await
            .unwrap();
        let lending = Bokbasen::new(&config.lending, clock.clone(), metrics.clone()).unwrap();
        let handles =
            ProcessHandles { clock, metrics, tracer: Tracer::default(), slow: Handle::current() };
        let circulation =
            Circulation::new(config.circulation, ledger.clone(), lending, handles.clone());
        let gate = Gate::new(&config.gate, circulation.clone(), handles);
        if database.is_some() {
            circulation.start();
        }
        let path = format!("/files/{BOOK}/book.epub");
        Decider { scene, ledger, readers, catalog, gate, path, cached: 0 }
    }

    /// Begins loans until this many readers have one, and lets the gate look each of them up.
    pub(crate) async fn fill(&mut self, decisions: u64) {
        let next = AtomicU64::new(self.cached);
        let lanes = (0..AT_ONCE).map(|_| async {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= decisions {
                    return;
                }
                self.begin(number).await;
                let answer = self.gate.admit(&request(self.key(number))).await;
                assert!(answer.permit.is_ok() && answer.via == Via::Ledger);
            }
        });
        join_all(lanes).await;
        self.cached = self.cached.max(decisions);
    }

    async fn begin(&self, number: u64) {
        let now = Clock::system().now();
        let cause = |by| Cause { by, detail: None };
        let intended =
            self.ledger.intend(Loan::intend(self.key(number), now), None, cause("reader")).await;
        let Intended::Written(loan) = intended.unwrap() else {
            panic!("reader {number} has a loan already")
        };
        let terms = Terms {
            due: clock::after(now, Duration::from_secs(21 * 86_400)),
            licence_id: Some("L1".to_owned()),
            licence_type: Some("PACKAGE".to_owned()),
        };
        let accepted = Event::Accepted { lending_id: format!("BL{number:08}"), terms };
        self.ledger.apply(loan.id, accepted, cause("begin")).await.unwrap();
    }

    pub(crate) fn key(&self, number: u64) -> LoanKey {
        let library = LIBRARY.parse().unwrap();
        let borrower = self.readers.pseudonym(library, &name(number));
        LoanKey { library, borrower, isbn: BOOK.parse().unwrap() }
    }

    /// Returns the header fields of the first readers. Each token has been verified before.
    pub(crate) fn fields(&self, readers: u64) -> Vec<HeaderMap> {
        let fields: Vec<HeaderMap> = (0..readers)
            .map(|number| {
                let token = format!("Bearer {}", self.scene.token(&name(number)));
                HeaderMap::from_iter([(AUTHORIZATION, token.parse().unwrap())])
            })
            .collect();
        fields.iter().for_each(|fields| drop(self.reader(fields)));
        fields
    }

    /// Identifies the reader from header fields.
    pub(crate) fn reader(&self, fields: &HeaderMap) -> Arc<Reader> {
        self.readers.authenticate(fields, None, None).unwrap()
    }

    /// Finds the title of the request's path.
    pub(crate) fn title(&self) -> Isbn {
        let (token, path) = RequestPath::parse(&self.path).unwrap().split_token();
        assert!(token.is_none());
        match self.catalog.resolve(&path).unwrap() {
            Target::Loanable { titles, .. } => titles.first(),
            Target::Open(_) => panic!("{} is open", self.path),
        }
    }

    /// Checks the permit of this reader and title.
    pub(crate) fn permit(&self, key: LoanKey) -> Permit {
        let answer =
            self.gate.admit(&request(key)).now_or_never().expect("a cache hit had to wait");
        assert_eq!(answer.via, Via::Cache);
        answer.permit.unwrap()
    }

    /// Runs the whole decision, as for a request.
    pub(crate) fn decide(&self, fields: &HeaderMap) -> Permit {
        let isbn = self.title();
        self.permit(self.reader(fields).key(isbn))
    }
}

fn name(number: u64) -> String {
    format!("reader-{number}")
}

fn request(key: LoanKey) -> Request<'static> {
    Request {
        key,
        alternative_titles: &[],
        issued: None,
        issued_ahead: false,
        continues: false,
        explicit: false,
    }
}
