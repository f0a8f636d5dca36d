//! The one task that writes: it takes what is waiting, commits it together, and only then answers.
//!
//! A commit costs a sync of the disk, whatever is in it; so a hundred registrations at once cost one sync and
//! not a hundred. Commands of one batch see one another's rows; one that fails by a rule (an illegal
//! transition, a live loan) writes nothing and leaves the others alone, since rules are looked at before
//! anything is written. Where the database itself fails, the whole batch is rolled back and everyone told.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::audit::{self, AuditKey, Head};
use super::brake::{Brake, BrakeMode};
use super::draft::{Draft, database};
use super::process::Process;
use super::{Cause, Delivered, Intended, LedgerError, delivered};
use crate::clock::Clock;
use crate::crash::{self, Edge};
use crate::loan::{Event, Loan, LoanId, Progress};
use crate::telemetry::Metrics;

/// How many commands one transaction takes at most.
const BATCH: usize = 512;

/// How long the newest link of the audit trail may be missing in the file apart.
const KEPT_APART_WITHIN: Duration = Duration::from_secs(1);

type Answer<T> = oneshot::Sender<Result<T, LedgerError>>;

/// Something to write, and whom to tell.
pub(super) enum Command {
    Intend { loan: Box<Loan>, issued: Option<Timestamp>, cause: Cause, answer: Answer<Intended> },
    Apply { id: LoanId, event: Event, cause: Cause, answer: Answer<Loan> },
    Adopt { id: LoanId, answer: Answer<bool> },
    Progress { id: LoanId, progress: Progress, answer: Answer<bool> },
    Delivered { delivered: Arc<[Delivered]>, answer: Answer<bool> },
    Forget { before: Timestamp, limit: u32, answer: Answer<u64> },
    Close { answer: oneshot::Sender<()> },
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

/// What the writing task has.
pub(super) struct Writer {
    pub(super) connection: SqliteConnection,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) process: Arc<Process>,
    pub(super) brake: Brake,
    pub(super) audit_key: AuditKey,
    /// The ledger's file.
    pub(super) file: PathBuf,
    /// The newest link of the audit trail, where it has not been kept apart yet.
    pub(super) head: Option<Head>,
    /// When it is to be.
    pub(super) keep_at: tokio::time::Instant,
}

/// Writes until told to close, or until nobody is left to write for.
pub(super) async fn run(mut writer: Writer, mut waiting: mpsc::Receiver<Command>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let taken = match writer.head {
            None => waiting.recv_many(&mut batch, BATCH).await,
            Some(_) => {
                match tokio::time::timeout_at(writer.keep_at, waiting.recv_many(&mut batch, BATCH)).await {
                    Ok(taken) => taken,
                    Err(_) => {
                        writer.keep_head();
                        continue;
                    }
                }
            }
        };
        if taken == 0 {
            return writer.keep_head();
        }
        let closing = writer.take(std::mem::take(&mut batch)).await;
        if let Some(answer) = closing {
            waiting.close();
            writer.keep_head();
            writer.fold().await;
            let _ = answer.send(());
            return;
        }
    }
}

impl Writer {
    /// Writes one batch; gives the one to tell when a close was in it. What came after that is not written.
    async fn take(&mut self, batch: Vec<Command>) -> Option<oneshot::Sender<()>> {
        let began = Instant::now();
        let mut closing = None;
        let mut commands = Vec::with_capacity(batch.len());
        for command in batch {
            match command {
                Command::Close { answer } => closing = Some(answer),
                _ if closing.is_some() => {} // dropping it says `Closed`
                command => commands.push(command),
            }
        }
        if !commands.is_empty() {
            let count = commands.len();
            self.commit(commands).await;
            self.metrics.ledger_batch(count, began.elapsed());
        }
        closing
    }

    async fn commit(&mut self, commands: Vec<Command>) {
        let mut done = Vec::with_capacity(commands.len());
        let mut commands = commands.into_iter();
        match self.write(&mut commands, &mut done).await {
            Ok(head) => {
                self.note_head(head);
                done.into_iter().for_each(|done| self.tell(done));
            }
            Err(error) => {
                let why = error.to_string();
                tracing::error!(%error, commands = done.len() + commands.len(), "the ledger could not commit");
                done.into_iter().for_each(|done| fail(done, &why));
                commands.filter_map(unwritten).for_each(|done| fail(done, &why));
            }
        }
    }

    /// Runs the commands in one transaction, and gives the newest link of the audit trail. Where the database fails, the
    /// rest of the commands is left, and everyone is told by the caller.
    async fn write(
        &mut self,
        commands: &mut std::vec::IntoIter<Command>,
        done: &mut Vec<Done>,
    ) -> Result<Head, sqlx::Error> {
        let now = self.clock.now();
        let owner = self.process.name().to_owned();
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let mut draft = Draft::begin(&mut transaction, &owner, &self.audit_key).await?;
        read_ahead(&mut draft, commands.as_slice()).await?;
        for command in commands {
            let broken = match command {
                Command::Intend { loan, issued, cause, answer } => {
                    let brake = (self.brake, &self.metrics);
                    let result = intend(&mut draft, *loan, issued, &cause, brake).await;
                    let (result, broken) = rule(result);
                    done.push(Done::Intended(result, answer));
                    broken
                }
                Command::Apply { id, event, cause, answer } => {
                    let result = apply(&mut draft, id, &event, &cause, now).await;
                    let (result, broken) = rule(result);
                    done.push(Done::Applied(result, event.name(), answer));
                    broken
                }
                Command::Adopt { id, answer } => {
                    let (result, broken) = rule(adopt(&mut draft, id, &owner, &self.process).await);
                    done.push(Done::Written(result, "adopted", answer));
                    broken
                }
                Command::Progress { id, progress, answer } => {
                    let (result, broken) = rule(note_progress(&mut draft, id, progress).await);
                    done.push(Done::Written(result, "progress", answer));
                    broken
                }
                Command::Delivered { delivered, answer } => {
                    let written = delivered::add(&mut draft, &delivered).await;
                    let (result, broken) = rule(written.map(|()| true).map_err(database));
                    done.push(Done::Written(result, "delivered", answer));
                    broken
                }
                Command::Forget { before, limit, answer } => {
                    let (result, broken) = rule(forget(&mut draft, before, limit, now).await);
                    done.push(Done::Forgotten(result, answer));
                    broken
                }
                Command::Close { .. } => None,
            };
            if let Some(source) = broken {
                return Err(source);
            }
        }
        let head = draft.end().await?;
        done.iter().for_each(|done| crash::point("commit", done.name(), Edge::Before));
        transaction.commit().await?;
        done.iter().for_each(|done| crash::point("commit", done.name(), Edge::After));
        Ok(head)
    }

    /// Notes that the newest link is to be kept apart, within a second.
    fn note_head(&mut self, head: Head) {
        if self.head.is_none() {
            self.keep_at = tokio::time::Instant::now() + KEPT_APART_WITHIN;
        }
        self.head = Some(head);
        if tokio::time::Instant::now() >= self.keep_at {
            self.keep_head();
        }
    }

    fn keep_head(&mut self) {
        if let Some(head) = self.head.take()
            && let Err(error) = audit::keep_apart(&self.file, &head)
        {
            tracing::warn!(%error, "the newest link of the audit trail could not be kept apart");
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
        for statement in ["PRAGMA optimize", "PRAGMA wal_checkpoint(TRUNCATE)"] {
            if let Err(error) = sqlx::query(statement).execute(&mut self.connection).await {
                tracing::warn!(%error, statement, "the ledger could not be tidied on closing");
            }
        }
    }
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
        .filter_map(|command| if let Command::Apply { id, .. } = command { Some(*id) } else { None })
        .collect();
    let keys = commands
        .iter()
        .filter_map(|command| if let Command::Intend { loan, .. } = command { Some(loan.key) } else { None });
    draft.read_ahead(&ids, keys).await
}

/// A command that was not come to, as one that failed; none for a close, which is answered elsewhere.
fn unwritten(command: Command) -> Option<Done> {
    match command {
        Command::Intend { answer, .. } => Some(Done::Intended(Err(LedgerError::Closed), answer)),
        Command::Apply { event, answer, .. } => {
            Some(Done::Applied(Err(LedgerError::Closed), event.name(), answer))
        }
        Command::Adopt { answer, .. } => Some(Done::Written(Err(LedgerError::Closed), "adopted", answer)),
        Command::Progress { answer, .. } => Some(Done::Written(Err(LedgerError::Closed), "progress", answer)),
        Command::Delivered { answer, .. } => {
            Some(Done::Written(Err(LedgerError::Closed), "delivered", answer))
        }
        Command::Forget { answer, .. } => Some(Done::Forgotten(Err(LedgerError::Closed), answer)),
        Command::Close { .. } => None,
    }
}

/// Tells an error by a rule, which concerns one command, from one of the database, which concerns all: that is given
/// apart.
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
    if brake.mode != BrakeMode::Off {
        let connection = draft.connection().await.map_err(database)?;
        let held = brake.holds(connection, &loan.key, loan.begun, metrics).await.map_err(database)?;
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
    event: &Event,
    cause: &Cause,
    now: Timestamp,
) -> Result<Loan, LedgerError> {
    let before = draft.loan(id).await?;
    let after = before.apply(event, now)?;
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
async fn note_progress(draft: &mut Draft<'_>, id: LoanId, progress: Progress) -> Result<bool, LedgerError> {
    let connection = draft.connection().await.map_err(database)?;
    let update = sqlx::query("UPDATE loans SET progress = ? WHERE id = ? AND accepted IS NOT NULL")
        .bind(progress.hundredths())
        .bind(id.to_string())
        .execute(connection)
        .await
        .map_err(database)?;
    Ok(update.rows_affected() == 1)
}

/// Forgets who borrowed, of so many loans that ended before this moment.
async fn forget(
    draft: &mut Draft<'_>,
    before: Timestamp,
    limit: u32,
    now: Timestamp,
) -> Result<u64, LedgerError> {
    // Another value for each loan: those of one borrower are not to be told together either.
    const FORGET: &str = "UPDATE loans SET borrower = randomblob(16), forgotten = ? WHERE id IN \
         (SELECT id FROM loans WHERE state IN ('refused', 'ended') AND forgotten IS NULL \
          AND coalesce(ended, changed) < ? LIMIT ?)";
    let connection = draft.connection().await.map_err(database)?;
    let update = sqlx::query(FORGET)
        .bind(now.as_millisecond())
        .bind(before.as_millisecond())
        .bind(limit)
        .execute(connection)
        .await
        .map_err(database)?;
    Ok(update.rows_affected())
}
