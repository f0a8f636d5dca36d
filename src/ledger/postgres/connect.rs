//! Opens connections to the database: tries its hosts until one accepts writes.
//!
//! sqlx connects to one host and does not test whether it is a standby, so this module does. The
//! store, its pools, the lease, the feed and `loangate check` call it.
//!
//! The connections work behind a pooler that assigns a server connection to each transaction. They
//! set no parameter that PgBouncer rejects, and statements must be built with `persistent(false)`,
//! since a prepared statement belongs to one server connection. Only a [`Session`] may prepare
//! them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::time::{Instant, timeout};

use super::endpoint::{Endpoint, Host, Tls};
use super::session::{PREPARED_STATEMENTS, Preparation, Session};
use super::settings::PostgresSettings;
use super::system_roots;

/// The longest wait for one of several hosts. A request that needs a connection waits up to 2 s,
/// and must reach the second host if the first is silent.
const MAX_HOST_SHARE: Duration = Duration::from_secs(1);

/// What a connection is for. The database shows it in `pg_stat_activity`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::ledger) enum Purpose {
    /// Queries of readers' requests and background tasks.
    Reads,
    /// Transactions that write.
    Writes,
    /// Support queries.
    Support,
    /// The renewal of this process's lease.
    Lease,
    /// Polling for changes of other processes.
    Feed,
    /// Migrations of the schema.
    Migrations,
    /// `loangate check` and other commands.
    Command,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Purpose::Reads => "reads",
            Purpose::Writes => "writes",
            Purpose::Support => "support",
            Purpose::Lease => "lease",
            Purpose::Feed => "feed",
            Purpose::Migrations => "migrations",
            Purpose::Command => "command",
        }
    }

    /// Whether it needs a session, which a pooler does not have.
    fn is_direct(self) -> bool {
        self == Purpose::Migrations
    }
}

/// Opens connections. Clones share the knowledge which host accepts writes.
#[derive(Clone)]
pub(in crate::ledger) struct Connector {
    route: Arc<Route>,
    /// The route for connections that need a session.
    direct: Arc<Route>,
}

/// The hosts of one endpoint.
struct Route {
    hosts: Vec<(Host, PgConnectOptions)>,
    application_name: String,
    connect_timeout: Duration,
    /// Off if the endpoint is a pooler.
    preparation: Preparation,
    /// The index of the host to try first: the one that last accepted writes, or the one after a
    /// host that failed.
    preferred: AtomicUsize,
}

// The options of sqlx would print the password.
impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.route.hosts.iter().map(|(host, _)| host.to_string());
        f.debug_tuple("Connector").field(&hosts.collect::<Vec<_>>()).finish()
    }
}

impl Connector {
    /// Creates a connector. Nothing connects yet.
    pub(in crate::ledger) fn new(settings: &PostgresSettings) -> Connector {
        let prepares = settings.direct.is_none();
        let route = Arc::new(Route::new(&settings.endpoint, Preparation::new(prepares)));
        let direct = match &settings.direct {
            Some(endpoint) => Arc::new(Route::new(endpoint, Preparation::new(false))),
            None => route.clone(),
        };
        Connector { route, direct }
    }

    /// Connects to a host that accepts writes: first to the one that did last.
    ///
    /// # Errors
    /// Returns the failure of each host, within the endpoint's `connect_timeout`.
    pub(in crate::ledger) async fn connect(
        &self,
        purpose: Purpose,
    ) -> Result<PgConnection, sqlx::Error> {
        let route = if purpose.is_direct() { &self.direct } else { &self.route };
        route.connect(purpose).await
    }

    /// Connects for transactions, like [`Connector::connect`].
    ///
    /// # Errors
    /// Returns the failure of each host, or of the first statement.
    pub(super) async fn session(&self, purpose: Purpose) -> Result<Session, sqlx::Error> {
        let Route { preparation, connect_timeout, .. } = &*self.route;
        let prepares = preparation.is_on();
        let connection = self.route.connect(purpose).await?;
        // The statements of a lane are few, and each has one good plan.
        let plans_once = purpose == Purpose::Writes;
        let opened = Session::new(connection, preparation.clone(), plans_once);
        let opened = within(*connect_timeout, opened).await;
        if opened.is_err() && prepares && !preparation.is_on() {
            // A pooler was found.
            let connection = self.route.connect(purpose).await?;
            return Session::new(connection, preparation.clone(), plans_once).await;
        }
        opened
    }

    /// Returns whether sessions prepare their statements: no pooler is known.
    pub(super) fn prepares(&self) -> bool {
        self.route.preparation.is_on()
    }

    /// Tries each host alone, in the order of the URL. With `direct`, those of `direct_url`.
    pub(super) async fn try_hosts(&self, direct: bool) -> Vec<TriedHost> {
        let route = if direct { &self.direct } else { &self.route };
        let mut tried = Vec::with_capacity(route.hosts.len());
        for (host, options) in &route.hosts {
            let options = route.named(options, Purpose::Command);
            let connected = within(route.connect_timeout, options.connect()).await;
            tried.push(TriedHost { name: host.to_string(), connected });
        }
        tried
    }
}

/// A host and the result of an attempt to connect to it, whether it accepts writes or not.
pub(super) struct TriedHost {
    pub(super) name: String,
    pub(super) connected: Result<PgConnection, sqlx::Error>,
}

impl Route {
    fn new(endpoint: &Endpoint, preparation: Preparation) -> Route {
        let roots = match &endpoint.tls {
            Tls::Disabled => None,
            Tls::VerifyFull(Some(roots)) => Some(roots.clone()),
            Tls::VerifyFull(None) => Some(system_roots::pem()),
        };
        let hosts = endpoint.hosts.iter();
        let hosts = hosts.map(|host| (host.clone(), options(endpoint, host, roots.as_deref())));
        Route {
            hosts: hosts.collect(),
            application_name: endpoint.application_name.clone(),
            connect_timeout: endpoint.connect_timeout,
            preparation,
            preferred: AtomicUsize::new(0),
        }
    }

    fn named(&self, options: &PgConnectOptions, purpose: Purpose) -> PgConnectOptions {
        let name = format!("{} {}", self.application_name, purpose.name());
        let capacity = if self.preparation.is_on() { PREPARED_STATEMENTS } else { 0 };
        options.clone().application_name(&name).statement_cache_capacity(capacity)
    }

    async fn connect(&self, purpose: Purpose) -> Result<PgConnection, sqlx::Error> {
        let deadline = Instant::now() + self.connect_timeout;
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        let numbered = self.hosts.iter().enumerate();
        let in_order = numbered.clone().skip(preferred).chain(numbered.take(preferred));
        for (tried, (index, (host, options))) in in_order.enumerate() {
            // A host that does not respond leaves time for the others.
            let remaining = deadline.saturating_duration_since(Instant::now());
            let hosts = u32::try_from(self.hosts.len() - tried).unwrap_or(1);
            let share = match self.hosts.len() {
                1 => remaining,
                _ => (remaining / hosts).min(MAX_HOST_SHARE),
            };
            let options = self.named(options, purpose);
            let attempt = Attempt { route: self, index };
            match within(share, connect_for_writes(&options)).await {
                Ok(connection) => {
                    attempt.succeed();
                    return Ok(connection);
                }
                Err(error) => failures.push((host.to_string(), error)),
            }
        }
        Err(sqlx::Error::Io(std::io::Error::other(NoHost(failures))))
    }
}

/// An attempt to connect to a host. If it fails or its caller gives up, the next attempt begins
/// with the next host: the deadline of a caller may be shorter than `connect_timeout`.
struct Attempt<'a> {
    route: &'a Route,
    index: usize,
}

impl Attempt<'_> {
    fn succeed(self) {
        self.route.preferred.store(self.index, Ordering::Relaxed);
        std::mem::forget(self);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let next = (self.index + 1) % self.route.hosts.len().max(1);
        let preferred = &self.route.preferred;
        // Unless another attempt has changed it.
        let _ = preferred.compare_exchange(self.index, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Why no host could be used.
#[derive(Debug)]
struct NoHost(Vec<(String, sqlx::Error)>);

impl std::error::Error for NoHost {}

impl fmt::Display for NoHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (host, error)) in self.0.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            write!(f, "{separator}{host}: {}", phrase(error))?;
        }
        Ok(())
    }
}

/// Returns an error as a phrase, without the words that sqlx puts in front.
pub(super) fn phrase(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::Tls(error) => format!("TLS: {error}"),
        other => other.to_string(),
    }
}

/// Runs a future with a deadline. Dropping an unfinished one closes its connection.
pub(in crate::ledger) async fn within<T>(
    limit: Duration,
    future: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    match timeout(limit, future).await {
        Ok(result) => result,
        Err(_) => Err(no_response(limit)),
    }
}

/// Creates the error of a call that met its deadline.
pub(super) fn no_response(limit: Duration) -> sqlx::Error {
    let text = format!("no response within {} ms", limit.as_millis());
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
}

async fn connect_for_writes(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let mut connection = options.connect().await?;
    if accepts_writes(&mut connection).await? {
        return Ok(connection);
    }
    let _ = connection.close().await;
    let text = "it accepts no writes: it is a standby or read-only";
    Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::ReadOnlyFilesystem, text)))
}

/// Returns whether the server accepts writes on this connection.
pub(super) async fn accepts_writes(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    // A simple query is one transaction, also for a pooler. `transaction_read_only` has the value
    // of `default_transaction_read_only` there, and is on in a standby.
    let query = sqlx::raw_sql(
        "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean",
    );
    let row = query.fetch_one(connection).await?;
    let is_read_only: bool = sqlx::Row::try_get(&row, 0)?;
    Ok(!is_read_only)
}

fn options(endpoint: &Endpoint, host: &Host, roots: Option<&[u8]>) -> PgConnectOptions {
    // This reads the environment too; what the endpoint has replaces it.
    let options = PgConnectOptions::new_without_pgpass()
        .port(host.port)
        .username(&endpoint.user)
        .database(&endpoint.database)
        .password(host.password.as_ref().map_or("", |password| password.expose_secret()))
        .extra_float_digits(None)
        .disable_statement_logging();
    let options = match host.is_socket() {
        true => options.socket(&host.name),
        false => options.host(&host.name),
    };
    match roots.filter(|_| !host.is_socket()) {
        Some(roots) => {
            options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert_from_pem(roots.to_vec())
        }
        None => options.ssl_mode(PgSslMode::Disable),
    }
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;
