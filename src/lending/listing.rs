//! A library's listing at Bokbasen, read page by page within fixed limits.
//!
//! Circulation's balance reads it. Cursors may form a cycle or never end, so pages, rows and time
//! are limited. A listing that exceeds a limit is an error, so that it never looks complete.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::call::{Call, CallScope};
use super::wire::{self, Query};
use super::{Bokbasen, CallError, RemoteLoan};
use crate::telemetry::LendingCall;

/// The limits of one listing.
#[derive(Clone, Copy, Debug)]
struct Limits {
    pages: usize,
    rows: usize,
    /// Consecutive pages on which every loan was listed before.
    repeated_pages: usize,
    time: Duration,
}

/// Limits far above what any library lends in the months that a balance covers.
const LIMITS: Limits = Limits {
    pages: 20_000,
    rows: 1_000_000,
    repeated_pages: 3,
    time: Duration::from_secs(15 * 60),
};

/// One page of a listing.
#[derive(Debug, Default)]
pub struct Page {
    /// The readable loans.
    pub loans: Vec<RemoteLoan>,
    /// The rows that could not be read.
    pub unreadable: Vec<Unreadable>,
}

/// A row that breaks the protocol.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unreadable {
    /// Bokbasen's id of the loan, if readable.
    pub lending_id: Option<String>,
    /// The reason why the row cannot be read.
    pub why: String,
}

/// A listing that is being read.
#[derive(Debug)]
pub struct Listing<'a> {
    bokbasen: &'a Bokbasen,
    scope: CallScope,
    /// The query of the next page; none at the end.
    query: Option<Query>,
    until: Instant,
    progress: Progress,
}

impl<'a> Listing<'a> {
    pub(super) fn begin(bokbasen: &'a Bokbasen, scope: CallScope, query: Query) -> Listing<'a> {
        let until = Instant::now() + LIMITS.time;
        Listing { bokbasen, scope, query: Some(query), until, progress: Progress::new(LIMITS) }
    }

    /// Returns the next page; none at the end. An empty page ends the listing, even with a cursor.
    ///
    /// # Errors
    /// [`CallError`]; the listing is then incomplete.
    pub async fn next(&mut self) -> Result<Option<Page>, CallError> {
        let Some(query) = self.query.take() else { return Ok(None) };
        let transport = &self.bokbasen.transport;
        let call = Call::repeatable(self.scope, LendingCall::List, Method::GET, wire::loans())
            .query(query);
        let response = tokio::time::timeout_at(self.until, transport.send(&call)).await;
        let response =
            response.map_err(|_| endless(&format!("it took longer than {:?}", LIMITS.time)))??;
        let (page, next) = wire::listed_page(&response, transport.now())?;
        transport.breaches.check_listed(&page.loans);
        let ids = page.loans.iter().map(|loan| loan.lending_id.as_str());
        let rows = page.loans.len() + page.unreadable.len();
        self.query = next.filter(|_| rows > 0).map(wire::next_page);
        let cursor =
            self.query.as_ref().and_then(|query| query.first()).map(|(_, cursor)| cursor.as_str());
        self.progress.note(ids, rows, cursor)?;
        Ok(Some(page))
    }
}

/// The progress of a listing, compared with its limits.
#[derive(Debug)]
struct Progress {
    limits: Limits,
    hasher: RandomState,
    /// Hashes of the listed ids and of the cursors. A collision can only end a listing too early.
    ids: HashSet<u64>,
    cursors: HashSet<u64>,
    pages: usize,
    rows: usize,
    repeated_pages: usize,
}

impl Progress {
    fn new(limits: Limits) -> Progress {
        let (ids, cursors) = (HashSet::new(), HashSet::new());
        Progress {
            limits,
            hasher: RandomState::new(),
            ids,
            cursors,
            pages: 0,
            rows: 0,
            repeated_pages: 0,
        }
    }

    /// Records a page: its ids, the number of its rows, and the cursor of the next page.
    fn note<'i>(
        &mut self,
        ids: impl Iterator<Item = &'i str>,
        rows: usize,
        cursor: Option<&str>,
    ) -> Result<(), CallError> {
        self.pages += 1;
        self.rows = self.rows.saturating_add(rows);
        let before = self.ids.len();
        for id in ids {
            self.ids.insert(self.hasher.hash_one(id));
        }
        let has_new_ids = self.ids.len() > before;
        self.repeated_pages = if has_new_ids { 0 } else { self.repeated_pages + 1 };
        let Some(cursor) = cursor else { return Ok(()) };
        if !self.cursors.insert(self.hasher.hash_one(cursor)) {
            return Err(endless(&format!("the cursor of page {} was given before", self.pages)));
        }
        if self.repeated_pages >= self.limits.repeated_pages {
            let pages = self.repeated_pages;
            return Err(endless(&format!(
                "its last {pages} pages list only loans that were listed before"
            )));
        }
        if self.pages >= self.limits.pages || self.rows >= self.limits.rows {
            return Err(endless(&format!(
                "it continues after {} pages of {} rows",
                self.pages, self.rows
            )));
        }
        Ok(())
    }
}

fn endless(why: &str) -> CallError {
    CallError::Unknown(format!("the listing does not end: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Limits =
        Limits { pages: 5, rows: 20, repeated_pages: 3, time: Duration::from_secs(1) };

    /// Returns the page at which a listing is stopped; `page(n)` returns the ids and the cursor of
    /// page `n`.
    fn stopped(page: impl Fn(usize) -> (Vec<String>, String)) -> Option<(usize, String)> {
        let mut progress = Progress::new(SMALL);
        (1..100).find_map(|number| {
            let (ids, cursor) = page(number);
            let noted = progress.note(ids.iter().map(String::as_str), ids.len(), Some(&cursor));
            noted.err().map(|error| (number, error.to_string()))
        })
    }

    #[test]
    fn endless_listing_is_stopped() {
        let fresh =
            |n: usize, count: usize| (0..count).map(|i| format!("{n}-{i}")).collect::<Vec<_>>();
        let (at, why) = stopped(|n| (fresh(n, 1), "same".to_owned())).unwrap();
        assert!(at == 2 && why.contains("was given before"), "{why}");
        let (at, why) = stopped(|n| (vec!["L".to_owned()], n.to_string())).unwrap();
        assert!(at == 4 && why.contains("listed before"), "{why}");
        let (at, why) = stopped(|n| (fresh(n, 1), n.to_string())).unwrap();
        assert!(at == 5 && why.contains("5 pages"), "{why}");
        let (at, why) = stopped(|n| (fresh(n, 10), n.to_string())).unwrap();
        assert!(at == 2 && why.contains("20 rows"), "{why}");
    }
}
