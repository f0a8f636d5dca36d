//! The doubts of the balance, in a write transaction. See `sqlite::doubts`.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::ledger::Doubts;
use crate::ledger::states::{MAX_DOUBTS, doubts_discarded_before};

pub(super) const CLEAR: &str =
    "DELETE FROM doubts WHERE library = $1 AND (run < $2 OR loan <> ALL($3))";

pub(super) const CONFIRM: &str = "INSERT INTO doubts (library, loan, since, run) \
         SELECT $1, t.loan, $2, $2 FROM unnest($3::uuid[]) AS t (loan) \
         ON CONFLICT (library, loan) DO UPDATE SET run = excluded.run";

/// Writes the doubts of one run and clears those that it did not confirm.
pub(super) async fn replace(
    connection: &mut PgConnection,
    doubts: &Doubts,
) -> Result<(), sqlx::Error> {
    let (library, run) = (doubts.library.as_str(), doubts.run.as_millisecond());
    let mut absent: Vec<Uuid> = doubts.absent.iter().take(MAX_DOUBTS).map(|id| id.uuid()).collect();
    absent.sort_unstable();
    absent.dedup();
    let clear = sqlx::query(CLEAR).bind(library).bind(doubts_discarded_before(doubts.run));
    clear.bind(&absent).persistent(false).execute(&mut *connection).await?;
    let confirm = sqlx::query(CONFIRM).bind(library).bind(run).bind(&absent);
    confirm.persistent(false).execute(connection).await.map(drop)
}
