//! The work of each command inside a transaction: locks rows, applies the rules and records the
//! changes.
//!
//! Only the executor calls it.

mod report_books;

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::audit::Head;
use super::batch::{Claim, WriteBatch};
use super::brake::{self, Count, Reached};
use super::command::{Change, Command, Examination, Intent, Update};
use super::executor::ExecutorContext;
use super::store::{OldLoans, StoreTransaction, WorkError};
use super::{Cause, Delivered, Intended, LedgerError, examinations, rules};
use crate::clock;
use crate::loan::{Loan, LoanId, LoanKey};

/// Runs the commands of one transaction.
pub(super) struct CommandRunner<'a, T> {
    context: &'a ExecutorContext,
    now: Timestamp,
    started: Instant,
    batch: WriteBatch<'a, T>,
}

impl<'a, T: StoreTransaction> CommandRunner<'a, T> {
    pub(super) fn new(
        context: &'a ExecutorContext,
        batch: WriteBatch<'a, T>,
    ) -> CommandRunner<'a, T> {
        CommandRunner { context, now: context.now(), started: Instant::now(), batch }
    }

    /// Returns whether the caller of an intent had left before this transaction started.
    fn is_late(&self, intent: &Intent) -> bool {
        intent.until.is_some_and(|until| until <= self.started)
    }

    /// Claims the slots of intents, and then locks the loans that these commands need.
    pub(super) async fn lock_ahead(&mut self, commands: &[Command]) -> Result<(), sqlx::Error> {
        let (mut ids, mut keys, mut first) = (Vec::new(), HashSet::new(), Vec::new());
        for command in commands {
            match command {
                Command::Intend(intent, _) if self.is_late(intent) => {}
                Command::Intend(intent, _) => {
                    if keys.insert(intent.loan.key) {
                        first.push(&intent.loan);
                    }
                }
                Command::Apply(change, _) => ids.push(change.id),
                Command::Update(update, _) if T::LOCKS_ROWS => ids.extend(update.loan()),
                Command::Report(write, _) if T::LOCKS_ROWS => write.push_loans(&mut ids),
                Command::Examine(examination, _) if T::LOCKS_ROWS => ids.push(examination.id),
                Command::Update(..) | Command::Report(..) | Command::Examine(..) => {}
            }
        }
        self.batch.claim_ahead(&first).await?;
        let keys: Vec<LoanKey> = keys.into_iter().collect();
        self.batch.lock_ahead(&ids, &keys).await
    }

    /// Runs a command and stores its result for the response.
    ///
    /// # Errors
    /// The error of the database; the transaction has failed then.
    pub(super) async fn run(&mut self, command: &mut Command) -> Result<(), sqlx::Error> {
        match command {
            Command::Intend(intent, reply) => {
                reply.set(WorkError::split(self.intend(intent).await)?);
            }
            Command::Apply(change, reply) => {
                reply.set(WorkError::split(self.apply(change).await)?);
            }
            Command::Update(update, reply) => reply.set(Ok(self.update(update).await?)),
            Command::Report(write, reply) => {
                reply.set(WorkError::split(self.report(write).await)?);
            }
            Command::Examine(examination, reply) => {
                reply.set(WorkError::split(self.examine(examination).await)?);
            }
        }
        Ok(())
    }

    /// Writes the recorded changes. Returns the transaction, which is ready to commit, and the
    /// newest link of the audit trail.
    pub(super) async fn finish(self) -> Result<(T, Head), sqlx::Error> {
        self.batch.finish().await
    }

    async fn intend(&mut self, intent: &Intent) -> Result<Intended, WorkError> {
        let Intent { loan, cause, .. } = intent;
        if self.is_late(intent) {
            let why = "the intent waited too long for the ledger";
            return Err(WorkError::Rejected(LedgerError::Commit(why.to_owned())));
        }
        if let Some(refused) = self.refusal(intent).await? {
            self.batch.refuse(loan.id);
            return Ok(refused);
        }
        match self.batch.claim(loan).await? {
            Claim::Ahead => {}
            Claim::Late if !T::LOCKS_ROWS => {}
            // Another process may have begun and ended a loan since the standing was read.
            Claim::Late => {
                let standing = self.batch.read_standing(&loan.key).await?;
                if let Some(barred) = standing.bar(intent.issued) {
                    self.batch.refuse(loan.id);
                    return Ok(barred);
                }
            }
            Claim::Lost => return self.lost_slot(intent).await,
        }
        self.batch.record(loan, None, cause);
        Ok(Intended::Written(loan.clone()))
    }

    /// Returns why an intent must not be written.
    async fn refusal(&mut self, intent: &Intent) -> Result<Option<Intended>, WorkError> {
        let Intent { loan, issued, .. } = intent;
        let standing = self.batch.standing(&loan.key).await?;
        if let Some(barred) = standing.bar(*issued) {
            return Ok(Some(barred));
        }
        if self.batch.is_paused(loan.key.library).await? {
            return Ok(Some(Intended::Paused));
        }
        Ok(self.braked_until(&loan.key, loan.begun).await?.map(Intended::Braked))
    }

    /// Returns what bars an intent whose slot another process has just taken.
    async fn lost_slot(&mut self, intent: &Intent) -> Result<Intended, WorkError> {
        let standing = self.batch.read_standing(&intent.loan.key).await?;
        standing.bar(intent.issued).ok_or_else(|| {
            let why = "another process began and ended a loan of the same title at the same time";
            WorkError::Rejected(LedgerError::Commit(why.to_owned()))
        })
    }

    /// Returns until when the brake refuses a loan that is begun now. Reports each kind of limit
    /// that is reached.
    async fn braked_until(
        &mut self,
        key: &LoanKey,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, sqlx::Error> {
        let limits = self.context.brake.get().limits(now);
        if limits.is_empty() {
            return Ok(None);
        }
        let counts: Vec<Count> = limits.iter().map(|limit| *limit.count()).collect();
        let oldest = self.batch.begun_at_limits(key, &counts).await?;
        let reached = limits.iter().zip(oldest).filter_map(|(limit, oldest)| limit.reached(oldest));
        let reached: Vec<Reached> = reached.collect();
        let reached: Vec<Reached> = brake::longest(&reached).collect();
        for Reached { limit, action, .. } in &reached {
            self.context.metrics.brake(*limit, *action);
            let (limit, mode) = (limit.name(), action.name());
            tracing::warn!(library = %key.library, limit, mode, "brake limit reached");
        }
        Ok(brake::refused_until(&reached))
    }

    async fn apply(&mut self, change: &Change) -> Result<Loan, WorkError> {
        let Change { id, event, cause } = change;
        let is_opened = rules::depends_on_opening(event)
            && self.batch.transaction().await?.is_opened(*id).await?;
        let event = if is_opened { &rules::event_of_opened(event) } else { event };
        let before = self.batch.loan(*id).await?;
        let is_foreign = before.state.is_undecided() && self.batch.is_foreign(*id);
        if is_foreign && rules::needs_ownership(event) {
            return Err(WorkError::Rejected(LedgerError::NotOwner(*id)));
        }
        let mut at = if T::LOCKS_ROWS { later_than(before.changed, self.now) } else { self.now };
        if !T::LOCKS_ROWS && before.accepted.is_some() {
            // An earlier end may be in the future, by a clock that was wrong: this one is later.
            let last_end = self.batch.standing(&before.key).await?.last_end;
            at = last_end.map_or(at, |end| later_than(end, at));
        }
        let after =
            before.apply(event, at).map_err(|illegal| WorkError::Rejected(illegal.into()))?;
        self.batch.record(&after, Some(before.state), cause);
        Ok(after)
    }

    /// Returns the number of changed rows.
    async fn update(&mut self, update: &Update) -> Result<u64, sqlx::Error> {
        let now = self.now;
        if let Update::RecordAccess(_, access) = update {
            self.batch.record_access(now, access);
            return Ok(1);
        }
        let transaction = self.batch.transaction().await?;
        match update {
            Update::Adopt(id) => self.adopt(*id).await.map(u64::from),
            Update::SetProgress(id, progress) => {
                transaction.set_progress(*id, *progress).await.map(u64::from)
            }
            Update::AddDelivered(_, delivered) => self.deliver(delivered).await,
            Update::MarkOpened(id) => transaction.mark_opened(*id, now).await.map(u64::from),
            Update::ReplaceDoubts(doubts) => transaction.replace_doubts(doubts).await.map(|()| 1),
            Update::Forget(loans) => self.forget(loans).await,
            Update::RecordAccess(..) => Ok(0),
            Update::SetPause(change) => {
                let is_changed = transaction.set_pause(change).await?;
                self.batch.forget_pauses();
                Ok(u64::from(is_changed))
            }
            Update::Probe => transaction.probe(now).await.map(|()| 1),
        }
    }

    /// Stores or removes a request to examine a loan, and records its step. Returns the number of
    /// changed rows.
    async fn examine(&mut self, examination: &Examination) -> Result<u64, WorkError> {
        let Examination { id, is_request, detail } = examination;
        let loan = self.batch.loan(*id).await?;
        let requested = is_request.then_some(self.now);
        if !self.batch.transaction().await?.set_examination(*id, requested).await? {
            return Ok(0);
        }
        let by = if *is_request { examinations::REQUESTED } else { examinations::EXAMINED };
        let at = if T::LOCKS_ROWS { later_than(loan.changed, self.now) } else { self.now };
        let cause = Cause { by, detail: Some(detail.clone()) };
        self.batch.record_written_row(&loan, at, &cause);
        Ok(1)
    }

    async fn adopt(&mut self, id: LoanId) -> Result<bool, sqlx::Error> {
        let adopted =
            self.batch.transaction().await?.adopt(id, self.context.membership.as_ref()).await?;
        if adopted {
            self.batch.own(id);
        }
        Ok(adopted)
    }

    async fn deliver(&mut self, delivered: &[Delivered]) -> Result<u64, sqlx::Error> {
        if delivered.is_empty() {
            return Ok(0);
        }
        let transaction = self.batch.transaction().await?;
        let mut tallies = transaction.tallies(delivered).await?;
        if tallies.is_empty() {
            return Ok(0);
        }
        rules::add_tallies(&mut tallies, delivered);
        transaction.write_tallies(&tallies).await?;
        Ok(tallies.len() as u64)
    }

    /// Replaces borrowers. Each loan gets a step that covers the row without its borrower. The
    /// salts of its other steps are erased, so their hashes cannot be linked to the borrower.
    async fn forget(&mut self, loans: &OldLoans) -> Result<u64, sqlx::Error> {
        let now = self.now;
        let transaction = self.batch.transaction().await?;
        let forgotten = transaction.forget(loans, now).await?;
        let by = if loans.borrower.is_some() { "erasure" } else { "retention" };
        let cause = Cause { by, detail: None };
        // A damaged row loses its borrower too, but gets no step: it cannot be hashed, and `ledger
        // check` reports it anyway.
        for loan in &forgotten.loans {
            let at = if T::LOCKS_ROWS { later_than(loan.changed, now) } else { now };
            self.batch.record_written_row(loan, at, &cause);
        }
        Ok(forgotten.count)
    }
}

/// Returns the current time, but at least a millisecond after this one. The steps of a loan that
/// several machines write are ordered by their times, and the clocks of the machines differ.
fn later_than(before: Timestamp, now: Timestamp) -> Timestamp {
    now.max(clock::after(before, Duration::from_millis(1)))
}
