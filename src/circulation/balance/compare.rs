//! Compares one library's listing at Bokbasen with the ledger, row by row.
//!
//! Reading the listing, by `rows`, changes nothing on either side. Once it is complete, `extras`
//! ends loans at Bokbasen that should be over. Then `repair` decides about loans that are accepted
//! here but not there.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::report::{Compared, Kind, Report};
use super::{Circulation, Stopped};
use crate::clock;
use crate::ledger::Filter;
use crate::lending::RemoteLoan;
use crate::loan::{LibraryId, Loan, LoanState};

/// Maximum number of loans in one query of the ledger.
const PAGE: u32 = 500;
/// Maximum number of examined loans per kind of difference; more are only counted.
pub(super) const MAX_EXAMINED: usize = 1000;
/// A loan begun within this time after the start of a listing may be missing in it, because clocks
/// differ.
const WINDOW_MARGIN: SignedDuration = SignedDuration::from_hours(1);

/// A loan that is accepted here and, according to the listing, not at Bokbasen.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) loan: Loan,
    /// Its status in the listing; none if it is absent.
    pub(super) listed_as: Option<String>,
}

/// Comparison of one library.
pub(super) struct Comparison<'a> {
    pub(super) circulation: &'a Circulation,
    pub(super) library: LibraryId,
    pub(super) now: Timestamp,
    until: Instant,
    since: Timestamp,
    /// Loans that changed later are not compared.
    pub(super) settled: Timestamp,
    pub(super) compared: Compared,
    pub(super) report: &'a mut Report,
    hasher: RandomState,
    /// Hash of each listed id, with the hash of its status. A collision hides an absence, which is
    /// safe.
    pub(super) seen: HashMap<u64, u64>,
    /// Hashes of the ids that are accepted on both sides.
    pub(super) agreed: HashSet<u64>,
    /// Latest begin of this gate's listed loans.
    pub(super) latest_listed: Option<Timestamp>,
    /// Loans that are live at Bokbasen after their end here, or beside the one in the ledger.
    pub(super) extras: Vec<(Kind, Loan, RemoteLoan)>,
    pub(super) suspects: Vec<Suspect>,
    /// Number of suspects, including those that are not examined.
    pub(super) suspected: usize,
    /// Whether every row has an id. If not, any absent loan may be the row without one.
    pub(super) all_named: bool,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(
        circulation: &'a Circulation,
        library: LibraryId,
        since: Timestamp,
        (now, until): (Timestamp, Instant),
        report: &'a mut Report,
    ) -> Comparison<'a> {
        let compared = Compared {
            library: library.to_string(),
            since,
            listed: 0,
            foreign: 0,
            too_recent: 0,
            accepted_here: 0,
            failed: None,
        };
        // A begin is listed within `settle`; twice that allows for both clocks.
        let settled = clock::before(now, circulation.inner.settings.settle * 2);
        Comparison {
            circulation,
            library,
            now,
            until,
            since,
            settled,
            compared,
            report,
            hasher: RandomState::new(),
            seen: HashMap::new(),
            agreed: HashSet::new(),
            latest_listed: None,
            extras: Vec::new(),
            suspects: Vec::new(),
            suspected: 0,
            all_named: true,
        }
    }

    pub(super) async fn run(&mut self) -> Result<(), Stopped> {
        let mut listing = self.circulation.inner.lending.listing(self.library, self.since);
        while let Some(page) = listing.next().await? {
            self.check_stop()?;
            self.note_read(page.unreadable.len() + page.loans.len());
            for row in page.unreadable {
                self.record_unreadable(row);
            }
            for remote in page.loans {
                self.compare_row(remote).await?;
            }
        }
        self.find_absent().await?;
        self.end_extras().await?;
        self.repair().await
    }

    /// Returns an error once the balance must stop. Called between steps, because a step that is
    /// dropped half-way might end a loan without notifying the gate.
    pub(super) fn check_stop(&self) -> Result<(), Stopped> {
        match () {
            () if self.circulation.inner.stopping.is_cancelled() => Err(Stopped::Stopping),
            () if Instant::now() > self.until => Err(Stopped::TooLong),
            () => Ok(()),
        }
    }

    pub(super) fn add_suspect(&mut self, suspect: Suspect) {
        self.suspected += 1;
        if self.suspects.len() < MAX_EXAMINED {
            self.suspects.push(suspect);
        }
    }

    /// Finds loans that are accepted here and missing in the listing, though it should have them.
    async fn find_absent(&mut self) -> Result<(), Stopped> {
        let expected_from = self.since.checked_add(WINDOW_MARGIN).unwrap_or(Timestamp::MAX);
        let mut filter = Filter {
            library: Some(self.library),
            state: Some(LoanState::Accepted),
            limit: PAGE,
            ..Filter::default()
        };
        loop {
            self.check_stop()?;
            let page = self.circulation.inner.ledger.page(&filter).await?;
            filter.after = page.last().map(|loan| loan.id.uuid());
            self.compared.accepted_here += page.len();
            self.note_read(page.len());
            let full = page.len() == PAGE as usize;
            for loan in page {
                let listed = loan
                    .lending_id
                    .as_ref()
                    .is_some_and(|id| self.seen.contains_key(&self.hash(id)));
                if !listed && loan.changed <= self.settled && loan.begun >= expected_from {
                    self.add_suspect(Suspect { loan, listed_as: None });
                }
            }
            if !full {
                return Ok(());
            }
        }
    }

    /// Counts loans for those who watch the balance.
    fn note_read(&self, loans: usize) {
        self.circulation.inner.running_balance.add_loans(loans);
    }

    pub(super) fn hash(&self, id: &str) -> u64 {
        self.hasher.hash_one(id)
    }
}
