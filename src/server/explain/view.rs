//! An explanation, as the admin API sends it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::stored::AnsweredRequest;

/// What a request would get, and why.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Explanation {
    /// The status of the response.
    pub(crate) status: u16,
    /// The type of the problem document; none if the file is sent.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "loan-refused")]
    pub(crate) kind: Option<&'static str>,
    /// The code of the refusal, or the name of the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub(crate) reason: Option<String>,
    /// Whether the request would begin a loan at Bokbasen.
    pub(crate) would_begin: bool,
    /// `accepted` if `status` holds only if Bokbasen accepts the loan: one that the request would
    /// begin, or one that is not decided yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "accepted")]
    pub(crate) assumes: Option<&'static str>,
    /// The steps of the request, in their order. The last one is decisive.
    pub(crate) steps: Vec<ExplainedStep>,
    /// What the reader, the app or the operator can do.
    pub(crate) advice: String,
    /// The request, if it is one that was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = RecordedView, required = false)]
    pub(crate) request: Option<RecordedView>,
}

/// A request that was made.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RecordedRequest)]
pub(crate) struct RecordedView {
    pub(crate) id: String,
    #[schema(value_type = String, format = DateTime)]
    pub(crate) at: Timestamp,
    pub(crate) method: String,
    /// The path without a link's token; none if it was not in normal form.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub(crate) path: Option<String>,
    /// The ISIL of the borrower's library; none without a valid credential, as the next members.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub(crate) library: Option<String>,
    /// The borrower's pseudonym.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub(crate) borrower: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub(crate) isbn: Option<String>,
    /// When the credential was issued.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, format = DateTime)]
    pub(crate) issued: Option<Timestamp>,
}

impl RecordedView {
    pub(super) fn of(request: &AnsweredRequest) -> RecordedView {
        let AnsweredRequest { id, at, method, path, asked, .. } = request;
        let key = asked.as_ref().map(|asked| &asked.key);
        RecordedView {
            id: id.to_string(),
            at: *at,
            method: method.to_string(),
            path: path.as_deref().map(str::to_owned),
            library: key.map(|key| key.library.to_string()),
            borrower: key.map(|key| key.borrower.to_string()),
            isbn: key.map(|key| key.isbn.to_string()),
            issued: asked.as_ref().and_then(|asked| asked.issued),
        }
    }
}

/// A step of a request.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExplainedStep)]
pub(crate) struct ExplainedStep {
    pub(crate) step: Step,
    /// What the step decided, in a word or two.
    pub(crate) decision: &'static str,
    /// Why, as a sentence.
    pub(crate) why: String,
}

/// The steps of a request.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = StepOfRequest)]
pub(crate) enum Step {
    /// The path is in normal form.
    Path,
    /// The request names this gate.
    Authority,
    /// A route and a title are found.
    Catalog,
    /// The credential is valid, and opens the file.
    Reader,
    /// There is a loan, or one may be begun.
    Gate,
    /// The origin has the file.
    Origin,
    /// What is sent of the file.
    Delivery,
}
