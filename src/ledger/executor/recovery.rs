//! Recovers after a failed transaction: reopens the connection, and finds out what is durable.
//!
//! Only the executor calls it.

use tokio::time::Instant;

use super::transaction::{FailedWrite, within};
use super::{Executor, ExecutorContext};
use crate::ledger::Cause;
use crate::ledger::audit::Head;
use crate::ledger::batch::WriteBatch;
use crate::ledger::command::Command;
use crate::ledger::rules;
use crate::ledger::store::{
    LastCommit, LedgerStore, StoreConnection, StoreTransaction, WorkError, reason,
};

impl<S: LedgerStore> Executor<S> {
    /// Determines whether a commit without a response is durable, over a new connection, for as
    /// long as that takes. Meanwhile neither this batch nor another one gets a response.
    pub(super) async fn resolve(
        &mut self,
        commands: &[Command],
        failed: &FailedWrite,
    ) -> LastCommit {
        if !S::RECORDS_COMMITS {
            return LastCommit::Unknown;
        }
        let library = commands.first().and_then(Command::library);
        let mut why = reason(&failed.source);
        loop {
            self.failed(&why, commands.len());
            self.connection.discard(why).await;
            why = match self.reopen().await {
                Ok(connection) => {
                    let deadline = Instant::now() + S::TRANSACTION_DEADLINE;
                    match within(deadline, connection.last_commit(library)).await {
                        Ok(last) => return last,
                        Err(error) => reason(&error),
                    }
                }
                Err(why) => why,
            };
        }
    }

    /// Waits until the connection may be reopened, and opens it.
    pub(super) async fn reopen(&mut self) -> Result<&mut S::Connection, String> {
        if let Some(at) = self.connection.retry_at() {
            tokio::time::sleep_until(at).await;
        }
        self.connection.reopen(self.context.clock.now()).await?;
        self.connection.get().map_err(str::to_owned)
    }

    /// Opens a closed connection again when its backoff has passed, and ends the intents whose
    /// commit was in doubt.
    pub(super) async fn reopen_if_due(&mut self) {
        if self.connection.retry_at().is_none_or(|at| at > Instant::now()) {
            return;
        }
        let down = match self.connection.reopen(self.context.clock.now()).await {
            Ok(down) => down,
            Err(why) => return self.failed(&why, 0),
        };
        match self.end_intents_in_doubt().await {
            Ok(Some(head)) => self.head.record(None, head).await,
            Ok(None) => {}
            Err(error) => {
                let why = reason(&error);
                self.failed(&why, 0);
                return self.connection.discard(why).await;
            }
        }
        self.context.metrics.ledger_writable(true);
        // The next failure is logged even within the interval.
        self.logged_at = None;
        tracing::info!(?down, "the ledger can be written again");
    }

    /// Ends the intents in doubt that are durable, and returns the newest link. Their callers
    /// received an error and sent no begin. The connection is a new one, so no older commit can be
    /// in progress.
    async fn end_intents_in_doubt(&mut self) -> Result<Option<Head>, sqlx::Error> {
        let (true, Ok(connection)) = (!self.in_doubt.is_empty(), self.connection.get()) else {
            return Ok(None);
        };
        let ExecutorContext { clock, membership, audit_key, .. } = &*self.context;
        let ending = async {
            // Only a store without a record of commits, which spans libraries, has such intents.
            let transaction = connection.begin(None).await?;
            let mut batch = WriteBatch::new(transaction, membership.name(), audit_key);
            let detail = "the commit of the intent failed, and its begin was not sent";
            let cause = Cause { by: "ledger", detail: Some(detail.to_owned()) };
            for id in &self.in_doubt {
                let Ok(before) = WorkError::split(batch.loan(*id).await)? else { continue };
                if let Some(after) = rules::end_unsent(&before, clock.now()) {
                    batch.record(&after, Some(before.state), &cause);
                }
            }
            let (transaction, head) = batch.finish().await?;
            transaction.commit().await?;
            Ok(head)
        };
        let head = within(Instant::now() + S::TRANSACTION_DEADLINE, ending).await?;
        self.in_doubt.clear();
        Ok(Some(head))
    }
}
