//! Wire types of the sandbox: strict on input, assumed shapes on output.
//!
//! The calls and the control API use them. They share no type with `lending`, so that each checks
//! the other. Bokbasen's page on digital lending platforms names the calls. The bodies are assumed,
//! except reports (page "Reporting API").

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use super::loan::{Loan, Status, Verdict};
use super::serde_text;
use super::{Origin, Pseudonym};
use crate::loan::{Isbn, LibraryId};

/// Reads an RFC 3339 time in UTC (assumed: `Z`, no offset).
fn utc<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    let utc = text.ends_with('Z').then(|| text.parse().ok()).flatten();
    utc.ok_or_else(|| {
        serde::de::Error::custom(format!("\"{text}\" is not a time of RFC 3339 in UTC"))
    })
}

/// The body of a begin request.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Begin {
    #[serde(with = "serde_text")]
    pub(super) library: LibraryId,
    #[serde(with = "serde_text")]
    pub(super) isbn: Isbn,
    pub(super) borrower: Pseudonym,
    #[serde(default)]
    pub(super) license_id: Option<String>,
    pub(super) reference: String,
    #[serde(deserialize_with = "utc")]
    pub(super) begin: Timestamp,
}

/// The body of a return request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Return {
    #[serde(deserialize_with = "utc")]
    pub(super) ended: Timestamp,
    pub(super) reason: ReturnReason,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum ReturnReason {
    Returned,
    Expired,
}

/// The body of a cancel request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cancel {
    pub(super) reason: String,
}

/// The body of a request to the token endpoint, as JSON or a form.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenRequest {
    pub(super) client_id: String,
    pub(super) client_secret: secrecy::SecretString,
    pub(super) audience: String,
    pub(super) grant_type: String,
}

/// The form of a legacy login request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TicketRequest {
    pub(super) username: String,
    pub(super) password: secrecy::SecretString,
}

/// A report of a paid loan (page "Reporting API").
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Report {
    #[serde(with = "serde_text")]
    pub(super) isbn: Isbn,
    pub(super) model: Model,
    pub(super) price: f64,
    pub(super) date: jiff::civil::Date,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Model {
    Package,
    PayPerLoan,
}

/// A report in the books, with its arrival time.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct BookedReport {
    #[serde(with = "serde_text")]
    pub(super) isbn: Isbn,
    pub(super) model: Model,
    pub(super) price: f64,
    pub(super) date: jiff::civil::Date,
    pub(super) received: Timestamp,
}

/// A loan in a response of `GET /v1/loans`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ShownLoan<'a> {
    loan_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<&'a str>,
    #[serde(with = "serde_text")]
    library: LibraryId,
    #[serde(with = "serde_text")]
    isbn: Isbn,
    status: ShownStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    license_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    license_type: Option<&'a str>,
    begin: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<ShownRefusal<'a>>,
}

/// A loan's status, or a status that no page documents.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum ShownStatus {
    Known(Status),
    Unknown(&'static str),
}

impl ShownStatus {
    pub(super) fn of(status: Status, unknown: bool) -> ShownStatus {
        if unknown { ShownStatus::Unknown("UNDER_REVIEW") } else { ShownStatus::Known(status) }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownRefusal<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

impl<'a> ShownLoan<'a> {
    /// Returns the loan without its reference.
    pub(super) fn without_reference(self) -> ShownLoan<'a> {
        ShownLoan { reference: None, ..self }
    }

    /// Builds the response for a loan. A licence shows only if accepted, a refusal only if refused.
    pub(super) fn of(loan: &'a Loan, unknown_status: bool) -> ShownLoan<'a> {
        let (licence, refusal) = match &loan.verdict {
            Verdict::Accept { licence_id, licence_type, due } => {
                (loan.accepted.map(|_| (licence_id, licence_type, *due)), None)
            }
            Verdict::Refuse { code, message, retry_after } => {
                let refusal = ShownRefusal { code, message, retry_after: *retry_after };
                (None, (loan.status == Status::Refused).then_some(refusal))
            }
        };
        ShownLoan {
            loan_id: &loan.id,
            reference: Some(&loan.reference),
            library: loan.library,
            isbn: loan.isbn,
            status: ShownStatus::of(loan.status, unknown_status),
            license_id: licence.map(|(id, _, _)| id.as_str()),
            license_type: licence.map(|(_, kind, _)| kind.as_str()),
            begin: loan.begin,
            due: licence.map(|(_, _, due)| due),
            ended: loan.ended,
            refusal,
        }
    }
}

/// The response to a begin.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Begun<'a> {
    pub(super) loan_id: &'a str,
    pub(super) status: ShownStatus,
}

/// A title's availability in a library.
#[derive(Debug, Serialize)]
pub(super) struct Availability {
    #[serde(with = "serde_text")]
    pub(super) isbn: Isbn,
    pub(super) available: bool,
    pub(super) licenses: Vec<FreeLicence>,
}

/// A licence in an availability. `nextFree` is null while any is free.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FreeLicence {
    pub(super) license_id: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) free: u32,
    pub(super) next_free: Option<Timestamp>,
}

/// A licence of a title. `loansLeft` and `expires` are null if there is no limit.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ShownLicence {
    pub(super) license_id: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) origin: Origin,
    pub(super) loans_left: Option<u32>,
    pub(super) free: u32,
    pub(super) expires: Option<Timestamp>,
}

/// A title in the inventory of a library.
#[derive(Debug, Serialize)]
pub(super) struct InventoryEntry {
    #[serde(with = "serde_text")]
    pub(super) isbn: Isbn,
    pub(super) licenses: Vec<ShownLicence>,
}

/// The books in a response of the control API.
#[derive(Debug, Serialize)]
pub(super) struct ShownBooks<'a> {
    pub(super) loans: Vec<BookedLoan<'a>>,
    pub(super) reports: &'a [BookedReport],
}

/// A loan in a response of the control API.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BookedLoan<'a> {
    loan_id: &'a str,
    reference: &'a str,
    #[serde(with = "serde_text")]
    library: LibraryId,
    #[serde(with = "serde_text")]
    isbn: Isbn,
    borrower: &'a Pseudonym,
    status: Status,
    made: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_received: Option<Timestamp>,
    ends: u32,
}

impl<'a> From<&'a Loan> for BookedLoan<'a> {
    fn from(loan: &'a Loan) -> BookedLoan<'a> {
        BookedLoan {
            loan_id: &loan.id,
            reference: &loan.reference,
            library: loan.library,
            isbn: loan.isbn,
            borrower: &loan.borrower,
            status: loan.status,
            made: loan.made,
            accepted: loan.accepted,
            ended: loan.ended,
            end_received: loan.end_received,
            ends: loan.ends,
        }
    }
}
