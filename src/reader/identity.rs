//! Identity of an authenticated reader, and the scope of the credential.
//!
//! `server` calls [`Reader::opens`] with the path that it resolved; the gate uses the library and
//! the borrower. A prefix matches decoded and at segment boundaries only, so that `/a/97` never
//! opens `/a/978…`.

use jiff::Timestamp;

use crate::language::Sentence;
use crate::loan::{Borrower, Isbn, LibraryId, LoanKey};
use crate::path::{PathError, RequestPath};

/// The files that a credential opens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Scope {
    /// Every title of the library (a JWT).
    All,
    /// The files of one title.
    Title(Isbn),
    /// This path and all paths below it, as decoded segments. An empty prefix opens nothing.
    Prefix(Vec<String>),
}

impl Scope {
    /// Parses a prefix: a request path such as `/files/9780306406157/`; the last slash is optional.
    ///
    /// # Errors
    /// Fails if the path is not in normal form, or is the root: no link may open everything.
    pub fn prefix(path: &str) -> Result<Scope, PathError> {
        let without = path.strip_suffix('/').filter(|without| !without.is_empty());
        let path = RequestPath::parse(without.unwrap_or(path))?;
        let segments: Vec<String> = path.segments().map(str::to_owned).collect();
        if segments.is_empty() {
            return Err(PathError(&Sentence {
                english: "The prefix is the root. Name at least one segment.",
                norwegian: "Prefikset er roten. Nevn minst ett ledd.",
            }));
        }
        Ok(Scope::Prefix(segments))
    }
}

/// An authenticated reader, with the times and scope of the credential.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The library that lends.
    pub library: LibraryId,
    /// The borrower, by pseudonym.
    pub borrower: Borrower,
    /// The issue time of the credential, at the latest when it was first seen; none counts as old.
    pub issued: Option<Timestamp>,
    /// Whether the credential states a later issue time than when it was first seen.
    pub issued_ahead: bool,
    /// The expiry that the credential states, without leeway.
    pub expires: Timestamp,
    /// The files that the credential opens.
    pub scope: Scope,
}

impl Reader {
    /// Returns the key of this reader's loan of a title.
    pub fn key(&self, isbn: Isbn) -> LoanKey {
        LoanKey { library: self.library, borrower: self.borrower, isbn }
    }

    /// Whether the credential opens a file with this title (if any) and path (without a link
    /// token).
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
