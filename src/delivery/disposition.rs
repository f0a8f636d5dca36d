//! The Content-Disposition field (RFC 6266): the name under which a reader saves a file.
//!
//! Delivery calls it if the route configures it. The name is the last segment of the file's path,
//! sanitized. A hostile name at the storage must not write into other directories of a reader, nor
//! disguise a program as a book.

use http::HeaderValue;
use percent_encoding::percent_decode_str;

use crate::catalog::Disposition;
use crate::language::is_unprintable;
use crate::path::{self, FilePath};

/// Longest file name in UTF-8 bytes; file systems allow 255.
const MAX_NAME: usize = 200;
/// Longest extension, with its dot, that is preserved when a name is truncated.
const MAX_EXTENSION: usize = 16;
/// Name of a file whose sanitized name is empty.
const DEFAULT_NAME: &str = "file";

/// Returns the field for the file at this path. It always has a name.
pub(super) fn field(disposition: Disposition, path: &FilePath) -> Option<HeaderValue> {
    let segment = path.as_str().rsplit('/').next().unwrap_or_default();
    let segment = percent_decode_str(segment).decode_utf8_lossy();
    HeaderValue::try_from(text(disposition, &segment)).ok()
}

/// Formats the field with two names (RFC 6266 §4.3): an ASCII fallback, and the full name encoded
/// by RFC 8187.
fn text(disposition: Disposition, segment: &str) -> String {
    let name = sanitized(segment);
    // Some clients would decode a percent sign (RFC 6266, appendix D).
    let fallback: String = name
        .chars()
        .map(|character| if character.is_ascii() && character != '%' { character } else { '_' })
        .collect();
    let kind = match disposition {
        Disposition::Attachment => "attachment",
        Disposition::Inline => "inline",
    };
    let encoded: String = path::encoded(&name).collect();
    format!("{kind}; filename=\"{fallback}\"; filename*=UTF-8''{encoded}")
}

/// Sanitizes a name: removes invisible characters and replaces special ones.
fn sanitized(segment: &str) -> String {
    let visible = segment.chars().filter(|character| !is_unprintable(*character));
    let name: String =
        visible.map(|character| if is_special(character) { '_' } else { character }).collect();
    let name = trimmed(&name);
    let name = if name.len() > MAX_NAME { truncated(name) } else { name.to_owned() };
    if name.is_empty() { DEFAULT_NAME.to_owned() } else { name }
}

/// Trims dots and whitespace: a leading dot hides a file, and some systems remove trailing ones.
fn trimmed(name: &str) -> &str {
    name.trim_matches(|character: char| character == '.' || character.is_whitespace())
}

/// Returns whether a character separates directories, or is special in a quoted string, a shell or
/// a file system.
fn is_special(character: char) -> bool {
    matches!(character, '/' | '\\' | '"' | ':' | '*' | '?' | '<' | '>' | '|' | '\u{fffd}')
}

/// Truncates a name to [`MAX_NAME`], and preserves its extension.
fn truncated(name: &str) -> String {
    let extension = name.rfind('.').and_then(|dot| name.get(dot..)).unwrap_or_default();
    let extension = if extension.len() <= MAX_EXTENSION { extension } else { "" };
    let stem = name.get(..name.floor_char_boundary(MAX_NAME - extension.len())).unwrap_or_default();
    format!("{}{extension}", trimmed(stem))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attachment(segment: &str) -> String {
        text(Disposition::Attachment, segment)
    }

    #[test]
    fn file_names_are_sanitized() {
        for (segment, fallback, whole) in [
            ("book.epub", "book.epub", "book.epub"),
            ("Kapittel 1.mp3", "Kapittel 1.mp3", "Kapittel%201.mp3"),
            (
                "lydbøker, del «2».mp3",
                "lydb_ker, del _2_.mp3",
                "lydb%C3%B8ker%2C%20del%20%C2%AB2%C2%BB.mp3",
            ),
            ("100% ekte.epub", "100_ ekte.epub", "100%25%20ekte.epub"),
            ("a\"b\\c;d.epub", "a_b_c;d.epub", "a_b_c%3Bd.epub"),
            ("a/b:c*d?.epub", "a_b_c_d_.epub", "a_b_c_d_.epub"),
            ("a\r\nSet-Cookie: x", "aSet-Cookie_ x", "aSet-Cookie_%20x"),
            ("bok\u{202e}bupe.exe", "bokbupe.exe", "bokbupe.exe"),
            ("\u{feff}a\u{200b}b\u{2066}.epub", "ab.epub", "ab.epub"),
            (" .bashrc. ", "bashrc", "bashrc"),
            ("...", "file", "file"),
            ("", "file", "file"),
            ("\u{7f}\u{2028}", "file", "file"),
            ("書.epub", "_.epub", "%E6%9B%B8.epub"),
        ] {
            let expected = format!("attachment; filename=\"{fallback}\"; filename*=UTF-8''{whole}");
            assert_eq!(attachment(segment), expected, "{segment:?}");
        }
        let path = FilePath::of_decoded("lyd/a b.mp3").unwrap();
        let field = field(Disposition::Inline, &path).unwrap();
        assert_eq!(field, "inline; filename=\"a b.mp3\"; filename*=UTF-8''a%20b.mp3");
    }

    #[test]
    fn long_name_keeps_its_extension() {
        for (segment, expected) in [
            (format!("{}.epub", "ø".repeat(300)), format!("{}.epub", "ø".repeat(97))),
            (format!("{}  x.epub", "a".repeat(194)), format!("{}.epub", "a".repeat(194))),
            (format!("a.{}", "b".repeat(300)), format!("a.{}", "b".repeat(198))),
            ("a".repeat(300), "a".repeat(200)),
        ] {
            assert_eq!(sanitized(&segment), expected);
        }
    }

    proptest! {
        #[test]
        fn field_is_valid_for_any_name(segment in prop_oneof![
            "\\PC{0,300}",
            any::<String>(),
            "[ -/.\"\\\\%\r\n;]{0,20}",
        ]) {
            let text = attachment(&segment);
            prop_assert!(HeaderValue::try_from(&text).is_ok());
            let rest = text.strip_prefix("attachment; filename=\"").unwrap();
            let (fallback, whole) = rest.split_once("\"; filename*=UTF-8''").unwrap();
            let plain = |byte: u8| (0x20..0x7f).contains(&byte) && !b"\"\\/%".contains(&byte);
            prop_assert!(!fallback.is_empty() && fallback.len() <= MAX_NAME);
            prop_assert!(fallback.bytes().all(plain));
            // RFC 8187 §3.2.1: value-chars.
            let allowed =
                |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~%".contains(&byte);
            prop_assert!(!whole.is_empty() && whole.len() <= 3 * MAX_NAME);
            prop_assert!(whole.bytes().all(allowed));
            let name = percent_decode_str(whole).decode_utf8().unwrap();
            prop_assert_eq!(name.chars().count(), fallback.len());
            prop_assert!(!name.contains(['/', '\\']));
            prop_assert!(!name.chars().any(is_unprintable));
            prop_assert!(!name.starts_with('.') && !name.ends_with(['.', ' ']));
        }
    }
}
