//! The claims of a verified token that name its reader: the library and the borrower's own id.
//!
//! A claim is named as it is written, such as `https://example.no/library`, or by the path to a
//! nested one, such as `realm_access.library`.

use serde_json::{Map, Value};

use super::refusal::{JwtFault, Refusal};
use super::{JwtSettings, LibraryRule};
use crate::loan::LibraryId;

/// The longest borrower id, in bytes.
const MAX_BORROWER: usize = 256;

pub(super) type Claims = Map<String, Value>;

/// Returns the library and the borrower's own id, borrowed from the claims.
pub(super) fn subject<'a>(
    claims: &'a Claims,
    settings: &JwtSettings,
) -> Result<(LibraryId, &'a str), Refusal> {
    let library = library(claims, &settings.library).map_err(Refusal::Token)?;
    let borrower = text(claims, &settings.borrower_claim)
        .filter(|id| !id.is_empty() && id.len() <= MAX_BORROWER)
        .ok_or(Refusal::Token(JwtFault::Borrower))?;
    Ok((library, borrower))
}

fn library(claims: &Claims, rule: &LibraryRule) -> Result<LibraryId, JwtFault> {
    match rule {
        LibraryRule::Fixed(library) => Ok(*library),
        LibraryRule::Claim(claim) => {
            text(claims, claim).and_then(|isil| isil.parse().ok()).ok_or(JwtFault::Library)
        }
        LibraryRule::Table(claim, libraries) => {
            let value = text(claims, claim).ok_or(JwtFault::Library)?;
            libraries.get(value).copied().ok_or(JwtFault::UnlistedLibrary)
        }
    }
}

/// Returns the text of a claim. A claim with the whole name wins over a nested one.
fn text<'a>(claims: &'a Claims, name: &str) -> Option<&'a str> {
    let value = claims.get(name).or_else(|| {
        let mut segments = name.split('.');
        let first = claims.get(segments.next()?)?;
        segments.try_fold(first, |value, segment| value.as_object()?.get(segment))
    });
    value.and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claim_is_found_by_its_whole_name_or_its_path() {
        let claims = json!({
            "https://example.no/library": "whole",
            "realm_access": { "library": "nested", "more": { "deep": "deeper" } },
            "a.b": "literal", "a": { "b": "path" },
            "list": ["x"], "text": "plain", "c.d": 7, "c": { "d": "hidden" },
        });
        let claims = claims.as_object().unwrap();
        for (name, found) in [
            ("https://example.no/library", Some("whole")),
            ("realm_access.library", Some("nested")),
            ("realm_access.more.deep", Some("deeper")),
            ("a.b", Some("literal")),
            ("text", Some("plain")),
            ("c.d", None),
            ("realm_access", None),
            ("realm_access.", None),
            ("realm_access.library.x", None),
            ("list.0", None),
            ("text.x", None),
            ("absent.x", None),
            ("", None),
            (".", None),
        ] {
            assert_eq!(text(claims, name), found, "{name}");
        }
    }
}
