//! Checks `docs/security.md`: everything that it names exists, and every claim leads to a test.
//!
//! A reviewer goes from a demand of the contract to a claim, and from there to a test. These tests
//! read the steps from the page itself, so that page and code cannot diverge.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

const PAGE: &str = include_str!("../../docs/security.md");
const SUMMARY: &str = include_str!("../../docs/security.nb.md");
const REFERENCE: &str = include_str!("../../config.toml");

/// Returns the cells of every table row of a text, without Markdown's separator rows.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("|--"));
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
}

/// Returns the texts between backquotes.
fn code_spans(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Returns the words that consist of this prefix and a number, such as `C12`.
fn numbered(prefix: char, text: &str) -> BTreeSet<&str> {
    let is_number = |word: &&str| {
        let number = word.strip_prefix(prefix).unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    text.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(is_number).collect()
}

/// Returns the rows whose first cell is a number with this prefix.
fn table(prefix: char) -> BTreeMap<&'static str, Vec<&'static str>> {
    let is_one = |row: &Vec<&str>| numbered(prefix, row[0]).contains(row[0]);
    rows(PAGE).filter(is_one).map(|row| (row[0], row)).collect()
}

/// Returns the tests that a text names.
fn tests_in(text: &str) -> Vec<&str> {
    let is_test = |span: &&str| {
        ["it::", "crash::", "src::"].iter().any(|suite| span.starts_with(suite))
            && !span.ends_with('…')
    };
    code_spans(text).into_iter().filter(is_test).collect()
}

/// Returns the files that can contain a test of this path.
fn files_of(path: &[&str]) -> Vec<PathBuf> {
    match path {
        ["it" | "crash", rest @ ..] => {
            vec![["tests", path[0]].iter().chain(rest).collect::<PathBuf>()]
        }
        ["src", rest @ ..] => {
            let module: PathBuf = ["src"].iter().chain(rest).collect();
            vec![
                module.clone(),
                module.join("mod"),
                module.join("tests"),
                module.with_file_name("tests"),
            ]
        }
        _ => Vec::new(),
    }
    .into_iter()
    .map(|file| file.with_extension("rs"))
    .collect()
}

/// Returns whether a test of this name exists and runs by default.
fn exists(test: &str) -> bool {
    let mut path: Vec<&str> = test.split("::").collect();
    let name = path.pop().unwrap();
    files_of(&path).iter().filter_map(|file| fs::read_to_string(file).ok()).any(|source| {
        let function = format!("fn {name}(");
        let Some(at) = source.find(&function) else { return false };
        let before = &source[..at];
        let attributes = &before[before.rfind("\n\n").unwrap_or(0)..];
        (attributes.contains("#[test]")
            || attributes.contains("#[tokio::test")
            || runs_on_each_store(&source, name))
            && !attributes.contains("#[ignore")
    })
}

/// Returns whether a file has a test of each store from this function.
fn runs_on_each_store(source: &str, name: &str) -> bool {
    let list = source.split_once("on_each_store! {").and_then(|(_, rest)| rest.split_once('}'));
    list.is_some_and(|(names, _)| names.split_whitespace().any(|listed| listed == name))
}

#[test]
fn each_claim_leads_to_a_test() {
    let claims = table('C');
    assert!(claims.len() >= 20, "the table of claims was not read: {claims:?}");
    for (number, claim) in &claims {
        let tests = tests_in(claim.last().unwrap());
        assert!(!tests.is_empty(), "claim {number} names no test");
    }
    for test in tests_in(PAGE).into_iter().chain(tests_in(SUMMARY)) {
        assert!(exists(test), "the security document names {test}, which is not a test that runs");
    }
    assert!(!exists("it::security_document::no_such_test"), "a missing test is not noticed");
}

#[test]
fn each_demand_and_each_threat_leads_to_claims() {
    let claims: BTreeSet<&str> = table('C').into_keys().collect();
    for prefix in ['D', 'T', 'V'] {
        let table = table(prefix);
        assert!(table.len() >= 3, "no table of {prefix}");
        for (number, row) in table {
            let named = numbered('C', row.last().unwrap());
            assert!(!named.is_empty(), "{number} names no claim");
        }
    }
    for text in [PAGE, SUMMARY] {
        let unknown: Vec<&str> = numbered('C', text).difference(&claims).copied().collect();
        assert!(unknown.is_empty(), "these claims are named but missing: {unknown:?}");
    }
}

#[test]
fn documented_limits_match_the_reference() {
    let reference: toml::Table = REFERENCE.parse().unwrap();
    let value = |key: &str| -> Option<String> {
        let mut value = toml::Value::Table(reference.clone());
        for part in key.split('.') {
            value = match value {
                toml::Value::Array(array) => array.first()?.get(part)?.clone(),
                other => other.get(part)?.clone(),
            };
        }
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    let section =
        PAGE.split("\n## ").find(|section| section.contains("Limits and their defaults")).unwrap();
    let mut seen = 0;
    for row in rows(section).filter(|row| row[0].starts_with('`')) {
        let (key, said) = (row[0].trim_matches('`'), row[1].trim_matches('`'));
        assert_eq!(value(key).as_deref(), Some(said), "{key} in the page and in config.toml");
        seen += 1;
    }
    assert!(seen >= 10, "only {seen} limits were compared");
}

/// Prints five random walks from a sentence of the contract to a test, with their seed.
#[test]
fn reviewer_can_walk_from_the_contract_to_a_test() {
    let (demands, claims) = (table('D'), table('C'));
    let mut random = fastrand::Rng::with_seed(20_261_126);
    for _ in 0..5 {
        let demand = random.choice(demands.values()).unwrap();
        let named: Vec<&str> = numbered('C', demand.last().unwrap()).into_iter().collect();
        let claim = &claims[*random.choice(&named).unwrap()];
        let tests = tests_in(claim.last().unwrap());
        let test = *random.choice(&tests).unwrap();
        assert!(exists(test), "{test}");
        let (suite, name) = test.split_once("::").unwrap();
        let run = match suite {
            "src" => format!("cargo test --lib {}", name.rsplit("::").next().unwrap()),
            suite => format!("cargo test --test {suite} {name}"),
        };
        println!("{} {}\n  {} {}\n    {run}", demand[0], demand[1], claim[0], claim[1]);
    }
}
