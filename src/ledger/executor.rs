//! The writing task: commits all queued commands of a library in one transaction, then responds to
//! them. SQLite has one transaction for the commands of all libraries.
//!
//! Each commit costs one disk sync, so a hundred registrations in one batch cost one sync. Commands
//! of a batch see one another's rows. Rules (legal transition, no second live loan) are checked
//! before anything is written, so a command that breaks a rule does not affect the others. If the
//! database fails, the whole batch fails and `write_connection` opens another connection. Until
//! that succeeds, every command fails immediately.
//!
//! A batch has several transactions if its round trips take long. If the value of one command fails
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
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::audit::HeadRecorder;
use super::command::Message;
use super::library_queues::{LaneTurns, Turn};
use super::store::{LedgerStore, StoreConnection};
use super::write_connection::WriteConnection;
use crate::loan::LoanId;
pub(super) use context::ExecutorContext;

/// The interval between log lines while the ledger cannot be written.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The state of the writing task.
pub(super) struct Executor<S: LedgerStore> {
    context: Arc<ExecutorContext>,
    connection: WriteConnection<S>,
    head: HeadRecorder,
    turns: LaneTurns,
    /// Whether the connection of each lane is open.
    are_open: Arc<[Arc<AtomicBool>]>,
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
        turns: LaneTurns,
        are_open: Arc<[Arc<AtomicBool>]>,
    ) -> Executor<S> {
        Executor { context, connection, head, turns, are_open, in_doubt: vec![], logged_at: None }
    }

    /// Runs until a close message is received or every sender is dropped. The commands that wait
    /// then are still committed.
    pub(super) async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let closed = loop {
            let wake_at = self.wake_at();
            let may_take = self.may_take_turns();
            tokio::select! {
                biased;
                message = messages.recv() => match message {
                    Some(Message::Run(command)) => self.commit_all(vec![*command]).await,
                    Some(Message::Close(responder)) => break Some(responder),
                    None => break None,
                },
                () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {
                    self.wake().await;
                }
                Some(turn) = self.turns.next(), if may_take => self.process(turn).await,
            }
        };
        // A lane without a connection leaves them to the others.
        while self.may_take_turns()
            && let Some(turn) = self.turns.try_next()
        {
            self.process(turn).await;
        }
        self.head.flush().await;
        let Some(closed) = closed else { return };
        if let Ok(connection) = self.connection.get() {
            connection.finish().await;
        }
        let _ = closed.send(());
    }

    /// Returns whether this lane may serve a library: its connection is open, or no lane has an
    /// open one, so that every command fails immediately.
    fn may_take_turns(&self) -> bool {
        let is_closed = |lane: &Arc<AtomicBool>| !lane.load(Ordering::Relaxed);
        self.connection.retry_at().is_none() || self.are_open.iter().all(is_closed)
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

    /// Commits the commands of a library, whose turn then ends.
    async fn process(&mut self, mut turn: Turn) {
        self.commit_all(std::mem::take(&mut turn.commands)).await;
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
