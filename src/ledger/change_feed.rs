//! The change feed: the loans that any process on this ledger has ended.
//!
//! Circulation polls it several times a second and announces the ends. It guarantees only that each
//! end committed after the ledger was opened is returned. In SQLite it reads the steps after the
//! last one seen, with an index that has only ends. SQLite serializes writers, so a step with a
//! lower number is never committed later. A ledger without that property needs a position that is
//! ordered by commits.

use jiff::Timestamp;

use super::sqlite::Queries;
use super::{Ledger, LedgerError};
use crate::loan::{LoanId, LoanKey};

/// A cursor in the change feed.
#[derive(Clone, Debug)]
pub struct Feed {
    queries: Queries,
    /// The number of the last step read.
    seen: i64,
}

/// A loan that has ended: it gives no more access to files.
#[derive(Clone, Copy, Debug)]
pub struct ClosedLoan {
    /// The id of the loan.
    pub loan: LoanId,
    /// The library, borrower and title of the loan.
    pub key: LoanKey,
    /// When the loan ended.
    pub at: Timestamp,
}

/// The ends that one query has read.
#[derive(Debug)]
pub(super) struct ClosedPage {
    pub(super) loans: Vec<ClosedLoan>,
    /// The number of the last step read.
    pub(super) step: i64,
}

impl Ledger {
    /// Returns the feed of ends that were committed after this ledger was opened.
    pub fn feed(&self) -> Feed {
        Feed { queries: self.queries.clone(), seen: self.opened_at }
    }
}

impl Feed {
    /// Returns the next ends in their order, or an empty list if there are none now.
    ///
    /// An unreadable row is skipped, so that it does not hide the ends after it. Its loan gives no
    /// access either, because the gate cannot read it.
    ///
    /// # Errors
    /// [`LedgerError`]; the next call reads from the same position.
    pub async fn next(&mut self) -> Result<Vec<ClosedLoan>, LedgerError> {
        let page = self.queries.closed_after(self.seen).await?;
        self.seen = page.step;
        Ok(page.loans)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{ConnectOptions, Connection, Row};

    use super::super::test_support::{accepted, by, open};
    use super::*;
    use crate::loan::{EndReason, Event};

    async fn ids(feed: &mut Feed) -> Vec<LoanId> {
        feed.next().await.unwrap().into_iter().map(|closed| closed.loan).collect()
    }

    #[tokio::test]
    async fn feed_returns_each_end_of_another_process_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("loans.db");
        let other = open(&file).await;
        let early = accepted(&other, 1).await;
        let returned = Event::Ending { reason: EndReason::Returned };
        other.apply(early, returned.clone(), by("reader")).await.unwrap();
        let ours = open(&file).await;
        let mut feed = ours.feed();
        assert!(ids(&mut feed).await.is_empty(), "earlier ends are not in the feed");
        let [one, two] = [accepted(&other, 2).await, accepted(&other, 3).await];
        other.apply(one, returned, by("reader")).await.unwrap();
        other.apply(one, Event::EndAcknowledged, by("outbox")).await.unwrap();
        other
            .apply(two, Event::EndedThere { reason: EndReason::Expired }, by("balance"))
            .await
            .unwrap();
        assert_eq!(ids(&mut feed).await, [one, two]);
        assert!(ids(&mut feed).await.is_empty());
        ours.close().await;
        other.close().await;
    }

    #[tokio::test]
    async fn feed_reads_no_step_but_ends() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("loans.db");
        open(&file).await.close().await;
        let mut connection = SqliteConnectOptions::new().filename(&file).connect().await.unwrap();
        let plan = "EXPLAIN QUERY PLAN SELECT number FROM history WHERE number > 7 \
             AND to_state IN ('ending', 'ended') AND from_state <> 'ending' \
             ORDER BY number LIMIT 1000";
        let rows = sqlx::query(plan).fetch_all(&mut connection).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        assert!(plan.len() == 1 && plan[0].contains("history_closed (number>?)"), "{plan:?}");
        connection.close().await.unwrap();
    }
}
