//! Pages of a listing: where one starts, and the cursor that leads to the next.
//!
//! The listing calls use it; it calls nothing of ours. Every page carries the next cursor, the
//! empty one at the end too, as the page "Export paging" says. A cursor is good for 180 days, for
//! its own listing.

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

/// Where a listing goes on. Opaque to callers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Cursor {
    pub(super) listing: Listing,
    /// How many entries came before.
    pub(super) offset: usize,
    pub(super) issued: Timestamp,
}

/// What is listed.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Listing {
    Reference(String),
    Library { isil: String, after: Timestamp },
    Inventory { isil: String, after: Timestamp },
}

impl Cursor {
    /// The start of a listing.
    pub(super) fn start(listing: Listing, now: Timestamp) -> Cursor {
        Cursor { listing, offset: 0, issued: now }
    }

    /// # Errors
    /// 400 where the text is not a cursor of ours, or too old.
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

    /// The page as an answer, leading on after these `count` entries.
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
/// 400 where it is not fourteen digits of a moment.
pub(super) fn after(text: &str) -> Result<Timestamp, Rejected> {
    let digits = text.len() == 14 && text.bytes().all(|byte| byte.is_ascii_digit());
    let moment = digits.then(|| DateTime::strptime("%Y%m%d%H%M%S", text).ok()).flatten();
    moment.and_then(|moment| jiff::tz::TimeZone::UTC.to_timestamp(moment).ok()).ok_or_else(|| {
        Rejected::malformed(format!("after=\"{text}\" is not a moment in the form yyyyMMddHHmmss."))
    })
}

/// The parameters of a query, none of them unknown.
///
/// # Errors
/// 400 where one is not among those that the call has.
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

/// The one value of a parameter.
///
/// # Errors
/// 400 where it is given more than once, or empty.
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
