//! Checks the links of every Markdown page: the file exists, and the heading in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The directories that have Markdown pages.
const DIRECTORIES: [&str; 9] = [
    "",
    ".github",
    "benches",
    "certs",
    "docs",
    "docs/adr",
    "src/samples/assets",
    "tests",
    "tests/conformance",
];

/// Returns the Markdown pages of the repository.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = Vec::new();
    for directory in DIRECTORIES {
        let directory = root.join(directory);
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(entries.filter(|path| path.extension().is_some_and(|kind| kind == "md")));
    }
    pages
}

/// Returns the text without fenced code, which may contain brackets and number signs.
fn without_code(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// Returns the targets of the links and images of a page.
fn targets(text: &str) -> Vec<&str> {
    let after = text.split("](").skip(1);
    after.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target).collect()
}

/// Returns the anchors of the headings of a page, as GitHub derives them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut checked = 0;
    let mut broken = Vec::new();
    for page in pages() {
        let text = without_code(&std::fs::read_to_string(&page).unwrap());
        for target in targets(&text).into_iter().filter(|target| !target.contains("://")) {
            checked += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let linked =
                if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let has_anchor = || {
                let text = std::fs::read_to_string(&linked).unwrap_or_default();
                anchors(&without_code(&text)).contains(anchor)
            };
            if !linked.exists() || !(anchor.is_empty() || has_anchor()) {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(checked > 200, "only {checked} links were read");
    assert!(broken.is_empty(), "broken links: {broken:#?}");
}

/// From the README to the file that decides 403 `loan-ended`, over one page.
#[test]
fn newcomer_finds_what_decides_loan_ended_in_three_steps() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    assert!(targets(&readme).contains(&"docs/architecture.md"));
    let page = std::fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let row = page
        .lines()
        .find(|line| line.starts_with('|') && line.contains("403 `loan-ended`"))
        .expect("no row about loan-ended");
    let decides = targets(row).into_iter().any(|target| {
        let source = std::fs::read_to_string(root.join("docs").join(target)).unwrap();
        source.contains("Problem::LoanEnded")
    });
    assert!(decides, "no file of this row makes the problem: {row}");
}
