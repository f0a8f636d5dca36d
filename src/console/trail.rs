//! The trail of accesses: every look at loans and every action, with who, what and why.
//!
//! What cannot be recorded is refused, so it is recorded first.

use super::Console;
use super::failure::Failure;
use super::session::Person;
use super::visit::Visit;
use crate::loan::LibraryId;

/// What was done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum What {
    SignIn,
    ListBorrower,
    ListTitle,
    ShowLoan,
    ExplainRequest,
    ExplainReader,
    EndLoan,
    MintLink,
    PollLoan,
}

impl What {
    /// Returns the name in the trail.
    pub(super) fn name(self) -> &'static str {
        match self {
            What::SignIn => "sign-in",
            What::ListBorrower => "list-borrower",
            What::ListTitle => "list-title",
            What::ShowLoan => "show-loan",
            What::ExplainRequest => "explain-request",
            What::ExplainReader => "explain-reader",
            What::EndLoan => "end-loan",
            What::MintLink => "mint-link",
            What::PollLoan => "poll-loan",
        }
    }
}

/// A look or an action.
#[derive(Clone, Debug)]
pub(super) struct Access {
    what: What,
    library: Option<LibraryId>,
    /// The id of a loan, a pseudonym, an ISBN or the id of a request.
    target: Option<String>,
    why: Option<String>,
}

impl Access {
    /// Returns an access without a target.
    pub(super) fn of(what: What) -> Access {
        Access { what, library: None, target: None, why: None }
    }

    /// Returns an access to loans.
    pub(super) fn to(what: What, library: Option<LibraryId>, target: impl ToString) -> Access {
        Access { what, library, target: Some(target.to_string()), why: None }
    }

    /// Returns the access with a reason.
    pub(super) fn because(self, why: &str) -> Access {
        Access { why: Some(why.to_owned()), ..self }
    }
}

/// Records a look at loans, with the purpose of the session.
///
/// # Errors
/// [`Failure::NoPurpose`] if the session has none, [`Failure::Trail`] if it cannot be recorded.
pub(super) async fn look(console: &Console, visit: &Visit, access: Access) -> Result<(), Failure> {
    let session = visit.session()?;
    let purpose = session.purpose.as_deref().ok_or(Failure::NoPurpose)?;
    record(console, &session.person, access.because(purpose)).await
}

/// Records an access. The caller goes on only if this succeeds.
///
/// # Errors
/// [`Failure::Trail`] if it cannot be recorded.
pub(super) async fn record(
    _console: &Console,
    person: &Person,
    access: Access,
) -> Result<(), Failure> {
    let Access { what, library, target, why } = access;
    let (who, role, what) = (&person.name, person.role.name(), what.name());
    let library = library.map(|library| library.to_string());
    tracing::info!(%who, role, what, library, target, has_reason = why.is_some(), "access");
    Ok(())
}
