//! What a path leads to: a title's file, or an open file.

use std::sync::Arc;

use http::HeaderValue;

use super::{Disposition, Titles};
use crate::path::FilePath;

/// A file at an origin.
#[derive(Clone, Debug)]
pub struct File {
    /// The index of the origin.
    pub origin: usize,
    /// The path at the origin.
    pub path: FilePath,
    /// The index of the route that matched.
    pub route: usize,
    /// The requested path, decoded and without a link token. Delivery records name the file by it.
    pub name: Arc<str>,
    /// The Content-Disposition that its route sets.
    pub disposition: Option<Disposition>,
    /// The Content-Security-Policy that its route sets.
    pub content_security_policy: Option<HeaderValue>,
}

/// A file of an open route. Only the catalog can create one.
#[derive(Debug)]
pub struct OpenFile(File);

impl OpenFile {
    pub(super) fn new(file: File) -> OpenFile {
        OpenFile(file)
    }

    /// Returns the file at its origin.
    pub fn file(&self) -> &File {
        &self.0
    }

    /// Returns the file by value, for its delivery.
    pub fn into_file(self) -> File {
        self.0
    }
}

/// The target of a path.
#[derive(Debug)]
pub enum Target {
    /// A title's file, which needs a loan.
    Loanable {
        /// The titles that the file belongs to.
        titles: Titles,
        /// The file at its origin.
        file: File,
        /// Whether only an explicit request begins a loan.
        explicit: bool,
    },
    /// A file that needs no loan.
    Open(OpenFile),
}
