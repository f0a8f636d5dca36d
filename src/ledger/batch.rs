//! The loans that one transaction has read, and the changes that it writes in one query.
//!
//! Each statement costs a round trip to the connection's thread, which takes longer than the
//! statement itself. So the batch reads the loans of all its commands in advance, and writes all
//! changes with one query at the end. A loan returned here includes the changes of earlier
//! commands, written or not. A loan that was not read in advance is read when it is needed.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::audit::{AuditKey, Head, Step};
use super::sqlite::row::{COLUMNS, by_ids, loan_of, push_loans};
use super::{Cause, LedgerError};
use crate::loan::{Loan, LoanId, LoanKey, LoanState};

/// Queries with at most this number of rows are prepared. SQLite needs one prepared statement for
/// each number of rows.
pub(super) const MAX_PREPARED_ROWS: usize = 2;

/// The loans of one borrower and title, as far as a new loan depends on them.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyState {
    /// The live loan; there is at most one.
    pub(super) live: Option<Loan>,
    /// When the last accepted loan ended.
    pub(super) last_end: Option<Timestamp>,
}

impl KeyState {
    /// Applies a new or changed loan.
    fn include(&mut self, loan: &Loan) {
        if loan.state.is_live() {
            self.live = Some(loan.clone());
        } else {
            self.live.take_if(|live| live.id == loan.id);
        }
        if loan.accepted.is_some() {
            self.last_end = self.last_end.max(loan.ended);
        }
    }
}

/// A step that is not written yet.
struct NewStep {
    loan: String,
    at: i64,
    from: Option<&'static str>,
    to: &'static str,
    cause: Cause,
    link: Head,
    salt: [u8; 16],
    loan_mac: Vec<u8>,
}

/// The reads and pending writes of one transaction.
pub(super) struct WriteBatch<'a> {
    connection: &'a mut SqliteConnection,
    owner: &'a str,
    key: &'a AuditKey,
    head: Head,
    loans: HashMap<LoanId, Loan>,
    key_states: HashMap<LoanKey, KeyState>,
    /// The loans to write, in the order of their changes. An end precedes the new loan that it
    /// permits, so that the unique index holds.
    changed: Vec<LoanId>,
    steps: Vec<NewStep>,
}

impl<'a> WriteBatch<'a> {
    /// Creates an empty batch. Each transaction reads the newest link again because another process
    /// may have written.
    pub(super) async fn begin(
        connection: &'a mut SqliteConnection,
        owner: &'a str,
        key: &'a AuditKey,
    ) -> Result<WriteBatch<'a>, sqlx::Error> {
        let head = Head::read(&mut *connection).await?;
        let (loans, key_states) = (HashMap::new(), HashMap::new());
        Ok(WriteBatch {
            connection,
            owner,
            key,
            head,
            loans,
            key_states,
            changed: Vec::new(),
            steps: Vec::new(),
        })
    }

    /// Reads these loans, and the loans of these borrowers and titles, in advance.
    pub(super) async fn read_ahead(
        &mut self,
        ids: &[LoanId],
        keys: impl Iterator<Item = LoanKey>,
    ) -> Result<(), sqlx::Error> {
        let read = match self.read_loans(ids).await {
            Ok(()) => self.read_key_states(keys).await,
            failed => failed,
        };
        match read {
            Err(LedgerError::Database { source, .. }) => Err(source),
            // Only the command that needs the damaged row receives the error.
            Err(_) => {
                self.key_states.clear();
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn read_loans(&mut self, ids: &[LoanId]) -> Result<(), LedgerError> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut query = by_ids(ids);
        let query = query.build().persistent(ids.len() <= MAX_PREPARED_ROWS);
        for row in query.fetch_all(&mut *self.connection).await.map_err(database)? {
            let loan = loan_of(&row)?;
            self.loans.insert(loan.id, loan);
        }
        Ok(())
    }

    async fn read_key_states(
        &mut self,
        keys: impl Iterator<Item = LoanKey>,
    ) -> Result<(), LedgerError> {
        let keys: HashSet<LoanKey> = keys.collect();
        if keys.is_empty() {
            return Ok(());
        }
        let mut query = QueryBuilder::<Sqlite>::new("WITH wanted (library, borrower, isbn) AS (");
        query.push_values(&keys, |mut row, key| {
            row.push_bind(key.library.as_str());
            row.push_bind(key.borrower.as_bytes().as_slice());
            row.push_bind(i64::try_from(key.isbn.number()).unwrap_or_default());
        });
        // CROSS JOIN fixes the join order: each wanted borrower and title is looked up by index.
        query.push(format!(
            ") SELECT {COLUMNS} FROM wanted CROSS JOIN loans USING (library, borrower, isbn) \
             WHERE state NOT IN ('refused', 'ended') \
             OR (accepted IS NOT NULL AND ended IS NOT NULL)"
        ));
        let query = query.build().persistent(keys.len() <= MAX_PREPARED_ROWS);
        let rows = query.fetch_all(&mut *self.connection).await.map_err(database)?;
        self.key_states.extend(keys.into_iter().map(|key| (key, KeyState::default())));
        for row in rows {
            let loan = loan_of(&row)?;
            self.key_states.entry(loan.key).or_default().include(&loan);
        }
        Ok(())
    }

    /// Returns the loan with this id.
    pub(super) async fn loan(&mut self, id: LoanId) -> Result<Loan, LedgerError> {
        if !self.loans.contains_key(&id) {
            self.read_loans(&[id]).await?;
        }
        self.loans.get(&id).cloned().ok_or(LedgerError::NoSuchLoan(id))
    }

    /// Returns the live loan and the last end of this borrower and title.
    pub(super) async fn key_state(&mut self, key: &LoanKey) -> Result<KeyState, LedgerError> {
        if !self.key_states.contains_key(key) {
            self.write().await.map_err(database)?;
            self.read_key_states(std::iter::once(*key)).await?;
        }
        Ok(self.key_states.get(key).cloned().unwrap_or_default())
    }

    /// Records a new or changed loan and its step, to be written later.
    pub(super) fn record(&mut self, loan: &Loan, from: Option<LoanState>, cause: &Cause) {
        self.add_step(loan, loan.changed, from, cause);
        if let Some(key_state) = self.key_states.get_mut(&loan.key) {
            key_state.include(loan);
        }
        self.changed.push(loan.id);
        self.loans.insert(loan.id, loan.clone());
    }

    /// Records a step without a change of state, for a row that is already written. The step's hash
    /// covers the row as passed here.
    pub(super) fn record_written_row(&mut self, loan: &Loan, at: Timestamp, cause: &Cause) {
        self.add_step(loan, at, Some(loan.state), cause);
        self.loans.insert(loan.id, loan.clone());
    }

    fn add_step(&mut self, loan: &Loan, at: Timestamp, from: Option<LoanState>, cause: &Cause) {
        let (at, from, to) = (at.as_millisecond(), from.map(LoanState::name), loan.state.name());
        let (id, detail) = (loan.id.to_string(), cause.detail.as_deref());
        let salt = *Uuid::new_v4().as_bytes();
        let loan_mac = self.key.loan_mac(&salt, loan);
        let step =
            Step { loan: &id, at, from, to, cause: cause.by, detail, loan_mac: Some(&loan_mac) };
        let link = self.head.next(&step, self.key);
        self.head = link.clone();
        self.steps.push(NewStep {
            loan: id,
            at,
            from,
            to,
            cause: cause.clone(),
            link,
            salt,
            loan_mac,
        });
    }

    /// Writes the recorded changes and returns the connection, for commands with their own queries.
    pub(super) async fn connection(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        self.write().await?;
        Ok(&mut *self.connection)
    }

    /// Writes the recorded changes and returns the newest link.
    pub(super) async fn end(mut self) -> Result<Head, sqlx::Error> {
        self.write().await?;
        Ok(self.head)
    }

    async fn write(&mut self) -> Result<(), sqlx::Error> {
        if self.steps.is_empty() {
            return Ok(());
        }
        let (steps, mut changed) =
            (std::mem::take(&mut self.steps), std::mem::take(&mut self.changed));
        let mut seen = HashSet::new();
        changed.retain(|id| seen.insert(*id));
        let mut query = QueryBuilder::<Sqlite>::default();
        if !changed.is_empty() {
            push_loans(&mut query, changed.iter().filter_map(|id| self.loans.get(id)), self.owner);
            query.push("; ");
        }
        push_steps(&mut query, &steps);
        let query = query.build().persistent(steps.len() <= MAX_PREPARED_ROWS);
        query.execute(&mut *self.connection).await.map(drop)
    }
}

/// The version of the steps that this program writes.
const STEP_VERSION: i64 = 2;

fn push_steps(query: &mut QueryBuilder<Sqlite>, steps: &[NewStep]) {
    query.push(
        "INSERT INTO history \
         (number, loan, at, from_state, to_state, cause, detail, mac, version, salt, loan_mac) ",
    );
    query.push_values(steps, |mut row, step| {
        row.push_bind(step.link.number);
        row.push_bind(step.loan.as_str());
        row.push_bind(step.at);
        row.push_bind(step.from);
        row.push_bind(step.to);
        row.push_bind(step.cause.by);
        row.push_bind(step.cause.detail.as_deref());
        row.push_bind(step.link.mac.as_slice());
        row.push_bind(STEP_VERSION);
        row.push_bind(step.salt.as_slice());
        row.push_bind(step.loan_mac.as_slice());
    });
}

/// Wraps an error of SQLite. The file name stays empty because each caller unwraps the source
/// again.
pub(super) fn database(source: sqlx::Error) -> LedgerError {
    LedgerError::Database { file: std::path::PathBuf::new(), source }
}

#[cfg(test)]
mod tests {
    use sqlx::{ConnectOptions, Connection};

    use super::super::test_support::{audit_key, by, loan, open};
    use super::super::{Intended, Ledger, check, verify};
    use super::*;
    use crate::loan::{EndReason, Event, Terms};

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

    #[tokio::test]
    async fn commands_see_changes_of_earlier_ones_in_the_batch() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("loans.db");
        let ledger = open(&file).await;
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
        assert_eq!(check(&file).await.unwrap(), Vec::<String>::new());
        assert_eq!(verify(&file, &audit_key()).await.unwrap().findings, Vec::<String>::new());
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
        assert_eq!(verify(&file, &audit_key()).await.unwrap().findings, Vec::<String>::new());
    }
}
