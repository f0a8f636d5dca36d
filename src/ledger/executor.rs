//! The writing task: commits all queued commands in one transaction, then responds to them.
//!
//! Each commit costs one disk sync, so a hundred registrations in one batch cost one sync. Commands
//! of a batch see one another's rows. Rules (legal transition, no second live loan) are checked
//! before anything is written, so a command that breaks a rule does not affect the others. If the
//! database fails, the whole batch fails and `connection` opens another connection. Until that
//! succeeds, every command fails immediately.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, Connection, QueryBuilder, Row, Sqlite};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::audit::{self, AuditKey, Head};
use super::batch::{WriteBatch, database};
use super::brake::Brake;
use super::sqlite::connection::{TRANSACTION_DEADLINE, WriteConnection, reason, write_probe};
use super::sqlite::process::Process;
use super::sqlite::row::{COLUMNS, loan_of};
use super::sqlite::{delivered, doubts, opened_mark};
use super::{Cause, Delivered, Doubts, Intended, LedgerError};
use crate::clock::Clock;
use crate::crash::{self, Edge};
use crate::loan::{Event, EventKind, Loan, LoanId, LoanState, Progress};
use crate::telemetry::{LoanEvent, Metrics};

/// The maximum number of commands in one transaction.
const MAX_BATCH: usize = 512;

/// The interval between writes of the head file, which stores the newest link of the audit trail.
const HEAD_WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// The deadline of each step of closing.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// The interval between log lines while the ledger cannot be written.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

type Responder<T> = oneshot::Sender<Result<T, LedgerError>>;

/// A write request with the channel for its response.
pub(super) enum Command {
    Intend {
        loan: Box<Loan>,
        issued: Option<Timestamp>,
        cause: Cause,
        responder: Responder<Intended>,
    },
    Apply {
        id: LoanId,
        event: Event,
        cause: Cause,
        responder: Responder<Loan>,
    },
    Adopt {
        id: LoanId,
        responder: Responder<bool>,
    },
    Progress {
        id: LoanId,
        progress: Progress,
        responder: Responder<bool>,
    },
    Delivered {
        delivered: Arc<[Delivered]>,
        responder: Responder<bool>,
    },
    Forget {
        before: Timestamp,
        limit: u32,
        responder: Responder<u64>,
    },
    /// Writes a probe row to test that the ledger can be written.
    TestWrite {
        responder: Responder<bool>,
    },
    /// Simulates a disk fault.
    #[cfg(test)]
    Fault {
        fault: Fault,
        responder: oneshot::Sender<()>,
    },
    Doubts {
        doubts: Doubts,
        responder: Responder<bool>,
    },
    Opened {
        id: LoanId,
        responder: Responder<bool>,
    },
    Close {
        responder: oneshot::Sender<()>,
    },
}

/// A disk fault as SQLite reports it.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// The database cannot grow: SQLite rolls the transaction back with SQLITE_FULL.
    Full,
    /// The next transaction is rolled back before its commit, and sqlx does not notice.
    RolledBack,
    /// The next commit succeeds, and its success is not reported.
    CommitUnreported,
}

/// The result of a command, sent to its caller after the commit.
enum Done {
    Intended(Result<Intended, LedgerError>, Responder<Intended>),
    Applied(Result<Loan, LedgerError>, EventKind, Responder<Loan>),
    /// Whether anything was written, and the name of the command.
    Written(Result<bool, LedgerError>, &'static str, Responder<bool>),
    Forgotten(Result<u64, LedgerError>, Responder<u64>),
}

impl Done {
    /// Returns the id of the intent if one was written.
    fn written_intent(&self) -> Option<LoanId> {
        match self {
            Done::Intended(Ok(Intended::Written(loan)), _) => Some(loan.id),
            _ => None,
        }
    }

    /// Returns the name that crash points use.
    fn name(&self) -> &'static str {
        match self {
            Done::Intended(..) => "intended",
            Done::Applied(_, event, _) => event.name(),
            Done::Written(_, name, _) => name,
            Done::Forgotten(..) => "forgotten",
        }
    }
}

/// The state of the writing task.
pub(super) struct Writer {
    pub(super) connection: WriteConnection,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) process: Arc<Process>,
    pub(super) brake: Brake,
    pub(super) audit_key: AuditKey,
    pub(super) file: PathBuf,
    /// Intents whose commit failed in its last step. The rows may be durable, but their callers do
    /// not send a begin.
    pub(super) in_doubt: Vec<LoanId>,
    /// The newest committed link of the audit trail, until the head file has it.
    pub(super) head: Option<Head>,
    /// When to write the head file next.
    pub(super) head_write_at: Instant,
    /// The write of the head file in progress. Returns the link if it fails.
    pub(super) head_write: Option<JoinHandle<Option<Head>>>,
    pub(super) logged_at: Option<Instant>,
    /// The fault to simulate in the next transaction.
    #[cfg(test)]
    pub(super) fault: Option<Fault>,
}

/// The error of a failed transaction.
struct Failure {
    source: sqlx::Error,
    /// The commit itself failed, so the transaction may be durable.
    in_doubt: bool,
}

impl From<sqlx::Error> for Failure {
    fn from(source: sqlx::Error) -> Failure {
        Failure { source, in_doubt: false }
    }
}

/// Runs until a close command is received or every sender is dropped.
pub(super) async fn run(mut writer: Writer, mut waiting: mpsc::Receiver<Command>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    loop {
        let received = match writer.wake_at() {
            None => waiting.recv_many(&mut batch, MAX_BATCH).await,
            Some(at) => match timeout_at(at, waiting.recv_many(&mut batch, MAX_BATCH)).await {
                Ok(received) => received,
                Err(_) => {
                    writer.wake().await;
                    continue;
                }
            },
        };
        if received == 0 {
            return writer.flush_head().await;
        }
        let closing = writer.process(std::mem::take(&mut batch)).await;
        if let Some(responder) = closing {
            waiting.close();
            writer.flush_head().await;
            writer.checkpoint().await;
            let _ = responder.send(());
            return;
        }
    }
}

impl Writer {
    #[cfg(test)]
    async fn inject(&mut self, fault: Fault) {
        match (fault, self.connection.get()) {
            // The limit holds for this connection only. SQLite raises it to the current page count.
            (Fault::Full, Ok(connection)) => {
                sqlx::query("PRAGMA max_page_count = 1").execute(connection).await.unwrap();
            }
            _ => self.fault = Some(fault),
        }
    }

    /// Returns the time of the next work that needs no command: reopening the connection or writing
    /// the head file.
    fn wake_at(&self) -> Option<Instant> {
        let head_write_at =
            (self.head.is_some() || self.head_write.is_some()).then_some(self.head_write_at);
        [self.connection.retry_at(), head_write_at].into_iter().flatten().min()
    }

    async fn wake(&mut self) {
        let now = Instant::now();
        if self.connection.retry_at().is_some_and(|at| at <= now) {
            self.reopen().await;
        }
        if self.head_write_at <= now {
            self.start_head_write().await;
        }
    }

    /// Writes one batch, and returns the response channel of a close command in it. Commands after
    /// the close are not written.
    async fn process(&mut self, batch: Vec<Command>) -> Option<oneshot::Sender<()>> {
        let began = Instant::now();
        let mut closing = None;
        let mut commands = Vec::with_capacity(batch.len());
        for command in batch {
            match command {
                Command::Close { responder } => closing = Some(responder),
                #[cfg(test)]
                Command::Fault { fault, responder } => {
                    self.inject(fault).await;
                    let _ = responder.send(());
                }
                _ if closing.is_some() => {} // its caller receives `Closed` because of the drop
                command => commands.push(command),
            }
        }
        if !commands.is_empty() {
            let count = commands.len();
            if self.commit(commands).await {
                self.metrics.ledger_batch(count, began.elapsed());
                self.metrics.ledger_writable(true);
            }
        }
        closing
    }

    /// Commits the commands and responds to them. Returns whether the commit succeeded.
    async fn commit(&mut self, commands: Vec<Command>) -> bool {
        if self.connection.retry_at().is_some_and(|at| at <= Instant::now()) {
            self.reopen().await;
        }
        let mut done = Vec::with_capacity(commands.len());
        let mut commands = commands.into_iter();
        if let Err(why) = self.connection.get() {
            let why = why.to_owned();
            commands.filter_map(unprocessed).for_each(|done| fail(done, &why));
            return false;
        }
        match self.write(&mut commands, &mut done).await {
            Ok(head) => {
                self.connection.committed();
                self.record_head(head).await;
                done.into_iter().for_each(|done| self.respond(done));
                true
            }
            Err(Failure { source, in_doubt }) => {
                if in_doubt {
                    self.in_doubt.extend(done.iter().filter_map(Done::written_intent));
                }
                let why = reason(&source);
                self.failed(&why, done.len() + commands.len());
                // Respond first: closing the connection may take a moment.
                done.into_iter().for_each(|done| fail(done, &why));
                commands.filter_map(unprocessed).for_each(|done| fail(done, &why));
                self.connection.discard(why).await;
                false
            }
        }
    }

    /// Counts a failed transaction, and logs at most one a minute: on a full disk each one fails.
    fn failed(&mut self, why: &str, commands: usize) {
        self.metrics.ledger_failed();
        self.metrics.ledger_writable(false);
        if self.logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            self.logged_at = Some(Instant::now());
            let file = self.file.display();
            tracing::error!(error = why, commands, %file, "the ledger cannot be written");
        }
    }

    /// Opens the connection again, and ends the intents whose commit was in doubt.
    async fn reopen(&mut self) {
        let down = match self.connection.reopen(self.clock.now()).await {
            Ok(down) => down,
            Err(why) => return self.failed(&why, 0),
        };
        if let Err(Failure { source, .. }) = self.end_intents_in_doubt().await {
            let why = reason(&source);
            self.failed(&why, 0);
            return self.connection.discard(why).await;
        }
        self.metrics.ledger_writable(true);
        // The next failure is logged even within the interval.
        self.logged_at = None;
        tracing::info!(?down, "the ledger can be written again");
    }

    /// Ends the intents in doubt that are durable. Their callers received an error and sent no
    /// begin. The transaction holds the write lock, so no older commit can be in progress.
    async fn end_intents_in_doubt(&mut self) -> Result<(), Failure> {
        if self.in_doubt.is_empty() {
            return Ok(());
        }
        let detail = Some("the commit of the intent failed, and its begin was not sent".to_owned());
        let cause = Cause { by: "ledger", detail };
        let deadline = Instant::now() + TRANSACTION_DEADLINE;
        let (now, owner) = (self.clock.now(), self.process.name().to_owned());
        let Ok(connection) = self.connection.get() else { return Ok(()) };
        let mut transaction = within(deadline, connection.begin_with("BEGIN IMMEDIATE")).await?;
        let mut batch =
            within(deadline, WriteBatch::begin(&mut transaction, &owner, &self.audit_key)).await?;
        for id in &self.in_doubt {
            let found = within_rule(deadline, batch.loan(*id)).await;
            let (found, failure) = split_database_error(found);
            if let Some(source) = failure {
                return Err(source.into());
            }
            let intent = found.ok().filter(|loan| loan.state == LoanState::Intended);
            if let Some((before, Ok(after))) =
                intent.map(|loan| (loan.state, loan.apply(&Event::NotSent, now)))
            {
                batch.record(&after, Some(before), &cause);
            }
        }
        let head = within(deadline, batch.end()).await?;
        within(deadline, transaction.commit()).await?;
        self.in_doubt.clear();
        self.record_head(head).await;
        Ok(())
    }

    /// Runs the commands in one transaction, and returns the newest link of the audit trail. If the
    /// database fails, the remaining commands stay in `commands` for the caller to respond to.
    async fn write(
        &mut self,
        commands: &mut std::vec::IntoIter<Command>,
        done: &mut Vec<Done>,
    ) -> Result<Head, Failure> {
        let deadline = Instant::now() + TRANSACTION_DEADLINE;
        let Ok(connection) = self.connection.get() else {
            return Err(sqlx::Error::WorkerCrashed.into());
        };
        let context = TransactionContext {
            now: self.clock.now(),
            deadline,
            owner: self.process.name(),
            process: &self.process,
            brake: (self.brake, &self.metrics),
        };
        let mut transaction = within(deadline, connection.begin_with("BEGIN IMMEDIATE")).await?;
        let mut batch =
            within(deadline, WriteBatch::begin(&mut transaction, context.owner, &self.audit_key))
                .await?;
        within(deadline, read_ahead(&mut batch, commands.as_slice())).await?;
        for command in commands {
            let Some((result, failure)) = context.run(&mut batch, command).await else { continue };
            done.push(result);
            if let Some(source) = failure {
                return Err(source.into());
            }
        }
        let head = within(deadline, batch.end()).await?;
        done.iter().for_each(|done| crash::point("commit", done.name(), Edge::Before));
        #[cfg(test)]
        let fault = self.fault.take();
        #[cfg(test)]
        if fault == Some(Fault::RolledBack) {
            sqlx::raw_sql("ROLLBACK").execute(&mut *transaction).await?;
        }
        let committed = within(deadline, transaction.commit()).await;
        #[cfg(test)]
        let committed =
            if fault == Some(Fault::CommitUnreported) { Err(disk_timeout()) } else { committed };
        committed.map_err(|source| Failure { source, in_doubt: true })?;
        done.iter().for_each(|done| crash::point("commit", done.name(), Edge::After));
        Ok(head)
    }

    /// Records a committed link. The head file has it within [`HEAD_WRITE_INTERVAL`].
    async fn record_head(&mut self, head: Head) {
        if head.number == 0 {
            return;
        }
        if self.head.is_none() && self.head_write.is_none() {
            self.head_write_at = Instant::now() + HEAD_WRITE_INTERVAL;
        }
        self.head = Some(head);
        if Instant::now() >= self.head_write_at {
            self.start_head_write().await;
        }
    }

    /// Starts to write the head file, unless a write is in progress. It runs on a blocking thread
    /// so that a hanging disk does not stop the commands.
    async fn start_head_write(&mut self) {
        self.head_write_at = Instant::now() + HEAD_WRITE_INTERVAL;
        if let Some(head_write) = self.head_write.take_if(|head_write| head_write.is_finished())
            && let Ok(Some(failed)) = head_write.await
        {
            // Retry at the next interval, with the newer link if there is one.
            self.head.get_or_insert(failed);
            return;
        }
        if self.head_write.is_none()
            && let Some(head) = self.head.take()
        {
            let (file, process) = (self.file.clone(), self.process.clone());
            self.head_write =
                Some(tokio::task::spawn_blocking(move || store_head(&file, process.name(), head)));
        }
    }

    /// Writes the newest link to the head file and waits until it is durable. Used on closing.
    async fn flush_head(&mut self) {
        let finish = async {
            for _ in 0..2 {
                if let Some(head_write) = self.head_write.take()
                    && let Ok(Some(failed)) = head_write.await
                {
                    self.head.get_or_insert(failed);
                }
                self.start_head_write().await;
            }
            if let Some(head_write) = self.head_write.take() {
                let _ = head_write.await;
            }
        };
        if timeout(CLOSE_DEADLINE, finish).await.is_err() {
            tracing::warn!("timed out while writing the head file of the audit trail");
        }
    }

    fn respond(&self, done: Done) {
        match done {
            Done::Intended(result, responder) => {
                if matches!(result, Ok(Intended::Written(_))) {
                    self.metrics.loan(LoanEvent::Intended);
                }
                let _ = responder.send(result);
            }
            Done::Applied(result, event, responder) => {
                if result.is_ok() {
                    self.metrics.loan(LoanEvent::Applied(event));
                }
                let _ = responder.send(result);
            }
            Done::Written(result, _, responder) => {
                let _ = responder.send(result);
            }
            Done::Forgotten(result, responder) => {
                let _ = responder.send(result);
            }
        }
    }

    /// Checkpoints the write-ahead log, so that the database file alone is a complete copy.
    async fn checkpoint(&mut self) {
        let Ok(connection) = self.connection.get() else { return };
        for statement in ["PRAGMA optimize", "PRAGMA wal_checkpoint(TRUNCATE)"] {
            let deadline = Instant::now() + CLOSE_DEADLINE;
            if let Err(error) =
                within(deadline, sqlx::query(statement).execute(&mut *connection)).await
            {
                tracing::warn!(%error, statement, "cannot checkpoint the ledger on closing");
            }
        }
    }
}

/// The values that all commands of one transaction use.
struct TransactionContext<'a> {
    now: Timestamp,
    deadline: Instant,
    owner: &'a str,
    process: &'a Process,
    brake: (Brake, &'a Metrics),
}

impl TransactionContext<'_> {
    /// Runs one command. Returns the result to send after the commit, and the error if the database
    /// failed. Returns none for a close, which [`run`] handles.
    async fn run(
        &self,
        batch: &mut WriteBatch<'_>,
        command: Command,
    ) -> Option<(Done, Option<sqlx::Error>)> {
        let by = self.deadline;
        Some(match command {
            Command::Intend { loan, issued, cause, responder } => {
                let work = intend(batch, *loan, issued, &cause, self.brake);
                let (result, failure) = split_database_error(within_rule(by, work).await);
                (Done::Intended(result, responder), failure)
            }
            Command::Apply { id, event, cause, responder } => {
                let kind = event.kind();
                let work = apply(batch, id, event, &cause, self.now);
                let (result, failure) = split_database_error(within_rule(by, work).await);
                (Done::Applied(result, kind, responder), failure)
            }
            Command::Adopt { id, responder } => {
                let work = adopt(batch, id, self.owner, self.process);
                let (result, failure) = split_database_error(within_rule(by, work).await);
                (Done::Written(result, "adopted", responder), failure)
            }
            Command::Progress { id, progress, responder } => {
                let work = note_progress(batch, id, progress);
                let (result, failure) = split_database_error(within_rule(by, work).await);
                (Done::Written(result, "progress", responder), failure)
            }
            Command::Delivered { delivered, responder } => {
                let written = within(by, delivered::add(batch, &delivered)).await;
                let (result, failure) =
                    split_database_error(written.map(|()| true).map_err(database));
                (Done::Written(result, "delivered", responder), failure)
            }
            Command::Forget { before, limit, responder } => {
                let work = forget(batch, before, limit, self.now);
                let (result, failure) = split_database_error(within_rule(by, work).await);
                (Done::Forgotten(result, responder), failure)
            }
            Command::Opened { id, responder } => {
                let (result, failure) = split_database_error(
                    within_rule(by, opened_mark::mark(batch, id, self.now)).await,
                );
                (Done::Written(result, "opened", responder), failure)
            }
            Command::Doubts { doubts, responder } => {
                let (result, failure) =
                    split_database_error(within_rule(by, doubts::replace(batch, &doubts)).await);
                (Done::Written(result, "doubts", responder), failure)
            }
            Command::TestWrite { responder } => {
                let written = within(by, test_write(batch, self.now)).await;
                let (result, failure) =
                    split_database_error(written.map(|()| true).map_err(database));
                (Done::Written(result, "tested", responder), failure)
            }
            #[cfg(test)]
            Command::Fault { .. } => return None,
            Command::Close { .. } => return None,
        })
    }
}

/// Fails with [`disk_timeout`] at the deadline.
async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(disk_timeout()))
}

/// Like [`within`], for work that can also fail by a rule.
async fn within_rule<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, LedgerError>>,
) -> Result<T, LedgerError> {
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(database(disk_timeout())))
}

fn disk_timeout() -> sqlx::Error {
    let sentence = format!("the disk did not respond within {} s", TRANSACTION_DEADLINE.as_secs());
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, sentence))
}

/// Writes the head file. Returns the link if that fails.
fn store_head(file: &Path, process: &str, head: Head) -> Option<Head> {
    let error = audit::store_head(file, process, &head).err()?;
    tracing::warn!(%error, "cannot write the head file of the audit trail; retrying");
    Some(head)
}

async fn test_write(batch: &mut WriteBatch<'_>, now: Timestamp) -> Result<(), sqlx::Error> {
    write_probe(batch.connection().await?, now).await
}

fn fail(done: Done, why: &str) {
    let error = || LedgerError::Commit(why.to_owned());
    match done {
        Done::Intended(_, responder) => drop(responder.send(Err(error()))),
        Done::Applied(_, _, responder) => drop(responder.send(Err(error()))),
        Done::Written(_, _, responder) => drop(responder.send(Err(error()))),
        Done::Forgotten(_, responder) => drop(responder.send(Err(error()))),
    }
}

/// Reads the loans that these commands need.
async fn read_ahead(batch: &mut WriteBatch<'_>, commands: &[Command]) -> Result<(), sqlx::Error> {
    let ids: Vec<LoanId> = commands
        .iter()
        .filter_map(
            |command| if let Command::Apply { id, .. } = command { Some(*id) } else { None },
        )
        .collect();
    let keys = commands.iter().filter_map(|command| {
        if let Command::Intend { loan, .. } = command { Some(loan.key) } else { None }
    });
    batch.read_ahead(&ids, keys).await
}

/// Converts a command that did not run to a failed result. Returns none for a close, which [`run`]
/// handles.
fn unprocessed(command: Command) -> Option<Done> {
    match command {
        Command::Intend { responder, .. } => {
            Some(Done::Intended(Err(LedgerError::Closed), responder))
        }
        Command::Apply { event, responder, .. } => {
            Some(Done::Applied(Err(LedgerError::Closed), event.kind(), responder))
        }
        Command::Adopt { responder, .. } => {
            Some(Done::Written(Err(LedgerError::Closed), "adopted", responder))
        }
        Command::Progress { responder, .. } => {
            Some(Done::Written(Err(LedgerError::Closed), "progress", responder))
        }
        Command::Delivered { responder, .. } => {
            Some(Done::Written(Err(LedgerError::Closed), "delivered", responder))
        }
        Command::Forget { responder, .. } => {
            Some(Done::Forgotten(Err(LedgerError::Closed), responder))
        }
        Command::TestWrite { responder } => {
            Some(Done::Written(Err(LedgerError::Closed), "tested", responder))
        }
        #[cfg(test)]
        Command::Fault { .. } => None,
        Command::Opened { responder, .. } => {
            Some(Done::Written(Err(LedgerError::Closed), "opened", responder))
        }
        Command::Doubts { responder, .. } => {
            Some(Done::Written(Err(LedgerError::Closed), "doubts", responder))
        }
        Command::Close { .. } => None,
    }
}

/// Separates a database error, which fails the whole batch, from the error of a rule, which fails
/// one command. The database error is returned second.
fn split_database_error<T>(
    result: Result<T, LedgerError>,
) -> (Result<T, LedgerError>, Option<sqlx::Error>) {
    match result {
        Err(LedgerError::Database { source, .. }) => (Err(LedgerError::Closed), Some(source)),
        result => (result, None),
    }
}

async fn intend(
    batch: &mut WriteBatch<'_>,
    loan: Loan,
    issued: Option<Timestamp>,
    cause: &Cause,
    (brake, metrics): (Brake, &Metrics),
) -> Result<Intended, LedgerError> {
    let key_state = batch.key_state(&loan.key).await?;
    if let Some(live) = key_state.live {
        return Ok(Intended::Live(live));
    }
    if let Some(end) = key_state.last_end
        && issued.is_none_or(|issued| issued <= end)
    {
        return Ok(Intended::EndedSince(end));
    }
    if !brake.has_no_limits() {
        let connection = batch.connection().await.map_err(database)?;
        let refused_until = brake
            .refused_until(connection, &loan.key, loan.begun, metrics)
            .await
            .map_err(database)?;
        if let Some(until) = refused_until {
            return Ok(Intended::Braked(until));
        }
    }
    batch.record(&loan, None, cause);
    Ok(Intended::Written(loan))
}

async fn apply(
    batch: &mut WriteBatch<'_>,
    id: LoanId,
    event: Event,
    cause: &Cause,
    now: Timestamp,
) -> Result<Loan, LedgerError> {
    let event = opened_mark::replace_cancel_of_opened(batch, id, event).await?;
    let before = batch.loan(id).await?;
    let after = before.apply(&event, now)?;
    batch.record(&after, Some(before.state), cause);
    Ok(after)
}

async fn adopt(
    batch: &mut WriteBatch<'_>,
    id: LoanId,
    owner: &str,
    process: &Process,
) -> Result<bool, LedgerError> {
    let connection = batch.connection().await.map_err(database)?;
    let former: Option<String> = sqlx::query_scalar("SELECT owner FROM loans WHERE id = ?")
        .bind(id.to_string())
        .fetch_optional(&mut *connection)
        .await
        .map_err(database)?;
    let Some(former) = former.filter(|former| process.is_dead(former)) else {
        return Ok(false);
    };
    let update = sqlx::query("UPDATE loans SET owner = ? WHERE id = ? AND owner = ?")
        .bind(owner)
        .bind(id.to_string())
        .bind(former)
        .execute(connection)
        .await
        .map_err(database)?;
    Ok(update.rows_affected() == 1)
}

/// Writes the reading progress of a loan that was accepted at some time.
async fn note_progress(
    batch: &mut WriteBatch<'_>,
    id: LoanId,
    progress: Progress,
) -> Result<bool, LedgerError> {
    let connection = batch.connection().await.map_err(database)?;
    let update = sqlx::query("UPDATE loans SET progress = ? WHERE id = ? AND accepted IS NOT NULL")
        .bind(progress.hundredths())
        .bind(id.to_string())
        .execute(connection)
        .await
        .map_err(database)?;
    Ok(update.rows_affected() == 1)
}

/// Replaces the borrower of up to `limit` loans that ended before this time. Each loan gets a step
/// that covers the row without its borrower. The salts of its steps are erased, so their hashes can
/// no longer be linked to the borrower.
async fn forget(
    batch: &mut WriteBatch<'_>,
    before: Timestamp,
    limit: u32,
    now: Timestamp,
) -> Result<u64, LedgerError> {
    // Each loan gets a different value, so the loans of one borrower cannot be linked either.
    let forget = format!(
        "UPDATE loans SET borrower = randomblob(16), forgotten = ? WHERE id IN \
         (SELECT id FROM loans WHERE state IN ('refused', 'ended') AND forgotten IS NULL \
          AND coalesce(ended, changed) < ? LIMIT ?) RETURNING {COLUMNS}"
    );
    let connection = batch.connection().await.map_err(database)?;
    let rows = sqlx::query(AssertSqlSafe(forget))
        .bind(now.as_millisecond())
        .bind(before.as_millisecond())
        .bind(limit)
        .fetch_all(&mut *connection)
        .await
        .map_err(database)?;
    if rows.is_empty() {
        return Ok(0);
    }
    let mut erase = QueryBuilder::<Sqlite>::new("UPDATE history SET salt = NULL WHERE loan IN (");
    let mut list = erase.separated(", ");
    for row in &rows {
        list.push_bind(row.try_get::<String, _>("id").map_err(database)?);
    }
    erase.push(")").build().persistent(false).execute(connection).await.map_err(database)?;
    let cause = Cause { by: "retention", detail: None };
    // A damaged row loses its borrower too, but gets no step: it cannot be hashed, and `ledger
    // check` reports it anyway.
    for loan in rows.iter().filter_map(|row| loan_of(row).ok()) {
        batch.record_written_row(&loan, now, &cause);
    }
    Ok(rows.len() as u64)
}
