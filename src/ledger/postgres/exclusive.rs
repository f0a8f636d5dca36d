//! A ledger in PostgreSQL while no gate runs. Only `copy` uses it.
//!
//! A copy takes hours, and waits on one side while it works on the other. So it reads pages and
//! writes batches in short transactions of a pool, which notices a lost connection, and each has a
//! deadline. No gate writes, so all pages are of one state.
//!
//! A gate that was killed leaves its row in `members`. It is dead when it has not renewed its lease
//! for longer than that, and is fenced here as any gate would do. But it may still deliver files,
//! until its `gate.freshness` is over. The gates on the destination do not know of it, so a copy
//! waits for that, too.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::sleep;
use uuid::Uuid;

use super::barrier::{Barrier, PollTracker, Polls};
use super::closed_begins::ARE_CLOSED;
use super::connect::{Connector, Purpose, within};
use super::earlier_processes;
use super::members_table::{MemberTable, PostgresMembers};
use super::observer::{LiveMember, Observer, RENEWALS_PER_LEASE};
use super::open::prepare;
use super::pool::Pool;
use super::server_error::is_of_connection;
use super::settings::PostgresSettings;
use crate::clock::{self, Clock};
use crate::ledger::LedgerError;
use crate::ledger::audit::AuditKey;

/// The deadline of a statement on the members.
const DEADLINE: Duration = Duration::from_secs(5);
/// The deadline of opening: migrations take as long as the tables are large.
const OPENING_DEADLINE: Duration = Duration::from_secs(600);
/// The attempts at a transaction whose connection fails, and the pause between two of them.
pub(in crate::ledger) const ATTEMPTS: u32 = 4;
pub(in crate::ledger) const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The interval of checks whether gates that did not leave still deliver files.
const SILENCE_INTERVAL: Duration = Duration::from_secs(1);
/// The server ends what this process has given up.
const BEGIN_READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
    SET LOCAL statement_timeout = '600s'; \
    SET LOCAL lock_timeout = '10s'; \
    SET LOCAL idle_in_transaction_session_timeout = '60s'";
const BEGIN_WRITE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
    SET LOCAL statement_timeout = '120s'; \
    SET LOCAL lock_timeout = '10s'; \
    SET LOCAL idle_in_transaction_session_timeout = '60s'";

/// The deadlines of transactions. A test has shorter ones.
#[derive(Clone, Copy, Debug)]
pub(in crate::ledger) struct Deadlines {
    /// Of a read of one page or of some rows.
    pub(in crate::ledger) page: Duration,
    /// Of a read of a whole table.
    pub(in crate::ledger) table: Duration,
    /// Of a batch that is written.
    pub(in crate::ledger) batch: Duration,
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        let [page, table, batch] = [60, 600, 120].map(Duration::from_secs);
        Deadlines { page, table, batch }
    }
}

/// A database, with a connection for reads and writes.
pub(in crate::ledger) struct ExclusiveDatabase {
    pub(in crate::ledger) settings: PostgresSettings,
    pool: Pool,
    members: PostgresMembers,
    /// What was observed of gates that may still deliver files.
    polls: Arc<PollTracker>,
    deadlines: Deadlines,
}

impl ExclusiveDatabase {
    /// Opens a ledger as a gate does. Creates its tables in an empty database and migrates an older
    /// schema.
    ///
    /// # Errors
    /// [`LedgerError`], the same that a gate would return.
    pub(in crate::ledger) async fn open(
        settings: &PostgresSettings,
        key_fingerprint: &[u8; 32],
        audit_key: &AuditKey,
        deadlines: Deadlines,
    ) -> Result<ExclusiveDatabase, LedgerError> {
        let connector = Connector::new(settings);
        let opening = async {
            let (candidate, migrations) = (Uuid::new_v4(), settings.migrations);
            let keys = (key_fingerprint, audit_key);
            let (mut connection, seals) = prepare(&connector, migrations, keys, candidate).await?;
            let clock = Clock::system();
            earlier_processes::compare(&mut connection, &settings.heads, &seals, &clock).await?;
            let _ = connection.close().await;
            Ok::<_, LedgerError>(seals)
        };
        let opened = Box::pin(within(OPENING_DEADLINE, async { Ok(opening.await) })).await;
        let seals = opened.map_err(LedgerError::Server)??;
        let pool = Pool::new(connector.clone(), Purpose::Command, 1);
        let members = PostgresMembers::new(connector, DEADLINE, seals);
        let (settings, polls) = (settings.clone(), Arc::default());
        Ok(ExclusiveDatabase { settings, pool, members, polls, deadlines })
    }

    /// Returns whether the database has the tables of a ledger.
    pub(in crate::ledger) async fn has_ledger(
        settings: &PostgresSettings,
    ) -> Result<bool, sqlx::Error> {
        let connector = Connector::new(settings);
        let searching = async {
            let mut connection = connector.connect(Purpose::Command).await?;
            let query = sqlx::query_scalar("SELECT to_regclass('loans') IS NOT NULL");
            let has_ledger = query.persistent(false).fetch_one(&mut connection).await?;
            let _ = connection.close().await;
            Ok(has_ledger)
        };
        within(Deadlines::default().page, searching).await
    }

    /// Reads a page or some rows. A read whose connection fails is tried again.
    pub(in crate::ledger) async fn read<T>(
        &self,
        work: impl AsyncFn(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        self.read_within(self.deadlines.page, work).await
    }

    /// Reads a whole table with one statement. A read whose connection fails is tried again.
    pub(in crate::ledger) async fn read_table<T>(
        &self,
        work: impl AsyncFn(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        self.read_within(self.deadlines.table, work).await
    }

    async fn read_within<T>(
        &self,
        deadline: Duration,
        work: impl AsyncFn(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            // Boxed: connecting takes much memory, which a caller's future would reserve.
            match Box::pin(self.pool.transaction(BEGIN_READ, deadline, &work)).await {
                Err(error) if is_of_connection(&error) && attempts < ATTEMPTS => {
                    sleep(RETRY_PAUSE).await;
                }
                read => return read,
            }
        }
    }

    /// Writes in one transaction. If no connection can be opened, it is tried again.
    pub(in crate::ledger) async fn write<T>(
        &self,
        work: impl AsyncFn(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        // A commit may have succeeded although its connection failed, so only the caller can
        // decide whether to repeat it.
        let has_begun = AtomicBool::new(false);
        let work = async |connection: &mut PgConnection| {
            has_begun.store(true, Ordering::Relaxed);
            work(connection).await
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let written = self.pool.transaction(BEGIN_WRITE, self.deadlines.batch, &work);
            match Box::pin(written).await {
                Err(error)
                    if is_of_connection(&error)
                        && !has_begun.load(Ordering::Relaxed)
                        && attempts < ATTEMPTS =>
                {
                    sleep(RETRY_PAUSE).await;
                }
                written => return written,
            }
        }
    }

    /// Returns whether begins are closed, since the database lost steps.
    pub(in crate::ledger) async fn begins_are_closed(&self) -> Result<bool, sqlx::Error> {
        self.read(async |connection| {
            let sql = sqlx::AssertSqlSafe(format!("SELECT {ARE_CLOSED}"));
            sqlx::query_scalar(sql).persistent(false).fetch_one(connection).await
        })
        .await
    }

    pub(in crate::ledger) async fn close(&self) {
        self.pool.close().await;
    }

    /// Returns whether no gate is a member. Waits for one that does not renew its lease, and fences
    /// it when the lease has expired.
    pub(in crate::ledger) async fn is_alone(
        &mut self,
        mut on_wait: impl FnMut(usize),
    ) -> Result<bool, sqlx::Error> {
        // As often as a gate with this lease.
        let interval = self.settings.lease / RENEWALS_PER_LEASE;
        let mut observer = Observer::new(interval);
        let mut seen: HashMap<Uuid, i64> = HashMap::new();
        loop {
            // From now on, a gate that was killed counts as silent.
            self.observe_polls().await?;
            let live = self.members.read(&[]).await?.live;
            if live.is_empty() {
                return Ok(true);
            }
            // A new member proves nothing: a gate joins before it finds that a copy is running.
            let renewed = |LiveMember { member, .. }: &LiveMember| {
                seen.get(&member.id).is_some_and(|renewals| *renewals != member.renewals)
            };
            if live.iter().any(renewed) {
                return Ok(false);
            }
            seen.extend(live.iter().map(|live| (live.member.id, live.member.renewals)));
            on_wait(live.len());
            for expired in observer.record(&live, clock::since_boot()) {
                self.members.fence(expired).await?;
            }
            sleep(interval).await;
        }
    }

    /// Waits until no gate delivers files under loans of this ledger. All gates have left or are
    /// fenced, and the ledger is marked as moved: what a gate has read before the mark counts too.
    pub(in crate::ledger) async fn wait_for_silence(
        &self,
        mut on_wait: impl FnMut(usize),
    ) -> Result<(), sqlx::Error> {
        let (base, ended) = self.observe_polls().await?;
        let gates = base.count();
        if gates == 0 {
            return Ok(());
        }
        let barrier = Barrier::new(base, ended, self.polls.clone());
        while !barrier.is_past() {
            on_wait(gates);
            sleep(SILENCE_INTERVAL).await;
            self.observe_polls().await?;
        }
        Ok(())
    }

    /// Records the counters of the gates that may still deliver files. Returns them, and when they
    /// had been read, in time since this machine started.
    async fn observe_polls(&self) -> Result<(Polls, Duration), sqlx::Error> {
        let began = clock::since_boot();
        let polls = self.read(async |connection| Polls::read(connection).await).await?;
        let ended = clock::since_boot();
        self.polls.observe(&polls, began, ended);
        Ok((polls, ended))
    }
}
