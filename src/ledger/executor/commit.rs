//! Commits commands in as many transactions as they need, and responds to them. A transaction that
//! fails may run again.
//!
//! Only the executor calls it.

use std::time::Duration;

use tokio::time::Instant;

use super::Executor;
use super::transaction::{FailedWrite, write};
use crate::ledger::audit::Head;
use crate::ledger::command::Command;
#[cfg(test)]
use crate::ledger::store::StoreConnection;
use crate::ledger::store::{LastCommit, LedgerStore, is_contention, is_of_value, reason};

/// The number of attempts of a transaction that fails because of others, and the longest wait
/// before the next, in milliseconds.
const MAX_ATTEMPTS: u32 = 8;
const MAX_JITTER_MS: u64 = 20;
/// If a transaction loses its connection within this time, it runs once more over another. A
/// connection that was idle may have been lost long ago.
const RERUN_WITHIN: Duration = Duration::from_secs(1);

/// What became of the commands of one transaction.
enum Outcome {
    /// This number of commands is durable.
    Committed(usize),
    /// They have received an error.
    Failed,
    /// The database rejects a value of one of them, so each runs alone next.
    Rejected(Vec<Command>),
}

impl<S: LedgerStore> Executor<S> {
    /// Commits the commands in as many transactions as they need, in their order.
    pub(super) async fn commit_all(&mut self, mut waiting: Vec<Command>) {
        #[cfg(test)]
        if let (Some(fault), Ok(connection)) = (self.turns.take_fault(), self.connection.get()) {
            if matches!(fault, crate::ledger::store::DiskFault::Panic) {
                std::panic::resume_unwind(Box::new("a lane panics"));
            }
            connection.inject(fault).await;
        }
        let mut began = Instant::now();
        // How many commands of the front run alone.
        let mut alone = 0_usize;
        while !waiting.is_empty() {
            let size = if alone > 0 { 1 } else { S::MAX_COMMANDS };
            alone = alone.saturating_sub(1);
            let later = waiting.split_off(size.min(waiting.len()));
            let commands = std::mem::replace(&mut waiting, later);
            match self.commit(commands, &mut waiting).await {
                Outcome::Committed(count) => {
                    self.context.metrics.ledger_batch(count, began.elapsed());
                    self.context.metrics.ledger_writable(true);
                    began = Instant::now();
                }
                Outcome::Failed => {}
                Outcome::Rejected(mut commands) => {
                    alone = commands.len();
                    commands.append(&mut waiting);
                    waiting = commands;
                }
            }
        }
    }

    /// Commits the commands and responds to them. Those that the transaction has no time for are
    /// put in front of `waiting`.
    async fn commit(&mut self, mut commands: Vec<Command>, waiting: &mut Vec<Command>) -> Outcome {
        self.reopen_if_due().await;
        let mut attempts = 1;
        let mut is_rerun = false;
        let first = Instant::now();
        let failed = loop {
            let connection = match self.connection.get() {
                Ok(connection) => connection,
                Err(why) => {
                    commands.into_iter().for_each(|command| command.respond(Err(why)));
                    return Outcome::Failed;
                }
            };
            let began = Instant::now();
            let written = write::<S>(connection, &self.context, &mut commands, waiting).await;
            let may_wait = attempts < MAX_ATTEMPTS && first.elapsed() < S::TRANSACTION_DEADLINE;
            match written {
                Ok(head) => return self.committed(commands, Some(head)).await,
                Err(failed) if is_contention(&failed.source) && may_wait => {
                    attempts += 1;
                    tokio::time::sleep(jitter()).await;
                }
                Err(failed) if is_of_value(&failed.source) => {
                    return self.rejected(commands, &reason(&failed.source));
                }
                Err(failed)
                    if !failed.in_doubt
                        && !is_rerun
                        && S::is_of_connection(&failed.source)
                        && began.elapsed() < RERUN_WITHIN =>
                {
                    is_rerun = true;
                    self.connection.discard(reason(&failed.source)).await;
                    if self.reopen().await.is_err() {
                        break failed;
                    }
                }
                Err(failed) if failed.in_doubt => match self.resolve(&commands, &failed).await {
                    LastCommit::Durable => return self.committed(commands, None).await,
                    LastCommit::RolledBack if attempts < MAX_ATTEMPTS => attempts += 1,
                    LastCommit::RolledBack => break FailedWrite::from(failed.source),
                    LastCommit::Unknown => break failed,
                },
                Err(failed) => break failed,
            }
        };
        let FailedWrite { source, in_doubt } = failed;
        if in_doubt {
            self.in_doubt.extend(commands.iter().filter_map(Command::written_intent));
        }
        let why = reason(&source);
        self.failed(&why, commands.len());
        // Respond first: closing the connection may take a moment.
        commands.into_iter().for_each(|command| command.respond(Err(&why)));
        if !is_contention(&source) && !S::is_refusal(&source) {
            self.connection.discard(why).await;
        }
        Outcome::Failed
    }

    /// Returns commands one of which has a value that the database rejects. A single one gets its
    /// response. Nothing was written.
    fn rejected(&mut self, mut commands: Vec<Command>, why: &str) -> Outcome {
        if commands.len() > 1 {
            return Outcome::Rejected(commands);
        }
        if let Some(command) = commands.pop() {
            self.context.metrics.ledger_failed();
            let (command_name, ledger) = (command.name(), &self.context.ledger);
            tracing::error!(error = why, command = command_name, %ledger, "a value was rejected");
            command.reject(why);
        }
        Outcome::Failed
    }

    /// Responds to commands that are durable. `head` is the newest link, if it is known.
    async fn committed(&mut self, commands: Vec<Command>, head: Option<Head>) -> Outcome {
        let count = commands.len();
        self.connection.committed();
        if let Some(head) = head {
            self.head.record(commands.first().and_then(Command::library), head).await;
        }
        for command in commands {
            command.event().into_iter().for_each(|event| self.context.metrics.loan(event));
            command.respond(Ok(()));
        }
        Outcome::Committed(count)
    }
}

/// Returns a random wait, so that two transactions that failed each other do not meet again.
fn jitter() -> Duration {
    Duration::from_millis(fastrand::u64(1..=MAX_JITTER_MS))
}
