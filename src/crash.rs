//! Places to die at, for tests of crashes: before and after each commit and each call to Bokbasen.
//!
//! Everyone may call it; it calls nothing of ours. A build without debug assertions, as every release is, has none of it.

/// Which side of a deed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Edge {
    /// It has not been done.
    Before,
    /// It has been done, and nobody knows of it yet.
    After,
}

/// Ends the process at once, as a kill does, where the environment's LOANGATE_CRASH names this place: `commit accepted
/// before`, `send begin after`.
#[cfg(debug_assertions)]
pub(crate) fn point(deed: &str, name: &str, edge: Edge) {
    use std::sync::OnceLock;
    static PLACE: OnceLock<Option<String>> = OnceLock::new();
    let Some(place) = PLACE.get_or_init(|| std::env::var("LOANGATE_CRASH").ok()) else { return };
    let edge = match edge {
        Edge::Before => "before",
        Edge::After => "after",
    };
    let mut words = place.split(' ');
    if [Some(deed), Some(name), Some(edge)] == [words.next(), words.next(), words.next()] {
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn point(_deed: &str, _name: &str, _edge: Edge) {}
