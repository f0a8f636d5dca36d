//! Pages of a listing, and the cursors between them.
//!
//! The listing calls use it. Every page has a cursor to the next one, even the last page, as the
//! page "Export paging" documents. A cursor is valid for 180 days and for its own listing only.

use axum::response::{IntoResponse, Response};
use data_encoding::BASE64URL_NOPAD;
use http::header::{CONTENT_TYPE, LINK};
use http::{HeaderName, HeaderValue};
use jiff::civil::DateTime;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::error_response::Rejected;

const NEXT: HeaderName = HeaderName::from_static("next");
const CURSOR_DAYS: i64 = 180;

/// The position where a listing continues. Opaque to callers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Cursor {
    pub(super) listing: Listing,
    /// The number of entries on earlier pages.
    pub(super) offset: usize,
    pub(super) issued: Timestamp,
}

/// A listing and its parameters.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Listing {
    Reference(String),
    Library { isil: String, after: Timestamp },
    Inventory { isil: String, after: Timestamp },
}

impl Cursor {
    /// Returns the cursor of a listing's first page.
    pub(super) fn start(listing: Listing, now: Timestamp) -> Cursor {
        Cursor { listing, offset: 0, issued: now }
    }

    /// Decodes a cursor of this sandbox.
    ///
    /// # Errors
    /// Fails with 400 if the text is no cursor of this sandbox, or is older than 180 days.
    pub(super) fn read(text: &str, now: Timestamp) -> Result<Cursor, Rejected> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok();
        let cursor: Option<Cursor> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let cursor = cursor
            .ok_or_else(|| Rejected::malformed("The cursor is not one that was given out."))?;
        if now.duration_since(cursor.issued) > SignedDuration::from_hours(24 * CURSOR_DAYS) {
            return Err(Rejected::malformed("The cursor is older than 180 days."));
        }
        Ok(cursor)
    }

    fn text(&self) -> String {
        BASE64URL_NOPAD.encode(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// Builds the response for a page of `count` entries, with the cursor to the next one.
    pub(super) fn page(self, path: &str, count: usize, json: String, now: Timestamp) -> Response {
        let next = Cursor { listing: self.listing, offset: self.offset + count, issued: now };
        let next = next.text();
        let mut response = json.into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(link) = HeaderValue::from_str(&format!("<{path}?next={next}>; rel=\"next\"")) {
            headers.insert(LINK, link);
        }
        if let Ok(next) = HeaderValue::from_str(&next) {
            headers.insert(NEXT, next);
        }
        response
    }
}

/// Reads `after=yyyyMMddHHmmss`, in UTC.
///
/// # Errors
/// Fails with 400 if the text is not a valid time of fourteen digits.
pub(super) fn after(text: &str) -> Result<Timestamp, Rejected> {
    let digits = text.len() == 14 && text.bytes().all(|byte| byte.is_ascii_digit());
    let moment = digits.then(|| DateTime::strptime("%Y%m%d%H%M%S", text).ok()).flatten();
    moment.and_then(|moment| jiff::tz::TimeZone::UTC.to_timestamp(moment).ok()).ok_or_else(|| {
        Rejected::malformed(format!("after=\"{text}\" is not a time in the form yyyyMMddHHmmss."))
    })
}

/// Parses the parameters of a query.
///
/// # Errors
/// Fails with 400 for a parameter that the call does not have.
pub(super) fn parameters(
    query: Option<&str>,
    known: &[&str],
) -> Result<Vec<(String, String)>, Rejected> {
    let parse = url::form_urlencoded::parse(query.unwrap_or("").as_bytes());
    let parameters: Vec<(String, String)> = parse.into_owned().collect();
    match parameters.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        Some((name, _)) => {
            Err(Rejected::malformed(format!("The parameter {name} is unknown here.")))
        }
        None => Ok(parameters),
    }
}

/// Returns the single value of a parameter.
///
/// # Errors
/// Fails with 400 if it is repeated or empty.
pub(super) fn single<'a>(
    parameters: &'a [(String, String)],
    name: &str,
) -> Result<Option<&'a str>, Rejected> {
    let mut values =
        parameters.iter().filter(|(of, _)| of == name).map(|(_, value)| value.as_str());
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) if !value.is_empty() => Ok(Some(value)),
        _ => Err(Rejected::malformed(format!(
            "The parameter {name} must be given once, with a value."
        ))),
    }
}
