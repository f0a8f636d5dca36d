//! The writing task: commits all queued commands in one transaction, then responds to them.
//!
//! Each commit costs one disk sync, so a hundred registrations in one batch cost one sync. Commands
//! of a batch see one another's rows. Rules (legal transition, no second live loan) are checked
//! before anything is written, so a command that breaks a rule does not affect the others. If the
//! database fails, the whole batch fails and `write_connection` opens another connection. Until
//! that succeeds, every command fails immediately.
//!
//! A store that is distributed by library gets one transaction for each library of a batch, and
//! more if there are many commands or its round trips take long. If the value of one command fails
//! a transaction, its commands run alone, and only that one fails.
//!
//! If the commit itself fails, it may still be durable. Where the store can tell, the batch gets no
//! response until it does: then the batch succeeds, or runs again. No caller acts on a guess.
//!
//! - `transaction` runs and commits one transaction.
//! - `commit` divides a batch into transactions, repeats failed ones, and responds to the commands.
//! - `recovery` reopens the connection, and finds out what a failed commit left durable.
//! - `context` has what all transactions use.

mod commit;
mod context;
mod recovery;
mod transaction;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::audit::HeadRecorder;
use super::command::{Command, Message};
use super::store::{LedgerStore, StoreConnection};
use super::write_connection::WriteConnection;
use crate::loan::LoanId;
pub(super) use context::ExecutorContext;

/// The maximum number of commands that are received at once.
const MAX_BATCH: usize = 512;
/// The interval between log lines while the ledger cannot be written.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The state of the writing task.
pub(super) struct Executor<S: LedgerStore> {
    context: Arc<ExecutorContext>,
    connection: WriteConnection<S>,
    head: HeadRecorder,
    /// Intents whose commit failed in its last step. The rows may be durable, but their callers do
    /// not send a begin.
    in_doubt: Vec<LoanId>,
    logged_at: Option<Instant>,
}

impl<S: LedgerStore> Executor<S> {
    pub(super) fn new(
        context: Arc<ExecutorContext>,
        connection: WriteConnection<S>,
        head: HeadRecorder,
    ) -> Executor<S> {
        Executor { context, connection, head, in_doubt: Vec::new(), logged_at: None }
    }

    /// Runs until a close message is received or every sender is dropped.
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Message>) {
        let mut messages = Vec::with_capacity(MAX_BATCH);
        loop {
            let received = match self.wake_at() {
                None => waiting.recv_many(&mut messages, MAX_BATCH).await,
                Some(at) => {
                    match timeout_at(at, waiting.recv_many(&mut messages, MAX_BATCH)).await {
                        Ok(received) => received,
                        Err(_) => {
                            self.wake().await;
                            continue;
                        }
                    }
                }
            };
            if received == 0 {
                return self.head.flush().await;
            }
            if let Some(closed) = self.process(std::mem::take(&mut messages)).await {
                waiting.close();
                self.head.flush().await;
                if let Ok(connection) = self.connection.get() {
                    connection.finish().await;
                }
                let _ = closed.send(());
                return;
            }
        }
    }

    /// Returns the time of the next work that needs no command: reopening the connection or writing
    /// the head file.
    fn wake_at(&self) -> Option<Instant> {
        [self.connection.retry_at(), self.head.wake_at()].into_iter().flatten().min()
    }

    async fn wake(&mut self) {
        self.reopen_if_due().await;
        self.head.wake().await;
    }

    /// Writes one batch, and returns the response channel of a close message in it. Commands after
    /// the close are not written.
    async fn process(&mut self, messages: Vec<Message>) -> Option<oneshot::Sender<()>> {
        let mut closed = None;
        let mut commands = Vec::with_capacity(messages.len());
        for message in messages {
            match message {
                Message::Close(responder) => closed = Some(responder),
                #[cfg(test)]
                Message::Inject(fault, responder) => {
                    if let Ok(connection) = self.connection.get() {
                        connection.inject(fault).await;
                    }
                    let _ = responder.send(());
                }
                Message::Run(_) if closed.is_some() => {} // dropped: its caller receives `Closed`
                Message::Run(command) => commands.push(*command),
            }
        }
        for commands in transactions_of::<S>(commands) {
            self.commit_all(commands).await;
        }
        closed
    }

    /// Counts a failed transaction, and logs at most one a minute: on a full disk each one fails.
    fn failed(&mut self, why: &str, commands: usize) {
        self.context.metrics.ledger_failed();
        self.context.metrics.ledger_writable(false);
        if self.logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            self.logged_at = Some(Instant::now());
            let ledger = &self.context.ledger;
            tracing::error!(error = why, commands, %ledger, "the ledger cannot be written");
        }
    }
}

/// Returns the commands of each transaction, in the order of their arrival.
fn transactions_of<S: LedgerStore>(commands: Vec<Command>) -> Vec<Vec<Command>> {
    let mut transactions: Vec<Vec<Command>> = Vec::new();
    for command in commands {
        let library = command.library();
        let same = |of: &&mut Vec<Command>| {
            S::SPANS_LIBRARIES || of.first().is_some_and(|first| first.library() == library)
        };
        match transactions.iter_mut().find(same) {
            Some(transaction) => transaction.push(command),
            None => transactions.push(vec![command]),
        }
    }
    transactions
}
