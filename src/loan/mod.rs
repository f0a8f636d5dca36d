//! The domain: titles, libraries, borrowers, and the loan with its states.
//!
//! Everyone may use it; it calls nothing of ours, does no I/O and never waits. A [`Loan`] changes
//! only through [`Loan::apply`], a pure function, so an illegal transition cannot be written
//! elsewhere.

mod identifiers;
mod json_view;
mod progress;
mod ranges;
mod state;

pub use identifiers::{Borrower, Isbn, LibraryId, LoanId, LoanKey, NameError, Reference};
pub use json_view::{LoanView, state_schema};
pub use progress::Progress;
pub use ranges::{Ranges, Tally};
pub use state::{
    EndReason, Event, IllegalTransition, Loan, LoanRecord, LoanState, OVERDUE_AFTER, Refusal, Terms,
};
