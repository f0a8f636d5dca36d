//! The change feed: the loans that stopped opening files, by the time at which they did.
//!
//! The time of a row is taken before its transaction commits, so rows become visible out of order.
//! Each read therefore goes back further than the longest transaction, and drops what it has
//! returned already. It relies on no notification and no sequence.
//!
//! A read starts from the time of the database at the start of the last complete read, or from the
//! present if that is earlier: a new primary may have an earlier time. After a failure, and now and
//! then, a read goes back much further, in case a transaction lasted longer than it should.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio::time::Instant;
use uuid::Uuid;

use super::barrier::Polls;
use super::pool::BEGIN_READ_ONLY;
use super::queries::Queries;
use super::row::key_of;
use super::sql::statement;
use crate::clock;
use crate::ledger::LedgerError;
use crate::ledger::change_feed::ClosedLoan;
use crate::ledger::membership::Membership;
use crate::loan::LoanId;

/// How far a read goes back, in milliseconds: longer than any transaction, which has a deadline of
/// 5 s and whose statements the server ends after 4 s.
pub(super) const OVERLAP_MS: i64 = 15_000;
/// How far a wide read goes back, in milliseconds.
const WIDE_OVERLAP_MS: i64 = 600_000;
/// The interval of wide reads.
const WIDE_INTERVAL: Duration = Duration::from_secs(30);
/// The deadline of one query of the feed.
const DEADLINE: Duration = Duration::from_secs(2);
/// The maximum number of ends that one query reads.
const PAGE: i64 = 5000;

pub(super) const CLOSED: &str = "SELECT library, id, borrower, isbn, closed, \
     coalesce(ended, closed) AS at FROM loans \
     WHERE closed >= $1 AND (closed, library, id) > ($1, $2, $3) \
     ORDER BY closed, library, id LIMIT $4";
/// The increment need not be durable: if it is lost, an end is sent somewhat later.
const BEGIN_ACKNOWLEDGEMENT: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
    SET LOCAL synchronous_commit = off; \
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
    /// The time of the database at the start of the last complete read, in milliseconds; none
    /// before the first.
    read_to: Option<i64>,
    /// The read that has begun and is not complete.
    read: Option<Read>,
    /// The ends that were returned, with the time by which the feed is ordered.
    returned: HashMap<LoanId, i64>,
    /// When the last wide read began; none if the next read must be wide.
    wide: Option<Instant>,
}

/// A read of the feed in pages.
#[derive(Clone, Debug)]
struct Read {
    /// The time of the database at its start, in milliseconds.
    began: i64,
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
            read_to: None,
            read: None,
            returned: HashMap::new(),
            wide: Some(Instant::now()),
        }
    }

    /// Returns ends that it has not returned before. An empty list means that a complete read,
    /// which began during this call, has found no others.
    pub(in crate::ledger) async fn next(&mut self) -> Result<Vec<ClosedLoan>, LedgerError> {
        let mut restarts = self.read.is_some();
        loop {
            let page = match self.read_page().await {
                Ok(page) => page,
                Err(error) => {
                    // The next connection may lead to another primary.
                    (self.read, self.wide) = (None, None);
                    return Err(LedgerError::Server(error));
                }
            };
            let new = self.drop_returned(&page);
            if self.read.is_none() && restarts && new.is_empty() {
                // That read began in an earlier call.
                restarts = false;
            } else if self.read.is_none() || !new.is_empty() {
                return Ok(new);
            }
        }
    }

    /// Records that everything that was returned has been announced.
    pub(in crate::ledger) async fn acknowledge(&self) -> Result<(), LedgerError> {
        let name = self.membership.name();
        let member: Uuid = name.parse().map_err(|_| LedgerError::NoMember)?;
        let query = statement(ACKNOWLEDGE).bind(member);
        let pool = &self.queries.feed_pool;
        let done = pool.transaction(BEGIN_ACKNOWLEDGEMENT, DEADLINE, async |connection| {
            query.execute(connection).await
        });
        match Box::pin(done).await.map_err(LedgerError::Server)?.rows_affected() {
            0 => Err(LedgerError::NoMember),
            _ => Ok(()),
        }
    }

    /// Reads the next page of the current read, or the first of a new one. If the future is
    /// dropped, the page is read again.
    async fn read_page(&mut self) -> Result<Vec<PgRow>, sqlx::Error> {
        let current = self.read.clone();
        let (read_to, wide) = (self.read_to, self.wide);
        let (polls, opened) = (&self.queries.polls, self.queries.opened);
        let read =
            self.queries.feed_pool.transaction(BEGIN_READ_ONLY, DEADLINE, async |connection| {
                let read = match current {
                    Some(read) => read,
                    None => {
                        let began = clock::since_boot();
                        let counters = Polls::read(&mut *connection).await?;
                        polls.observe(&counters, began, clock::since_boot());
                        let since_opening = millis(began.saturating_sub(opened));
                        let opened_at = counters.now.saturating_sub(since_opening);
                        Read::new(counters.now, read_to.unwrap_or(opened_at), wide)
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
            }
            _ => self.complete(&read),
        }
        Ok(page)
    }

    fn complete(&mut self, read: &Read) {
        self.read = None;
        self.read_to = Some(read.began);
        if read.is_wide {
            self.wide = Some(Instant::now());
            let oldest = read.began.saturating_sub(WIDE_OVERLAP_MS + OVERLAP_MS);
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
    fn new(now: i64, read_to: i64, wide: Option<Instant>) -> Read {
        let is_wide = wide.is_none_or(|wide| wide.elapsed() >= WIDE_INTERVAL);
        let overlap = if is_wide { WIDE_OVERLAP_MS } else { OVERLAP_MS };
        let first = read_to.min(now).saturating_sub(overlap);
        Read { began: now, after: (first, String::new(), Uuid::nil()), is_wide }
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
