//! The trail of accesses: every look at loans and every action, with who, what and why.
//!
//! What cannot be recorded is refused, so it is recorded first.

use super::Console;
use super::failure::Failure;
use super::session::Person;
use super::visit::Visit;
use crate::ledger::{Access, AccessTarget};
use crate::loan::LibraryId;

/// The slugs of what is done, as the admin API has them.
pub(super) mod what {
    pub(in crate::console) const SIGN_IN: &str = "sign-in";
    pub(in crate::console) const LIST_ACCESSES: &str = "list-accesses";
    pub(in crate::console) const FIND: &str = "find";
    pub(in crate::console) const LIST_LOANS: &str = "list-loans";
    pub(in crate::console) const SHOW_LOAN: &str = "show-loan";
    pub(in crate::console) const EXPLAIN: &str = "explain";
    pub(in crate::console) const END_LOAN: &str = "end-loan";
    pub(in crate::console) const MINT_LINK: &str = "mint-link";
    pub(in crate::console) const POLL_LOAN: &str = "poll-loan";
    pub(in crate::console) const REQUEST_EXAMINATION: &str = "request-examination";
    pub(in crate::console) const SHOW_LIBRARY: &str = "show-library";
    pub(in crate::console) const DOWNLOAD_LIBRARY: &str = "download-library";
    pub(in crate::console) const QUERY_AVAILABILITY: &str = "query-availability";
}

/// What an access concerns.
#[derive(Clone, Debug)]
pub(super) struct To {
    library: Option<LibraryId>,
    target: Option<AccessTarget>,
}

impl To {
    /// No loan.
    pub(super) const NONE: To = To { library: None, target: None };

    /// All loans of a library.
    pub(super) fn of_library(library: LibraryId) -> To {
        To { library: Some(library), target: None }
    }

    /// All accesses, or those of a library.
    pub(super) fn accesses(library: Option<LibraryId>) -> To {
        To { library, target: None }
    }

    /// Loans of a library, or of any.
    pub(super) fn new(library: Option<LibraryId>, target: impl Into<AccessTarget>) -> To {
        To { library, target: Some(target.into()) }
    }
}

/// Records a look at loans, with the purpose of the session.
///
/// # Errors
/// [`Failure::NoPurpose`] if the session has none, [`Failure::Trail`] if it cannot be recorded.
pub(super) async fn look(
    console: &Console,
    visit: &Visit,
    what: &'static str,
    to: To,
) -> Result<(), Failure> {
    let session = visit.session()?;
    let purpose = session.purpose.as_deref().ok_or(Failure::NoPurpose)?;
    record(console, &session.person, what, to, Some(purpose)).await
}

/// Records an access. The caller goes on only if this succeeds.
///
/// # Errors
/// [`Failure::Trail`] if it cannot be recorded.
pub(super) async fn record(
    console: &Console,
    person: &Person,
    what: &'static str,
    To { library, target }: To,
    why: Option<&str>,
) -> Result<(), Failure> {
    let access = Access::new(&person.name, person.role.name(), what).of_library(library);
    match console.parts.host.record(access.to(target).because(why)).await {
        true => Ok(()),
        false => Err(Failure::Trail),
    }
}
