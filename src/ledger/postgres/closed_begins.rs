//! The row that closes the begins of all gates, once one of them finds that the database lost
//! steps.
//!
//! A database that was restored from a backup does not know its newest loans, so any gate could
//! begin them a second time. `store`, `earlier_processes` and `membership` write the row. Each
//! renewal of a lease reads it, so the other gates notice it within a fifth of a lease. Only an
//! operator removes it, after a comparison with Bokbasen: see `reconcile`.
//!
//! That also begins a new epoch. What a gate has seen in an older epoch proves nothing any more,
//! and closes no begins.

use sqlx::{PgConnection, Postgres, Transaction};
use uuid::Uuid;

/// The expression that says whether begins are closed.
pub(super) const ARE_CLOSED: &str = "EXISTS (SELECT 1 FROM meta WHERE name = 'begins closed')";
/// The expression of the epoch. `EpochSeals` reads it.
pub(super) const EPOCH: &str = "(SELECT value FROM meta WHERE name = 'epoch')";
/// Closes begins in every epoch: its bytes follow those of all others.
pub(super) const ANY_EPOCH: i64 = -1;
/// The statement that opens begins in the same epoch.
#[cfg(test)]
pub(super) const OPEN: &str = "DELETE FROM meta WHERE name = 'begins closed'";
/// What an operator must do. The end of a sentence.
pub(super) const REMEDY: &str = "follow \"At night\" in docs/cluster.md";

/// Closes the begins of all gates, unless the database has a newer epoch than this. `chain` is the
/// name of the chains of the process that found the loss.
///
/// # Errors
/// The error of the database. The caller writes nothing in either case.
pub(super) async fn close(
    connection: &mut PgConnection,
    chain: Uuid,
    epoch: i64,
) -> Result<(), sqlx::Error> {
    let close = sqlx::query(CLOSE).bind(chain.as_bytes().as_slice());
    let close = close.bind(epoch.to_be_bytes().as_slice()).persistent(false);
    close.execute(connection).await.map(drop)
}

/// The lock waits for an operator who begins a new epoch, and reads the epoch again. A person may
/// have deleted its row. The value has the name of the chains and the time.
pub(super) const CLOSE: &str = "WITH epoch AS \
     (SELECT value FROM meta WHERE name = 'epoch' FOR SHARE) \
     INSERT INTO meta (name, value) SELECT 'begins closed', \
     $1 || int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) \
     WHERE NOT EXISTS (SELECT 1 FROM epoch WHERE substr(value, 1, 8) > $2) \
     ON CONFLICT (name) DO NOTHING";

/// Discards what a transaction has written, and closes the begins of all gates instead.
pub(super) async fn close_instead(
    mut transaction: Transaction<'_, Postgres>,
    chain: Uuid,
    epoch: i64,
) {
    let closed = async {
        sqlx::raw_sql("ROLLBACK AND CHAIN").execute(&mut *transaction).await?;
        close(&mut transaction, chain, epoch).await?;
        transaction.commit().await
    };
    if let Err(error) = closed.await {
        tracing::error!(%error, "cannot close the begins of the other gates; trying again");
    }
}
