//! Places to fail at, for tests: before and after each commit and each call to Bokbasen, and in
//! background tasks.
//!
//! Everyone may call it; it calls nothing of ours. A build without debug assertions, as every
//! release is, has none of it.

/// Which side of a deed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Edge {
    /// It has not been done.
    Before,
    /// It has been done, and nobody knows of it yet.
    After,
}

/// Ends the process at once, as a kill does, where the environment's LOANGATE_CRASH names this
/// place: `commit accepted before`, `send begin after`. Panics at each place that LOANGATE_PANIC
/// names, separated by commas, the first time that it is passed; the name `*` is any.
#[cfg(debug_assertions)]
pub(crate) fn point(deed: &str, name: &str, edge: Edge) {
    use std::sync::OnceLock;
    static CRASH: OnceLock<Option<String>> = OnceLock::new();
    static PANIC: OnceLock<Option<String>> = OnceLock::new();
    if let Some(place) = CRASH.get_or_init(|| std::env::var("LOANGATE_CRASH").ok())
        && is_at(place, deed, name, edge)
    {
        std::process::abort();
    }
    if let Some(places) = PANIC.get_or_init(|| std::env::var("LOANGATE_PANIC").ok())
        && places.split(',').any(|place| is_at(place, deed, name, edge))
    {
        panic_once(deed, name, edge);
    }
}

#[cfg(debug_assertions)]
fn is_at(place: &str, deed: &str, name: &str, edge: Edge) -> bool {
    let edge = match edge {
        Edge::Before => "before",
        Edge::After => "after",
    };
    let mut words = place.split(' ');
    let (first, second, third) = (words.next(), words.next(), words.next());
    first == Some(deed) && (second == Some(name) || second == Some("*")) && third == Some(edge)
}

#[cfg(debug_assertions)]
#[allow(clippy::panic)] // the purpose of it
fn panic_once(deed: &str, name: &str, edge: Edge) {
    use std::collections::HashSet;
    use std::sync::{Mutex, PoisonError};
    static PASSED: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let place = format!("{deed} {name} {edge:?}");
    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    if passed.get_or_insert_default().insert(place) {
        drop(passed);
        panic!("{deed} {name}: a test wants it");
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn point(_deed: &str, _name: &str, _edge: Edge) {}
