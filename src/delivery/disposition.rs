//! The field Content-Disposition (RFC 6266), where the route asks for it: under which name a file
//! is to be saved.
//!
//! Delivery calls it. The name is the last segment of the file's path, made clean: whoever names
//! files at the storage must not reach a reader's directories, nor make a program look like a book.

use http::HeaderValue;
use percent_encoding::percent_decode_str;

use crate::catalog::Disposition;
use crate::path::{self, FilePath};

/// The longest name, in bytes of UTF-8: file systems have 255.
const LONGEST: usize = 200;
/// The longest ending that is kept where a name is cut, with its dot.
const LONGEST_ENDING: usize = 16;
/// The name of a file of which nothing is left.
const NAMELESS: &str = "file";

/// The field for the file at this path; never without a name.
pub(super) fn field(disposition: Disposition, path: &FilePath) -> Option<HeaderValue> {
    let segment = path.as_str().rsplit('/').next().unwrap_or_default();
    let segment = percent_decode_str(segment).decode_utf8_lossy();
    HeaderValue::try_from(text(disposition, &segment)).ok()
}

/// With the name twice (RFC 6266 §4.3): in ASCII for who reads no more, and whole as RFC 8187 has
/// it.
fn text(disposition: Disposition, segment: &str) -> String {
    let name = clean(segment);
    // A percent sign would be decoded by some (RFC 6266, appendix D).
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

/// A name that every file system takes and that shows what it is.
fn clean(segment: &str) -> String {
    let seen =
        segment.chars().filter(|character| !character.is_control() && !is_unseen(*character));
    let name: String =
        seen.map(|character| if is_special(character) { '_' } else { character }).collect();
    let name = trimmed(&name);
    let name = if name.len() > LONGEST { cut(name) } else { name.to_owned() };
    if name.is_empty() { NAMELESS.to_owned() } else { name }
}

/// Without what is hidden by it, or taken away by some systems, at either end.
fn trimmed(name: &str) -> &str {
    name.trim_matches(|character: char| character == '.' || character.is_whitespace())
}

/// What separates directories, or means something in a quoted text, a shell or a file system.
fn is_special(character: char) -> bool {
    matches!(character, '/' | '\\' | '"' | ':' | '*' | '?' | '<' | '>' | '|' | '\u{fffd}')
}

/// What is not seen and changes what is: directions (CWE-451), joiners, marks, tags, line ends.
fn is_unseen(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// As much of a name as there is room for, with its ending.
fn cut(name: &str) -> String {
    let ending = name.rfind('.').and_then(|dot| name.get(dot..)).unwrap_or_default();
    let ending = if ending.len() <= LONGEST_ENDING { ending } else { "" };
    let stem = name.get(..name.floor_char_boundary(LONGEST - ending.len())).unwrap_or_default();
    format!("{}{ending}", trimmed(stem))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attachment(segment: &str) -> String {
        text(Disposition::Attachment, segment)
    }

    #[test]
    fn a_file_is_saved_under_a_clean_name() {
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
    fn a_long_name_keeps_its_ending() {
        for (segment, expected) in [
            (format!("{}.epub", "ø".repeat(300)), format!("{}.epub", "ø".repeat(97))),
            (format!("{}  x.epub", "a".repeat(194)), format!("{}.epub", "a".repeat(194))),
            (format!("a.{}", "b".repeat(300)), format!("a.{}", "b".repeat(198))),
            ("a".repeat(300), "a".repeat(200)),
        ] {
            assert_eq!(clean(&segment), expected);
        }
    }

    proptest! {
        #[test]
        fn whatever_the_name_the_field_is_whole(segment in prop_oneof!["\\PC{0,300}", any::<String>(), "[ -/.\"\\\\%\r\n;]{0,20}"]) {
            let text = attachment(&segment);
            prop_assert!(HeaderValue::try_from(&text).is_ok());
            let rest = text.strip_prefix("attachment; filename=\"").unwrap();
            let (fallback, whole) = rest.split_once("\"; filename*=UTF-8''").unwrap();
            let plain = |byte: u8| (0x20..0x7f).contains(&byte) && !b"\"\\/%".contains(&byte);
            prop_assert!(!fallback.is_empty() && fallback.len() <= LONGEST && fallback.bytes().all(plain));
            // RFC 8187 §3.2.1: value-chars.
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~%".contains(&byte);
            prop_assert!(!whole.is_empty() && whole.len() <= 3 * LONGEST && whole.bytes().all(allowed));
            let name = percent_decode_str(whole).decode_utf8().unwrap();
            prop_assert_eq!(name.chars().count(), fallback.len());
            prop_assert!(!name.contains(['/', '\\']) && !name.chars().any(|one| one.is_control() || is_unseen(one)));
            prop_assert!(!name.starts_with('.') && !name.ends_with(['.', ' ']));
        }
    }
}
