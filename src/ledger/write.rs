//! The one task that writes: it takes what is waiting, commits it together, and only then answers.
//!
//! A commit costs a sync of the disk, whatever is in it; so a hundred registrations at once cost
//! one sync and not a hundred. Commands of one batch see one another's rows; one that fails by a
//! rule (an illegal transition, a live loan) writes nothing and leaves the others alone, since
//! rules are looked at before anything is written. Where the database itself fails, the whole batch
//! fails, and `connection` opens another connection; until that succeeds, commands fail at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, Connection, QueryBuilder, Row, Sqlite};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::audit::{self, AuditKey, Head};
use super::batch::{Draft, database};
use super::brake::Brake;
use super::connection::{TRANSACTION_DEADLINE, WriteConnection, reason, write_probe};
use super::process::Process;
use super::row::{COLUMNS, loan_of};
use super::{
    Cause, Delivered, Doubts, Intended, LedgerError, balance_memory, delivered, opened_mark,
};
use crate::clock::Clock;
use crate::crash::{self, Edge};
use crate::loan::{Event, Loan, LoanId, LoanState, Progress};
use crate::telemetry::Metrics;

/// How many commands one transaction takes at most.
const BATCH: usize = 512;

/// How long the newest link of the audit trail may be missing in the file apart.
const KEPT_APART_WITHIN: Duration = Duration::from_secs(1);
/// Deadline of each step of closing.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// How often a ledger that stays unwritable is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

type Answer<T> = oneshot::Sender<Result<T, LedgerError>>;

/// Something to write, and whom to tell.
pub(super) enum Command {
    Intend {
        loan: Box<Loan>,
        issued: Option<Timestamp>,
        cause: Cause,
        answer: Answer<Intended>,
    },
    Apply {
        id: LoanId,
        event: Event,
        cause: Cause,
        answer: Answer<Loan>,
    },
    Adopt {
        id: LoanId,
        answer: Answer<bool>,
    },
    Progress {
        id: LoanId,
        progress: Progress,
        answer: Answer<bool>,
    },
    Delivered {
        delivered: Arc<[Delivered]>,
        answer: Answer<bool>,
    },
    Forget {
        before: Timestamp,
        limit: u32,
        answer: Answer<u64>,
    },
    /// Writes a row that means nothing, to see that the ledger can be written.
    TestWrite {
        answer: Answer<bool>,
    },
    /// What a failing disk does, for tests.
    #[cfg(test)]
    Fault {
        fault: Fault,
        answer: oneshot::Sender<()>,
    },
    Doubts {
        doubts: Doubts,
        answer: Answer<bool>,
    },
    Opened {
        id: LoanId,
        answer: Answer<bool>,
    },
    Close {
        answer: oneshot::Sender<()>,
    },
}

/// A fault of the disk, as SQLite shows it.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// The database cannot grow: SQLite itself rolls the transaction back with SQLITE_FULL.
    Full,
    /// The next transaction is rolled back before its commit without the knowledge of sqlx.
    RolledBack,
    /// The next commit succeeds, and its success is not reported.
    CommitUnreported,
}

/// What a command gave, to be told once it is durable.
enum Done {
    Intended(Result<Intended, LedgerError>, Answer<Intended>),
    Applied(Result<Loan, LedgerError>, &'static str, Answer<Loan>),
    /// By its name, whether there was anything to write.
    Written(Result<bool, LedgerError>, &'static str, Answer<bool>),
    Forgotten(Result<u64, LedgerError>, Answer<u64>),
}

impl Done {
    /// The intent that this wrote.
    fn written_intent(&self) -> Option<LoanId> {
        match self {
            Done::Intended(Ok(Intended::Written(loan)), _) => Some(loan.id),
            _ => None,
        }
    }

    /// What was done, for those who let it crash there.
    fn name(&self) -> &'static str {
        match self {
            Done::Intended(..) => "intended",
            Done::Applied(_, event, _) => event,
            Done::Written(_, name, _) => name,
            Done::Forgotten(..) => "forgotten",
        }
    }
}

/// What the writing task owns.
pub(super) struct Writer {
    pub(super) connection: WriteConnection,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) process: Arc<Process>,
    pub(super) brake: Brake,
    pub(super) audit_key: AuditKey,
    /// The ledger's file.
    pub(super) file: PathBuf,
    /// Intents whose commit failed in its last step: their callers send no begin, but the rows may
    /// be durable.
    pub(super) in_doubt: Vec<LoanId>,
    /// The newest committed link of the audit trail, where the file apart does not have it yet.
    pub(super) head: Option<Head>,
    /// When that file is to be written next.
    pub(super) keep_at: Instant,
    /// The write of that file that is in progress; returns the link where it failed.
    pub(super) keeping: Option<JoinHandle<Option<Head>>>,
    /// When a failure was last logged.
    pub(super) logged_at: Option<Instant>,
    /// What the next transaction meets.
    #[cfg(test)]
    pub(super) fault: Option<Fault>,
}

/// A failed transaction.
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

/// Writes until told to close, or until nobody is left to write for.
pub(super) async fn run(mut writer: Writer, mut waiting: mpsc::Receiver<Command>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let taken = match writer.wake_at() {
            None => waiting.recv_many(&mut batch, BATCH).await,
            Some(at) => match timeout_at(at, waiting.recv_many(&mut batch, BATCH)).await {
                Ok(taken) => taken,
                Err(_) => {
                    writer.wake().await;
                    continue;
                }
            },
        };
        if taken == 0 {
            return writer.finish_head().await;
        }
        let closing = writer.take(std::mem::take(&mut batch)).await;
        if let Some(answer) = closing {
            waiting.close();
            writer.finish_head().await;
            writer.fold().await;
            let _ = answer.send(());
            return;
        }
    }
}

impl Writer {
    #[cfg(test)]
    async fn inject(&mut self, fault: Fault) {
        match (fault, self.connection.get()) {
            // The limit is one of this connection, and never below the pages that there are.
            (Fault::Full, Ok(connection)) => {
                sqlx::query("PRAGMA max_page_count = 1").execute(connection).await.unwrap();
            }
            _ => self.fault = Some(fault),
        }
    }

    /// When there is work without a command: reopening the connection, or writing the newest link
    /// apart.
    fn wake_at(&self) -> Option<Instant> {
        let keep_at = (self.head.is_some() || self.keeping.is_some()).then_some(self.keep_at);
        [self.connection.retry_at(), keep_at].into_iter().flatten().min()
    }

    async fn wake(&mut self) {
        let now = Instant::now();
        if self.connection.retry_at().is_some_and(|at| at <= now) {
            self.reopen().await;
        }
        if self.keep_at <= now {
            self.keep_head().await;
        }
    }

    /// Writes one batch; returns the answer of a close that was in it. What follows the close is
    /// not written.
    async fn take(&mut self, batch: Vec<Command>) -> Option<oneshot::Sender<()>> {
        let began = Instant::now();
        let mut closing = None;
        let mut commands = Vec::with_capacity(batch.len());
        for command in batch {
            match command {
                Command::Close { answer } => closing = Some(answer),
                #[cfg(test)]
                Command::Fault { fault, answer } => {
                    self.inject(fault).await;
                    let _ = answer.send(());
                }
                _ if closing.is_some() => {} // dropping it says `Closed`
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

    /// Commits the commands and answers them; returns whether that succeeded.
    async fn commit(&mut self, commands: Vec<Command>) -> bool {
        if self.connection.retry_at().is_some_and(|at| at <= Instant::now()) {
            self.reopen().await;
        }
        let mut done = Vec::with_capacity(commands.len());
        let mut commands = commands.into_iter();
        if let Err(why) = self.connection.get() {
            let why = why.to_owned();
            commands.filter_map(unwritten).for_each(|done| fail(done, &why));
            return false;
        }
        match self.write(&mut commands, &mut done).await {
            Ok(head) => {
                self.connection.committed();
                self.note_head(head).await;
                done.into_iter().for_each(|done| self.tell(done));
                true
            }
            Err(Failure { source, in_doubt }) => {
                if in_doubt {
                    self.in_doubt.extend(done.iter().filter_map(Done::written_intent));
                }
                let why = reason(&source);
                self.failed(&why, done.len() + commands.len());
                // Answered before the connection is closed, which may take a moment.
                done.into_iter().for_each(|done| fail(done, &why));
                commands.filter_map(unwritten).for_each(|done| fail(done, &why));
                self.connection.discard(why).await;
                false
            }
        }
    }

    /// Counts a failed transaction, and logs it once a minute at most: a full disk fails every one.
    fn failed(&mut self, why: &str, commands: usize) {
        self.metrics.ledger_failed();
        self.metrics.ledger_writable(false);
        if self.logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            self.logged_at = Some(Instant::now());
            tracing::error!(error = why, commands, file = %self.file.display(), "the ledger cannot be written");
        }
    }

    /// Opens the connection again, and ends the intents whose commit was in doubt.
    async fn reopen(&mut self) {
        let down = match self.connection.reopen(self.clock.now()).await {
            Ok(down) => down,
            Err(why) => return self.failed(&why, 0),
        };
        if let Err(Failure { source, .. }) = self.end_doubtful().await {
            let why = reason(&source);
            self.failed(&why, 0);
            return self.connection.discard(why).await;
        }
        self.metrics.ledger_writable(true);
        // So that the next failure is logged whatever the time.
        self.logged_at = None;
        tracing::info!(?down, "the ledger can be written again");
    }

    /// Ends the intents in doubt that turn out to be durable: their callers were told that nothing
    /// is certain, and sent no begin. The write lock that the transaction holds proves that no
    /// older commit is still on its way.
    async fn end_doubtful(&mut self) -> Result<(), Failure> {
        if self.in_doubt.is_empty() {
            return Ok(());
        }
        let detail = Some("the commit of the intent failed, and its begin was not sent".to_owned());
        let cause = Cause { by: "ledger", detail };
        let deadline = Instant::now() + TRANSACTION_DEADLINE;
        let (now, owner) = (self.clock.now(), self.process.name().to_owned());
        let Ok(connection) = self.connection.get() else { return Ok(()) };
        let mut transaction = within(deadline, connection.begin_with("BEGIN IMMEDIATE")).await?;
        let mut draft =
            within(deadline, Draft::begin(&mut transaction, &owner, &self.audit_key)).await?;
        for id in &self.in_doubt {
            let found = within_rule(deadline, draft.loan(*id)).await;
            let (found, broken) = rule(found);
            if let Some(source) = broken {
                return Err(source.into());
            }
            let intent = found.ok().filter(|loan| loan.state == LoanState::Intended);
            if let Some((before, Ok(after))) =
                intent.map(|loan| (loan.state, loan.apply(&Event::NotSent, now)))
            {
                draft.note(&after, Some(before), &cause);
            }
        }
        let head = within(deadline, draft.end()).await?;
        within(deadline, transaction.commit()).await?;
        self.in_doubt.clear();
        self.note_head(head).await;
        Ok(())
    }

    /// Runs the commands in one transaction, and returns the newest link of the audit trail. Where
    /// the database fails, the rest of the commands is left, and the caller answers all of them.
    async fn write(
        &mut self,
        commands: &mut std::vec::IntoIter<Command>,
        done: &mut Vec<Done>,
    ) -> Result<Head, Failure> {
        let deadline = Instant::now() + TRANSACTION_DEADLINE;
        let Ok(connection) = self.connection.get() else {
            return Err(sqlx::Error::WorkerCrashed.into());
        };
        let work = Work {
            now: self.clock.now(),
            deadline,
            owner: self.process.name(),
            process: &self.process,
            brake: (self.brake, &self.metrics),
        };
        let mut transaction = within(deadline, connection.begin_with("BEGIN IMMEDIATE")).await?;
        let mut draft =
            within(deadline, Draft::begin(&mut transaction, work.owner, &self.audit_key)).await?;
        within(deadline, read_ahead(&mut draft, commands.as_slice())).await?;
        for command in commands {
            let Some((result, broken)) = work.run(&mut draft, command).await else { continue };
            done.push(result);
            if let Some(source) = broken {
                return Err(source.into());
            }
        }
        let head = within(deadline, draft.end()).await?;
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
            if fault == Some(Fault::CommitUnreported) { Err(late()) } else { committed };
        committed.map_err(|source| Failure { source, in_doubt: true })?;
        done.iter().for_each(|done| crash::point("commit", done.name(), Edge::After));
        Ok(head)
    }

    /// Records a committed link, which the file apart has within a second.
    async fn note_head(&mut self, head: Head) {
        if head.number == 0 {
            return;
        }
        if self.head.is_none() && self.keeping.is_none() {
            self.keep_at = Instant::now() + KEPT_APART_WITHIN;
        }
        self.head = Some(head);
        if Instant::now() >= self.keep_at {
            self.keep_head().await;
        }
    }

    /// Starts to write the newest link apart, unless the write before is still in progress. On a
    /// thread of its own: a disk that does not answer must not stop the commands.
    async fn keep_head(&mut self) {
        self.keep_at = Instant::now() + KEPT_APART_WITHIN;
        if let Some(keeping) = self.keeping.take_if(|keeping| keeping.is_finished())
            && let Ok(Some(failed)) = keeping.await
        {
            // Tried again a second later, unless there is a newer one by now.
            self.head.get_or_insert(failed);
            return;
        }
        if self.keeping.is_none()
            && let Some(head) = self.head.take()
        {
            let (file, process) = (self.file.clone(), self.process.clone());
            self.keeping =
                Some(tokio::task::spawn_blocking(move || keep_apart(&file, process.name(), head)));
        }
    }

    /// Writes the newest link apart and waits for that, on closing.
    async fn finish_head(&mut self) {
        let finish = async {
            for _ in 0..2 {
                if let Some(keeping) = self.keeping.take()
                    && let Ok(Some(failed)) = keeping.await
                {
                    self.head.get_or_insert(failed);
                }
                self.keep_head().await;
            }
            if let Some(keeping) = self.keeping.take() {
                let _ = keeping.await;
            }
        };
        if timeout(CLOSE_DEADLINE, finish).await.is_err() {
            tracing::warn!("the newest link of the audit trail could not be stored apart in time");
        }
    }

    fn tell(&self, done: Done) {
        match done {
            Done::Intended(result, answer) => {
                if matches!(result, Ok(Intended::Written(_))) {
                    self.metrics.loan("intended");
                }
                let _ = answer.send(result);
            }
            Done::Applied(result, event, answer) => {
                if result.is_ok() {
                    self.metrics.loan(event);
                }
                let _ = answer.send(result);
            }
            Done::Written(result, _, answer) => {
                let _ = answer.send(result);
            }
            Done::Forgotten(result, answer) => {
                let _ = answer.send(result);
            }
        }
    }

    /// Folds the write-ahead log into the file, so that a copy of the file alone is whole.
    async fn fold(&mut self) {
        let Ok(connection) = self.connection.get() else { return };
        for statement in ["PRAGMA optimize", "PRAGMA wal_checkpoint(TRUNCATE)"] {
            let deadline = Instant::now() + CLOSE_DEADLINE;
            if let Err(error) =
                within(deadline, sqlx::query(statement).execute(&mut *connection)).await
            {
                tracing::warn!(%error, statement, "the ledger could not be tidied on closing");
            }
        }
    }
}

/// What the commands of one transaction share.
struct Work<'a> {
    now: Timestamp,
    deadline: Instant,
    owner: &'a str,
    process: &'a Process,
    brake: (Brake, &'a Metrics),
}

impl Work<'_> {
    /// Runs one command: what is to be answered once it is durable, and the error where the
    /// database failed. None for a close, which is answered elsewhere.
    async fn run(
        &self,
        draft: &mut Draft<'_>,
        command: Command,
    ) -> Option<(Done, Option<sqlx::Error>)> {
        let by = self.deadline;
        Some(match command {
            Command::Intend { loan, issued, cause, answer } => {
                let work = intend(draft, *loan, issued, &cause, self.brake);
                let (result, broken) = rule(within_rule(by, work).await);
                (Done::Intended(result, answer), broken)
            }
            Command::Apply { id, event, cause, answer } => {
                let name = event.name();
                let work = apply(draft, id, event, &cause, self.now);
                let (result, broken) = rule(within_rule(by, work).await);
                (Done::Applied(result, name, answer), broken)
            }
            Command::Adopt { id, answer } => {
                let work = adopt(draft, id, self.owner, self.process);
                let (result, broken) = rule(within_rule(by, work).await);
                (Done::Written(result, "adopted", answer), broken)
            }
            Command::Progress { id, progress, answer } => {
                let work = note_progress(draft, id, progress);
                let (result, broken) = rule(within_rule(by, work).await);
                (Done::Written(result, "progress", answer), broken)
            }
            Command::Delivered { delivered, answer } => {
                let written = within(by, delivered::add(draft, &delivered)).await;
                let (result, broken) = rule(written.map(|()| true).map_err(database));
                (Done::Written(result, "delivered", answer), broken)
            }
            Command::Forget { before, limit, answer } => {
                let work = forget(draft, before, limit, self.now);
                let (result, broken) = rule(within_rule(by, work).await);
                (Done::Forgotten(result, answer), broken)
            }
            Command::Opened { id, answer } => {
                let (result, broken) =
                    rule(within_rule(by, opened_mark::mark(draft, id, self.now)).await);
                (Done::Written(result, "opened", answer), broken)
            }
            Command::Doubts { doubts, answer } => {
                let (result, broken) =
                    rule(within_rule(by, balance_memory::replace(draft, &doubts)).await);
                (Done::Written(result, "doubts", answer), broken)
            }
            Command::TestWrite { answer } => {
                let written = within(by, test_write(draft, self.now)).await;
                let (result, broken) = rule(written.map(|()| true).map_err(database));
                (Done::Written(result, "tested", answer), broken)
            }
            #[cfg(test)]
            Command::Fault { .. } => return None,
            Command::Close { .. } => return None,
        })
    }
}

/// Fails at the deadline, where the disk does not answer.
async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(late()))
}

/// As [`within`], for work that a rule may refuse.
async fn within_rule<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, LedgerError>>,
) -> Result<T, LedgerError> {
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(database(late())))
}

fn late() -> sqlx::Error {
    let sentence = format!("the disk did not answer within {} s", TRANSACTION_DEADLINE.as_secs());
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, sentence))
}

/// Returns the link where it could not be stored.
fn keep_apart(file: &Path, process: &str, head: Head) -> Option<Head> {
    let error = audit::keep_apart(file, process, &head).err()?;
    tracing::warn!(%error, "the newest link of the audit trail could not be stored apart; trying again");
    Some(head)
}

async fn test_write(draft: &mut Draft<'_>, now: Timestamp) -> Result<(), sqlx::Error> {
    write_probe(draft.connection().await?, now).await
}

fn fail(done: Done, why: &str) {
    let error = || LedgerError::Commit(why.to_owned());
    match done {
        Done::Intended(_, answer) => drop(answer.send(Err(error()))),
        Done::Applied(_, _, answer) => drop(answer.send(Err(error()))),
        Done::Written(_, _, answer) => drop(answer.send(Err(error()))),
        Done::Forgotten(_, answer) => drop(answer.send(Err(error()))),
    }
}

/// Reads what these commands will ask for.
async fn read_ahead(draft: &mut Draft<'_>, commands: &[Command]) -> Result<(), sqlx::Error> {
    let ids: Vec<LoanId> = commands
        .iter()
        .filter_map(
            |command| if let Command::Apply { id, .. } = command { Some(*id) } else { None },
        )
        .collect();
    let keys = commands.iter().filter_map(|command| {
        if let Command::Intend { loan, .. } = command { Some(loan.key) } else { None }
    });
    draft.read_ahead(&ids, keys).await
}

/// A command that was not come to, as one that failed; none for a close, which is answered
/// elsewhere.
fn unwritten(command: Command) -> Option<Done> {
    match command {
        Command::Intend { answer, .. } => Some(Done::Intended(Err(LedgerError::Closed), answer)),
        Command::Apply { event, answer, .. } => {
            Some(Done::Applied(Err(LedgerError::Closed), event.name(), answer))
        }
        Command::Adopt { answer, .. } => {
            Some(Done::Written(Err(LedgerError::Closed), "adopted", answer))
        }
        Command::Progress { answer, .. } => {
            Some(Done::Written(Err(LedgerError::Closed), "progress", answer))
        }
        Command::Delivered { answer, .. } => {
            Some(Done::Written(Err(LedgerError::Closed), "delivered", answer))
        }
        Command::Forget { answer, .. } => Some(Done::Forgotten(Err(LedgerError::Closed), answer)),
        Command::TestWrite { answer } => {
            Some(Done::Written(Err(LedgerError::Closed), "tested", answer))
        }
        #[cfg(test)]
        Command::Fault { .. } => None,
        Command::Opened { answer, .. } => {
            Some(Done::Written(Err(LedgerError::Closed), "opened", answer))
        }
        Command::Doubts { answer, .. } => {
            Some(Done::Written(Err(LedgerError::Closed), "doubts", answer))
        }
        Command::Close { .. } => None,
    }
}

/// Tells an error by a rule, which concerns one command, from one of the database, which concerns
/// all: that is given apart.
fn rule<T>(result: Result<T, LedgerError>) -> (Result<T, LedgerError>, Option<sqlx::Error>) {
    match result {
        Err(LedgerError::Database { source, .. }) => (Err(LedgerError::Closed), Some(source)),
        result => (result, None),
    }
}

async fn intend(
    draft: &mut Draft<'_>,
    loan: Loan,
    issued: Option<Timestamp>,
    cause: &Cause,
    (brake, metrics): (Brake, &Metrics),
) -> Result<Intended, LedgerError> {
    let standing = draft.standing(&loan.key).await?;
    if let Some(live) = standing.live {
        return Ok(Intended::Live(live));
    }
    if let Some(end) = standing.last_end
        && issued.is_none_or(|issued| issued <= end)
    {
        return Ok(Intended::EndedSince(end));
    }
    if !brake.is_idle() {
        let connection = draft.connection().await.map_err(database)?;
        let held =
            brake.holds(connection, &loan.key, loan.begun, metrics).await.map_err(database)?;
        if let Some(until) = held {
            return Ok(Intended::Braked(until));
        }
    }
    draft.note(&loan, None, cause);
    Ok(Intended::Written(loan))
}

async fn apply(
    draft: &mut Draft<'_>,
    id: LoanId,
    event: Event,
    cause: &Cause,
    now: Timestamp,
) -> Result<Loan, LedgerError> {
    let event = opened_mark::permitted(draft, id, event).await?;
    let before = draft.loan(id).await?;
    let after = before.apply(&event, now)?;
    draft.note(&after, Some(before.state), cause);
    Ok(after)
}

async fn adopt(
    draft: &mut Draft<'_>,
    id: LoanId,
    owner: &str,
    process: &Process,
) -> Result<bool, LedgerError> {
    let connection = draft.connection().await.map_err(database)?;
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

/// Writes how far a loan has been read, where it was ever accepted.
async fn note_progress(
    draft: &mut Draft<'_>,
    id: LoanId,
    progress: Progress,
) -> Result<bool, LedgerError> {
    let connection = draft.connection().await.map_err(database)?;
    let update = sqlx::query("UPDATE loans SET progress = ? WHERE id = ? AND accepted IS NOT NULL")
        .bind(progress.hundredths())
        .bind(id.to_string())
        .execute(connection)
        .await
        .map_err(database)?;
    Ok(update.rows_affected() == 1)
}

/// Forgets who borrowed, of up to `limit` loans that ended before this moment. Each gets a step
/// that covers the row without its borrower, and the salts of its steps are erased: their hashes
/// can be tied to the borrower no more.
async fn forget(
    draft: &mut Draft<'_>,
    before: Timestamp,
    limit: u32,
    now: Timestamp,
) -> Result<u64, LedgerError> {
    // Another value for each loan: nothing ties the loans of one borrower together either.
    let forget = format!(
        "UPDATE loans SET borrower = randomblob(16), forgotten = ? WHERE id IN \
         (SELECT id FROM loans WHERE state IN ('refused', 'ended') AND forgotten IS NULL \
          AND coalesce(ended, changed) < ? LIMIT ?) RETURNING {COLUMNS}"
    );
    let connection = draft.connection().await.map_err(database)?;
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
    // A damaged row is forgotten as well, without a step: no hash of it can be made, and `ledger
    // check` names it anyway.
    for loan in rows.iter().filter_map(|row| loan_of(row).ok()) {
        draft.note_written(&loan, now, &cause);
    }
    Ok(rows.len() as u64)
}
