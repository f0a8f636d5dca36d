//! JSON view of a loan, for readers and support.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};

use super::{Loan, LoanState, Progress};

/// A loan as the readers' and the support API return it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Loan)]
pub struct LoanView {
    /// The title: an ISBN of 13 digits.
    #[schema(example = "9788299999014", pattern = "^97[89][0-9]{10}$")]
    pub isbn: String,
    /// The state of the loan.
    #[schema(schema_with = state_schema)]
    pub state: &'static str,
    /// When the loan expires; present once it is accepted.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub due: Option<Timestamp>,
    /// The type of the licence, if Bokbasen names it.
    #[schema(required, example = "PACKAGE")]
    pub licence_type: Option<String>,
    /// When the loan was begun.
    #[schema(value_type = String, format = DateTime)]
    pub begun: Timestamp,
    /// When the loan ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, format = DateTime)]
    pub ended: Option<Timestamp>,
    /// How far the borrower has read, from 0 to 1, as the app last reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f64, required = false, minimum = 0, maximum = 1, example = 0.4)]
    pub progress: Option<f64>,
    /// The paths of the title's files.
    pub files: Vec<String>,
}

impl LoanView {
    /// Creates the view of this loan, with the paths of its title's files.
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

/// Returns the schema of the state names, for the description of the APIs.
pub fn state_schema() -> ObjectBuilder {
    let states = LoanState::ALL.map(LoanState::name);
    ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).enum_values(Some(states))
}
