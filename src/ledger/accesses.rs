//! Accesses: who of the staff looked at loans or acted on them, and why.
//!
//! An access is a step of the audit trail that belongs to no loan. Its hash covers all of it. It is
//! in the chain of the library that it concerns, if the ledger has loans of it: anybody can search
//! for any ISIL, and a chain is permanent. Retention removes it with an anchor, since
//! it may name a borrower's pseudonym.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{AccessPosition, Ledger, LedgerError, Update};
use crate::language::is_unprintable;
use crate::loan::{Borrower, Isbn, LibraryId, LoanId};

/// The loan of such a step. No loan has this id.
pub(super) const ACCESS: Uuid = Uuid::max();
/// The states and the cause of such a step.
pub(super) const ACCESS_STEP: &str = "access";
/// The longest name, role and reason, in characters. Longer ones are truncated. A name may have a
/// subject of OpenID Connect, of up to 255 characters.
const MAX_NAME: usize = 340;
const MAX_ROLE: usize = 100;
const MAX_REASON: usize = 500;

/// The library of the chain of accesses that concern no single library, or one without loans. `ZZ`
/// is the prefix of no agency.
pub(super) const NO_LIBRARY: &str = "ZZ-loangate";

/// An access by a member of the staff, without a borrower's own id.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Access {
    /// The name of the person, or of the credential.
    pub who: String,
    /// The role in which the person acted.
    pub role: String,
    /// A slug of what was done, like `show-loan`.
    pub what: Cow<'static, str>,
    /// The library whose data it concerns; none for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    library: Option<String>,
    /// What it concerns; none for more than one loan or borrower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<AccessTarget>,
    /// The reason that the person gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What an access concerns.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessTarget {
    /// A borrower's pseudonym.
    Borrower(String),
    /// The id of a loan.
    Loan(String),
    /// A title.
    Isbn(String),
    /// The id of a reader's request.
    Request(String),
}

impl From<Borrower> for AccessTarget {
    fn from(borrower: Borrower) -> AccessTarget {
        AccessTarget::Borrower(borrower.to_string())
    }
}

impl From<LoanId> for AccessTarget {
    fn from(id: LoanId) -> AccessTarget {
        AccessTarget::Loan(id.to_string())
    }
}

impl From<Isbn> for AccessTarget {
    fn from(isbn: Isbn) -> AccessTarget {
        AccessTarget::Isbn(isbn.to_string())
    }
}

impl Access {
    /// Creates an access. Invisible characters of the name and the role are replaced.
    pub fn new(who: &str, role: &str, what: &'static str) -> Access {
        Access {
            who: cleaned(who, MAX_NAME),
            role: cleaned(role, MAX_ROLE),
            what: what.into(),
            library: None,
            target: None,
            why: None,
        }
    }

    /// Names the library.
    pub fn of_library(self, library: Option<LibraryId>) -> Access {
        Access { library: library.map(|library| library.to_string()), ..self }
    }

    /// Names what the access concerns.
    pub fn to(self, target: Option<AccessTarget>) -> Access {
        Access { target, ..self }
    }

    /// Adds the reason, without invisible characters.
    pub fn because(self, why: Option<&str>) -> Access {
        let why = why.map(|why| cleaned(why, MAX_REASON)).filter(|why| !why.is_empty());
        Access { why, ..self }
    }

    /// Returns the ISIL of the library; none for all.
    pub fn library(&self) -> Option<&str> {
        self.library.as_deref()
    }

    /// Returns a part of the detail of each access that names this library, and of no other one.
    pub(super) fn mark_of(library: LibraryId) -> String {
        format!("\"library\":\"{library}\"")
    }

    /// Returns the detail of the step.
    pub(super) fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn cleaned(text: &str, length: usize) -> String {
    let is_shown = |char: &char| !is_unprintable(*char);
    let replaced = text.trim().chars().map(|char| if is_shown(&char) { char } else { ' ' });
    replaced.take(length).collect()
}

/// An access as it was recorded.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct RecordedAccess {
    /// When it was recorded.
    pub at: Timestamp,
    /// The access.
    #[serde(flatten)]
    pub access: Access,
    /// Where the listing has it.
    #[serde(skip)]
    pub position: AccessPosition,
}

impl RecordedAccess {
    /// Parses the detail of a step. Returns none if it or the time is damaged.
    pub(super) fn parse(position: AccessPosition, detail: Option<&str>) -> Option<RecordedAccess> {
        let access = serde_json::from_str(detail?).ok()?;
        let at = Timestamp::from_millisecond(position.at).ok()?;
        Some(RecordedAccess { at, access, position })
    }
}

/// The filters of a listing of accesses.
#[derive(Clone, Debug)]
pub struct AccessFilter {
    /// Only accesses that concern this library.
    pub library: Option<LibraryId>,
    /// Only accesses at this time or later.
    pub since: Option<Timestamp>,
    /// Only accesses before this time.
    pub before: Option<Timestamp>,
    /// Only accesses that the listing has after this position: the older ones.
    pub after: Option<AccessPosition>,
    /// The maximum number of accesses returned.
    pub limit: u32,
}

impl AccessFilter {
    /// Returns the bounds of the times, in milliseconds: the first one included, the last one not.
    pub(super) fn bounds(&self) -> (i64, i64) {
        let millis = |time: Option<Timestamp>| time.map(Timestamp::as_millisecond);
        let before = millis(self.before).unwrap_or(i64::MAX);
        let end = self.after.as_ref().map_or(i64::MAX, |after| after.at.saturating_add(1));
        (millis(self.since).unwrap_or(i64::MIN), before.min(end))
    }
}

impl Ledger {
    /// Records an access in the audit trail. It is durable when this returns.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing may be shown or done then.
    pub async fn record_access(&self, access: Access) -> Result<(), LedgerError> {
        let library = match access.library().and_then(|library| library.parse().ok()) {
            Some(library) if self.support.has_chain_of_loans(library).await? => library,
            _ => no_library()?,
        };
        self.update_for_reader(Update::RecordAccess(library, Box::new(access))).await.map(drop)
    }

    /// Returns accesses, the newest first. Damaged ones are skipped; verification reports them.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn accesses(
        &self,
        filter: &AccessFilter,
    ) -> Result<Vec<RecordedAccess>, LedgerError> {
        self.support.accesses(filter).await
    }

    /// Removes the accesses before this time; anchors replace them. Returns their number. If
    /// several processes divide the background work, one of them removes all.
    ///
    /// # Errors
    /// [`LedgerError`], also if a step to be removed does not verify. Accesses that were already
    /// removed stay removed.
    pub async fn prune_accesses(&self, before: Timestamp) -> Result<u64, LedgerError> {
        match (&self.file, &self.support) {
            (_, super::Queries::Postgres(queries)) => {
                Box::pin(queries.prune_accesses(&self.audit_key, before)).await
            }
            (Some(file), super::Queries::Sqlite(_)) => {
                super::sqlite::prune_accesses(file, &self.audit_key, before).await
            }
            (None, super::Queries::Sqlite(_)) => Ok(0),
        }
    }
}

/// Returns the library of accesses without one.
pub(super) fn no_library() -> Result<LibraryId, LedgerError> {
    let library = NO_LIBRARY.parse();
    library.map_err(|_| LedgerError::Unwritable("the library of an access is no ISIL".to_owned()))
}

#[cfg(test)]
#[path = "accesses_tests.rs"]
mod tests;
