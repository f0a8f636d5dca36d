//! Other people's programs that a test drives: looked for, and done without where they are not installed.

use std::io::Write;
use std::path::PathBuf;

/// Where this program is. Where it is not, a sentence says how to get it, and the test is to return; under
/// LOANGATE_TEST_ALL=1 it fails instead, so that a complete run cannot leave anything out without being seen.
pub(crate) fn program(name: &str, package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file());
    if found.is_none() {
        let sentence = format!("skipped: {name} is not installed; apt-get install {package}");
        let all = std::env::var("LOANGATE_TEST_ALL").is_ok_and(|all| all == "1");
        assert!(!all, "{sentence}");
        // Not by print!, which the test harness keeps to itself where a test passes.
        let _ = writeln!(std::io::stderr(), "{sentence}");
    }
    found
}
