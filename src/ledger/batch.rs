//! The loans that one transaction has locked, and the changes that it writes in one query.
//!
//! Each statement costs a round trip to the database, which takes longer than the statement itself.
//! So the batch locks the loans of all its commands in advance, and writes all changes with one
//! query at the end. A loan returned here includes the changes of earlier commands, written or not.
//! A loan that was not locked in advance is locked when it is needed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::audit::{AuditKey, Head, NewStep};
use super::brake::Count;
use super::rules::KeyStanding;
use super::store::{Locked, StoreTransaction, WorkError};
use super::{Access, Cause, LedgerError};
use crate::loan::{EndReason, LibraryId, Loan, LoanId, LoanKey, LoanState};

/// Whether an intent has the live slot of its key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Claim {
    /// Since before the standing of the key was read.
    Ahead,
    /// Since now. Another process may have changed the standing since it was read.
    Late,
    /// Another process has just taken it.
    Lost,
}

/// A transaction with its locked loans and pending writes.
pub(super) struct WriteBatch<'a, T> {
    transaction: T,
    owner: Arc<str>,
    key: &'a AuditKey,
    /// The newest link, once the trail is locked.
    head: Option<Head>,
    loans: HashMap<LoanId, Loan>,
    standings: HashMap<LoanKey, KeyStanding>,
    /// Whether lending of these libraries is paused.
    paused: HashMap<LibraryId, bool>,
    /// Those of the loans that belong to another process.
    foreign: HashSet<LoanId>,
    /// Intents that have the live slot of their key and are not recorded.
    claimed: HashSet<LoanId>,
    /// Intents that a rule has refused, and that still have the slot.
    refused: HashSet<LoanId>,
    /// The loans to write, in the order of their changes. An end precedes the new loan that it
    /// permits, so that the unique index holds.
    changed: Vec<LoanId>,
    steps: Vec<NewStep>,
}

impl<'a, T: StoreTransaction> WriteBatch<'a, T> {
    /// Creates an empty batch for the process `owner`.
    pub(super) fn new(transaction: T, owner: Arc<str>, key: &'a AuditKey) -> WriteBatch<'a, T> {
        WriteBatch {
            transaction,
            owner,
            key,
            head: None,
            loans: HashMap::new(),
            standings: HashMap::new(),
            paused: HashMap::new(),
            foreign: HashSet::new(),
            claimed: HashSet::new(),
            refused: HashSet::new(),
            changed: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Claims the live slots of these intents, at most one for each key, before anything is read.
    pub(super) async fn claim_ahead(&mut self, intents: &[&Loan]) -> Result<(), sqlx::Error> {
        if !intents.is_empty() {
            self.claimed.extend(self.transaction.claim(intents, &self.owner).await?);
        }
        Ok(())
    }

    /// Claims the live slot of the key of an intent, unless that is done.
    pub(super) async fn claim(&mut self, intent: &Loan) -> Result<Claim, sqlx::Error> {
        if self.claimed.contains(&intent.id) {
            return Ok(Claim::Ahead);
        }
        // An end in this batch, or an intent that it refused, may have to free the slot.
        self.flush().await?;
        self.release_refused().await?;
        let claimed = self.transaction.claim(&[intent], &self.owner).await?;
        if !claimed.contains(&intent.id) {
            return Ok(Claim::Lost);
        }
        self.claimed.insert(intent.id);
        Ok(Claim::Late)
    }

    /// Notes that a rule has refused an intent. Its slot is released when another intent of this
    /// batch claims one, or at the end.
    pub(super) fn refuse(&mut self, intent: LoanId) {
        if self.claimed.remove(&intent) {
            self.refused.insert(intent);
        }
    }

    async fn release_refused(&mut self) -> Result<(), sqlx::Error> {
        if self.refused.is_empty() {
            return Ok(());
        }
        let refused: Vec<LoanId> = self.refused.drain().collect();
        self.transaction.release(&refused).await
    }

    /// Returns when the oldest counted loan was begun, for each of these counts. The intents that
    /// are recorded here count, and no other claim.
    pub(super) async fn begun_at_limits(
        &mut self,
        key: &LoanKey,
        counts: &[Count],
    ) -> Result<Vec<Option<Timestamp>>, sqlx::Error> {
        // A claim has inserted the row of a recorded intent, which counts as it is. So a batch of
        // intents is written once, at its end.
        let counts_as_stored = |id: &LoanId| {
            self.loans.get(id).is_some_and(|loan| {
                loan.state != LoanState::Refused && loan.end_reason != Some(EndReason::Rejected)
            })
        };
        if !T::LOCKS_ROWS || !self.changed.iter().all(counts_as_stored) {
            self.flush().await?;
        }
        let unrecorded: Vec<LoanId> = self.claimed.union(&self.refused).copied().collect();
        self.transaction.begun_at_limits(key, counts, &unrecorded).await
    }

    /// Returns whether lending of a library is paused. That is read once in a batch.
    pub(super) async fn is_paused(&mut self, library: LibraryId) -> Result<bool, sqlx::Error> {
        if let Some(is_paused) = self.paused.get(&library) {
            return Ok(*is_paused);
        }
        let is_paused = self.transaction.is_paused(library).await?;
        self.paused.insert(library, is_paused);
        Ok(is_paused)
    }

    /// Reads the pauses of lending again, which this batch has changed.
    pub(super) fn forget_pauses(&mut self) {
        self.paused.clear();
    }

    /// Locks these loans, and the loans of these keys, in advance.
    pub(super) async fn lock_ahead(
        &mut self,
        ids: &[LoanId],
        keys: &[LoanKey],
    ) -> Result<(), sqlx::Error> {
        // A damaged row fails only the command that needs it, which locks its own loans again.
        WorkError::split(self.lock(ids, keys).await).map(drop)
    }

    async fn lock(&mut self, ids: &[LoanId], keys: &[LoanKey]) -> Result<(), WorkError> {
        if ids.is_empty() && keys.is_empty() {
            return Ok(());
        }
        let Locked { loans, foreign, standings } =
            self.transaction.lock(ids, keys, &self.owner).await?;
        self.foreign.extend(foreign);
        self.loans.extend(loans.into_iter().map(|loan| (loan.id, loan)));
        self.standings.extend(standings);
        Ok(())
    }

    /// Returns the loan with this id.
    pub(super) async fn loan(&mut self, id: LoanId) -> Result<Loan, WorkError> {
        if !self.loans.contains_key(&id) {
            self.lock(&[id], &[]).await?;
        }
        let loan = self.loans.get(&id).cloned();
        loan.ok_or_else(|| WorkError::Rejected(LedgerError::NoSuchLoan(id)))
    }

    /// Returns whether a loan that [`WriteBatch::loan`] has returned belongs to another process.
    pub(super) fn is_foreign(&self, id: LoanId) -> bool {
        self.foreign.contains(&id)
    }

    /// Records that this process now owns a loan.
    pub(super) fn own(&mut self, id: LoanId) {
        self.foreign.remove(&id);
    }

    /// Reads the standing of a key again, which another process has changed.
    pub(super) async fn read_standing(&mut self, key: &LoanKey) -> Result<KeyStanding, WorkError> {
        self.standings.remove(key);
        self.standing(key).await
    }

    /// Returns the live loan and the last end of this key.
    pub(super) async fn standing(&mut self, key: &LoanKey) -> Result<KeyStanding, WorkError> {
        if !self.standings.contains_key(key) {
            self.flush().await?;
            self.lock(&[], &[*key]).await?;
        }
        Ok(self.standings.get(key).cloned().unwrap_or_default())
    }

    /// Records a new or changed loan and its step, to be written later.
    pub(super) fn record(&mut self, loan: &Loan, from: Option<LoanState>, cause: &Cause) {
        self.steps.push(NewStep::new(loan, loan.changed, from, cause, self.key));
        if let Some(standing) = self.standings.get_mut(&loan.key) {
            standing.include(loan);
        }
        self.changed.push(loan.id);
        self.claimed.remove(&loan.id);
        self.loans.insert(loan.id, loan.clone());
    }

    /// Records a step without a change of state, for a row that is already written. The step's hash
    /// covers the row as passed here.
    pub(super) fn record_written_row(&mut self, loan: &Loan, at: Timestamp, cause: &Cause) {
        self.steps.push(NewStep::new(loan, at, Some(loan.state), cause, self.key));
        self.loans.insert(loan.id, loan.clone());
    }

    /// Records a step for an access, which changes no loan.
    pub(super) fn record_access(&mut self, at: Timestamp, access: &Access) {
        self.steps.push(NewStep::of_access(access, at));
    }

    /// Writes the recorded changes and returns the transaction, for primitives that read or change
    /// rows themselves.
    pub(super) async fn transaction(&mut self) -> Result<&mut T, sqlx::Error> {
        self.flush().await?;
        Ok(&mut self.transaction)
    }

    /// Writes the recorded changes. Returns the transaction, which is ready to commit, and the
    /// newest link if it has written one.
    pub(super) async fn finish(mut self) -> Result<(T, Head), sqlx::Error> {
        self.flush().await?;
        let unused = self.claimed.drain();
        self.refused.extend(unused);
        self.release_refused().await?;
        let head = match self.head {
            Some(head) => head,
            // The trail may have grown without a step of this batch: by another process, or by a
            // commit that was reported as failed. The head file then lacks the newest link.
            None => self.transaction.audit_head().await?,
        };
        Ok((self.transaction, head))
    }

    async fn flush(&mut self) -> Result<(), sqlx::Error> {
        if self.steps.is_empty() {
            return Ok(());
        }
        let mut steps = std::mem::take(&mut self.steps);
        let mut changed = std::mem::take(&mut self.changed);
        let mut head = match self.head.take() {
            Some(head) => head,
            // Another process may have written since the last transaction.
            None => self.transaction.audit_head().await?,
        };
        for step in &mut steps {
            head = step.link(&head, self.key);
        }
        self.head = Some(head);
        let mut seen = HashSet::new();
        changed.retain(|id| seen.insert(*id));
        let loans: Vec<&Loan> = changed.iter().filter_map(|id| self.loans.get(id)).collect();
        self.transaction.write(&loans, &steps, &self.owner).await
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{ConnectOptions, Connection};

    use super::super::sqlite::verify;
    use super::super::test_store::{TestStore, on_each_store};
    use super::super::test_support::{audit_key, by, loan, open};
    use super::super::{Intended, Ledger};
    use super::*;
    use crate::loan::{Event, Terms};

    async fn ending_loan(ledger: &Ledger, borrower: u8) -> LoanId {
        let Intended::Written(loan) =
            ledger.intend(loan(borrower), None, by("reader")).await.unwrap()
        else {
            panic!("the first intent must be written");
        };
        let due = Timestamp::from_second(4_000_000_000).unwrap();
        let terms = Terms { due, licence_id: None, licence_type: None };
        ledger
            .apply(loan.id, Event::Accepted { lending_id: "L".into(), terms }, by("begin"))
            .await
            .unwrap();
        ledger
            .apply(loan.id, Event::Ending { reason: EndReason::Returned }, by("reader"))
            .await
            .unwrap();
        loan.id
    }

    on_each_store! { commands_see_changes_of_earlier_ones_in_the_batch }

    async fn commands_see_changes_of_earlier_ones_in_the_batch(store: &TestStore) {
        let ledger = store.open().await;
        let former = ending_loan(&ledger, 1).await;
        // Joined futures enqueue their commands together, so that one batch has all of them.
        let next = || ledger.intend(loan(1), Some(Timestamp::MAX), by("reader"));
        let (too_early, ended, too_late, begun, joined) = tokio::join!(
            next(),
            ledger.apply(former, Event::EndAcknowledged, by("outbox")),
            ledger.apply(former, Event::EndAcknowledged, by("outbox")),
            next(),
            next(),
        );
        assert!(matches!(too_early, Ok(Intended::Live(live)) if live.id == former));
        assert_eq!(ended.unwrap().state, LoanState::Ended);
        assert!(matches!(too_late, Err(LedgerError::Illegal(_))));
        let Ok(Intended::Written(begun)) = begun else { panic!("{begun:?}") };
        assert!(matches!(joined, Ok(Intended::Live(live)) if live.id == begun.id));
        assert_eq!(ledger.newest(&begun.key).await.unwrap().unwrap().id, begun.id);
        ledger.close().await;
        store.assert_sound().await;
    }

    #[tokio::test]
    async fn failed_row_rolls_back_the_batch_and_fails_every_command() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("loans.db");
        let ledger = open(&file).await;
        let former = ending_loan(&ledger, 1).await;
        let mut other =
            sqlx::sqlite::SqliteConnectOptions::new().filename(&file).connect().await.unwrap();
        let trigger = "CREATE TRIGGER full BEFORE INSERT ON history WHEN new.cause = 'failing' \
             BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
        sqlx::raw_sql(trigger).execute(&mut other).await.unwrap();
        other.close().await.unwrap();
        let (begun, ended, failing) = tokio::join!(
            ledger.intend(loan(2), None, by("reader")),
            ledger.apply(former, Event::EndAcknowledged, by("outbox")),
            ledger.intend(loan(3), None, by("failing")),
        );
        for result in [begun.map(drop), ended.map(drop), failing.map(drop)] {
            assert!(matches!(result, Err(LedgerError::Commit(_))), "{result:?}");
        }
        assert_eq!(ledger.loan(former).await.unwrap().unwrap().state, LoanState::Ending);
        assert!(ledger.newest(&loan(2).key).await.unwrap().is_none());
        // The chain continues from the last committed step.
        ledger.apply(former, Event::EndAcknowledged, by("outbox")).await.unwrap();
        ledger.close().await;
        assert_eq!(
            verify(&file, &audit_key(), &crate::ledger::RowsRead::default())
                .await
                .unwrap()
                .findings,
            Vec::<String>::new()
        );
    }
}
