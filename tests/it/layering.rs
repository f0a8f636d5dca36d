//! Rules for the sources: modules call only what the table in `src/lib.rs` allows, and lines are
//! not too long.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Files that are not modules of the table.
const ROOTS: [&str; 2] = ["lib", "main"];
/// What all modules but the vocabulary may call besides their rows.
const FOR_ALL: &str = "telemetry";

/// Which modules a row of the table allows.
#[derive(Debug, PartialEq)]
enum MayCall {
    Everything,
    /// The modules of the row itself.
    EachOther,
    These(BTreeSet<String>),
}

/// Returns the rows of the table in the crate's documentation: modules, and what they may call.
fn table(documentation: &str) -> Vec<(BTreeSet<String>, MayCall)> {
    let lines =
        documentation.lines().skip_while(|line| *line != "//! | module | may call |").skip(2);
    lines
        .map_while(|line| line.strip_prefix("//! | "))
        .map(|row| {
            let (modules, may_call) = row.split_once('|').unwrap();
            let may_call = match may_call.trim_end_matches('|').trim() {
                "everything" => MayCall::Everything,
                "each other" => MayCall::EachOther,
                _ => MayCall::These(quoted(may_call)),
            };
            (quoted(modules), may_call)
        })
        .collect()
}

/// The words between backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn modules_call_only_what_the_table_allows() {
    let table = table(&fs::read_to_string("src/lib.rs").unwrap());
    assert!(!table.is_empty(), "the table in src/lib.rs was not found");
    let vocabulary = table.iter().filter(|(_, may_call)| *may_call == MayCall::EachOther);
    let vocabulary: BTreeSet<&str> =
        vocabulary.flat_map(|(modules, _)| modules.iter().map(String::as_str)).collect();
    let mut rows: BTreeMap<&str, Vec<&MayCall>> = BTreeMap::new();
    for (modules, may_call) in &table {
        for module in modules {
            rows.entry(module).or_default().push(may_call);
        }
    }
    let mut seen = BTreeSet::new();
    for file in sources(Path::new("src")) {
        let module = module_of(&file);
        if ROOTS.contains(&module.as_str()) {
            continue;
        }
        let rows = rows.get(module.as_str());
        let rows = rows.unwrap_or_else(|| panic!("no row for {module}: add one"));
        for called in called(&fs::read_to_string(&file).unwrap()) {
            let allows = |row: &&MayCall| match row {
                MayCall::Everything => true,
                MayCall::EachOther => vocabulary.contains(called.as_str()),
                MayCall::These(these) => {
                    let is_for_all = called == FOR_ALL || vocabulary.contains(called.as_str());
                    is_for_all || these.contains(&called)
                }
            };
            let is_allowed = called == module || rows.iter().any(allows);
            assert!(is_allowed, "{} calls {called}, which its rows do not allow", file.display());
        }
        seen.insert(module);
    }
    let rows: BTreeSet<String> = rows.into_keys().map(str::to_owned).collect();
    assert_eq!(seen, rows, "a row without a module");
}

#[test]
fn table_is_read_with_its_notes() {
    let text = "//! | module | may call |\n//! |---|---|\n//! | `a`, `b` | each other |\n\
                //! | `c` | `a` (reads), `d` |\n//! | `e` | |\n//! | `f` | everything |\n\
                //!\n//! | `g` | |\n";
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let expected = vec![
        (set(&["a", "b"]), MayCall::EachOther),
        (set(&["c"]), MayCall::These(set(&["a", "d"]))),
        (set(&["e"]), MayCall::These(set(&[]))),
        (set(&["f"]), MayCall::Everything),
    ];
    assert_eq!(table(text), expected);
}

#[test]
fn delivery_uses_only_the_permit_and_the_file() {
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

/// `rustfmt` leaves long strings and comments as they are.
#[test]
fn lines_have_at_most_100_columns() {
    for directory in ["src", "tests", "benches"] {
        for file in sources(Path::new(directory)) {
            let text = fs::read_to_string(&file).unwrap();
            let is_long = |line: &&str| line.chars().count() > 100 && !line.starts_with("<html");
            let long: Vec<&str> = text.lines().filter(is_long).collect();
            assert!(long.is_empty(), "{}: {long:#?}", file.display());
        }
    }
}

#[test]
fn module_references_are_found_in_each_form() {
    let text = "use crate::gate;\nuse crate::{admin, catalog::Route as R, gate};\n\
                let a = crate::ledger::open();\n\
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
