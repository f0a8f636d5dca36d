//! `loangate serve`: builds every part from its settings, starts them, and ends them in order.
//!
//! [`start`] is what the demo uses as well. The order of the end matters: readers first (drain), then the loan's
//! life, then the ledger, so that what a reader still does is still written down.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use super::CliError;
use crate::admin::{self, Admin};
use crate::catalog::Catalog;
use crate::circulation::{self, Circulation};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::delivery::Delivery;
use crate::gate::Gate;
use crate::ledger::Ledger;
use crate::lending::Bokbasen;
use crate::reader::Readers;
use crate::server::{self, Certificates, Line};
use crate::telemetry::{self, Metrics};

/// How long the loan's life may take to stop: a begin that is under way is waited for.
const STOP: Duration = Duration::from_secs(15);

/// A gate that serves.
#[derive(Debug)]
pub struct Running {
    /// Where readers connect.
    pub public: SocketAddr,
    /// Where operators connect.
    pub admin: SocketAddr,
    server: server::Running,
    admin_server: admin::Running,
    circulation: Circulation,
    ledger: Ledger,
    readers: Arc<Readers>,
    certificates: Arc<Certificates>,
    settings: server::Settings,
}

/// Starts everything that a configuration names.
///
/// # Errors
/// [`CliError`], for the first part that cannot start; nothing is left running.
pub async fn start(config: Config, clock: Clock) -> Result<Running, CliError> {
    let metrics = Metrics::new();
    let readers = Arc::new(Readers::new(&config.readers, clock.clone()).map_err(CliError::new)?);
    let names: Vec<String> = config.origins.iter().map(|origin| origin.name.clone()).collect();
    let catalog = Arc::new(Catalog::new(&config.catalog, &names).map_err(CliError::all)?);
    let certificates = Arc::new(Certificates::load(&config.server).map_err(CliError::new)?);
    let delivery = Delivery::new(&config.delivery, &config.origins, metrics.clone()).map_err(CliError::new)?;
    let ledger = Ledger::open(&config.ledger, &readers.key_fingerprint(), clock.clone(), metrics.clone())
        .await
        .map_err(CliError::new)?;
    let lending = Bokbasen::new(&config.lending, clock.clone(), metrics.clone()).map_err(CliError::new)?;
    let slow = Handle::current();
    let timing = circulation::Settings { settle: config.lending.settle, refusal_ttl: config.gate.refusal_ttl };
    let circulation =
        Circulation::new(timing, ledger.clone(), lending, clock.clone(), metrics.clone(), slow.clone());
    let gate = Gate::new(&config.gate, circulation.clone(), clock, slow);
    let line =
        Arc::new(Line { readers: readers.clone(), catalog: catalog.clone(), gate, metrics: metrics.clone() });
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    let server = server::start(&config.server, workers, line, certificates.clone(), || delivery.for_worker())
        .map_err(CliError::new)?;
    circulation.start();
    let parts = admin::Parts {
        ledger: ledger.clone(),
        metrics,
        readiness: readiness(&ledger, &circulation),
        readers: readers.clone(),
        public_base: format!("https://{}", server.address),
        catalog,
        end_loan: end_loan(&circulation),
        tls: Some(certificates.config()),
    };
    let admin_server = Admin::start(&config.admin, parts).await.map_err(CliError::new)?;
    Ok(Running {
        public: server.address,
        admin: admin_server.address(),
        server,
        admin_server,
        circulation,
        ledger,
        readers,
        certificates,
        settings: config.server,
    })
}
