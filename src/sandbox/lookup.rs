//! The world, indexed: libraries, titles and borrowers by key.
//!
//! The state queries it on every call, and the control API changes it. It contains no loans.

use std::collections::HashMap;

use jiff::Timestamp;

use super::error_response::Rejected;
use super::world::{LOAN_DAYS, usual_licence_types};
use super::{Library, Licence, LicenceType, Title, World};
use crate::loan::{Isbn, LibraryId};

/// The world, indexed by key.
#[derive(Debug)]
pub(super) struct WorldIndex {
    /// Whether unknown libraries and titles also exist.
    allows_unknown: bool,
    libraries: HashMap<LibraryId, Option<String>>,
    titles: HashMap<Isbn, Title>,
    /// The titles in the order of their last change, for the inventory.
    changes: Vec<(Timestamp, Isbn)>,
    borrowers: HashMap<String, String>,
    licence_types: Vec<LicenceType>,
}

impl WorldIndex {
    pub(super) fn new(world: World, now: Timestamp) -> WorldIndex {
        let mut world_index = WorldIndex {
            allows_unknown: world.any_library_any_title,
            libraries: HashMap::new(),
            titles: HashMap::new(),
            changes: Vec::new(),
            borrowers: HashMap::new(),
            licence_types: usual_licence_types(),
        };
        if !world.licence_types.is_empty() {
            world_index.licence_types = world.licence_types;
        }
        world.libraries.into_iter().for_each(|library| world_index.put_library(library));
        world.titles.into_iter().for_each(|title| world_index.put_title(title, now));
        for rule in world.borrowers {
            world_index.put_borrower(rule.borrower.0, Some(rule.refuse));
        }
        world_index
    }

    pub(super) fn put_library(&mut self, library: Library) {
        self.libraries.insert(library.isil, library.refuse);
    }

    pub(super) fn put_title(&mut self, title: Title, now: Timestamp) {
        self.changes.retain(|(_, isbn)| *isbn != title.isbn);
        self.changes.push((now, title.isbn));
        self.titles.insert(title.isbn, title);
    }

    pub(super) fn put_borrower(&mut self, borrower: String, refuse: Option<String>) {
        match refuse {
            Some(code) => self.borrowers.insert(borrower, code),
            None => self.borrowers.remove(&borrower),
        };
    }

    pub(super) fn licence_types(&self) -> &[LicenceType] {
        &self.licence_types
    }

    /// Checks that a library has a contract.
    ///
    /// # Errors
    /// Fails with 403 if it has none.
    pub(super) fn library(&self, isil: LibraryId) -> Result<(), Rejected> {
        if self.allows_unknown || self.libraries.contains_key(&isil) {
            return Ok(());
        }
        let message = format!("There is no contract for the library {isil}.");
        Err(Rejected::new(http::StatusCode::FORBIDDEN, "NO_CONTRACT", message))
    }

    /// Returns a title, or none if it is unknown.
    pub(super) fn title(&self, isbn: Isbn) -> Option<Title> {
        let any = || Title {
            isbn,
            licences: vec![Licence::new("any", "PAY_PER_LOAN", None)],
            loan_days: LOAN_DAYS,
            refuse: None,
        };
        let known = self.titles.get(&isbn).cloned();
        known.or_else(|| self.allows_unknown.then(any))
    }

    /// Returns the code with which a rule refuses a loan. The library's rule comes first, then the
    /// borrower's, then the title's.
    pub(super) fn refusal(
        &self,
        library: LibraryId,
        borrower: &str,
        title: &Title,
    ) -> Option<String> {
        let of_library = self.libraries.get(&library).cloned().flatten();
        of_library
            .or_else(|| self.borrowers.get(borrower).cloned())
            .or_else(|| title.refuse.clone())
    }

    /// Returns the titles that changed at `from` or later, in the order of their changes.
    pub(super) fn changed_from(&self, from: Timestamp) -> Vec<Isbn> {
        self.changes.iter().filter(|(at, _)| *at >= from).map(|(_, isbn)| *isbn).collect()
    }
}

/// Returns the licences of a title that a library has.
pub(super) fn licences_of(title: &Title, library: LibraryId) -> impl Iterator<Item = &Licence> {
    title.licences.iter().filter(move |licence| licence.library.is_none_or(|only| only == library))
}
