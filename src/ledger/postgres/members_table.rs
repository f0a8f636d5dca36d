//! The table `members`: one row for each process that uses the ledger.
//!
//! `membership` calls it, over a connection of its own, so that no query or transaction on loans
//! delays a renewal. The statements on members run one after another, each within a deadline. A
//! failed or late one closes the connection, and the next one opens another.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row};
use uuid::Uuid;

use super::closed_begins::{self, ARE_CLOSED, EPOCH};
use super::connect::{Connector, Purpose, within};
use super::copy_marks::{self, IS_MOVED, MarkedLedger};
use super::epoch::EpochSeals;
use super::migrations::SchemaTooNew;
use super::observer::{LiveMember, Member};
use super::pool::BEGIN;
use super::seen_renewals::{RETENTION_MS, SHORT_LIFE_RENEWALS, SHORT_RETENTION_MS};
use crate::clock::Clock;
use crate::ledger::copy_mark::{MARKS, Marks};

/// How long a fenced member is dead for [`Members::fenced`], in milliseconds.
const LISTED_FENCED_MS: i64 = 86_400_000;
/// The time of the database, in milliseconds.
pub(super) const DATABASE_NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint";

/// The statement of [`MemberTable::read`]. `now()` does not change in a statement, so the index can
/// be used.
const READ: &str = "SELECT member, renewals, fenced IS NOT NULL, has_left, lease FROM members \
     WHERE fenced IS NULL \
     OR NOT has_left AND fenced > (extract(epoch FROM now()) * 1000)::bigint - $1 \
     OR member = ANY($2) ORDER BY member";

/// The columns of a [`Renewal`].
fn renewal_columns() -> String {
    format!("{DATABASE_NOW}, renewals, {ARE_CLOSED}, {EPOCH}")
}

/// The statements on the members. A test implements them in memory.
pub(super) trait MemberTable: Send {
    /// Inserts a member, unless the schema requires a newer program or the ledger was moved. The
    /// error is then `SchemaTooNew` or `MarkedLedger`.
    fn join(
        &mut self,
        member: Uuid,
        process: JoiningProcess,
    ) -> impl Future<Output = Result<Renewal, sqlx::Error>> + Send;

    /// Increments the counter of a member. Returns none if the member is fenced.
    fn renew(
        &mut self,
        member: Uuid,
    ) -> impl Future<Output = Result<Option<Renewal>, sqlx::Error>> + Send;

    /// Returns all members, and also the ones with these names that have ended.
    fn read(&mut self, ended: &[Uuid])
    -> impl Future<Output = Result<Members, sqlx::Error>> + Send;

    /// Fences a member, unless it has renewed its lease. Returns whether it is fenced by this.
    fn fence(&mut self, member: Member) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Ends a member that writes nothing and delivers no file any more. Increments its counter, and
    /// returns it. The row stays for the retention in `seen_renewals`.
    fn leave(
        &mut self,
        member: Uuid,
    ) -> impl Future<Output = Result<Option<i64>, sqlx::Error>> + Send;

    /// Deletes the rows of members that ended before their retention.
    fn delete_old(&mut self) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Closes the begins of all gates: see `closed_begins`.
    fn close_begins(
        &mut self,
        process: Uuid,
        epoch: i64,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// What a process records when it joins, since the others depend on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct JoiningProcess {
    /// The same for all names that the process has in its life.
    pub(super) id: Uuid,
    pub(super) lease: Duration,
    /// How long it delivers without a read of the change feed.
    pub(super) freshness: Duration,
    /// The schema version that the program knows.
    pub(super) program: i64,
}

/// The response to a join or a renewal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Renewal {
    /// The time of the database.
    pub(super) at: Timestamp,
    /// The counter of the member.
    pub(super) renewals: i64,
    /// The epoch of the database; `epoch::FORGED` if its seal is wrong.
    pub(super) epoch: i64,
    /// Whether no gate may begin a loan: see `closed_begins`.
    pub(super) begins_are_closed: bool,
}

/// The members at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Members {
    /// Those that nobody has fenced.
    pub(super) live: Vec<LiveMember>,
    /// Those that were fenced within a day.
    pub(super) fenced: Vec<Uuid>,
    /// All that were read and have ended, also those that left.
    pub(super) ended: Vec<Member>,
}

/// The table in PostgreSQL.
pub(super) struct PostgresMembers {
    connector: Connector,
    /// None before the first statement and after a failure.
    connection: Option<PgConnection>,
    /// The deadline of a statement, including its connection.
    deadline: Duration,
    seals: EpochSeals,
}

impl PostgresMembers {
    /// Creates the client of the table. Nothing connects yet.
    pub(super) fn new(
        connector: Connector,
        deadline: Duration,
        seals: EpochSeals,
    ) -> PostgresMembers {
        PostgresMembers { connector, connection: None, deadline, seals }
    }

    /// Leaves a ledger that was moved or is only half copied. A process that was suspended for
    /// longer than its lease may join again after a copy. The marks are read after the join: a copy
    /// marks the ledger first, and then finds this member.
    async fn leave_if_copied(&mut self, member: Uuid) -> Result<(), sqlx::Error> {
        let marks = copy_marks::of_rows(&self.run(statement(MARKS.to_owned())).await?)?;
        if marks.allow_gate().is_ok() {
            return Ok(());
        }
        // If that fails, the other members fence the row.
        let _ = self.leave(member).await;
        Err(MarkedLedger::error(marks))
    }

    /// Returns why a ledger without marks has refused a join.
    async fn refusal(&mut self, program: i64) -> Result<sqlx::Error, sqlx::Error> {
        let schema = statement("SELECT min_program > $1 FROM schema_version".to_owned());
        let rows = self.run(schema.bind(program)).await?;
        let is_too_new = rows.first().map(|row| row.try_get(0)).transpose()?;
        Ok(match is_too_new {
            Some(false) => MarkedLedger::error(Marks::default()),
            Some(true) | None => sqlx::Error::Configuration(Box::new(SchemaTooNew)),
        })
    }

    /// Runs one statement in a transaction of its own, and commits it. Returns its rows.
    async fn run(&mut self, statement: Statement<'_>) -> Result<Vec<PgRow>, sqlx::Error> {
        let taken = self.connection.take();
        let connector = &self.connector;
        let running = async move {
            let mut connection = match taken {
                Some(connection) => connection,
                None => Box::pin(connector.connect(Purpose::Lease)).await?,
            };
            sqlx::raw_sql(BEGIN).execute(&mut connection).await?;
            let rows = statement.persistent(false).fetch_all(&mut connection).await?;
            sqlx::raw_sql("COMMIT").execute(&mut connection).await?;
            Ok((connection, rows))
        };
        let (connection, rows) = within(self.deadline, running).await?;
        self.connection = Some(connection);
        Ok(rows)
    }
}

type Statement<'a> = Query<'a, Postgres, PgArguments>;

fn statement<'a>(sql: String) -> Statement<'a> {
    sqlx::query(AssertSqlSafe(sql))
}

impl MemberTable for PostgresMembers {
    async fn join(
        &mut self,
        member: Uuid,
        process: JoiningProcess,
    ) -> Result<Renewal, sqlx::Error> {
        // The lock orders this after a contraction that has read the members already.
        let sql = format!(
            "WITH schema AS (SELECT min_program FROM schema_version FOR SHARE) \
             INSERT INTO members (member, process, program, joined, lease, freshness) \
             SELECT $1, $2, $3, {DATABASE_NOW}, $4, $5 FROM schema WHERE min_program <= $3 \
             AND NOT {IS_MOVED} \
             RETURNING {}",
            renewal_columns()
        );
        let statement = statement(sql).bind(member).bind(process.id).bind(process.program);
        let statement = statement.bind(millis(process.lease)).bind(millis(process.freshness));
        let rows = self.run(statement).await?;
        self.leave_if_copied(member).await?;
        match rows.first() {
            Some(row) => renewal_of(row, &self.seals),
            None => Err(self.refusal(process.program).await?),
        }
    }

    async fn renew(&mut self, member: Uuid) -> Result<Option<Renewal>, sqlx::Error> {
        let sql = format!(
            "UPDATE members SET renewals = renewals + 1 WHERE member = $1 AND fenced IS NULL \
             RETURNING {}",
            renewal_columns()
        );
        let rows = self.run(statement(sql).bind(member)).await?;
        rows.first().map(|row| renewal_of(row, &self.seals)).transpose()
    }

    async fn read(&mut self, ended: &[Uuid]) -> Result<Members, sqlx::Error> {
        let mut members = Members::default();
        let read = statement(READ.to_owned());
        for row in self.run(read.bind(LISTED_FENCED_MS).bind(ended)).await? {
            let member = Member { id: row.try_get(0)?, renewals: row.try_get(1)? };
            let (has_ended, has_left): (bool, bool) = (row.try_get(2)?, row.try_get(3)?);
            match has_ended {
                true => members.ended.push(member),
                false => {
                    let lease = duration_of(row.try_get(4)?);
                    members.live.push(LiveMember { member, lease });
                }
            }
            if has_ended && !has_left {
                members.fenced.push(member.id);
            }
        }
        Ok(members)
    }

    async fn fence(&mut self, member: Member) -> Result<bool, sqlx::Error> {
        let sql = format!(
            "UPDATE members SET fenced = greatest({DATABASE_NOW}, $3) \
             WHERE member = $1 AND renewals = $2 AND fenced IS NULL RETURNING member"
        );
        let statement = statement(sql).bind(member.id).bind(member.renewals).bind(machine_now());
        Ok(!self.run(statement).await?.is_empty())
    }

    async fn leave(&mut self, member: Uuid) -> Result<Option<i64>, sqlx::Error> {
        let sql = format!(
            "UPDATE members SET renewals = renewals + 1, has_left = true, \
             fenced = greatest({DATABASE_NOW}, $2) \
             WHERE member = $1 AND fenced IS NULL RETURNING renewals"
        );
        let rows = self.run(statement(sql).bind(member).bind(machine_now())).await?;
        rows.first().map(|row| row.try_get(0)).transpose()
    }

    async fn delete_old(&mut self) -> Result<(), sqlx::Error> {
        let sql = format!(
            "DELETE FROM members WHERE fenced < {DATABASE_NOW} - \
             CASE WHEN renewals > $1 THEN $2 ELSE $3 END"
        );
        let statement = statement(sql).bind(SHORT_LIFE_RENEWALS);
        self.run(statement.bind(RETENTION_MS).bind(SHORT_RETENTION_MS)).await.map(drop)
    }

    async fn close_begins(&mut self, process: Uuid, epoch: i64) -> Result<(), sqlx::Error> {
        let statement = statement(closed_begins::CLOSE.to_owned());
        let statement = statement.bind(process.as_bytes().to_vec());
        self.run(statement.bind(epoch.to_be_bytes().to_vec())).await.map(drop)
    }
}

/// Returns the time of this machine. A row that ends now must not look old once the clock of the
/// database is corrected: it would be deleted too early, which proves a loss to the others.
fn machine_now() -> i64 {
    Clock::system().machine_now().as_millisecond()
}

/// Returns the milliseconds of a setting, which is longer than zero.
fn millis(setting: Duration) -> i64 {
    i64::try_from(setting.as_millis()).unwrap_or(i64::MAX).max(1)
}

/// Returns the setting of these milliseconds.
pub(super) fn duration_of(millis: i64) -> Duration {
    Duration::from_millis(millis.unsigned_abs())
}

fn renewal_of(row: &PgRow, seals: &EpochSeals) -> Result<Renewal, sqlx::Error> {
    let decoded = |error: jiff::Error| sqlx::Error::Decode(Box::new(error));
    let at = Timestamp::from_millisecond(row.try_get(0)?).map_err(decoded)?;
    let (renewals, begins_are_closed) = (row.try_get(1)?, row.try_get(2)?);
    Ok(Renewal { at, renewals, epoch: seals.read_row(row.try_get(3)?), begins_are_closed })
}

#[cfg(test)]
mod tests {
    use super::super::barrier::POLLS;
    use super::super::closed_begins;
    use super::super::queries_tests::SCHEMA;
    use super::super::test_support::{settings, support};
    use super::*;
    use crate::ledger::test_support::audit_key;
    use support::{Database, Postgres};

    const TABLE: &str = "CREATE TABLE meta (name text PRIMARY KEY, value bytea NOT NULL); \
         INSERT INTO meta VALUES ('epoch', int8send(7)); \
         CREATE TABLE schema_version (version bigint, min_program bigint); \
         INSERT INTO schema_version VALUES (2, 2); \
         CREATE TABLE members (member uuid PRIMARY KEY, process uuid NOT NULL, program bigint, \
         joined bigint NOT NULL, lease bigint NOT NULL, freshness bigint NOT NULL, \
         renewals bigint NOT NULL DEFAULT 0, \
         polls bigint NOT NULL DEFAULT 0, fenced bigint, \
         has_left boolean NOT NULL DEFAULT false)";

    fn member(id: u128, renewals: i64) -> Member {
        Member { id: Uuid::from_u128(id), renewals }
    }

    const LEASE: Duration = Duration::from_secs(30);

    fn live(id: u128, renewals: i64) -> LiveMember {
        LiveMember { member: member(id, renewals), lease: LEASE }
    }

    fn process(id: u128) -> JoiningProcess {
        JoiningProcess { id: Uuid::from_u128(id), lease: LEASE, freshness: 2 * LEASE, program: 2 }
    }

    async fn table(database: &Database) -> PostgresMembers {
        let connector = Connector::new(&settings(&database.url()));
        let seals = EpochSeals::new(audit_key(), Uuid::nil());
        PostgresMembers::new(connector, Duration::from_secs(5), seals)
    }

    #[tokio::test]
    async fn member_renews_until_it_is_fenced() {
        let Some(server) = Postgres::shared().await else { return };
        let database = server.database().await;
        sqlx::raw_sql(TABLE).execute(&mut database.connect().await).await.unwrap();
        let (mut mine, mut other) = (table(&database).await, table(&database).await);
        let me = Uuid::from_u128(1);
        let at = mine.join(me, process(9)).await.unwrap().at;
        let difference = Clock::system().machine_now().duration_since(at).abs();
        assert!(difference.as_secs() < 5, "{at}");
        mine.renew(me).await.unwrap().unwrap();
        assert_eq!(other.read(&[]).await.unwrap().live, [live(1, 1)]);
        mine.renew(me).await.unwrap().unwrap();
        assert!(!other.fence(member(1, 1)).await.unwrap(), "it has renewed since the read");
        assert!(other.fence(member(1, 2)).await.unwrap());
        assert!(!other.fence(member(1, 2)).await.unwrap(), "it is fenced already");
        assert!(mine.renew(me).await.unwrap().is_none());
        assert_eq!(mine.read(&[]).await.unwrap().fenced, [me]);
        assert!(mine.renew(Uuid::from_u128(2)).await.unwrap().is_none(), "a deleted row");
    }

    #[tokio::test]
    async fn renewal_says_whether_begins_are_closed() {
        let Some(server) = Postgres::shared().await else { return };
        let database = server.database().await;
        let mut connection = database.connect().await;
        sqlx::raw_sql(TABLE).execute(&mut connection).await.unwrap();
        let mut table = table(&database).await;
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert!(!table.join(first, process(1)).await.unwrap().begins_are_closed);
        for _ in 0..2 {
            closed_begins::close(&mut connection, first, 7).await.unwrap();
            assert!(table.renew(first).await.unwrap().unwrap().begins_are_closed);
        }
        assert!(table.join(second, process(2)).await.unwrap().begins_are_closed);
        sqlx::raw_sql(closed_begins::OPEN).execute(&mut connection).await.unwrap();
        assert!(!table.renew(first).await.unwrap().unwrap().begins_are_closed);
    }

    #[tokio::test]
    async fn leave_removes_a_member_and_old_fenced_ones_are_deleted() {
        let Some(server) = Postgres::shared().await else { return };
        let database = server.database().await;
        let mut admin = database.connect().await;
        sqlx::raw_sql(TABLE).execute(&mut admin).await.unwrap();
        let mut table = table(&database).await;
        for id in 1..=3 {
            table.join(Uuid::from_u128(id), process(9)).await.unwrap();
        }
        for id in 1..=2 {
            let member = Member { id: Uuid::from_u128(id), renewals: 0 };
            assert!(table.fence(member).await.unwrap());
        }
        table.leave(Uuid::from_u128(3)).await.unwrap();
        let older = "UPDATE members SET fenced = fenced - 86400001 \
             WHERE member = '00000000-0000-0000-0000-000000000001'";
        sqlx::raw_sql(older).execute(&mut admin).await.unwrap();
        table.delete_old().await.unwrap();
        let members = table.read(&[]).await.unwrap();
        assert_eq!((members.live.len(), members.fenced), (0, vec![Uuid::from_u128(2)]));
    }

    #[tokio::test]
    async fn rows_of_ended_members_stay_for_their_retention() {
        let Some(server) = Postgres::shared().await else { return };
        let database = server.database().await;
        let mut admin = database.connect().await;
        sqlx::raw_sql(TABLE).execute(&mut admin).await.unwrap();
        let mut table = table(&database).await;
        let names: Vec<Uuid> = (1..=3).map(Uuid::from_u128).collect();
        for name in &names {
            table.join(*name, process(9)).await.unwrap();
        }
        // The first lives shortly, and the others renew once.
        table.renew(names[1]).await.unwrap().unwrap();
        table.renew(names[2]).await.unwrap().unwrap();
        for (name, renewals) in names.iter().zip([1, 2, 2]) {
            assert_eq!(table.leave(*name).await.unwrap(), Some(renewals));
            assert_eq!(table.leave(*name).await.unwrap(), None, "it has left");
        }
        assert!(table.renew(names[1]).await.unwrap().is_none());
        assert_eq!(table.read(&[]).await.unwrap(), Members::default());
        let mut left = async |name: u128, days: i64| {
            let older = format!(
                "UPDATE members SET fenced = fenced - {days}::bigint * 86400000 - 1 \
                 WHERE member = '{}'",
                Uuid::from_u128(name)
            );
            sqlx::raw_sql(AssertSqlSafe(older)).execute(&mut admin).await.unwrap();
        };
        left(1, 1).await;
        left(2, 29).await;
        left(3, 30).await;
        table.delete_old().await.unwrap();
        let members = table.read(&names).await.unwrap();
        assert_eq!((members.ended, members.fenced), (vec![member(2, 2)], Vec::new()));
        assert!(members.live.is_empty());
    }

    #[tokio::test]
    async fn rows_of_a_month_are_not_scanned() {
        let Some(server) = Postgres::shared().await else { return };
        let database = server.database().await;
        let mut admin = database.connect().await;
        let fill = "INSERT INTO members (member, process, joined, lease, freshness, fenced) \
             SELECT gen_random_uuid(), gen_random_uuid(), 0, 1, 1, CASE WHEN n > 3 THEN \
             (extract(epoch FROM now()) * 1000)::bigint - n::bigint * 86400 END \
             FROM generate_series(1, 30000) AS n";
        for sql in [SCHEMA, fill, "ANALYZE members"] {
            sqlx::raw_sql(sql).execute(&mut admin).await.unwrap();
        }
        let read = READ
            .replace("$1", "86400000")
            .replace("$2", "'{00000000-0000-0000-0000-000000000001}'");
        for sql in [read.as_str(), POLLS, "SELECT process FROM members WHERE fenced IS NULL"] {
            let explain = AssertSqlSafe(format!("EXPLAIN {sql}"));
            let plan: Vec<String> =
                sqlx::query_scalar(explain).fetch_all(&mut admin).await.unwrap();
            let plan = plan.join("\n");
            assert!(plan.contains("members_by_end") && !plan.contains("Seq Scan"), "{plan}");
        }
    }

    #[tokio::test]
    async fn nobody_joins_a_ledger_that_was_moved() {
        let Some(server) = Postgres::shared().await else { return };
        let database = server.database().await;
        let mut admin = database.connect().await;
        sqlx::raw_sql(TABLE).execute(&mut admin).await.unwrap();
        let mut table = table(&database).await;
        for (name, sentence) in [("moved", "was moved to"), ("copy in progress", "half copied")] {
            let mark = sqlx::query("INSERT INTO meta VALUES ($1, '')").bind(name);
            mark.execute(&mut admin).await.unwrap();
            let refused = table.join(Uuid::from_u128(1), process(9)).await.unwrap_err();
            assert!(refused.to_string().contains(sentence), "{refused}");
            assert!(table.read(&[]).await.unwrap().live.is_empty());
            sqlx::raw_sql("DELETE FROM members").execute(&mut admin).await.unwrap();
        }
    }

    #[tokio::test]
    async fn mark_that_is_removed_meanwhile_is_no_newer_schema() {
        let Some(server) = Postgres::shared().await else { return };
        let database = server.database().await;
        let mut admin = database.connect().await;
        // Only the first statement sees the mark.
        let vanishing = "INSERT INTO meta VALUES ('moved', ''); ALTER TABLE meta RENAME TO kept; \
             CREATE SEQUENCE reads; CREATE VIEW meta AS SELECT * FROM kept \
             WHERE name <> 'moved' OR nextval('reads') = 1";
        for sql in [TABLE, vanishing] {
            sqlx::raw_sql(sql).execute(&mut admin).await.unwrap();
        }
        let mut table = table(&database).await;
        let refused = table.join(Uuid::from_u128(1), process(9)).await.unwrap_err();
        assert_eq!(MarkedLedger::marks_in(&refused), Some(&Marks::default()), "{refused}");
        assert!(table.read(&[]).await.unwrap().live.is_empty());
        table.join(Uuid::from_u128(1), process(9)).await.unwrap();
        sqlx::raw_sql("UPDATE schema_version SET min_program = 3")
            .execute(&mut admin)
            .await
            .unwrap();
        let refused = table.join(Uuid::from_u128(2), process(9)).await.unwrap_err();
        assert!(matches!(refused, sqlx::Error::Configuration(_)), "{refused}");
    }

    #[tokio::test]
    async fn failed_statement_opens_another_connection() {
        let Some(server) = Postgres::shared().await else { return };
        let database = server.database().await;
        sqlx::raw_sql(TABLE).execute(&mut database.connect().await).await.unwrap();
        let mut table = table(&database).await;
        let first = Uuid::from_u128(1);
        table.join(first, process(9)).await.unwrap();
        assert!(table.join(first, process(9)).await.is_err(), "the name is taken");
        assert!(table.connection.is_none());
        table.renew(first).await.unwrap().unwrap();
    }
}
