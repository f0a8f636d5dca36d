//! The world as it is looked up: libraries, titles and borrowers by name.
//!
//! The state asks it on every call, the control API changes it. It calls nothing of ours but the
//! world's types. It knows nothing of loans.

use std::collections::HashMap;

use jiff::Timestamp;

use super::error_response::Rejected;
use super::world::{LOAN_DAYS, usual_licence_types};
use super::{Library, Licence, LicenceType, Title, World};
use crate::loan::{Isbn, LibraryId};

/// The world, by name.
#[derive(Debug)]
pub(super) struct Scene {
    /// Whatever is not known exists all the same.
    anything: bool,
    libraries: HashMap<LibraryId, Option<String>>,
    titles: HashMap<Isbn, Title>,
    /// Titles in the order of their last change, for the inventory.
    changes: Vec<(Timestamp, Isbn)>,
    borrowers: HashMap<String, String>,
    licence_types: Vec<LicenceType>,
}

impl Scene {
    pub(super) fn new(world: World, now: Timestamp) -> Scene {
        let mut scene = Scene {
            anything: world.any_library_any_title,
            libraries: HashMap::new(),
            titles: HashMap::new(),
            changes: Vec::new(),
            borrowers: HashMap::new(),
            licence_types: usual_licence_types(),
        };
        if !world.licence_types.is_empty() {
            scene.licence_types = world.licence_types;
        }
        world.libraries.into_iter().for_each(|library| scene.put_library(library));
        world.titles.into_iter().for_each(|title| scene.put_title(title, now));
        for rule in world.borrowers {
            scene.put_borrower(rule.borrower.0, Some(rule.refuse));
        }
        scene
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

    /// # Errors
    /// 403 where there is no contract with this library.
    pub(super) fn library(&self, isil: LibraryId) -> Result<(), Rejected> {
        if self.anything || self.libraries.contains_key(&isil) {
            return Ok(());
        }
        let message = format!("There is no contract for the library {isil}.");
        Err(Rejected::new(http::StatusCode::FORBIDDEN, "NO_CONTRACT", message))
    }

    /// A title; none where it is not known.
    pub(super) fn title(&self, isbn: Isbn) -> Option<Title> {
        let any = || Title {
            isbn,
            licences: vec![Licence::new("any", "PAY_PER_LOAN", None)],
            loan_days: LOAN_DAYS,
            refuse: None,
        };
        let known = self.titles.get(&isbn).cloned();
        known.or_else(|| self.anything.then(any))
    }

    /// The code with which a loan is refused by rule: the library's before the borrower's before
    /// the title's.
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

    /// The titles that changed at this time or later, in the order of their changes.
    pub(super) fn changed_from(&self, from: Timestamp) -> Vec<Isbn> {
        self.changes.iter().filter(|(at, _)| *at >= from).map(|(_, isbn)| *isbn).collect()
    }
}

/// The licences of a title that a library has.
pub(super) fn licences_of(title: &Title, library: LibraryId) -> impl Iterator<Item = &Licence> {
    title.licences.iter().filter(move |licence| licence.library.is_none_or(|only| only == library))
}
