//! A loan as readers and support see it: the JSON object of every listing.

use jiff::Timestamp;
use serde::Serialize;

use super::{Loan, Progress};

/// What both the readers' and the support API tell of a loan.
#[derive(Clone, Debug, Serialize)]
pub struct LoanView {
    /// The title.
    pub isbn: String,
    /// The state, by its name.
    pub state: &'static str,
    /// When it ends by itself, once it is accepted.
    pub due: Option<Timestamp>,
    /// The kind of licence, where Bokbasen names it.
    pub licence_type: Option<String>,
    /// When it was begun.
    pub begun: Timestamp,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// How far the borrower has read, from 0 to 1, as the app last said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<f64>,
    /// The paths under which the title's files lie.
    pub files: Vec<String>,
}

impl LoanView {
    /// What is told of this loan, whose title's files lie at these paths.
    pub fn of(loan: &Loan, files: Vec<String>) -> LoanView {
        let terms = loan.terms.as_ref();
        LoanView {
            isbn: loan.key.isbn.to_string(),
            state: loan.state.name(),
            due: terms.map(|terms| terms.due),
            licence_type: terms.and_then(|terms| terms.licence_type.clone()),
            begun: loan.begun,
            ended: loan.ended,
            progress: loan.progress.map(Progress::fraction),
            files,
        }
    }
}
