//! Wire format of Bokbasen's lending API: paths, request bodies, error codes and responses.
//!
//! The calls' names are documented (page "Digital lending platform"). Their paths and bodies are
//! assumed: once the contract is known, only this module must be corrected. Unknown fields are
//! ignored; an unknown status counts as not accepted.

mod requests;
mod responses;

pub(super) use requests::{
    Cancel, NewLoan, NewReport, Path, Query, Return, availability_at, by_reference, cancel_of,
    loan, loans, next_page, of_library, of_title, reports, return_of,
};
pub(super) use responses::{
    ALREADY_ENDED, CANCEL_WINDOW_CLOSED, ErrorBody, LOAN_NOT_FOUND, LOAN_PENDING, MAX_PAGES,
    TITLE_NOT_FOUND, availability, listed_page, page, remote_loan,
};
