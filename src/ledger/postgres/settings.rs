//! The keys of `[ledger]` for PostgreSQL.
//!
//! `config` builds them.

use std::path::PathBuf;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::migrations::Migration;

/// How the ledger uses a PostgreSQL database.
#[derive(Clone, Debug)]
pub struct PostgresSettings {
    /// `url`: the database, or a pooler in front of it.
    pub endpoint: Endpoint,
    /// `direct_url`: the database itself, if `url` names a pooler. Migrations need it.
    pub direct: Option<Box<Endpoint>>,
    /// `connections`: the maximum number of connections of this process.
    pub connections: u32,
    /// `lease`: how long a process may be silent before others take over its loans.
    pub lease: Duration,
    /// `gate.freshness`: how long this process may deliver without a read of the change feed. Other
    /// processes read it, and wait for so long.
    pub freshness: Duration,
    /// `heads`: the directory of the files with the newest links of the audit trail.
    pub heads: PathBuf,
    /// The migrations that this program knows, [`super::MIGRATIONS`]. Only tests have others.
    pub migrations: &'static [Migration],
}

/// The numbers of connections for each purpose. Their sum is `connections`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ConnectionShares {
    /// For the queries of readers' requests and of background tasks.
    pub reads: u32,
    /// For transactions that write.
    pub writes: u32,
    /// For support queries and `/readyz`.
    pub support: u32,
    /// For the lease, the change feed and migrations, one each.
    pub fixed: u32,
}

impl PostgresSettings {
    /// The smallest number of connections: every purpose has at least one.
    pub const MIN_CONNECTIONS: u32 = 8;
    /// The default number of connections.
    pub const DEFAULT_CONNECTIONS: u32 = 20;
    /// The default lease.
    pub const DEFAULT_LEASE: Duration = Duration::from_secs(30);
    /// The default of `gate.freshness`: longer than a failover.
    pub const DEFAULT_FRESHNESS: Duration = Duration::from_secs(60);
    /// The longest `gate.freshness`: others remember a dead process only for some minutes.
    pub const MAX_FRESHNESS: Duration = Duration::from_secs(300);
    /// The shortest lease, unless the lending platform is on this machine. A shorter one fences
    /// nodes that are only slow.
    pub const MIN_LEASE: Duration = Duration::from_secs(10);
    /// The longest lease: others take over the loans of a dead process only after it.
    pub const MAX_LEASE: Duration = Duration::from_secs(3600);

    /// Divides the connections among their purposes.
    pub fn shares(&self) -> ConnectionShares {
        let (fixed, support) = (3, 2);
        let others = self.connections.saturating_sub(fixed + support).max(2);
        // A batch needs one connection for each library, and a query is short.
        let writes = (others / 2).max(1);
        ConnectionShares { reads: others - writes, writes, support, fixed }
    }
}

/// Returns the longest `lending.timeout` that fits in a lease. A call must end before others may
/// take over its loan, even if the next renewal fails. The lease is renewed at each fifth, so four
/// fifths of it are left when the call begins, less the delay of a slow renewal.
pub fn longest_call(lease: Duration) -> Duration {
    lease - lease / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_use_exactly_the_connections() {
        let mut settings = super::super::test_support::settings("postgres://u@localhost/x");
        for connections in PostgresSettings::MIN_CONNECTIONS..100 {
            settings.connections = connections;
            let ConnectionShares { reads, writes, support, fixed } = settings.shares();
            assert_eq!(reads + writes + support + fixed, connections);
            assert!(reads > 0 && writes > 0, "{connections}");
        }
        assert_eq!(longest_call(Duration::from_secs(30)), Duration::from_secs(20));
    }
}
