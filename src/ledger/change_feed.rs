//! The change feed: the loans that any process on this ledger has ended.
//!
//! Circulation polls it several times a second and announces the ends. It guarantees only that each
//! end committed after the ledger was opened is returned. In SQLite it reads the steps after the
//! last one seen, with an index that has only ends. SQLite serializes writers, so a step with a
//! lower number is never committed later. In PostgreSQL it reads by time, with an overlap, see
//! `postgres::closed`.
//!
//! On PostgreSQL, processes acknowledge what they have read. An end is sent to Bokbasen only after
//! all processes have acknowledged a read that began after it was committed ([`FeedBarrier`]), or
//! can no longer deliver: so access stops everywhere before Bokbasen hears of the end.

use std::time::Duration;

use jiff::Timestamp;

use super::queries::Queries;
use super::{Ledger, LedgerError, postgres, sqlite};
use crate::clock;
use crate::loan::{LoanId, LoanKey};

/// The interval between two reads: of a file, and of a database that several machines read.
const FILE_INTERVAL: Duration = Duration::from_millis(150);
const SERVER_INTERVAL: Duration = Duration::from_millis(250);
/// How long data that was read from the ledger may be used while reads of the feed cannot be
/// acknowledged for longer than `gate.freshness`. Others then assume that it is not used.
const UNACKNOWLEDGED_VALIDITY: Duration = Duration::from_secs(5);

/// A cursor in the change feed.
#[derive(Debug)]
pub struct Feed(Source);

#[derive(Debug)]
enum Source {
    Sqlite {
        queries: sqlite::Queries,
        /// The number of the last step read.
        seen: i64,
    },
    Postgres(Box<postgres::ClosedFeed>),
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

/// What one call of [`Feed::next`] has read.
#[derive(Debug)]
pub struct ClosedRead {
    /// The ends that were not returned before.
    pub loans: Vec<ClosedLoan>,
    /// If these complete a read of the feed: when that read began, in time since this machine
    /// started. It may have begun in an earlier call, but after the last acknowledgement.
    pub completed: Option<Duration>,
}

/// The ends that one query has read.
#[derive(Debug)]
pub(super) struct ClosedPage {
    pub(super) loans: Vec<ClosedLoan>,
    /// The number of the last step read.
    pub(super) step: i64,
}

/// A point in time that every process has to read past in the feed.
#[derive(Clone, Debug)]
pub struct FeedBarrier(Option<postgres::Barrier>);

impl FeedBarrier {
    /// Creates a barrier that everyone has passed.
    pub(super) fn none() -> FeedBarrier {
        FeedBarrier(None)
    }

    pub(super) fn new(barrier: postgres::Barrier) -> FeedBarrier {
        FeedBarrier(Some(barrier))
    }

    /// Returns whether every process has announced all ends that were committed before the barrier
    /// was created, or has not been heard of for longer than its own `gate.freshness`. It reads
    /// memory only: the task that reads the feed also reads how far the others are.
    pub fn is_past(&self) -> bool {
        self.0.as_ref().is_none_or(postgres::Barrier::is_past)
    }
}

impl Ledger {
    /// Returns the feed of ends that were committed after this ledger was opened.
    pub fn feed(&self) -> Feed {
        Feed(match self.queries.clone() {
            Queries::Sqlite(queries) => Source::Sqlite { queries, seen: self.opened_at },
            Queries::Postgres(queries) => {
                let membership = self.membership.clone();
                Source::Postgres(Box::new(postgres::ClosedFeed::new(queries, membership)))
            }
        })
    }

    /// Returns a barrier for all ends that were committed before this call.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn feed_barrier(&self) -> Result<FeedBarrier, LedgerError> {
        self.queries.barrier().await
    }
}

impl Feed {
    /// The deadline of one query. A caller that drops a call earlier hides its failure.
    pub const QUERY_DEADLINE: Duration = postgres::FEED_DEADLINE;

    /// Returns the next ends in their order, and whether they complete a read.
    ///
    /// An unreadable row is skipped, so that it does not hide the ends after it. Its loan gives no
    /// access either, because the gate cannot read it.
    ///
    /// # Errors
    /// [`LedgerError`]; the next call reads the same ends again.
    pub async fn next(&mut self) -> Result<ClosedRead, LedgerError> {
        match &mut self.0 {
            Source::Sqlite { queries, seen } => {
                let began = clock::since_boot();
                let page = queries.closed_after(*seen).await?;
                let is_last = page.step == *seen;
                *seen = page.step;
                Ok(ClosedRead { loans: page.loans, completed: is_last.then_some(began) })
            }
            Source::Postgres(feed) => feed.next().await,
        }
    }

    /// Reports to the other processes that this one has announced all ends that were returned. The
    /// caller acknowledges each completed read, also one with ends: under load, each has some.
    ///
    /// # Errors
    /// [`LedgerError`]; the feed then counts as not read.
    pub async fn acknowledge(&mut self) -> Result<(), LedgerError> {
        match &mut self.0 {
            Source::Sqlite { .. } => Ok(()),
            Source::Postgres(feed) => feed.acknowledge().await,
        }
    }

    /// Returns the interval between two reads.
    pub fn interval(&self) -> Duration {
        match self.0 {
            Source::Sqlite { .. } => FILE_INTERVAL,
            Source::Postgres(_) => SERVER_INTERVAL,
        }
    }

    /// Returns how long data that was read from the ledger may be used while the feed fails for
    /// longer than `gate.freshness`; none if that is `gate.freshness`, too.
    pub fn validity_without_feed(&self) -> Option<Duration> {
        match self.0 {
            Source::Sqlite { .. } => None,
            Source::Postgres(_) => Some(UNACKNOWLEDGED_VALIDITY),
        }
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
        feed.next().await.unwrap().loans.into_iter().map(|closed| closed.loan).collect()
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
