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

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::Cause;
use super::audit::{AuditKey, Head, HeadRecorder};
use super::batch::WriteBatch;
use super::brake::Brake;
use super::command::{Command, Message};
use super::membership::Membership;
use super::rules;
use super::runner::CommandRunner;
use super::store::{
    LastCommit, LedgerStore, StoreConnection, StoreTransaction, WorkError, is_contention,
    is_of_value, reason,
};
use super::write_connection::WriteConnection;
use crate::clock::{self, Clock};
use crate::crash::{self, Edge};
use crate::loan::LoanId;
use crate::telemetry::Metrics;

/// The maximum number of commands that are received at once.
const MAX_BATCH: usize = 512;
/// The number of attempts of a transaction that fails because of others, and the longest wait
/// before the next, in milliseconds.
const MAX_ATTEMPTS: u32 = 8;
const MAX_JITTER_MS: u64 = 20;
/// If a transaction loses its connection within this time, it runs once more over another. A
/// connection that was idle may have been lost long ago.
const RERUN_WITHIN: Duration = Duration::from_secs(1);
/// The interval between log lines while the ledger cannot be written.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What every transaction of this process uses.
pub(super) struct ExecutorContext {
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) membership: Arc<dyn Membership>,
    pub(super) brake: Brake,
    pub(super) audit_key: AuditKey,
    /// The name of the ledger, for the log.
    pub(super) ledger: String,
}

impl ExecutorContext {
    /// Returns the time of a change: the later of this machine's clock and the database's. An end
    /// then bars every credential that was issued before it, by whichever clock (invariant 7).
    pub(super) fn now(&self) -> Timestamp {
        clock::after(self.clock.now(), self.membership.clock_lag())
    }
}

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

/// The error of a failed transaction.
struct FailedWrite {
    source: sqlx::Error,
    /// The commit itself failed, so the transaction may be durable.
    in_doubt: bool,
}

/// What became of the commands of one transaction.
enum Outcome {
    /// This number of commands is durable.
    Committed(usize),
    /// They have received an error.
    Failed,
    /// The database rejects a value of one of them, so each runs alone next.
    Rejected(Vec<Command>),
}

impl From<sqlx::Error> for FailedWrite {
    fn from(source: sqlx::Error) -> FailedWrite {
        FailedWrite { source, in_doubt: false }
    }
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

    /// Commits the commands in as many transactions as they need, in their order.
    async fn commit_all(&mut self, mut waiting: Vec<Command>) {
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
        if !is_contention(&source) {
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

    /// Determines whether a commit without a response is durable, over a new connection, for as
    /// long as that takes. Meanwhile neither this batch nor another one gets a response.
    async fn resolve(&mut self, commands: &[Command], failed: &FailedWrite) -> LastCommit {
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
    async fn reopen(&mut self) -> Result<&mut S::Connection, String> {
        if let Some(at) = self.connection.retry_at() {
            tokio::time::sleep_until(at).await;
        }
        self.connection.reopen(self.context.clock.now()).await?;
        self.connection.get().map_err(str::to_owned)
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

    /// Opens a closed connection again when its backoff has passed, and ends the intents whose
    /// commit was in doubt.
    async fn reopen_if_due(&mut self) {
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

/// Returns a random wait, so that two transactions that failed each other do not meet again.
fn jitter() -> Duration {
    Duration::from_millis(fastrand::u64(1..=MAX_JITTER_MS))
}

/// Runs the commands in one transaction, and returns the newest link of the audit trail. Each
/// command keeps its work and its result, also if the transaction fails. Commands that the
/// transaction has no time for are put in front of `waiting`.
async fn write<S: LedgerStore>(
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
async fn within<T>(
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
