//! The change feed: the loans that stopped opening files, by the time at which they did.
//!
//! The time of a row is taken before its transaction commits, so rows become visible out of order.
//! Each read therefore goes back further than the longest transaction, and drops what it has
//! returned already. It relies on no notification and no sequence.
//!
//! A commit may wait for a synchronous standby without any limit, and nobody sees its rows until
//! then. The server ends such waits in the order of the commits. So an acknowledgement that is
//! durable proves that the waits of all earlier commits are over, and a read that begins after it
//! sees them. Only then does the feed start later: at the start of the read that was acknowledged,
//! or at the present if that is earlier, since a new primary may have an earlier time. While
//! acknowledgements fail, each read starts where the last did.
//!
//! After a failure, and now and then, a read goes back much further, in case a transaction lasted
//! longer than it should.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio::time::Instant;
use uuid::Uuid;

use super::barrier::Polls;
use super::copy_marks;
use super::queries::Queries;
use super::sql::statement;
use crate::clock;
use crate::ledger::LedgerError;
use crate::ledger::change_feed::{ClosedLoan, ClosedRead};
use crate::ledger::membership::Membership;
use crate::ledger::stored_row::key_of;
use crate::loan::LoanId;

/// How far a read goes back, in milliseconds: longer than any transaction, which has a deadline of
/// 5 s and whose statements the server ends after 4 s.
pub(super) const OVERLAP_MS: i64 = 15_000;
/// How far a wide read goes back, in milliseconds.
const WIDE_OVERLAP_MS: i64 = 600_000;
/// The interval of wide reads.
const WIDE_INTERVAL: Duration = Duration::from_secs(30);
/// The deadline of one query of the feed. It is shorter than the time after which the caller drops
/// a call, so that a query which hangs counts as a failure, and the next read is wide.
pub(in crate::ledger) const DEADLINE: Duration = Duration::from_millis(1500);
/// How long after the end of its wait a commit may become visible: its process must run first.
const VISIBLE_AFTER: Duration = Duration::from_secs(1);
/// The maximum number of ends that one query reads.
const PAGE: i64 = 5000;

pub(super) const CLOSED: &str = "SELECT library, id, borrower, isbn, closed, \
     coalesce(ended, closed) AS at FROM loans \
     WHERE closed >= $1 AND (closed, library, id) > ($1, $2, $3) \
     ORDER BY closed, library, id LIMIT $4";
/// The commit waits for a synchronous standby as others do, see the header of this module.
const BEGIN_ACKNOWLEDGEMENT: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
    SET LOCAL statement_timeout = 1500; \
    SET LOCAL lock_timeout = 1000; \
    SET LOCAL idle_in_transaction_session_timeout = 5000";
/// A member that was declared dead cannot acknowledge: others rely on that.
pub(super) const ACKNOWLEDGE: &str =
    "UPDATE members SET polls = polls + 1 WHERE member = $1 AND fenced IS NULL";

/// A reader of the change feed.
#[derive(Debug)]
pub(in crate::ledger) struct ClosedFeed {
    queries: Queries,
    membership: Arc<dyn Membership>,
    /// How far a usual read goes back, in milliseconds.
    overlap: i64,
    /// The time of the database before which everything was returned, except for the overlap, in
    /// milliseconds; none at first.
    read_to: Option<i64>,
    /// The last acknowledged read, which becomes `read_to`.
    acknowledged: Option<AcknowledgedRead>,
    /// When the read that waits for its acknowledgement began.
    completed: Option<Began>,
    /// The read that has begun and is not complete.
    read: Option<Read>,
    /// The ends that were returned, with the time by which the feed is ordered.
    returned: HashMap<LoanId, i64>,
    /// When the last wide read began; none if the next read must be wide.
    wide: Option<Instant>,
}

/// The start of a read.
#[derive(Clone, Copy, Debug)]
struct Began {
    /// By the clock of the database, in milliseconds.
    database: i64,
    /// In time since this machine started.
    boot: Duration,
}

/// A read that was acknowledged.
#[derive(Clone, Copy, Debug)]
struct AcknowledgedRead {
    began: Began,
    /// When the acknowledgement had been committed, in time since this machine started.
    committed: Duration,
}

/// A read of the feed in pages.
#[derive(Clone, Debug)]
struct Read {
    began: Began,
    /// The position of the last row.
    after: (i64, String, Uuid),
    is_wide: bool,
}

impl ClosedFeed {
    /// Creates a reader of the ends that were committed after these queries were opened. It may
    /// also return earlier ones.
    pub(in crate::ledger) fn new(queries: Queries, membership: Arc<dyn Membership>) -> ClosedFeed {
        ClosedFeed {
            queries,
            membership,
            overlap: OVERLAP_MS,
            read_to: None,
            acknowledged: None,
            completed: None,
            read: None,
            returned: HashMap::new(),
            wide: Some(Instant::now()),
        }
    }

    /// Sets how far a usual read goes back, in milliseconds.
    #[cfg(test)]
    pub(super) fn set_overlap(&mut self, overlap: i64) {
        self.overlap = overlap;
    }

    /// Returns ends that it has not returned before, and whether they complete a read. It returns
    /// no empty list otherwise.
    pub(in crate::ledger) async fn next(&mut self) -> Result<ClosedRead, LedgerError> {
        loop {
            let (page, completed) = match self.read_page().await {
                Ok(read) => read,
                Err(error) => {
                    // The next connection may lead to another primary.
                    (self.read, self.wide) = (None, None);
                    return Err(LedgerError::Server(error));
                }
            };
            let loans = self.drop_returned(&page);
            if completed.is_some() || !loans.is_empty() {
                return Ok(ClosedRead { loans, completed });
            }
        }
    }

    /// Records that everything that was returned has been announced.
    pub(in crate::ledger) async fn acknowledge(&mut self) -> Result<(), LedgerError> {
        let name = self.membership.name();
        let member: Uuid = name.parse().map_err(|_| LedgerError::NoMember)?;
        let query = statement(ACKNOWLEDGE).bind(member);
        let pool = &self.queries.feed_pool;
        let done = pool.transaction(BEGIN_ACKNOWLEDGEMENT, DEADLINE, async |connection| {
            query.execute(connection).await
        });
        let error = match Box::pin(done).await {
            Ok(done) if done.rows_affected() > 0 => {
                self.advance(clock::since_boot());
                return Ok(());
            }
            Ok(_) => LedgerError::NoMember,
            Err(error) => LedgerError::Server(error),
        };
        self.note_marks().await;
        Err(error)
    }

    /// Reads the marks of a copy, which fences members that do not renew their lease. Until the
    /// next join, reads of the old ledger would confirm the loans of streams.
    async fn note_marks(&self) {
        let marks = self
            .queries
            .feed_pool
            .read(DEADLINE, async |connection| copy_marks::read(connection).await);
        // If that fails, the next acknowledgement fails, too.
        if let Ok(marks) = Box::pin(marks).await {
            self.membership.note_marks(&marks);
        }
    }

    /// Lets later reads start later. The completed read began after an earlier acknowledgement, so
    /// it saw all that was committed before that one.
    fn advance(&mut self, committed: Duration) {
        let Some(began) = self.completed.take() else { return };
        if let Some(earlier) = self.acknowledged {
            if began.boot < earlier.committed + VISIBLE_AFTER {
                return;
            }
            self.read_to = Some(earlier.began.database);
        }
        self.acknowledged = Some(AcknowledgedRead { began, committed });
    }

    /// Reads the next page of the current read, or the first of a new one. Returns also when the
    /// read began, if this page completes it. If the future is dropped, the page is read again.
    async fn read_page(&mut self) -> Result<(Vec<PgRow>, Option<Duration>), sqlx::Error> {
        let current = self.read.clone();
        let (read_to, wide, overlap) = (self.read_to, self.wide, self.overlap);
        let (polls, opened) = (&self.queries.polls, self.queries.opened);
        let read = self.queries.feed_pool.read(DEADLINE, async |connection| {
            let read = match current {
                Some(read) => read,
                None => {
                    let began = clock::since_boot();
                    let counters = Polls::read(&mut *connection).await?;
                    polls.observe(&counters, began, clock::since_boot());
                    let since_opening = millis(began.saturating_sub(opened));
                    let opened_at = counters.now.saturating_sub(since_opening);
                    let from = read_to.unwrap_or(opened_at);
                    Read::new(Began { database: counters.now, boot: began }, from, overlap, wide)
                }
            };
            let (closed, library, id) = read.after.clone();
            let query = statement(CLOSED).bind(closed).bind(library).bind(id).bind(PAGE);
            Ok((read, query.fetch_all(connection).await?))
        });
        let (mut read, page) = Box::pin(read).await?;
        match page.last() {
            Some(last) if page.len() as i64 == PAGE => {
                read.after =
                    (last.try_get("closed")?, last.try_get("library")?, last.try_get("id")?);
                self.read = Some(read);
                Ok((page, None))
            }
            _ => {
                self.complete(&read);
                Ok((page, Some(read.began.boot)))
            }
        }
    }

    fn complete(&mut self, read: &Read) {
        self.read = None;
        self.completed = Some(read.began);
        if read.is_wide {
            self.wide = Some(Instant::now());
            // Later reads return nothing older.
            let Some(read_to) = self.read_to else { return };
            let oldest = read_to.min(read.began.database);
            let oldest = oldest.saturating_sub(WIDE_OVERLAP_MS + OVERLAP_MS);
            self.returned.retain(|_, closed| *closed > oldest);
        }
    }

    /// Returns the ends in this page that were not returned before. An unreadable row is skipped,
    /// so that it does not hide the ends after it.
    fn drop_returned(&mut self, page: &[PgRow]) -> Vec<ClosedLoan> {
        let mut new = Vec::new();
        for row in page {
            let read = closed_of(row);
            let Some((loan, closed)) = self.queries.damaged.skip(read) else { continue };
            if self.returned.insert(loan.loan, closed).is_none() {
                new.push(loan);
            }
        }
        new
    }
}

impl Read {
    fn new(began: Began, from: i64, overlap: i64, wide: Option<Instant>) -> Read {
        let is_wide = wide.is_none_or(|wide| wide.elapsed() >= WIDE_INTERVAL);
        let overlap = if is_wide { WIDE_OVERLAP_MS } else { overlap };
        let first = from.min(began.database).saturating_sub(overlap);
        Read { began, after: (first, String::new(), Uuid::nil()), is_wide }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Reads an end, and the time by which the feed is ordered.
fn closed_of(row: &PgRow) -> Result<(ClosedLoan, i64), LedgerError> {
    let id: Uuid = row.try_get("id").map_err(|error| LedgerError::damaged("?", &error))?;
    let text = id.to_string();
    let wrong = |error: &dyn std::fmt::Display| LedgerError::damaged(&text, error);
    let key = key_of(row, &text)?;
    let at: i64 = row.try_get("at").map_err(|error| wrong(&error))?;
    let closed = row.try_get("closed").map_err(|error| wrong(&error))?;
    let at = Timestamp::from_millisecond(at).map_err(|error| wrong(&error))?;
    Ok((ClosedLoan { loan: LoanId::new(key.library, id), key, at }, closed))
}
