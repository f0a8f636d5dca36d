//! The domain: titles, libraries, borrowers, and the loan with its states.
//!
//! Any module may use this one. It calls no other module except `clock`, does no I/O and never
//! waits. A [`Loan`] changes only through [`Loan::apply`], a pure function, so no other code can
//! write an illegal transition.

mod event;
mod identifiers;
mod json_view;
mod progress;
mod ranges;
mod record;
mod state;

pub use event::{Event, EventKind};
pub use identifiers::{
    Borrower, IdentifierError, Isbn, LibraryId, LoanId, LoanKey, Reference, created_at,
};
pub use json_view::{LoanView, state_schema};
pub use progress::Progress;
pub use ranges::{Ranges, Tally};
pub use record::{EndReason, LoanRecord, LoanState, Refusal, Terms, UnknownName};
pub use state::{IllegalTransition, Loan, OVERDUE_AFTER};
