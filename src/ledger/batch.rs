//! What one transaction has read and means to write: loans and steps, written together.
//!
//! A statement costs a way to the connection's own thread and back, which is dearer than the
//! statement itself. So the loans that a batch of commands speaks of are read ahead, and what the
//! commands change is written by one query at the end. A loan that is asked for here is as the
//! commands before have left it, whether or not that is written yet. Reading ahead is no more than
//! that: what was not read is read when it is asked for.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::audit::{AuditKey, Head, Step};
use super::row::{COLUMNS, by_ids, loan_of, push_loans};
use super::{Cause, LedgerError};
use crate::loan::{Loan, LoanId, LoanKey, LoanState};

/// Up to how many rows a query is kept prepared; there is one for each number of rows.
pub(super) const KEPT_PREPARED: usize = 2;

/// Where a reader and a title stand.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    /// The loan that lives.
    pub(super) live: Option<Loan>,
    /// When the last accepted loan ended.
    pub(super) last_end: Option<Timestamp>,
}

impl Standing {
    /// Takes a loan into account, new or changed.
    fn note(&mut self, loan: &Loan) {
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

/// A step that is to be written.
struct Taken {
    loan: String,
    at: i64,
    from: Option<&'static str>,
    to: &'static str,
    cause: Cause,
    link: Head,
    salt: [u8; 16],
    loan_mac: Vec<u8>,
}

/// The work of one transaction.
pub(super) struct Draft<'a> {
    connection: &'a mut SqliteConnection,
    owner: &'a str,
    key: &'a AuditKey,
    head: Head,
    loans: HashMap<LoanId, Loan>,
    standings: HashMap<LoanKey, Standing>,
    /// The loans that are to be written, in the order of their changes: an end before what it makes
    /// room for.
    changed: Vec<LoanId>,
    steps: Vec<Taken>,
}

impl<'a> Draft<'a> {
    /// An empty one. The newest link is read anew in each transaction: another process may have
    /// written since.
    pub(super) async fn begin(
        connection: &'a mut SqliteConnection,
        owner: &'a str,
        key: &'a AuditKey,
    ) -> Result<Draft<'a>, sqlx::Error> {
        let head = Head::read(&mut *connection).await?;
        let (loans, standings) = (HashMap::new(), HashMap::new());
        Ok(Draft {
            connection,
            owner,
            key,
            head,
            loans,
            standings,
            changed: Vec::new(),
            steps: Vec::new(),
        })
    }

    /// Reads what commands will ask for that name these loans, and these readers and titles.
    pub(super) async fn read_ahead(
        &mut self,
        ids: &[LoanId],
        keys: impl Iterator<Item = LoanKey>,
    ) -> Result<(), sqlx::Error> {
        let read = match self.read_loans(ids).await {
            Ok(()) => self.read_standings(keys).await,
            failed => failed,
        };
        match read {
            Err(LedgerError::Database { source, .. }) => Err(source),
            // A damaged row is told to the one command that asks for it.
            Err(_) => {
                self.standings.clear();
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
        let query = query.build().persistent(ids.len() <= KEPT_PREPARED);
        for row in query.fetch_all(&mut *self.connection).await.map_err(database)? {
            let loan = loan_of(&row)?;
            self.loans.insert(loan.id, loan);
        }
        Ok(())
    }

    async fn read_standings(
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
        // A cross join keeps the order: for each reader and title that is wanted, its loans by the
        // index.
        query.push(format!(
            ") SELECT {COLUMNS} FROM wanted CROSS JOIN loans USING (library, borrower, isbn) \
             WHERE state NOT IN ('refused', 'ended') OR (accepted IS NOT NULL AND ended IS NOT NULL)"
        ));
        let query = query.build().persistent(keys.len() <= KEPT_PREPARED);
        let rows = query.fetch_all(&mut *self.connection).await.map_err(database)?;
        self.standings.extend(keys.into_iter().map(|key| (key, Standing::default())));
        for row in rows {
            let loan = loan_of(&row)?;
            self.standings.entry(loan.key).or_default().note(&loan);
        }
        Ok(())
    }

    /// The loan of this id.
    pub(super) async fn loan(&mut self, id: LoanId) -> Result<Loan, LedgerError> {
        if !self.loans.contains_key(&id) {
            self.read_loans(&[id]).await?;
        }
        self.loans.get(&id).cloned().ok_or(LedgerError::NoSuchLoan(id))
    }

    /// Where this reader and title stand.
    pub(super) async fn standing(&mut self, key: &LoanKey) -> Result<Standing, LedgerError> {
        if !self.standings.contains_key(key) {
            self.write().await.map_err(database)?;
            self.read_standings(std::iter::once(*key)).await?;
        }
        Ok(self.standings.get(key).cloned().unwrap_or_default())
    }

    /// Takes a loan down, new or changed, with the step that led to it.
    pub(super) fn note(&mut self, loan: &Loan, from: Option<LoanState>, cause: &Cause) {
        self.add_step(loan, loan.changed, from, cause);
        if let Some(standing) = self.standings.get_mut(&loan.key) {
            standing.note(loan);
        }
        self.changed.push(loan.id);
        self.loans.insert(loan.id, loan.clone());
    }

    /// Takes a step down that leaves its loan in the state that it is in, of a row that is written
    /// already: the hash of the row covers it as it is now.
    pub(super) fn note_written(&mut self, loan: &Loan, at: Timestamp, cause: &Cause) {
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
        self.steps.push(Taken {
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

    /// The connection, with everything written that was taken down: for what asks the tables
    /// itself.
    pub(super) async fn connection(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        self.write().await?;
        Ok(&mut *self.connection)
    }

    /// Writes what is left, and gives the newest link.
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
        let query = query.build().persistent(steps.len() <= KEPT_PREPARED);
        query.execute(&mut *self.connection).await.map(drop)
    }
}

/// The version of the steps that are written.
const STEP_VERSION: i64 = 2;

fn push_steps(query: &mut QueryBuilder<Sqlite>, steps: &[Taken]) {
    query.push("INSERT INTO history (number, loan, at, from_state, to_state, cause, detail, mac, version, salt, loan_mac) ");
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

/// The file's name is added where the error is told of as a whole.
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

    async fn ending(ledger: &Ledger, borrower: u8) -> LoanId {
        let Intended::Written(loan) =
            ledger.intend(loan(borrower), None, by("reader")).await.unwrap()
        else {
            panic!("it is the first");
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
    async fn commands_of_one_batch_see_what_those_before_have_made_of_a_loan() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("loans.db");
        let ledger = open(&file).await;
        let former = ending(&ledger, 1).await;
        // Joined, they wait together and are taken together.
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
    async fn where_one_row_cannot_be_written_nothing_of_the_batch_is_and_everyone_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("loans.db");
        let ledger = open(&file).await;
        let former = ending(&ledger, 1).await;
        let mut other =
            sqlx::sqlite::SqliteConnectOptions::new().filename(&file).connect().await.unwrap();
        let trigger = "CREATE TRIGGER full BEFORE INSERT ON history WHEN new.cause = 'last straw' \
             BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
        sqlx::raw_sql(trigger).execute(&mut other).await.unwrap();
        other.close().await.unwrap();
        let (begun, ended, straw) = tokio::join!(
            ledger.intend(loan(2), None, by("reader")),
            ledger.apply(former, Event::EndAcknowledged, by("outbox")),
            ledger.intend(loan(3), None, by("last straw")),
        );
        for told in [begun.map(drop), ended.map(drop), straw.map(drop)] {
            assert!(matches!(told, Err(LedgerError::Commit(_))), "{told:?}");
        }
        assert_eq!(ledger.loan(former).await.unwrap().unwrap().state, LoanState::Ending);
        assert!(ledger.newest(&loan(2).key).await.unwrap().is_none());
        // And the chain goes on from what is written.
        ledger.apply(former, Event::EndAcknowledged, by("outbox")).await.unwrap();
        ledger.close().await;
        assert_eq!(verify(&file, &audit_key()).await.unwrap().findings, Vec::<String>::new());
    }
}
