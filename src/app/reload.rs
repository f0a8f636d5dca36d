//! Reloads the configuration of a running gate: reads and validates all of it first, then applies
//! it. A mistake anywhere changes nothing.
//!
//! A signal or an operator asks for it. Requests that run keep what they began with. What a reload
//! cannot change is named, key by key.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::build::ConnectedParts;
use super::{descriptors, request_config};
use crate::acme::{self, Orders};
use crate::circulation::Circulation;
use crate::config::{self, Loaded, Mistake, PROXIES, Written, changes_login};
use crate::ledger::Ledger;
use crate::lending::{Bokbasen, Reporting};
use crate::reader::{self, Readers};
use crate::reload::{ChangedKey, NotReloaded, Reload, Reloaded, Reloading, WrongKey};
use crate::server::{Certificates, LoadedKeys, NewRequestConfigs, RequestConfigs};
use crate::service_manager::ServiceManager;
use crate::telemetry::access_log::{self, NewAccessLog};
use crate::telemetry::{self, Metrics, ReloadOutcome};

/// The most mistakes to log. `loangate check` lists all of them.
const MAX_LOGGED: usize = 10;
/// The key that a reload must not change.
const PSEUDONYM_KEY: &str = "privacy.pseudonym_key";
const MAX_LIFETIME: &str = "readers.max_lifetime";
/// How long files may take. A reload that takes longer goes on, and counts as failed until its end.
const DEADLINE: Duration = Duration::from_secs(60);

/// Reloads the configuration. Clones share what is in use.
#[derive(Clone)]
pub(super) struct Reloader(Arc<Inner>);

struct Inner {
    file: PathBuf,
    /// The configuration in use: without what needs a restart.
    in_use: Arc<Mutex<Written>>,
    parts: ReloadableParts,
    requested: Notify,
    has_failed: AtomicBool,
}

/// The parts that can be reloaded.
struct ReloadableParts {
    requests: RequestConfigs,
    certificates: Arc<Certificates>,
    orders: Orders,
    readers: Arc<Readers>,
    ledger: Ledger,
    circulation: Circulation,
    lending: Bokbasen,
    reporting: Option<Reporting>,
    metrics: Metrics,
    /// Whether requests to origins name their trace, which a reload does not change.
    traces: bool,
}

/// Versions of the parts that are valid, but not in use.
struct NewVersions {
    requests: NewRequestConfigs,
    certificates: LoadedKeys,
    orders: Option<acme::Settings>,
    readers: reader::Keys,
    access_log: NewAccessLog,
    config: config::Config,
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("file", &self.0.file).finish_non_exhaustive()
    }
}

impl Reloader {
    /// Creates a reloader of this file, of which `started` is in use.
    pub(super) fn new(file: PathBuf, started: Written, parts: &ConnectedParts) -> Reloader {
        let in_use = Arc::new(Mutex::new(started));
        let parts = ReloadableParts {
            requests: parts.requests.clone(),
            certificates: parts.certificates.clone(),
            orders: parts.orders.clone(),
            readers: parts.readers.clone(),
            ledger: parts.ledger.clone(),
            circulation: parts.circulation.clone(),
            lending: parts.lending.clone(),
            reporting: parts.reporting.clone(),
            metrics: parts.handles.metrics.clone(),
            traces: parts.handles.tracer.is_on(),
        };
        let (requested, has_failed) = (Notify::new(), AtomicBool::new(false));
        Reloader(Arc::new(Inner { file, in_use, parts, requested, has_failed }))
    }

    /// Requests a reload, which [`Reloader::run`] does. Requests during one lead to one more.
    pub(super) fn request(&self) {
        self.0.requested.notify_one();
    }

    /// Reloads at each request until the gate stops, and tells the service manager.
    pub(super) async fn run(self, manager: ServiceManager, stopping: CancellationToken) {
        while stopping.run_until_cancelled(self.0.requested.notified()).await.is_some() {
            let in_use = self.0.in_use.clone().lock_owned().await;
            manager.reloading();
            manager.reloaded(match self.reload(in_use).await {
                Ok(_) => "serving; the configuration was reloaded",
                Err(_) => "serving; the last reload found a mistake, which the log names",
            });
        }
    }

    /// Returns the function by which an operator reloads and gets the result.
    pub(super) fn for_operators(&self) -> Reloading {
        let reloader = self.clone();
        Arc::new(move || {
            let reloader = reloader.clone();
            async move {
                match reloader.0.in_use.clone().try_lock_owned() {
                    Ok(in_use) => reloader.reload(in_use).await,
                    Err(_) => Err(NotReloaded::UnderWay),
                }
            }
            .boxed()
        })
    }

    /// Whether the last reload found a mistake, so that an older configuration is in use.
    pub(super) fn has_failed(&self) -> bool {
        self.0.has_failed.load(Ordering::Relaxed)
    }

    /// Reloads off the runtime, since files may be slow. It goes on if the caller is gone.
    async fn reload(&self, in_use: OwnedMutexGuard<Written>) -> Result<Reloaded, NotReloaded> {
        let inner = self.0.clone();
        let reloading = tokio::task::spawn_blocking(move || inner.reload(in_use));
        let sentence = match timeout(DEADLINE, reloading).await {
            Ok(Ok(reloaded)) => return reloaded,
            Ok(Err(error)) => format!("the reload failed: {error}"),
            Err(_) => "a file cannot be read in time. The reload goes on".to_owned(),
        };
        let (file, key) = (self.0.file.clone(), String::new());
        Err(self.0.refuse(&[Mistake { file, line: 1, key, sentence }]))
    }
}

impl Inner {
    fn reload(&self, mut in_use: OwnedMutexGuard<Written>) -> Result<Reloaded, NotReloaded> {
        // Whoever rotates the file sends the signal of a reload, whatever the configuration says.
        access_log::reopen();
        let (loaded, new, changes) =
            self.prepare(&in_use).map_err(|mistakes| self.refuse(&mistakes))?;
        let login_changes = changes_login(changes.iter().map(|changed| changed.key.as_str()));
        self.parts.apply(new, !login_changes);
        *in_use = in_use.reloaded(loaded.written, &changes);
        let (needs_restart, changed): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|changed| changed.needs_restart);
        self.has_failed.store(false, Ordering::Relaxed);
        self.parts.metrics.reload(ReloadOutcome::Applied);
        for warning in loaded.warnings {
            tracing::warn!(%warning, "in the configuration");
        }
        let keys = |keys: &[ChangedKey]| -> String {
            keys.iter().map(|changed| changed.key.as_str()).collect::<Vec<_>>().join(", ")
        };
        tracing::info!(changed = keys(&changed), "the configuration was reloaded");
        if !needs_restart.is_empty() {
            let keys = keys(&needs_restart);
            tracing::warn!(keys, "these keys take effect only when the gate starts again");
        }
        Ok(Reloaded { changed, needs_restart })
    }

    /// Reads and validates everything. Changes nothing. Also returns what differs from the
    /// configuration in use.
    fn prepare(
        &self,
        in_use: &Written,
    ) -> Result<(Loaded, NewVersions, Vec<ChangedKey>), Vec<Mistake>> {
        let file = &self.file;
        let mut loaded = config::load(file)?;
        let mistakes = config::check_files(file, &loaded);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        if !self.parts.readers.has_pseudonym_key_of(&loaded.config.readers) {
            let sentence = "the key has changed, so that every reader would get another pseudonym \
                            and lose their loans. Put the old one back";
            return Err(vec![loaded.mistake(file, PSEUDONYM_KEY, sentence.to_owned())]);
        }
        let (longest, retention) =
            (loaded.config.readers.max_lifetime, self.parts.circulation.retention());
        if longest >= retention {
            let sentence = "a token could live for longer than borrowers are stored, which only a \
                            restart changes, and begin a loan again. Restart for a longer \
                            privacy.retention first";
            return Err(vec![loaded.mistake(file, MAX_LIFETIME, sentence.to_owned())]);
        }
        let traces = self.parts.traces;
        loaded.config.origins.iter_mut().for_each(|origin| origin.traces = traces);
        let changes = in_use.changes(&loaded.written);
        let keeps_proxies =
            changes.iter().any(|changed| changed.needs_restart && changed.key == PROXIES);
        self.parts.requests.keep_proxied(&mut loaded.config.server.limits, keeps_proxies);
        descriptors::fit_limits(&mut loaded.config);
        let new = self.parts.validate(file, &loaded)?;
        Ok((loaded, new, changes))
    }

    fn refuse(&self, mistakes: &[Mistake]) -> NotReloaded {
        self.has_failed.store(true, Ordering::Relaxed);
        self.parts.metrics.reload(ReloadOutcome::Refused);
        for mistake in mistakes.iter().take(MAX_LOGGED) {
            let mistakes = mistakes.len();
            tracing::error!(%mistake, mistakes, "the configuration was not reloaded");
        }
        NotReloaded::Wrong(mistakes.iter().map(wrong_key).collect())
    }
}

fn wrong_key(mistake: &Mistake) -> WrongKey {
    let Mistake { file, line, key, sentence } = mistake;
    let file = Path::display(file).to_string();
    WrongKey { file, line: *line, key: key.clone(), sentence: sentence.clone() }
}

/// Returns the mistakes of a part at the table that it is configured by.
fn all(file: &Path, loaded: &Loaded, key: &str, errors: &[impl fmt::Display]) -> Vec<Mistake> {
    errors.iter().map(|error| loaded.mistake(file, key, error.to_string())).collect()
}

impl ReloadableParts {
    /// Makes new versions of all parts. `file` is that of the configuration.
    fn validate(&self, file: &Path, loaded: &Loaded) -> Result<NewVersions, Vec<Mistake>> {
        let config = loaded.config.clone();
        let certificates = self.certificates.validate(&config.server);
        let certificates = certificates.map_err(|errors| all(file, loaded, "tls", &errors))?;
        let orders = self.orders.validate(&config.acme);
        let orders = orders.map_err(|errors| all(file, loaded, "tls.acme", &errors))?;
        let readers = self.readers.validate(&config.readers);
        let readers = readers.map_err(|errors| all(file, loaded, "readers", &errors))?;
        let requests = request_config::prepare(&self.requests, file, loaded)?;
        // Last, since it makes a file.
        let access_log = access_log::open(&config.access_log, &self.metrics);
        let access_log =
            access_log.map_err(|error| all(file, loaded, "access_log.to", &[error]))?;
        Ok(NewVersions { requests, certificates, orders, readers, access_log, config })
    }

    /// Puts the new versions in use for later requests.
    /// The credentials at Bokbasen are among them only if `with_login`.
    fn apply(&self, new: NewVersions, with_login: bool) {
        let NewVersions { requests, certificates, orders, readers, access_log, config } = new;
        telemetry::apply(&config.log);
        access_log.apply();
        self.certificates.apply(certificates);
        self.orders.apply(orders);
        self.readers.apply(readers);
        self.requests.apply(requests);
        self.ledger.set_brake(config.ledger.brake);
        self.circulation.set_licences(config.circulation.licences);
        if with_login {
            let auth = &config.lending.auth;
            self.lending.set_credentials(auth);
            self.reporting.iter().for_each(|reporting| reporting.set_credentials(auth));
        }
    }
}
