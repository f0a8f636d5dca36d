//! The books: every loan ever made and every report, found by id, reference and library.
//!
//! The state keeps its loans here. It calls the journal. A change is written before it can be seen;
//! no question but the whole book looks at every loan.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::api_types::BookedReport;
use super::journal::{Entry, Journal};
use super::loan::Loan;
use crate::loan::LibraryId;

/// The books. A loan's place in them never changes.
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
    /// Empty books in memory, or those of a directory.
    pub(super) fn open(dir: Option<&Path>) -> io::Result<Books> {
        let mut books = Books::default();
        let Some(dir) = dir else { return Ok(books) };
        let (journal, entries) = Journal::open(dir)?;
        for entry in entries {
            match entry {
                Entry::Loan(loan) => books.place(*loan),
                Entry::Report(report) => books.reports.push(report),
            }
        }
        books.journal = Some(journal);
        Ok(books)
    }

    /// An id that no loan has.
    pub(super) fn fresh_id(&self) -> String {
        format!("BL{:08}", self.loans.len() + 1)
    }

    /// Writes a loan down, new or changed.
    pub(super) fn keep(&mut self, loan: Loan) -> io::Result<()> {
        let entry = Entry::Loan(Box::new(loan));
        self.write(&entry)?;
        if let Entry::Loan(loan) = entry {
            self.place(*loan);
        }
        Ok(())
    }

    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        self.journal.as_mut().map_or(Ok(()), |journal| journal.write(entry))
    }

    fn place(&mut self, loan: Loan) {
        if let Some(kept) = self.by_id.get(&loan.id).and_then(|place| self.loans.get_mut(*place)) {
            *kept = loan;
            return;
        }
        let place = self.loans.len();
        self.by_id.insert(loan.id.clone(), place);
        self.by_reference.entry(loan.reference.clone()).or_default().push(place);
        self.by_library.entry(loan.library).or_default().push(place);
        self.loans.push(loan);
    }

    /// One poll of a pending loan has been answered. It is not journalled: a restart may forget it.
    pub(super) fn polled(&mut self, id: &str) {
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

    /// Writes a report down.
    pub(super) fn report(&mut self, report: BookedReport) -> io::Result<()> {
        self.write(&Entry::Report(report.clone()))?;
        self.reports.push(report);
        Ok(())
    }

    pub(super) fn reports(&self) -> &[BookedReport] {
        &self.reports
    }

    /// Closes the file, so that another sandbox can open it; what comes later is not written.
    pub(super) fn close(&mut self) {
        self.journal = None;
    }
}
