//! Which module may call which: reads every `crate::` in the sources against the table, so that
//! neither can rot.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The vocabulary, which everybody may call, and which calls nothing else of ours.
const WORDS: [&str; 7] =
    ["buffer_budget", "clock", "connection_handle", "crash", "loan", "path", "problem"];

/// What each module may call besides the vocabulary; `lib.rs` shows the same table to people.
const TABLE: [(&str, &[&str]); 16] = [
    ("telemetry", &[]),
    ("supervise", &["telemetry"]),
    ("ledger", &["telemetry"]),
    ("lending", &["telemetry"]),
    ("origin", &["telemetry"]),
    ("circulation", &["ledger", "lending", "supervise", "telemetry"]),
    ("reader", &["telemetry"]),
    ("catalog", &["telemetry"]),
    ("metering", &["ledger", "supervise", "telemetry"]),
    ("gate", &["circulation", "telemetry"]),
    ("delivery", &["catalog", "gate", "metering", "origin", "telemetry"]),
    ("server", &["catalog", "delivery", "gate", "ledger", "reader", "supervise", "telemetry"]),
    ("admin", &["catalog", "circulation", "gate", "ledger", "reader", "supervise", "telemetry"]),
    ("sandbox", &["telemetry"]),
    ("samples", &["telemetry"]),
    (
        "config",
        &[
            "admin",
            "catalog",
            "circulation",
            "delivery",
            "gate",
            "ledger",
            "lending",
            "metering",
            "origin",
            "reader",
            "server",
            "telemetry",
        ],
    ),
];

/// The command line, which may call everything.
const TOP: [&str; 3] = ["cli", "lib", "main"];

#[test]
fn every_module_calls_only_what_its_row_allows() {
    let table: BTreeMap<&str, BTreeSet<&str>> = TABLE
        .iter()
        .map(|(module, may)| (*module, may.iter().chain(&WORDS).copied().collect()))
        .chain(WORDS.map(|word| (word, BTreeSet::from(WORDS))))
        .collect();
    let mut seen = BTreeSet::new();
    for file in sources(Path::new("src")) {
        let module = module_of(&file);
        if TOP.contains(&module.as_str()) {
            continue;
        }
        let may =
            table.get(module.as_str()).unwrap_or_else(|| panic!("no row for {module}: add one"));
        seen.insert(module.clone());
        for called in called(&fs::read_to_string(&file).unwrap()) {
            let allowed = called == module || may.contains(called.as_str());
            assert!(allowed, "{} calls {called}, which its row does not allow", file.display());
        }
    }
    let rows: BTreeSet<String> = table.keys().map(|row| row.to_string()).collect();
    assert_eq!(seen, rows, "a row without a module");
}

#[test]
fn delivery_takes_no_more_of_gate_and_catalog_than_the_permit_and_the_file() {
    for file in sources(Path::new("src/delivery")) {
        let text = fs::read_to_string(&file).unwrap();
        let taken = text
            .lines()
            .filter(|line| line.contains("crate::gate") || line.contains("crate::catalog"));
        for line in taken {
            let known = [
                "use crate::catalog::Disposition;",
                "use crate::catalog::{File, OpenFile};",
                "use crate::gate::Permit;",
            ];
            assert!(known.contains(&line), "{}: {line}", file.display());
        }
    }
}

#[test]
fn a_call_is_found_in_each_of_its_forms() {
    let text = "use crate::gate;\nuse crate::{admin, catalog::Route as R, gate};\nlet a = crate::ledger::open();\n\
                //! [`crate::server`] in words is no call\npub(crate) fn f() {}\n";
    let found: Vec<String> = called(text).into_iter().collect();
    assert_eq!(found, ["admin", "catalog", "gate", "ledger"]);
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The module that a file belongs to: the first name below `src`.
fn module_of(file: &Path) -> String {
    let below = file.strip_prefix("src").unwrap();
    let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules that a text calls by `crate::name` or `crate::{name, …}`.
fn called(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            Some(list) => {
                let list = list.split('}').next().unwrap();
                found.extend(list.split(',').map(name).filter(|name| !name.is_empty()));
            }
            None => {
                found.insert(name(after));
            }
        }
    }
    found
}

/// The name at the start of a path.
fn name(path: &str) -> String {
    path.trim().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}
