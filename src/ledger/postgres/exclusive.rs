//! A ledger in PostgreSQL while no gate runs. Only `copy` uses it.
//!
//! A gate that was killed leaves its row in `members`. It is dead when it has not renewed its lease
//! for longer than that, and is fenced here as any gate would do.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::closed_begins::ARE_CLOSED;
use super::connect::{Connector, Purpose};
use super::earlier_processes;
use super::epoch::EpochSeals;
use super::members_table::{MemberTable, PostgresMembers};
use super::observer::{LiveMember, Observer, RENEWALS_PER_LEASE};
use super::open::{in_time, prepare};
use super::settings::PostgresSettings;
use crate::clock::{self, Clock};
use crate::ledger::LedgerError;
use crate::ledger::audit::AuditKey;

/// The deadline of a statement on the members.
const DEADLINE: Duration = Duration::from_secs(5);

/// A database with one connection.
pub(in crate::ledger) struct ExclusiveDatabase {
    pub(in crate::ledger) connection: PgConnection,
    pub(in crate::ledger) settings: PostgresSettings,
    members: PostgresMembers,
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
    ) -> Result<ExclusiveDatabase, LedgerError> {
        let connector = Connector::new(settings);
        let (mut connection, ledger) =
            prepare(&connector, settings.migrations, key_fingerprint, Uuid::new_v4()).await?;
        let now = Clock::system().machine_now();
        let seals = EpochSeals::new(audit_key.clone(), ledger);
        in_time(earlier_processes::compare(&mut connection, &settings.heads, &seals, now)).await?;
        let members = PostgresMembers::new(connector, DEADLINE, seals);
        Ok(ExclusiveDatabase { connection, settings: settings.clone(), members })
    }

    /// Returns whether the database has the tables of a ledger.
    pub(in crate::ledger) async fn has_ledger(
        settings: &PostgresSettings,
    ) -> Result<bool, sqlx::Error> {
        let mut connection = Connector::new(settings).connect(Purpose::Command).await?;
        let query = sqlx::query_scalar("SELECT to_regclass('loans') IS NOT NULL");
        query.persistent(false).fetch_one(&mut connection).await
    }

    /// Returns whether begins are closed, since the database lost steps.
    pub(in crate::ledger) async fn begins_are_closed(&mut self) -> Result<bool, sqlx::Error> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {ARE_CLOSED}"));
        sqlx::query_scalar(sql).persistent(false).fetch_one(&mut self.connection).await
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
            tokio::time::sleep(interval).await;
        }
    }
}
