//! Lists of states for SQL statements, and the conversion of times. Both stores use them.
//!
//! The states are literals and not parameters: a partial index is used only if the query has the
//! condition of the index.

use std::sync::LazyLock;

use jiff::Timestamp;

use crate::loan::LoanState;

/// The states of live loans, as the list of an IN. Partial indexes have conditions on these lists,
/// and a database uses such an index only if a query has the same list.
pub(super) static LIVE: LazyLock<String> = LazyLock::new(|| list(LoanState::is_live));
/// The states of loans that are over.
pub(super) static OVER: LazyLock<String> = LazyLock::new(|| list(|state| !state.is_live()));
/// The states in which Bokbasen's decision is not known.
pub(super) static UNDECIDED: LazyLock<String> = LazyLock::new(|| list(LoanState::is_undecided));
/// The states after an end here.
pub(super) static CLOSED: LazyLock<String> = LazyLock::new(|| list(LoanState::has_ended));

fn list(includes: impl Fn(LoanState) -> bool) -> String {
    let states = LoanState::ALL.into_iter().filter(|state| includes(*state));
    states.map(|state| format!("'{}'", state.name())).collect::<Vec<_>>().join(", ")
}

/// Converts milliseconds to a timestamp. `Timestamp::from_millisecond` rejects the last second of
/// the range, but Bokbasen may use it as a due time.
pub(super) fn timestamp(millis: i64) -> Result<Timestamp, jiff::Error> {
    let nanoseconds = i32::try_from(millis.rem_euclid(1000) * 1_000_000).unwrap_or_default();
    Timestamp::new(millis.div_euclid(1000), nanoseconds)
}
