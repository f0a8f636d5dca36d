//! Path attacks known from other software, each refused with its own sentence, and valid paths.

use proptest::prelude::*;

use super::*;

/// A refused path, and a word of its sentence.
const ATTACKS: &[(&str, &str)] = &[
    ("", "start with a slash"),
    ("*", "start with a slash"),
    ("files/a", "start with a slash"),
    ("https://other.example/files/a", "start with a slash"),
    ("%2ffiles/a", "start with a slash"),
    ("\\files\\a", "start with a slash"),
    ("~token/a", "start with a slash"),
    ("/..", "dots"),
    ("/.", "dots"),
    ("/files/..", "dots"),
    ("/files/../secret", "dots"),
    ("/files/./a", "dots"),
    ("/files/.../a", "dots"),
    ("/files/.%20/a", "dots"),
    ("/files/..%20/a", "dots"),
    ("/files/%20/a", "dots"),
    ("/files/%2e%2e/a", "dots"),
    ("/files/%2E%2E/a", "dots"),
    ("/files/%2e%2E/a", "dots"),
    ("/files/.%2e/a", "dots"),
    ("/files/%2e./a", "dots"),
    ("/files/%2e/a", "dots"),
    ("/files/%2E", "dots"),
    ("/~token/../a", "dots"),
    ("//", "empty segment"),
    ("//files/a", "empty segment"),
    ("//other.example/files/a", "empty segment"),
    ("/files//a", "empty segment"),
    ("/files/a/", "empty segment"),
    ("/files/a//", "empty segment"),
    ("/files/..%2fa", "encoded slash"),
    ("/files/..%2Fa", "encoded slash"),
    ("/files%2fa", "encoded slash"),
    ("/files/%2f", "encoded slash"),
    ("/files/%2F..%2F..%2Fa", "encoded slash"),
    ("/files/%2e%2e%2fa", "encoded slash"),
    ("/files\\a", "backslash"),
    ("/files/..\\a", "backslash"),
    ("/files/..%5ca", "backslash"),
    ("/files/..%5Ca", "backslash"),
    ("/files/%5c%5chost", "backslash"),
    ("/files/a%00.epub", "control"),
    ("/files/%00", "control"),
    ("/files/a%0d%0aHost:b", "control"),
    ("/files/a%0A", "control"),
    ("/files/a%09", "control"),
    ("/files/a%7f", "control"),
    ("/files/a%C2%85", "control"),
    ("/files/a\u{0}", "control"),
    ("/files/a\r\nb", "control"),
    ("/files/a b", "space"),
    ("/files/a%", "percent sign"),
    ("/files/a%2", "percent sign"),
    ("/files/a%zz", "percent sign"),
    ("/files/a%2g", "percent sign"),
    ("/files/a%+1", "percent sign"),
    ("/files/%u002e%u002e/a", "percent sign"),
    ("/files/%%32%65", "percent sign"),
    ("/files/%c0%af", "UTF-8"),
    ("/files/%c0%ae%c0%ae/a", "UTF-8"),
    ("/files/%e0%80%af", "UTF-8"),
    ("/files/%f0%80%80%af", "UTF-8"),
    ("/files/%ed%a0%80", "UTF-8"),
    ("/files/%ff", "UTF-8"),
    ("/files/%c3", "UTF-8"),
    ("/files/%F8%80%80%80%AF", "UTF-8"),
    ("/files/%252e%252e/a", "twice"),
    ("/files/%252E", "twice"),
    ("/files/..%252fa", "twice"),
    ("/files/%255c", "twice"),
    ("/files/%25%32%65", "twice"),
    ("/files/%25252e", "twice"),
    ("/files/a%2500", "twice"),
    ("/files/a;b=/../c", "semicolon"),
    ("/files/..;/a", "semicolon"),
    ("/files/a%3b", "semicolon"),
    ("/files/a%3Bjsessionid=1", "semicolon"),
    ("/files;v=1/a", "semicolon"),
    ("/files/a?token=b", "query"),
    ("/files/a#b", "fragment"),
    ("/files/\u{e5}.epub", "ASCII"),
    ("/files/\u{2025}/a", "ASCII"),
];

#[test]
fn each_attack_is_refused_with_its_sentence() {
    assert!(ATTACKS.len() >= 60);
    for (path, word) in ATTACKS {
        let error = RequestPath::parse(path).expect_err(path);
        assert!(error.0.english.contains(word), "{path}: {error}");
        assert!(error.0.english.ends_with('.'), "{error}");
    }
}

#[test]
fn path_longer_than_two_kibibytes_is_refused() {
    let longest = format!("/{}", "a".repeat(MAX_BYTES - 1));
    assert!(RequestPath::parse(&longest).is_ok());
    let error = RequestPath::parse(&format!("{longest}a")).unwrap_err();
    assert!(error.0.english.contains("2 KiB"));
}

#[test]
fn normal_path_is_decoded_once() {
    for (path, segments) in [
        ("/", &[][..]),
        ("/files/9780306406157/a.epub", &["files", "9780306406157", "a.epub"]),
        ("/%41%62c", &["Abc"]),
        ("/b%C3%B8ker/bl%c3%a5.mp3", &["bøker", "blå.mp3"]),
        ("/a%20b/c+d", &["a b", "c+d"]),
        ("/100%25", &["100%"]),
        ("/100%25%20", &["100% "]),
        ("/a%3Fb%23c", &["a?b#c"]),
        ("/track[1]|{x}", &["track[1]|{x}"]),
        ("/..a/b..", &["..a", "b.."]),
        ("/a/%7Bfile%7D", &["a", "{file}"]),
        ("/a&b='c'(d)*!$,:@=", &["a&b='c'(d)*!$,:@="]),
    ] {
        let parsed = RequestPath::parse(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(parsed.segments().collect::<Vec<_>>(), segments, "{path}");
    }
}

#[test]
fn token_is_split_off_and_never_printed() {
    for (path, token, rest) in [
        ("/~AbC-_9/files/a", Some("AbC-_9"), "/files/a"),
        ("/%7EAbC/files/a", Some("AbC"), "/files/a"),
        ("/~AbC", Some("AbC"), "/"),
        ("/~", Some(""), "/"),
        ("/files/~AbC", None, "/files/~AbC"),
        ("/", None, "/"),
    ] {
        let parsed = RequestPath::parse(path).unwrap();
        if token.is_some_and(|token| !token.is_empty()) {
            assert!(!format!("{parsed:?}").contains("AbC"), "{parsed:?}");
        }
        let (split, path) = parsed.split_token();
        assert_eq!(split.as_deref(), token);
        assert_eq!(path.decoded(), rest);
    }
}

#[test]
fn file_path_encodes_all_but_the_unreserved() {
    let path = FilePath::of_decoded("a b/å/c/100%/~x-._/e?f#g;h\\").unwrap();
    assert_eq!(path.as_str(), "a%20b/%C3%A5/c/100%25/~x-._/e%3Ff%23g%3Bh%5C");
    assert_eq!(FilePath::of_decoded("a-b/c.epub").unwrap().as_str(), "a-b/c.epub");
    for unsafe_path in ["", "a/..", "a/", "a//b", "/a", "å/."] {
        assert_eq!(FilePath::of_decoded(unsafe_path), None, "{unsafe_path}");
    }
}

/// Generates paths from the building blocks of the attacks.
fn attack_path() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("/"),
        Just("."),
        Just(".."),
        Just("%2e"),
        Just("%2F"),
        Just("%25"),
        Just("%5C"),
        Just("%"),
        Just("2e"),
        Just("%C3%B8"),
        Just("%c0%af"),
        Just("a"),
        Just("~"),
        Just(";"),
        Just("%20"),
        Just("{x}"),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
}

fn check_invariants(raw: &str) -> Result<(), TestCaseError> {
    let Ok(path) = RequestPath::parse(raw) else {
        return Ok(());
    };
    for segment in path.segments() {
        prop_assert!(!segment.is_empty() && segment != "." && segment != "..");
        prop_assert!(!segment.contains(['/', '\\', ';', '\0']));
    }
    let Some(sent) = FilePath::of_decoded(&path.decoded()[1..]) else {
        prop_assert_eq!(path.decoded(), "/", "{} has no file", raw);
        return Ok(());
    };
    prop_assert!(!sent.as_str().split('/').any(|segment| segment == ".."));
    let again = RequestPath::parse(&format!("/{}", sent.as_str()));
    prop_assert_eq!(again.as_ref(), Ok(&path), "{} became {}", raw, sent.as_str());
    Ok(())
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(raw in "\\PC*") {
        check_invariants(&raw)?;
        check_invariants(&format!("/{raw}"))?;
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(raw in proptest::collection::vec(any::<u8>(), 0..80)) {
        check_invariants(&String::from_utf8_lossy(&raw))?;
        let escaped: String = raw.iter().map(|byte| format!("%{byte:02x}")).collect();
        check_invariants(&format!("/{escaped}"))?;
    }

    #[test]
    fn combined_attacks_keep_the_invariants(raw in attack_path()) {
        check_invariants(&raw)?;
    }
}
