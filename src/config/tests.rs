//! Tests that `config.toml` lists every key with its true default. `tests/config.rs` tests the
//! mistakes.

use std::collections::BTreeSet;
use std::path::Path;

use super::source::Source;
use super::table::Table;
use super::{read, sections};

const REFERENCE: &str = include_str!("../../config.toml");
const SHORT: &str = include_str!("../cli/init.toml");

/// Puts the secrets into the text, so that the tests need no files.
fn with_literal_secrets(text: &str) -> String {
    let mut text = text.to_owned();
    while let Some((before, after)) = text.split_once("{ file = ") {
        let (_, after) = after.split_once(" }").unwrap();
        text = format!("{before}\"0123456789abcdef0123456789abcdef\"{after}");
    }
    text
}

/// Returns every key in the reference, with its table, including commented-out ones.
fn named(text: &str) -> BTreeSet<(String, String)> {
    let mut named = BTreeSet::new();
    let mut table = String::new();
    for line in text.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some(header) = line.strip_prefix('[') {
            table = header.trim_start_matches('[').split(']').next().unwrap().to_owned();
            let (above, last) = table.rsplit_once('.').unwrap_or(("", &table));
            named.insert((above.to_owned(), last.to_owned()));
            named.insert((String::new(), table.split('.').next().unwrap().to_owned()));
            continue;
        }
        let Some((key, value)) = line.split_once(" = ") else { continue };
        if !key
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        {
            continue; // prose
        }
        named.insert((table.clone(), key.to_owned()));
        // Inline tables, one level deep: `claims = { … }`, `keys = [{ … }]`.
        let inner = value.trim_start_matches('[').strip_prefix("{ ").filter(|_| key != "never");
        for pair in inner.into_iter().flat_map(|inner| inner.split(", ")) {
            if let Some((name, _)) = pair.split_once(" = ")
                && !matches!(name, "file" | "env")
            {
                named.insert((format!("{table}.{key}"), name.to_owned()));
            }
        }
    }
    named
}

/// Returns every key that the program reads.
fn known(text: &str) -> BTreeSet<(String, String)> {
    let (document, errors) = toml::de::DeTable::parse_recoverable(text);
    assert!(errors.is_empty(), "{errors:?}");
    let source = Source::new(Path::new("config.toml"), text);
    sections(Table::root(&source, document.get_ref()));
    source.known().into_iter().map(|(table, key)| (table, key.to_owned())).collect()
}

#[test]
fn reference_lists_exactly_the_known_keys() {
    let extra = REFERENCE
        .replace("# [[tls.extra]]", "[[tls.extra]]")
        .replace("# certificate", "certificate");
    let known: BTreeSet<_> = [REFERENCE, &extra].into_iter().flat_map(known).collect();
    let named = named(REFERENCE);
    let missing: Vec<_> = known.difference(&named).collect();
    let invented: Vec<_> = named.difference(&known).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "missing: {missing:?}, invented: {invented:?}"
    );
}

#[test]
fn reference_defaults_match_the_program() {
    let load = |text: &str| read(Path::new("config.toml"), &with_literal_secrets(text)).unwrap();
    let (reference, short) = (load(REFERENCE), load(SHORT));
    let shown = |text: String| -> String {
        // This address differs on purpose; everything else must be a default.
        ["0.0.0.0:8443", "127.0.0.1:8443"]
            .into_iter()
            .fold(text, |text, address| text.replace(address, "ADDRESS"))
    };
    assert_eq!(
        shown(format!("{:#?}", reference.config.server)),
        shown(format!("{:#?}", short.config.server))
    );
    assert_eq!(format!("{:#?}", reference.config.admin), format!("{:#?}", short.config.admin));
    assert_eq!(format!("{:#?}", reference.config.readers), format!("{:#?}", short.config.readers));
    assert_eq!(format!("{:#?}", reference.config.gate), format!("{:#?}", short.config.gate));
    assert_eq!(reference.config.metering, short.config.metering);
    assert_eq!(format!("{:#?}", reference.config.log), format!("{:#?}", short.config.log));
    assert_eq!(format!("{:#?}", reference.config.origins), format!("{:#?}", short.config.origins));
    assert_eq!(format!("{:#?}", reference.config.catalog), format!("{:#?}", short.config.catalog));
    let (one, other) = (reference.config.lending, short.config.lending);
    assert_eq!((one.concurrency, one.timeout), (other.concurrency, other.timeout));
    assert_eq!(
        format!("{:#?}", reference.config.circulation),
        format!("{:#?}", short.config.circulation)
    );
}

#[test]
fn debug_shows_no_secret() {
    let text = with_literal_secrets(REFERENCE);
    let loaded = read(Path::new("config.toml"), &text).unwrap();
    assert!(text.contains("0123456789abcdef"));
    assert!(!format!("{loaded:?}").contains("0123456789abcdef"));
}
