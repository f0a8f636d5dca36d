//! Opens begins after a loss of steps, when an operator has compared the ledger with Bokbasen.
//!
//! `loangate ledger reconcile` calls it, while gates run. It begins a new epoch, so what the gates
//! and their files have seen before proves nothing any more. Each gate notices the epoch with its
//! next renewal.
//!
//! The books of usage reports do not know what was sent in the lost time, so the command passes
//! what is not sent yet to a person, and records the time. Machines that have never seen the lost
//! steps cannot notice the loss: there the operator says that the database was restored.
//!
//! Gates record each balance of all libraries here, so that no operator forgets it.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio::time::timeout;
use uuid::Uuid;

use super::clock_difference::ClockDifference;
use super::closed_begins::{self, ANY_EPOCH};
use super::connect::{Connector, Purpose};
use super::epoch::EpochSeals;
use super::members_table::{DATABASE_NOW, duration_of};
use super::pool::{BEGIN, TRANSACTION};
use super::queries::Queries;
use super::settings::PostgresSettings;
use super::sql::statement;
use crate::clock::{self, Clock};
use crate::ledger::audit::AuditKey;
use crate::ledger::reports::{PASS_ON, RECONCILED, RECORD};
use crate::ledger::{Keys, LedgerError};

/// The deadline of all statements.
const DEADLINE: Duration = Duration::from_secs(15);

/// Why begins stay closed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// No gate has found a loss.
    #[error("begins are open, so there is nothing to reconcile")]
    BeginsOpen,
    /// The time is too late.
    #[error(
        "begins were closed at {closed}, which is before --balanced-since; name a time before the \
         backup that was restored"
    )]
    TooLate {
        /// When a gate closed begins, by the clock of the database.
        closed: Timestamp,
    },
    /// No gate has recorded a balance with which the ledger can be reconciled.
    #[error(
        "no balance of all libraries since {since} has begun after {earliest}, when Bokbasen lists \
         every begin from before begins were closed at {closed}; run \
         `loangate loans balance --since {since}` at any gate then, and settle what it finds"
    )]
    NotBalanced {
        /// The time that the operator named.
        since: Timestamp,
        /// When a gate closed begins, by the clock of the database.
        closed: Timestamp,
        /// When the balance may begin.
        earliest: Timestamp,
    },
    /// The new epoch would be a time in the future, which later ones do not exceed.
    #[error(
        "the clocks of this machine and of the database differ by {0:.0} s; set them by NTP, and \
         run the command again"
    )]
    ClocksDiffer(f64),
    /// The database did not respond in time.
    #[error("the database did not respond within {0:?}; look at /readyz of a gate and try again")]
    Silent(Duration),
    /// The database failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<sqlx::Error> for ReconcileError {
    fn from(error: sqlx::Error) -> ReconcileError {
        ReconcileError::Ledger(LedgerError::Server(error))
    }
}

/// Opens the begins of all gates, begins a new epoch, and passes the usage reports that are not
/// sent yet to a person. `since` is the start of the balance that
/// an operator has settled with Bokbasen. Returns when begins were closed.
///
/// A gate that does not know yet that begins are closed may have a begin under way. `settling` is
/// how long it takes until Bokbasen lists that, from the time when begins were closed, if each gate
/// has the lease in `settings`. It includes the difference that the clocks of the database and of a
/// gate may have. If a gate has a longer lease, it takes longer. The key of the audit trail seals
/// the epoch.
///
/// # Errors
/// [`ReconcileError`]; begins stay closed, unless only the response to the commit was lost.
pub async fn reconcile(
    settings: &PostgresSettings,
    since: Timestamp,
    settling: Duration,
    keys: &Keys,
) -> Result<Timestamp, ReconcileError> {
    let mut connection = Connector::new(settings).connect(Purpose::Command).await?;
    let opened = open_begins(&mut connection, since, (settings.lease, settling), keys);
    let reconciled = timeout(DEADLINE, opened).await;
    let reconciled = reconciled.map_err(|_| ReconcileError::Silent(DEADLINE))?;
    let _ = timeout(DEADLINE, connection.close()).await;
    reconciled
}

/// Closes the begins of all gates, and passes the usage reports that are not sent yet to a person:
/// the operator says that the database was restored. Then [`reconcile`] opens begins. Returns the
/// number of these reports.
///
/// # Errors
/// [`ReconcileError`]; the command can be repeated.
pub async fn close_restored(
    settings: &PostgresSettings,
    keys: &Keys,
) -> Result<u64, ReconcileError> {
    let mut connection = Connector::new(settings).connect(Purpose::Command).await?;
    let closed = timeout(DEADLINE, async {
        let mut transaction = connection.begin_with(BEGIN).await?;
        require_key(&mut transaction, keys).await?;
        compare_clocks(&mut transaction).await?;
        let passed = assume_lost_steps(&mut transaction).await?;
        transaction.commit().await?;
        Ok(passed)
    });
    let closed = closed.await.map_err(|_| ReconcileError::Silent(DEADLINE))?;
    let _ = timeout(DEADLINE, connection.close()).await;
    closed
}

/// Changes a database as one that may lack its newest steps: no gate begins a loan until it is
/// reconciled, and none sends a usage report that may have been sent already. Returns the number of
/// reports that it passes to a person.
pub(in crate::ledger) async fn assume_lost_steps(
    connection: &mut PgConnection,
) -> Result<u64, sqlx::Error> {
    closed_begins::close(connection, Uuid::nil(), ANY_EPOCH).await?;
    let now = database_now(connection).await?;
    pass_reports_on(connection, now).await
}

async fn open_begins(
    connection: &mut PgConnection,
    since: Timestamp,
    (lease, settling): (Duration, Duration),
    keys: &Keys,
) -> Result<Timestamp, ReconcileError> {
    // The epoch first: a gate that closes begins meanwhile waits for it, and then finds it newer.
    const LOCK_EPOCH: &str = "SELECT value FROM meta WHERE name = 'epoch' FOR UPDATE";
    const OPEN: &str = "DELETE FROM meta WHERE name = 'begins closed' RETURNING value";
    const BALANCE: &str = "SELECT value FROM meta WHERE name = 'balance'";
    /// Also of gates that have ended: they may have held it when begins were closed.
    const LONGEST_LEASE: &str = "SELECT max(lease) FROM members";
    let mut transaction = connection.begin_with(BEGIN).await?;
    // Another key would seal an epoch that every gate takes for forged.
    require_key(&mut transaction, keys).await?;
    let epoch = value(&mut transaction, LOCK_EPOCH).await?.unwrap_or_default();
    let closed = value(&mut transaction, OPEN).await?.ok_or(ReconcileError::BeginsOpen)?;
    let closed = timestamp(closed.get(size_of::<Uuid>()..).unwrap_or_default())?;
    if since >= closed {
        return Err(ReconcileError::TooLate { closed });
    }
    let longest: Option<i64> =
        statement(LONGEST_LEASE).fetch_one(&mut *transaction).await?.try_get(0)?;
    let longer =
        longest.map_or(Duration::ZERO, |lease_ms| duration_of(lease_ms).saturating_sub(lease));
    let earliest = clock::after(closed, settling.saturating_add(longer));
    let Some(balance) = value(&mut transaction, BALANCE).await? else {
        return Err(ReconcileError::NotBalanced { since, closed, earliest });
    };
    let (compared_since, at) = balance.split_at_checked(size_of::<i64>()).unwrap_or_default();
    if timestamp(compared_since)? > since || timestamp(at)? < earliest {
        return Err(ReconcileError::NotBalanced { since, closed, earliest });
    }
    compare_clocks(&mut transaction).await?;
    let now = database_now(&mut transaction).await?;
    begin_epoch(&mut transaction, (&epoch, now), &keys.audit).await?;
    pass_reports_on(&mut transaction, now).await?;
    transaction.commit().await?;
    Ok(closed)
}

/// Refuses a key under which the ledger was not written.
async fn require_key(connection: &mut PgConnection, keys: &Keys) -> Result<(), ReconcileError> {
    const FINGERPRINT: &str = "SELECT value FROM meta WHERE name = 'pseudonym key'";
    let fingerprint = value(connection, FINGERPRINT).await?;
    match fingerprint.as_deref() == Some(keys.fingerprint.as_slice()) {
        true => Ok(()),
        false => Err(LedgerError::OtherPseudonymKey.into()),
    }
}

/// Returns the time of the database, in milliseconds.
async fn database_now(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    let now = AssertSqlSafe(format!("SELECT {DATABASE_NOW}"));
    sqlx::query_scalar(now).persistent(false).fetch_one(connection).await
}

/// Refuses a clock of the database that differs from this machine's.
async fn compare_clocks(connection: &mut PgConnection) -> Result<(), ReconcileError> {
    let clock = Clock::system();
    let sent = clock.machine_now();
    let database = timestamp(&database_now(connection).await?.to_be_bytes())?;
    let difference = ClockDifference::between(sent, database, clock.machine_now());
    match difference.is_too_large() {
        true => Err(ReconcileError::ClocksDiffer(difference.seconds())),
        false => Ok(()),
    }
}

/// Begins the epoch after the one with this value. `now` is the time of the database.
async fn begin_epoch(
    connection: &mut PgConnection,
    (former, now): (&[u8], i64),
    key: &AuditKey,
) -> Result<(), ReconcileError> {
    const LEDGER: &str = "SELECT value FROM meta WHERE name = 'ledger'";
    const BEGIN_EPOCH: &str = "INSERT INTO meta (name, value) VALUES ('epoch', $1) \
         ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    let ledger = value(connection, LEDGER).await?.unwrap_or_default();
    let ledger = Uuid::from_slice(&ledger)
        .map_err(|error| LedgerError::damaged("? (the id of the ledger)", &error))?;
    let seals = EpochSeals::new(key.clone(), ledger);
    // A time, so that it exceeds epochs that a restored database has forgotten. A forged epoch is
    // the lowest.
    let next = seals.read(former).saturating_add(1).max(now);
    statement(BEGIN_EPOCH).bind(seals.to_bytes(next)).execute(connection).await?;
    Ok(())
}

/// Passes the usage reports that are not sent yet to a person.
async fn pass_reports_on(connection: &mut PgConnection, now: i64) -> Result<u64, sqlx::Error> {
    let passed = statement(PASS_ON).bind(now).execute(&mut *connection).await?;
    let record = statement(RECORD).bind(RECONCILED).bind(now.to_be_bytes().to_vec());
    record.execute(connection).await?;
    Ok(passed.rows_affected())
}

impl Queries {
    /// Records that a balance, which began at `at`, has compared the loans of all libraries since
    /// this time.
    pub(in crate::ledger) async fn record_balance(
        &self,
        since: Timestamp,
        at: Timestamp,
    ) -> Result<(), LedgerError> {
        const RECORD: &str = "INSERT INTO meta (name, value) VALUES ('balance', $1) \
             ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        let times = [since, at].map(|time| time.as_millisecond().to_be_bytes());
        let record = statement(RECORD).bind(times.concat());
        let recorded = self.feed_pool.transaction(BEGIN, TRANSACTION, async |connection| {
            record.execute(connection).await.map(drop)
        });
        Box::pin(recorded).await.map_err(LedgerError::Server)
    }
}

async fn value(
    connection: &mut PgConnection,
    sql: &'static str,
) -> Result<Option<Vec<u8>>, sqlx::Error> {
    let row = statement(sql).fetch_optional(connection).await?;
    row.map(|row| row.try_get(0)).transpose()
}

/// Decodes a time in milliseconds.
fn timestamp(value: &[u8]) -> Result<Timestamp, sqlx::Error> {
    let millis = value.try_into().ok().map(i64::from_be_bytes);
    let time = millis.and_then(|millis| Timestamp::from_millisecond(millis).ok());
    time.ok_or_else(|| sqlx::Error::Decode("a time in the table meta is damaged".into()))
}
