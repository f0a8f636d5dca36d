//! The row that closes the begins of all gates, once one of them finds that the database lost
//! steps.
//!
//! A database that was restored from a backup does not know its newest loans, so any gate could
//! begin them a second time. `store` and `open` write the row. Each renewal of a lease reads it,
//! so the other gates notice it within a fifth of a lease. Only an operator removes it, after a
//! comparison with Bokbasen.

use sqlx::{PgConnection, Postgres, Transaction};
use uuid::Uuid;

/// The expression that says whether begins are closed.
pub(super) const ARE_CLOSED: &str = "EXISTS (SELECT 1 FROM meta WHERE name = 'begins closed')";
/// The statement by which an operator opens begins.
#[cfg(test)]
pub(super) const OPEN: &str = "DELETE FROM meta WHERE name = 'begins closed'";
/// What an operator must do. The end of a sentence.
pub(super) const REMEDY: &str = "follow \"At night\" in docs/cluster.md";

/// Closes the begins of all gates. `chain` is the name of the chains that lack a step.
///
/// # Errors
/// The error of the database. The caller writes nothing in either case.
pub(super) async fn close(connection: &mut PgConnection, chain: Uuid) -> Result<(), sqlx::Error> {
    const CLOSE: &str = "INSERT INTO meta (name, value) VALUES ('begins closed', $1) \
         ON CONFLICT (name) DO NOTHING";
    let query = sqlx::query(CLOSE).bind(chain.as_bytes().as_slice()).persistent(false);
    query.execute(connection).await.map(drop)
}

/// Discards what a transaction has written, and closes the begins of all gates instead.
pub(super) async fn close_instead(mut transaction: Transaction<'_, Postgres>, chain: Uuid) {
    let closed = async {
        sqlx::raw_sql("ROLLBACK AND CHAIN").execute(&mut *transaction).await?;
        close(&mut transaction, chain).await?;
        transaction.commit().await
    };
    if let Err(error) = closed.await {
        tracing::error!(%error, "cannot close the begins of the other gates; trying again");
    }
}
