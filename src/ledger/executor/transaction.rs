//! One transaction: runs the commands within a deadline, and commits.
//!
//! Only the executor calls it.

use tokio::time::{Instant, timeout_at};

use super::ExecutorContext;
use crate::crash::{self, Edge};
use crate::ledger::audit::Head;
use crate::ledger::batch::WriteBatch;
use crate::ledger::command::Command;
use crate::ledger::runner::CommandRunner;
use crate::ledger::store::{LedgerStore, StoreConnection, StoreTransaction};

/// The error of a failed transaction.
pub(super) struct FailedWrite {
    pub(super) source: sqlx::Error,
    /// The commit itself failed, so the transaction may be durable.
    pub(super) in_doubt: bool,
}

impl From<sqlx::Error> for FailedWrite {
    fn from(source: sqlx::Error) -> FailedWrite {
        FailedWrite { source, in_doubt: false }
    }
}

/// Runs the commands in one transaction, and returns the newest link of the audit trail. Each
/// command keeps its work and its result, also if the transaction fails. Commands that the
/// transaction has no time for are put in front of `waiting`.
pub(super) async fn write<S: LedgerStore>(
    connection: &mut S::Connection,
    context: &ExecutorContext,
    commands: &mut Vec<Command>,
    waiting: &mut Vec<Command>,
) -> Result<Head, FailedWrite> {
    let began = Instant::now();
    let running = async {
        let library = commands.first().and_then(Command::library);
        let transaction = connection.begin(library).await?;
        let owner = context.membership.name();
        let mut worker =
            CommandRunner::new(context, WriteBatch::new(transaction, owner, &context.audit_key));
        worker.lock_ahead(commands).await?;
        let mut count = 0;
        for command in commands.iter_mut() {
            worker.run(command).await?;
            count += 1;
            if began.elapsed() >= S::WORK_LIMIT {
                break;
            }
        }
        let mut later = commands.split_off(count);
        later.append(waiting);
        *waiting = later;
        worker.finish().await
    };
    let (transaction, head) = within(began + S::TRANSACTION_DEADLINE, running).await?;
    // The commit has a deadline of its own: nothing is in doubt because the work took long.
    let deadline = Instant::now() + S::TRANSACTION_DEADLINE;
    commands.iter().for_each(|command| crash::point("commit", command.name(), Edge::Before));
    let committed = within(deadline, transaction.commit()).await;
    committed.map_err(|source| FailedWrite { source, in_doubt: true })?;
    commands.iter().for_each(|command| crash::point("commit", command.name(), Edge::After));
    Ok(head)
}

/// Fails with a timeout at the deadline.
pub(super) async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let began = Instant::now();
    timeout_at(deadline, work).await.unwrap_or_else(|_| {
        let waited = began.elapsed().as_secs();
        let sentence = format!("the disk or the database did not respond within {waited} s");
        Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, sentence)))
    })
}
