//! Limits for the texts in Bokbasen's responses. `wire` applies them while it parses.
//!
//! The ledger stores these texts, and indexes the ids. PostgreSQL rejects U+0000, and long values
//! in an index. A rejected value would fail its whole transaction, again at each retry.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::language::is_unprintable;

/// The longest id or reference, in bytes.
const MAX_ID_LENGTH: usize = 256;
/// The longest code or name, in characters. The rest is cut off.
const MAX_CODE_LENGTH: usize = 64;
/// The longest message, in characters. The rest is cut off.
const MAX_MESSAGE_LENGTH: usize = 1000;

/// Whether a text can be an id. An id is never shortened: it would name another loan.
pub(super) fn is_id(text: &str) -> bool {
    text.len() <= MAX_ID_LENGTH && !text.chars().any(char::is_control)
}

/// Reads an id.
pub(super) fn id<'d, D: Deserializer<'d>>(deserializer: D) -> Result<String, D::Error> {
    checked(String::deserialize(deserializer)?)
}

/// Reads an id or reference that may be missing.
pub(super) fn optional_id<'d, D: Deserializer<'d>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    Option::<String>::deserialize(deserializer)?.map(checked).transpose()
}

fn checked<E: Error>(text: String) -> Result<String, E> {
    if is_id(&text) {
        return Ok(text);
    }
    let why = format!("an id is longer than {MAX_ID_LENGTH} bytes or has control characters");
    Err(E::custom(why))
}

/// Reads a code, or the name of a kind or status.
pub(super) fn code<'d, D: Deserializer<'d>>(deserializer: D) -> Result<String, D::Error> {
    Ok(clean(&String::deserialize(deserializer)?, MAX_CODE_LENGTH))
}

/// Reads a code that may be missing.
pub(super) fn optional_code<'d, D: Deserializer<'d>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.map(|text| clean(&text, MAX_CODE_LENGTH)))
}

/// Reads a message.
pub(super) fn message<'d, D: Deserializer<'d>>(deserializer: D) -> Result<String, D::Error> {
    Ok(clean(&String::deserialize(deserializer)?, MAX_MESSAGE_LENGTH))
}

/// Returns the first `limit` characters of a text without control characters and those that change
/// the order of others. Spaces replace line breaks and tabs.
pub(super) fn clean(text: &str, limit: usize) -> String {
    let spaced = text.chars().map(|letter| match letter {
        '\n' | '\t' => ' ',
        letter => letter,
    });
    spaced.filter(|letter| !is_unprintable(*letter)).take(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readable_text_survives() {
        assert_eq!(
            clean("For mange lån,\r\n\tprøv i morgen", 100),
            "For mange lån,  prøv i morgen"
        );
        assert_eq!(clean("a\u{0}b\u{1b}[31m\u{85}c", 100), "ab[31mc");
        assert_eq!(clean("a\u{202e}b\u{2066}c", 100), "abc", "the order of the letters stays");
        assert_eq!(clean("øøø", 2), "øø");
    }

    #[test]
    fn id_is_short_and_has_no_control_characters() {
        assert!(is_id("BL-2026/ø 1") && is_id(&"i".repeat(256)));
        assert!(!is_id(&"i".repeat(257)) && !is_id("a\u{0}") && !is_id("a\n"));
    }
}
