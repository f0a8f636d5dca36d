//! The authenticated request's subject: who asks, and what the credential opens.
//!
//! `server` asks [`Reader::opens`] for the path that it resolved; the gate takes the library and
//! the borrower. A prefix opens at segment boundaries only, compared decoded, so that `/a/97` never
//! opens `/a/978…`.

use jiff::Timestamp;

use crate::loan::{Borrower, Isbn, LibraryId, LoanKey};
use crate::path::{PathError, RequestPath};

/// What a credential opens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Scope {
    /// Every title of the library (a JWT).
    All,
    /// One title.
    Title(Isbn),
    /// Paths that are this one or lie under it, at a segment's boundary: decoded segments. None
    /// opens nothing.
    Prefix(Vec<String>),
}

impl Scope {
    /// The scope of a prefix as an operator writes it, like `/files/9780306406157/`: a request's
    /// path, with or without a slash at its end.
    ///
    /// # Errors
    /// Where it is not in normal form, or is the root: a link to everything is not a link.
    pub fn prefix(path: &str) -> Result<Scope, PathError> {
        let without = path.strip_suffix('/').filter(|without| !without.is_empty());
        let path = RequestPath::parse(without.unwrap_or(path))?;
        let segments: Vec<String> = path.segments().map(str::to_owned).collect();
        if segments.is_empty() {
            return Err(PathError("The prefix is the root. Name at least one segment."));
        }
        Ok(Scope::Prefix(segments))
    }
}

/// The authenticated request's subject.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The library that lends.
    pub library: LibraryId,
    /// Who borrows, by pseudonym.
    pub borrower: Borrower,
    /// When the credential was issued; none counts as old.
    pub issued: Option<Timestamp>,
    /// When the credential expires, as it says itself, without leeway.
    pub expires: Timestamp,
    /// What it opens.
    pub scope: Scope,
}

impl Reader {
    /// What this reader's loan of a title is known by.
    pub fn key(&self, isbn: Isbn) -> LoanKey {
        LoanKey { library: self.library, borrower: self.borrower, isbn }
    }

    /// Whether the credential opens this: the title that the path leads to, if any, and the path
    /// without a link's token.
    pub fn opens(&self, isbn: Option<Isbn>, path: &RequestPath) -> bool {
        match &self.scope {
            Scope::All => true,
            Scope::Title(title) => isbn == Some(*title),
            Scope::Prefix(prefix) => {
                let mut segments = path.segments();
                !prefix.is_empty()
                    && prefix.iter().all(|segment| segments.next() == Some(segment.as_str()))
            }
        }
    }
}
