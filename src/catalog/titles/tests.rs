//! Tables: contents, precedence of lines, and every mistake with its line.

use proptest::prelude::*;

use super::*;

const A: &str = "9788299999014";
const B: &str = "9788299999038";

fn table(text: &str) -> Table {
    Table::parse(text.as_bytes()).unwrap()
}

fn titles(table: &Table, path: &str) -> Vec<String> {
    table.titles(path).into_iter().flat_map(Titles::all).map(|isbn| isbn.to_string()).collect()
}

#[test]
fn exact_path_beats_prefix_and_longer_prefix_beats_shorter() {
    let table = table(&format!(
        "\u{feff}Path,ISBN\n# all of the shelf\nlyd/,{A}\n\nlyd/12/,{B},{A}\n\
         lyd/12/kap 1.mp3,{A}\r\n\"a, b/ø\", {B} ,,\n"
    ));
    for (path, expected) in [
        ("lyd/1.mp3", &[A][..]),
        ("lyd/11/1.mp3", &[A]),
        ("lyd/12/1.mp3", &[B, A]),
        ("lyd/12/kap 1.mp3", &[A]),
        ("lyd/12/kap 1.mp3/x", &[B, A]),
        ("lyd/123/1.mp3", &[A]),
        ("lyd/12", &[A]),
        ("lyd", &[]),
        ("lydbok/1.mp3", &[]),
        ("Lyd/1.mp3", &[]),
        ("x/lyd/1.mp3", &[]),
        ("a, b/ø", &[B]),
        ("a, b/ø/x", &[]),
        ("", &[]),
    ] {
        assert_eq!(titles(&table, path), expected, "{path}");
    }
    let paths = |isbn: &str| table.paths(isbn.parse().unwrap()).to_vec();
    assert_eq!(paths(A), ["lyd/", "lyd/12/", "lyd/12/kap 1.mp3"].map(Box::from));
    assert_eq!(paths(B), ["lyd/12/", "a, b/ø"].map(Box::from));
    assert_eq!((table.len(), paths("9780306406157").len()), (4, 0));
}

#[test]
fn file_may_be_named_path_and_a_table_may_be_empty() {
    assert_eq!(titles(&table(&format!("path,{A}\n")), "path"), [A]);
    for empty in ["", "\n", "# nothing yet\n", "path,isbn\n"] {
        assert_eq!(table(empty).len(), 0, "{empty:?}");
    }
}

#[test]
fn every_mistake_has_its_line() {
    for (row, sentence) in [
        ("a.mp3", "there is no ISBN. "),
        ("a.mp3,,", "there is no ISBN. "),
        ("a.mp3;9788299999014", "no request has such a path"),
        ("a.mp3,9788299999015", "\"9788299999015\" is no title: the check digit"),
        ("a.mp3,978-82-99999-01-4", "\"978-82-99999-01-4\" is no title: an ISBN is 13 digits"),
        ("a.mp3,9788299999014,9788299999014", "9788299999014 is listed twice"),
        ("/a.mp3,9788299999014", "a path here starts without a slash"),
        ("/,9788299999014", "a path here starts without a slash"),
        (",9788299999014", "there is no path"),
        ("a//b,9788299999014", "no request has such a path"),
        ("a//,9788299999014", "no request has such a path"),
        ("a/../b,9788299999014", "no request has such a path"),
        ("..,9788299999014", "no request has such a path"),
        ("a%20b,9788299999014", "no request has such a path"),
        ("a\\b,9788299999014", "no request has such a path"),
        ("\"a\tb\",9788299999014", "no request has such a path"),
        ("first/,9788299999014", "line 3 has this path already"),
    ] {
        let text = format!("path,isbn\n# a comment\nfirst/,{A}\n\n{row}\nlast/,{B}\n");
        let wrong = Table::parse(text.as_bytes()).unwrap_err();
        assert_eq!(wrong.len(), 1, "{row}: {wrong:?}");
        assert_eq!(wrong[0].0, 5, "{row}");
        assert!(wrong[0].1.starts_with(sentence), "{row}: {}", wrong[0].1);
    }
    let wrong =
        Table::parse(b"a.mp3,1\n\xff,9788299999014\nb.mp3,9788299999014\nc.mp3").unwrap_err();
    assert_eq!(wrong.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2, 4]);
}

proptest! {
    /// Compares with the definition: the longest line that names the path or one of its prefixes.
    #[test]
    fn longest_matching_line_wins(
        rows in proptest::collection::btree_map("[ab](/[ab]){0,3}/?", 0..2_usize, 0..12),
        path in "[abc](/[abc]){0,4}",
    ) {
        let isbns = [A, B];
        let lines = rows.iter().map(|(path, isbn)| format!("{path},{}\n", isbns[*isbn]));
        let text: String = lines.collect();
        let segments: Vec<&str> = path.split('/').collect();
        let names = |row: &str| match row.strip_suffix('/') {
            None => row == path,
            Some(prefix) => {
                let prefix: Vec<&str> = prefix.split('/').collect();
                segments.len() > prefix.len() && segments[..prefix.len()] == prefix
            }
        };
        // The exact path is longer than all of its prefixes.
        let expected = rows.iter().filter(|(row, _)| names(row)).max_by_key(|(row, _)| row.len());
        let expected: Vec<&str> = expected.into_iter().map(|(_, isbn)| isbns[*isbn]).collect();
        prop_assert_eq!(titles(&table(&text), &path), expected);
    }

    #[test]
    fn parser_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Table::parse(&bytes);
    }
}
