//! Crash points for tests: before and after each commit and each call to Bokbasen, and in
//! background tasks. Defects for tests of `loangate drill`, which must find them.
//!
//! Any module may call [`point`] and [`has_defect`]. It depends on no other module. Builds without
//! debug assertions, such as every release, contain no crash points and no defects.

/// Whether a crash point is before or after its operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Edge {
    /// The operation has not started.
    Before,
    /// The operation is complete, but its result is not reported yet.
    After,
}

/// Aborts the process if the environment variable LOANGATE_CRASH names this point, for example
/// `commit accepted before` or `send begin after`.
///
/// Panics if the list in LOANGATE_PANIC, separated by commas, names this point, but only the first
/// time that it is reached. The name `*` matches every name.
#[cfg(debug_assertions)]
pub(crate) fn point(operation: &str, name: &str, edge: Edge) {
    use std::sync::OnceLock;
    static CRASH: OnceLock<Option<String>> = OnceLock::new();
    static PANIC: OnceLock<Option<String>> = OnceLock::new();
    if let Some(place) = CRASH.get_or_init(|| std::env::var("LOANGATE_CRASH").ok())
        && is_at(place, operation, name, edge)
    {
        std::process::abort();
    }
    if let Some(places) = PANIC.get_or_init(|| std::env::var("LOANGATE_PANIC").ok())
        && places.split(',').any(|place| is_at(place, operation, name, edge))
    {
        panic_once(operation, name, edge);
    }
}

#[cfg(debug_assertions)]
fn is_at(place: &str, operation: &str, name: &str, edge: Edge) -> bool {
    let edge = match edge {
        Edge::Before => "before",
        Edge::After => "after",
    };
    let mut words = place.split(' ');
    let (first, second, third) = (words.next(), words.next(), words.next());
    first == Some(operation) && (second == Some(name) || second == Some("*")) && third == Some(edge)
}

#[cfg(debug_assertions)]
#[allow(clippy::panic)] // a panic is its purpose
fn panic_once(operation: &str, name: &str, edge: Edge) {
    use std::collections::HashSet;
    use std::sync::Mutex;
    static PASSED: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let place = format!("{operation} {name} {edge:?}");
    let mut passed = crate::lock::lock(&PASSED);
    if passed.get_or_insert_default().insert(place) {
        drop(passed);
        panic!("{operation} {name}: requested by LOANGATE_PANIC");
    }
}

/// Does nothing in builds without debug assertions.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn point(_operation: &str, _name: &str, _edge: Edge) {}

/// Returns whether LOANGATE_DEFECT names this defect, which a drill must find.
#[cfg(debug_assertions)]
pub(crate) fn has_defect(name: &str) -> bool {
    use std::sync::OnceLock;
    static DEFECT: OnceLock<Option<String>> = OnceLock::new();
    DEFECT.get_or_init(|| std::env::var("LOANGATE_DEFECT").ok()).as_deref() == Some(name)
}

/// Returns false in builds without debug assertions.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) const fn has_defect(_name: &str) -> bool {
    false
}
