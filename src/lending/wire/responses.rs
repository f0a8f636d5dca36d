//! What Bokbasen responds: error codes and bodies, and their conversion to the client's types.
//!
//! The rest of `lending` uses it through `wire`.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use crate::clock;
use crate::crash;
use crate::lending::response::ApiResponse;
use crate::lending::{
    Availability, CallError, FreeLicence, RemoteLoan, Standing, listing, received_text,
};
use crate::loan::{EndReason, Isbn, Reference, Refusal, Terms};

pub(in crate::lending) const LOAN_NOT_FOUND: &str = "LOAN_NOT_FOUND";
pub(in crate::lending) const TITLE_NOT_FOUND: &str = "TITLE_NOT_FOUND";
pub(in crate::lending) const ALREADY_ENDED: &str = "ALREADY_ENDED";
pub(in crate::lending) const LOAN_PENDING: &str = "LOAN_PENDING";
pub(in crate::lending) const CANCEL_WINDOW_CLOSED: &str = "CANCEL_WINDOW_CLOSED";
/// The most pages in a listing of one reference. A reference has one loan, or two after a fault, so
/// a longer listing is wrong.
pub(in crate::lending) const MAX_PAGES: usize = 20;

/// Bounds for the Retry-After of a pending loan.
const MIN_POLL_DELAY: Duration = Duration::from_secs(1);
const MAX_POLL_DELAY: Duration = Duration::from_secs(30);

/// The longest wait that a refusal may name; a longer one is shortened to this.
const MAX_REFUSAL_WAIT: Duration = Duration::from_secs(366 * 86_400);

/// The body of an error.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(in crate::lending) struct ErrorBody {
    #[serde(deserialize_with = "received_text::code")]
    pub(in crate::lending) code: String,
    #[serde(deserialize_with = "received_text::message")]
    pub(in crate::lending) message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LoanBody {
    #[serde(deserialize_with = "received_text::id")]
    loan_id: String,
    #[serde(default, deserialize_with = "received_text::optional_id")]
    reference: Option<String>,
    library: Option<String>,
    isbn: Option<String>,
    #[serde(deserialize_with = "received_text::code")]
    status: String,
    #[serde(default, deserialize_with = "received_text::optional_id")]
    license_id: Option<String>,
    #[serde(default, deserialize_with = "received_text::optional_code")]
    license_type: Option<String>,
    begin: Option<Timestamp>,
    due: Option<Timestamp>,
    refusal: Option<RefusalBody>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RefusalBody {
    #[serde(deserialize_with = "received_text::code")]
    code: String,
    #[serde(deserialize_with = "received_text::message")]
    message: String,
    retry_after: Option<RetryAfter>,
}

/// A wait in seconds, or the time at which it is over (assumed: either). Anything else counts as
/// none, so that a refusal stays readable whatever its wait.
#[derive(Deserialize)]
#[serde(untagged)]
enum RetryAfter {
    Seconds(u64),
    At(Timestamp),
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AvailabilityBody {
    isbn: String,
    available: bool,
    #[serde(default)]
    licenses: Vec<LicenceBody>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LicenceBody {
    #[serde(deserialize_with = "received_text::id")]
    license_id: String,
    #[serde(rename = "type", deserialize_with = "received_text::code")]
    kind: String,
    free: u32,
    next_free: Option<Timestamp>,
}

/// Parses the availability of one title; a title missing from the response is unavailable.
pub(in crate::lending) fn availability(
    response: &ApiResponse,
    isbn: Isbn,
) -> Result<Availability, CallError> {
    let shown: Vec<AvailabilityBody> = read(response)?;
    let title = isbn.to_string();
    let Some(shown) = shown.into_iter().find(|shown| shown.isbn == title) else {
        return Ok(Availability::default());
    };
    let licences = shown.licenses.into_iter().map(|shown| FreeLicence {
        licence_id: shown.license_id,
        kind: shown.kind,
        free: shown.free,
        next_free: shown.next_free,
    });
    Ok(Availability { available: shown.available, licences: licences.collect() })
}

/// A page of a reference's listing.
pub(in crate::lending) struct Page {
    pub(in crate::lending) loans: Vec<RemoteLoan>,
    pub(in crate::lending) next: Option<String>,
}

/// Parses one loan. The response to a begin has an id and a status only.
pub(in crate::lending) fn remote_loan(
    response: &ApiResponse,
    now: Timestamp,
) -> Result<RemoteLoan, CallError> {
    read::<LoanBody>(response)?.remote(response.retry_after, now)
}

/// Parses one page: an array of loans, and the cursor in the header Next (page "Export paging").
pub(in crate::lending) fn page(response: &ApiResponse, now: Timestamp) -> Result<Page, CallError> {
    let shown: Vec<LoanBody> = read(response)?;
    let loans: Result<Vec<RemoteLoan>, CallError> =
        shown.into_iter().map(|loan| loan.remote(None, now)).collect();
    Ok(Page { loans: loans?, next: response.next.clone() })
}

/// The longest quoted parse error, in characters.
const MAX_ERROR_LENGTH: usize = 200;

/// Parses one page of a library's listing row by row, so that an unreadable row does not affect
/// the others.
pub(in crate::lending) fn listed_page(
    response: &ApiResponse,
    now: Timestamp,
) -> Result<(listing::Page, Option<String>), CallError> {
    let rows: Vec<serde_json::Value> = read(response)?;
    let mut page = listing::Page::default();
    for row in rows {
        let id = row.get("loanId").and_then(serde_json::Value::as_str);
        let id = id.filter(|id| received_text::is_id(id));
        let lending_id = id.map(str::to_owned);
        match listed_loan(row, now) {
            Ok(loan) => page.loans.push(loan),
            Err(why) => {
                let why = received_text::clean(&why, MAX_ERROR_LENGTH);
                page.unreadable.push(listing::Unreadable { lending_id, why });
            }
        }
    }
    Ok((page, response.next.clone()))
}

fn listed_loan(row: serde_json::Value, now: Timestamp) -> Result<RemoteLoan, String> {
    let shown: LoanBody = serde_json::from_value(row).map_err(|error| error.to_string())?;
    if shown.loan_id.is_empty() {
        return Err("the loan's id is empty".to_owned());
    }
    shown.remote(None, now).map_err(|error| error.to_string())
}

fn read<'a, T: Deserialize<'a>>(response: &'a ApiResponse) -> Result<T, CallError> {
    serde_json::from_slice(&response.body).map_err(|error| {
        let why = received_text::clean(&error.to_string(), MAX_ERROR_LENGTH);
        CallError::Unknown(format!("the response cannot be read: {why}"))
    })
}

impl LoanBody {
    fn remote(self, wait: Option<Duration>, now: Timestamp) -> Result<RemoteLoan, CallError> {
        let unreadable = |what: &str| CallError::Unknown(format!("the response has {what}"));
        let library = self.library.map(|text| text.parse()).transpose();
        let isbn = self.isbn.map(|text| text.parse()).transpose();
        let standing = match self.status.as_str() {
            "PENDING" => Standing::Pending {
                retry_after: wait.map(|wait| wait.clamp(MIN_POLL_DELAY, MAX_POLL_DELAY)),
            },
            "ACCEPTED" => Standing::Accepted(Terms {
                due: whole_milliseconds(
                    self.due.ok_or_else(|| unreadable("an accepted loan without its due time"))?,
                ),
                licence_id: self.license_id,
                licence_type: self.license_type,
            }),
            "REFUSED" if crash::has_defect("accepts-refused-loans") => Standing::Accepted(Terms {
                due: clock::after(now, Duration::from_secs(3600)),
                licence_id: None,
                licence_type: None,
            }),
            "REFUSED" => Standing::Refused(self.refusal.unwrap_or_default().refusal(now)),
            "RETURNED" => Standing::Ended(EndReason::Returned),
            "EXPIRED" => Standing::Ended(EndReason::Expired),
            "CANCELLED" => Standing::Ended(EndReason::Cancelled),
            _ => Standing::Unrecognised(self.status),
        };
        Ok(RemoteLoan {
            lending_id: self.loan_id,
            reference: self.reference.map(Reference::from_text),
            library: library.map_err(|_| unreadable("a library that is no ISIL"))?,
            isbn: isbn.map_err(|_| unreadable("a title that is no ISBN"))?,
            begin: self.begin,
            standing,
        })
    }
}

/// Returns a time in whole milliseconds, as the ledger stores it. With more digits, a listed due
/// time would differ from the stored one.
fn whole_milliseconds(at: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(at.as_millisecond()).unwrap_or(at)
}

impl RefusalBody {
    fn refusal(self, now: Timestamp) -> Refusal {
        let retry_at = self.retry_after.and_then(|wait| match wait {
            RetryAfter::Seconds(seconds) => Some(clock::after(now, Duration::from_secs(seconds))),
            RetryAfter::At(at) => Some(at),
            RetryAfter::Other(_) => None,
        });
        let latest = clock::after(now, MAX_REFUSAL_WAIT);
        let retry_at = retry_at.map(|at| at.min(latest));
        Refusal { code: self.code, message: self.message, retry_at }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn due_time_is_read_in_whole_milliseconds() {
        let row = |due: &str| json!({ "loanId": "BL1", "status": "ACCEPTED", "due": due });
        let due = |text: &str| match listed_loan(row(text), Timestamp::UNIX_EPOCH).unwrap().standing
        {
            Standing::Accepted(terms) => terms.due.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(due("2026-12-17T15:13:22.927999999Z"), "2026-12-17T15:13:22.927Z");
        assert_eq!(due("2026-12-17T15:13:22Z"), "2026-12-17T15:13:22Z");
    }

    fn response(body: &serde_json::Value) -> ApiResponse {
        ApiResponse {
            status: http::StatusCode::OK,
            body: body.to_string().into_bytes(),
            retry_after: None,
            next: None,
        }
    }

    #[test]
    fn loan_with_an_id_that_no_ledger_can_store_is_unreadable() {
        let now = Timestamp::UNIX_EPOCH;
        let good = json!({ "loanId": "BL1", "status": "ACCEPTED", "due": now, "licenseId": "L" });
        remote_loan(&response(&good), now).unwrap();
        for key in ["loanId", "licenseId", "reference"] {
            for text in ["a\u{0}b".to_owned(), "a\nb".to_owned(), "i".repeat(257)] {
                let mut bad = good.clone();
                bad[key] = json!(text);
                let error = remote_loan(&response(&bad), now).unwrap_err();
                assert!(matches!(&error, CallError::Unknown(why) if why.contains("an id is")));
                let rows = json!([bad, good]);
                assert!(page(&response(&rows), now).is_err());
                let (page, _) = listed_page(&response(&rows), now).unwrap();
                assert_eq!((page.loans.len(), page.unreadable.len()), (1, 1));
                let has_id = page.unreadable[0].lending_id.is_some();
                assert_eq!(has_id, key != "loanId", "{key}");
            }
        }
        let isbn = "9788299999014";
        let licence = json!({ "licenseId": "\u{0}", "type": "T", "free": 1 });
        let shown = json!([{ "isbn": isbn, "available": true, "licenses": [licence] }]);
        assert!(availability(&response(&shown), isbn.parse().unwrap()).is_err());
    }

    #[test]
    fn other_texts_are_cleaned_and_cut() {
        let (now, long) = (Timestamp::UNIX_EPOCH, "x\u{0}\n".repeat(2000));
        let refusal = json!({ "code": long, "message": long });
        let refused = json!({ "loanId": "BL1", "status": "REFUSED", "refusal": refusal });
        let loan = remote_loan(&response(&refused), now).unwrap();
        let Standing::Refused(Refusal { code, message, .. }) = loan.standing else { panic!() };
        assert_eq!((code, message), ("x ".repeat(32), "x ".repeat(500)));
        let error: ErrorBody = serde_json::from_value(refusal).unwrap();
        assert_eq!((error.code, error.message), ("x ".repeat(32), "x ".repeat(500)));
        let unknown = json!({ "loanId": "BL1", "status": long });
        let loan = remote_loan(&response(&unknown), now).unwrap();
        assert_eq!(loan.standing, Standing::Unrecognised("x ".repeat(32)));
        let accepted =
            json!({ "loanId": "BL1", "status": "ACCEPTED", "due": now, "licenseType": long });
        let loan = remote_loan(&response(&accepted), now).unwrap();
        let Standing::Accepted(terms) = loan.standing else { panic!() };
        assert_eq!(terms.licence_type, Some("x ".repeat(32)));
    }
}
