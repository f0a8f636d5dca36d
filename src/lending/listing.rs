//! A library's listing at Bokbasen, read page by page, and bounded whatever Bokbasen sends.
//!
//! Circulation's balance reads it. A cursor may lead back to where it was, or lead on for ever; so
//! the pages, the rows and the time have limits, and a listing that exceeds one is an error, never
//! a listing that looks whole.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::transport::{Call, Concern};
use super::wire::{self, Query};
use super::{Bokbasen, CallError, RemoteLoan};

/// The limits of one listing.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    pages: usize,
    rows: usize,
    /// Pages in a row on which every loan was listed before.
    stale_pages: usize,
    time: Duration,
}

/// Far above what any library lends in the months that a balance looks back.
const BOUNDS: Bounds =
    Bounds { pages: 20_000, rows: 1_000_000, stale_pages: 3, time: Duration::from_secs(15 * 60) };

/// One page.
#[derive(Debug, Default)]
pub struct Page {
    /// The loans that could be read.
    pub loans: Vec<RemoteLoan>,
    /// The rows that could not.
    pub unreadable: Vec<Unreadable>,
}

/// A row that breaks the protocol.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unreadable {
    /// Bokbasen's id of the loan, where at least that could be read.
    pub lending_id: Option<String>,
    /// What is wrong with the row.
    pub why: String,
}

/// A listing that is being read.
#[derive(Debug)]
pub struct Listing<'a> {
    bokbasen: &'a Bokbasen,
    concern: Concern,
    /// The query of the next page; none at the end.
    query: Option<Query>,
    until: Instant,
    walk: Walk,
}

impl<'a> Listing<'a> {
    pub(super) fn begin(bokbasen: &'a Bokbasen, concern: Concern, query: Query) -> Listing<'a> {
        let until = Instant::now() + BOUNDS.time;
        Listing { bokbasen, concern, query: Some(query), until, walk: Walk::new(BOUNDS) }
    }

    /// The next page; none at the end. An empty page ends the listing, also where it has a cursor.
    ///
    /// # Errors
    /// [`CallError`]; the listing is then not whole.
    pub async fn next(&mut self) -> Result<Option<Page>, CallError> {
        let Some(query) = self.query.take() else { return Ok(None) };
        let transport = &self.bokbasen.transport;
        let call = Call::repeatable(self.concern, "list", Method::GET, wire::loans()).query(query);
        let answer = tokio::time::timeout_at(self.until, transport.send(&call)).await;
        let answer =
            answer.map_err(|_| endless(&format!("it took longer than {:?}", BOUNDS.time)))??;
        let (page, next) = wire::listed_page(&answer, transport.now())?;
        transport.breaches.check_listed(&page.loans);
        let ids = page.loans.iter().map(|loan| loan.lending_id.as_str());
        let rows = page.loans.len() + page.unreadable.len();
        self.query = next.filter(|_| rows > 0).map(wire::next_page);
        let cursor =
            self.query.as_ref().and_then(|query| query.first()).map(|(_, cursor)| cursor.as_str());
        self.walk.note(ids, rows, cursor)?;
        Ok(Some(page))
    }
}

/// What a listing has led through so far.
#[derive(Debug)]
struct Walk {
    bounds: Bounds,
    hasher: RandomState,
    /// Hashes of the ids that were listed, and of the cursors; a collision only ends a listing too
    /// early.
    ids: HashSet<u64>,
    cursors: HashSet<u64>,
    pages: usize,
    rows: usize,
    stale_pages: usize,
}

impl Walk {
    fn new(bounds: Bounds) -> Walk {
        let (ids, cursors) = (HashSet::new(), HashSet::new());
        Walk { bounds, hasher: RandomState::new(), ids, cursors, pages: 0, rows: 0, stale_pages: 0 }
    }

    /// Notes a page of so many rows, the ids on it, and the cursor that leads on from it.
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
        let has_news = self.ids.len() > before;
        self.stale_pages = if has_news { 0 } else { self.stale_pages + 1 };
        let Some(cursor) = cursor else { return Ok(()) };
        if !self.cursors.insert(self.hasher.hash_one(cursor)) {
            return Err(endless(&format!("the cursor of page {} was given before", self.pages)));
        }
        if self.stale_pages >= self.bounds.stale_pages {
            let pages = self.stale_pages;
            return Err(endless(&format!(
                "its last {pages} pages list only loans that were listed before"
            )));
        }
        if self.pages >= self.bounds.pages || self.rows >= self.bounds.rows {
            return Err(endless(&format!(
                "it goes on after {} pages of {} rows",
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

    const SMALL: Bounds =
        Bounds { pages: 5, rows: 20, stale_pages: 3, time: Duration::from_secs(1) };

    /// The page on which a listing is stopped, where page `n` has these ids and this cursor.
    fn stopped(page: impl Fn(usize) -> (Vec<String>, String)) -> Option<(usize, String)> {
        let mut walk = Walk::new(SMALL);
        (1..100).find_map(|number| {
            let (ids, cursor) = page(number);
            let noted = walk.note(ids.iter().map(String::as_str), ids.len(), Some(&cursor));
            noted.err().map(|error| (number, error.to_string()))
        })
    }

    #[test]
    fn a_listing_without_an_end_is_stopped() {
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
