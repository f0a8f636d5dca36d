//! The books: all loans and reports, indexed by id, reference and library.
//!
//! The state stores its loans here. A change is in the journal before any call can see it. Only the
//! export of the whole books reads every loan.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::api_types::BookedReport;
use super::journal::{Entry, Journal};
use super::loan::Loan;
use crate::loan::LibraryId;

/// The books. The index of a loan never changes.
#[derive(Debug, Default)]
pub(super) struct Books {
    loans: Vec<Loan>,
    by_id: HashMap<String, usize>,
    by_reference: HashMap<String, Vec<usize>>,
    by_library: HashMap<LibraryId, Vec<usize>>,
    reports: Vec<BookedReport>,
    journal: Option<Journal>,
}

impl Books {
    /// Opens the books of a directory, or empty ones in memory.
    pub(super) fn open(dir: Option<&Path>) -> io::Result<Books> {
        let mut books = Books::default();
        let Some(dir) = dir else { return Ok(books) };
        let (journal, entries) = Journal::open(dir)?;
        for entry in entries {
            match entry {
                Entry::Loan(loan) => books.insert(*loan),
                Entry::Report(report) => books.reports.push(report),
            }
        }
        books.journal = Some(journal);
        Ok(books)
    }

    /// Returns an id that no loan has.
    pub(super) fn next_id(&self) -> String {
        format!("BL{:08}", self.loans.len() + 1)
    }

    /// Stores a new or changed loan.
    pub(super) fn store(&mut self, loan: Loan) -> io::Result<()> {
        let entry = Entry::Loan(Box::new(loan));
        self.write(&entry)?;
        if let Entry::Loan(loan) = entry {
            self.insert(*loan);
        }
        Ok(())
    }

    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        self.journal.as_mut().map_or(Ok(()), |journal| journal.write(entry))
    }

    fn insert(&mut self, loan: Loan) {
        if let Some(stored) = self.by_id.get(&loan.id).and_then(|place| self.loans.get_mut(*place))
        {
            *stored = loan;
            return;
        }
        let place = self.loans.len();
        self.by_id.insert(loan.id.clone(), place);
        self.by_reference.entry(loan.reference.clone()).or_default().push(place);
        self.by_library.entry(loan.library).or_default().push(place);
        self.loans.push(loan);
    }

    /// Counts one poll of a pending loan. It is not journalled, so a restart may forget it.
    pub(super) fn count_poll(&mut self, id: &str) {
        if let Some(loan) = self.by_id.get(id).and_then(|place| self.loans.get_mut(*place)) {
            loan.polls_left = loan.polls_left.saturating_sub(1);
        }
    }

    pub(super) fn loan(&self, id: &str) -> Option<&Loan> {
        self.by_id.get(id).and_then(|place| self.loans.get(*place))
    }

    pub(super) fn at(&self, place: usize) -> Option<&Loan> {
        self.loans.get(place)
    }

    pub(super) fn all(&self) -> &[Loan] {
        &self.loans
    }

    pub(super) fn of_reference(&self, reference: &str) -> &[usize] {
        self.by_reference.get(reference).map_or(&[], Vec::as_slice)
    }

    pub(super) fn of_library(&self, library: LibraryId) -> &[usize] {
        self.by_library.get(&library).map_or(&[], Vec::as_slice)
    }

    /// Stores a report of a paid loan.
    pub(super) fn report(&mut self, report: BookedReport) -> io::Result<()> {
        self.write(&Entry::Report(report.clone()))?;
        self.reports.push(report);
        Ok(())
    }

    pub(super) fn reports(&self) -> &[BookedReport] {
        &self.reports
    }

    /// Closes the file, so that another sandbox can open it. Later changes are not written.
    pub(super) fn close(&mut self) {
        self.journal = None;
    }
}
