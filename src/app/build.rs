//! Creates the parts of a gate and connects them. `run` starts them.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;

use super::open_ledger::open_ledger;
use super::reload::Reloader;
use super::{StartError, readiness, request_config};
use crate::acme::Orders;
use crate::admin;
use crate::buffer_budget::Buffers;
use crate::circulation::Circulation;
use crate::config::Config;
use crate::delivery::Delivery;
use crate::gate::Gate;
use crate::ledger::Ledger;
use crate::lending::{Bokbasen, Reporting};
use crate::listeners::EarlyAdmin;
use crate::metering::Meter;
use crate::monitor::{CertificateDates, LoginKeys, Monitor, OrderFailure, Probes};
use crate::process_handles::ProcessHandles;
use crate::public_addresses::PublicAddresses;
use crate::reader::{KeyTrouble, Readers};
use crate::server::{
    self, Certificates, DateProblem, Explainer, Heartbeat, RecentRequests, RequestConfigs, Services,
};

/// The connected parts of a gate, without its listeners. Nothing runs yet.
pub(super) struct ConnectedParts {
    pub(super) handles: ProcessHandles,
    pub(super) readers: Arc<Readers>,
    pub(super) requests: RequestConfigs,
    pub(super) certificates: Arc<Certificates>,
    pub(super) orders: Orders,
    pub(super) meter: Meter,
    pub(super) ledger: Ledger,
    pub(super) circulation: Circulation,
    /// The client of the Reporting API, if usage reports are on.
    pub(super) reporting: Option<Reporting>,
    buffers: Buffers,
    pub(super) lending: Bokbasen,
    gate: Gate,
    /// Whether there is a list of prices of usage reports.
    has_prices: bool,
}

/// The public listener, for the admin listener.
pub(super) struct Serving {
    pub(super) addresses: PublicAddresses,
    pub(super) services: Arc<Services>,
    pub(super) heartbeat: Heartbeat,
}

impl ConnectedParts {
    /// Creates all parts, and opens the ledger.
    pub(super) async fn build(
        config: &Config,
        handles: ProcessHandles,
        early_admin: &EarlyAdmin,
    ) -> Result<ConnectedParts, StartError> {
        let ProcessHandles { clock, metrics, .. } = handles.clone();
        let readers = Arc::new(Readers::new(&config.readers, clock.clone())?);
        let catalog = request_config::catalog(config)?;
        let orders = Orders::new(config.acme.clone(), clock.clone(), metrics.clone())?;
        let certificates = Arc::new(Certificates::load(&config.server, clock.clone())?);
        let (meter, buffers) = (Meter::new(), Buffers::new(config.server.buffers));
        let delivery = Delivery::new(
            config.delivery,
            &config.origins,
            buffers.clone(),
            meter.clone(),
            metrics.clone(),
        )?;
        let requests = request_config::build(config, catalog, delivery, workers())?;
        let ledger = open_ledger(config, &readers, &certificates, &handles, early_admin).await?;
        warn_of_other_processes(&ledger);
        let lending = Bokbasen::new(&config.lending, clock.clone(), metrics.clone())?;
        let reporting = config
            .reports
            .as_ref()
            .map(|reports| Reporting::new(&reports.endpoint, &config.lending, &clock, metrics));
        let reporting = reporting.transpose()?;
        let reference = lending.clone();
        readers.compare_clock_with(move || reference.clock_ahead());
        let circulation = Circulation::new(
            config.circulation.clone(),
            ledger.clone(),
            lending.clone(),
            handles.clone(),
        );
        let gate = Gate::new(&config.gate, circulation.clone(), handles.clone());
        Ok(ConnectedParts {
            handles,
            readers,
            requests,
            certificates,
            orders,
            meter,
            ledger,
            circulation,
            reporting,
            buffers,
            lending,
            gate,
            has_prices: config.reports.as_ref().is_some_and(|reports| reports.prices.is_some()),
        })
    }

    /// Returns the services that handle the requests of readers.
    pub(super) fn services(&self, settings: &server::Settings) -> Services {
        Services {
            readers: self.readers.clone(),
            gate: self.gate.clone(),
            ledger: self.ledger.clone(),
            buffers: self.buffers.clone(),
            recent: RecentRequests::new(settings.recent_requests),
            metrics: self.handles.metrics.clone(),
            tracer: self.handles.tracer.clone(),
        }
    }

    /// Returns the watch of this gate.
    pub(super) fn monitor(&self, config: &Config, public: &PublicAddresses) -> Monitor {
        let certificates = self.certificates.clone();
        let dates = move |now| {
            let problems = certificates.date_problems(now).into_iter();
            let dates = |(file, problem): (PathBuf, DateProblem)| CertificateDates {
                file: file.display().to_string(),
                is_fatal: problem.is_fatal(),
                what: problem.to_string(),
            };
            problems.map(dates).collect()
        };
        let orders = self.orders.clone();
        let (readers, certificates) = (self.readers.clone(), self.certificates.clone());
        let order_failure = move || {
            orders
                .failure()
                .map(|what| OrderFailure { is_fatal: certificates.awaits_first(), what })
        };
        let login_keys = move || {
            let troubles = readers.key_troubles().into_iter();
            let observed = |KeyTrouble { issuer, is_missing, what }| LoginKeys {
                issuer,
                are_missing: is_missing,
                what,
            };
            troubles.map(observed).collect()
        };
        let probes = Probes {
            ledger: self.ledger.clone(),
            lending: self.lending.clone(),
            circulation: self.circulation.clone(),
            certificates: Box::new(dates),
            certificate_orders: Box::new(order_failure),
            login_keys: Box::new(login_keys),
            file: config.ledger.sqlite_file().map(Path::to_owned),
        };
        Monitor::new(&config.monitor, node_name(public), probes, self.handles.clone())
    }

    /// Returns what the admin listener needs.
    pub(super) fn for_admin(
        &self,
        config: &Config,
        serving: Serving,
        monitor: Monitor,
        reloader: &Reloader,
        stopping: &CancellationToken,
        low_priority: Handle,
    ) -> admin::Parts {
        let Serving { addresses, services, heartbeat } = serving;
        let name = self.certificates.name().filter(|name| !name.starts_with('*'));
        let clock = self.handles.clock.clone();
        let explainer = Explainer::new(services, self.requests.explainer.clone(), name, clock);
        let readiness = readiness::check(self, heartbeat.clone(), reloader, stopping);
        let (certificates, of_admin) = (self.certificates.clone(), self.certificates.clone());
        admin::Parts {
            ledger: self.ledger.for_support(),
            metrics: self.handles.metrics.clone(),
            buffers: self.buffers.clone(),
            liveness: readiness::liveness(heartbeat),
            readiness,
            gate: self.gate.clone(),
            circulation: self.circulation.clone(),
            readers: self.readers.clone(),
            public_base: public_base(&self.certificates, addresses.first()),
            public_addresses: addresses,
            explainer: Arc::new(explainer),
            has_prices: self.has_prices,
            requests: self.requests.clone(),
            reload: reloader.for_operators(),
            monitor,
            console: config.console.clone(),
            clock: self.handles.clock.clone(),
            low_priority,
            readers_api: server::Api::openapi(),
            tls: Arc::new(move || of_admin.admin_config()),
            certificate_expiry: Box::new(move || certificates.first_expiry()),
        }
    }
}

/// Returns the number of workers.
pub(super) fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Warns at the start if other gates share the ledger.
fn warn_of_other_processes(ledger: &Ledger) {
    let others = ledger.other_processes();
    if others > 0 {
        tracing::warn!(
            others,
            "another gate uses this ledger. Each loan is still registered once, and each return is \
             sent. A return at one gate stops streams of the other within a second. Borrower \
             limits apply per gate. Links and session tickets need the same keys at both gates"
        );
    }
}

/// Returns the name of this gate for operators: the machine, and the first port of the public
/// listener.
pub(super) fn node_name(public: &PublicAddresses) -> String {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let machine = match machine.trim() {
        "" => "gate",
        name => name,
    };
    format!("{machine}:{}", public.first().port())
}

/// Returns the base URL of links. Uses the certificate's name, because the listen address may be a
/// wildcard.
fn public_base(certificates: &Certificates, address: SocketAddr) -> String {
    match certificates.name() {
        Some(name) if !name.starts_with('*') => format!("https://{name}:{}", address.port()),
        _ => format!("https://{address}"),
    }
}
