//! The table `bulletins`: a row for each member that has published one.
//!
//! One transaction writes the own row, removes those of members that have ended, and reads the
//! others. No transaction waits for another one: each writes its own row only, and skips rows that
//! another one removes.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::members_table::DATABASE_NOW;
use super::pool::{BEGIN, TRANSACTION};
use super::queries::Queries;
use super::session::prepares;
use crate::ledger::LedgerError;
use crate::ledger::bulletins::{Bulletin, MAX_BULLETIN, MAX_BULLETINS};

const REMOVE: &str = "DELETE FROM bulletins WHERE member = ANY(ARRAY( \
     SELECT member FROM bulletins WHERE NOT EXISTS (SELECT 1 FROM members \
     WHERE members.member = bulletins.member AND members.fenced IS NULL) \
     FOR UPDATE SKIP LOCKED))";

/// A member that was declared dead publishes nothing.
fn write() -> String {
    format!(
        "INSERT INTO bulletins (member, written, content) \
         SELECT member, {DATABASE_NOW}, $2 FROM members WHERE member = $1 AND fenced IS NULL \
         ON CONFLICT (member) DO UPDATE SET written = excluded.written, content = excluded.content"
    )
}

fn read() -> String {
    format!(
        "SELECT {DATABASE_NOW} - written, content FROM bulletins JOIN members USING (member) \
         WHERE member <> $1 AND fenced IS NULL AND octet_length(content) <= {MAX_BULLETIN} \
         ORDER BY written DESC LIMIT {MAX_BULLETINS}"
    )
}

impl Queries {
    /// Publishes the bulletin of the member with this name, and returns those of the others.
    pub(in crate::ledger) async fn exchange_bulletins(
        &self,
        member: &str,
        own: &str,
    ) -> Result<Vec<Bulletin>, LedgerError> {
        let member = Uuid::parse_str(member)
            .map_err(|error| LedgerError::damaged("? (the name of this process)", &error))?;
        let (write, read) = (write(), read());
        let exchange = self.pool.transaction(BEGIN, TRANSACTION, async |connection| {
            let prepared = prepares(connection);
            let text = |sql: &str| sqlx::AssertSqlSafe(sql.to_owned());
            let writing = sqlx::query(text(&write)).bind(member).bind(own.to_owned());
            writing.persistent(prepared).execute(&mut *connection).await?;
            sqlx::query(REMOVE).persistent(prepared).execute(&mut *connection).await?;
            let reading = sqlx::query(text(&read)).bind(member).persistent(prepared);
            reading.fetch_all(&mut *connection).await
        });
        // Boxed: connecting takes much memory, which a caller's future would reserve.
        let rows = Box::pin(exchange).await.map_err(LedgerError::Server)?;
        rows.iter().map(bulletin_of).collect::<Result<_, _>>().map_err(LedgerError::Server)
    }
}

fn bulletin_of(row: &PgRow) -> Result<Bulletin, sqlx::Error> {
    let age: i64 = row.try_get(0)?;
    let age = Duration::from_millis(u64::try_from(age).unwrap_or_default());
    Ok(Bulletin { age, content: row.try_get(1)? })
}

#[cfg(test)]
mod tests {
    use sqlx::Executor;

    use super::super::test_support::support::Postgres;
    use super::super::test_support::{Node, settings, until};
    use super::*;
    use crate::ledger::Brake;

    /// A lease that a test can wait for, and that a busy machine renews in time.
    const LEASE: Duration = Duration::from_secs(4);

    fn contents(bulletins: &[Bulletin]) -> Vec<&str> {
        bulletins.iter().map(|bulletin| bulletin.content.as_str()).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn live_processes_read_the_bulletins_of_each_other() {
        let Some(server) = Postgres::shared().await else { return };
        let database = server.database().await;
        let open = async || {
            let mut settings = settings(&database.url());
            settings.lease = LEASE;
            Node::open_with(settings, Brake::default()).await
        };
        let (first, second) = (open().await, open().await);
        let exchange =
            async |node: &Node, own: &str| node.ledger.exchange_bulletins(own).await.unwrap();
        assert!(exchange(&first, "one").await.is_empty());
        let read = exchange(&second, "two").await;
        assert_eq!(contents(&read), ["one"]);
        assert!(read[0].age < Duration::from_secs(60), "{read:?}");
        exchange(&first, "three").await;
        assert_eq!(contents(&exchange(&second, "two").await), ["three"]);
        let long = "x".repeat(MAX_BULLETIN + 1);
        assert!(second.ledger.exchange_bulletins(&long).await.is_err());
        assert_eq!(contents(&exchange(&first, "three").await), ["two"], "the last one stays");

        // A process that was declared dead is left out at once, and publishes under its new name.
        let dead = first.ledger.membership.name();
        let fence = format!("UPDATE members SET fenced = joined + 1 WHERE member = '{dead}'");
        let mut connection = database.connect().await;
        connection.execute(sqlx::AssertSqlSafe(fence)).await.unwrap();
        assert!(exchange(&second, "two").await.is_empty());
        exchange(&first, "by a dead process").await;
        let of_dead = "SELECT count(*) FROM bulletins WHERE member = $1";
        let of_dead = sqlx::query_scalar::<_, i64>(of_dead).bind(dead.parse::<Uuid>().unwrap());
        assert_eq!(of_dead.fetch_one(&mut connection).await.unwrap(), 0, "its row is removed");
        until("it joins again", async || {
            first.ledger.membership.name() != dead && first.ledger.lease().is_held()
        })
        .await;
        exchange(&first, "again").await;
        assert_eq!(contents(&exchange(&second, "two").await), ["again"]);
        first.close().await;
        second.close().await;
    }
}
