//! Lists of states and other conditions for SQL statements, and the conversion of columns. Both
//! stores use them.
//!
//! The states are literals and not parameters: a partial index is used only if the query has the
//! condition of the index.

use std::sync::LazyLock;

use jiff::{SignedDuration, Timestamp};

use super::Prunable;
use super::brake::Counted;
use crate::loan::{Isbn, LoanState};

/// A doubt that no run confirms within this time is discarded.
const DOUBTS_DISCARDED_AFTER: SignedDuration = SignedDuration::from_hours(24 * 7);
/// The maximum number of doubts of a library: far more than a balance ever acts on.
pub(super) const MAX_DOUBTS: usize = 1000;

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

/// Returns the time, in milliseconds, before which unconfirmed doubts are discarded.
pub(super) fn doubts_discarded_before(now: Timestamp) -> i64 {
    now.checked_sub(DOUBTS_DISCARDED_AFTER).unwrap_or(Timestamp::MIN).as_millisecond()
}

/// Returns the condition on the loans that count towards a limit of the brake.
pub(super) fn counted(counted: Counted) -> &'static str {
    match counted {
        Counted::Lent => "state <> 'refused' AND (end_reason IS NULL OR end_reason <> 'rejected')",
        Counted::Decided => "(end_reason IS NULL OR end_reason <> 'rejected')",
        Counted::Failed => "end_reason = 'rejected'",
    }
}

/// Returns the condition on loans of this kind, without their time.
pub(super) fn prunable(which: Prunable) -> String {
    match which {
        Prunable::NeverLent { .. } => {
            let over = &*OVER;
            format!(
                "(state = 'refused' OR end_reason = 'rejected') AND accepted IS NULL \
                 AND state IN ({over})"
            )
        }
        Prunable::Ended { .. } => "state = 'ended' AND forgotten IS NOT NULL".to_owned(),
    }
}

/// Returns the expression of the time that decides whether a loan of this kind is old enough, and
/// the time before which it must be.
pub(super) fn prunable_age(which: Prunable) -> (&'static str, Timestamp) {
    match which {
        Prunable::NeverLent { before, .. } => ("changed", before),
        Prunable::Ended { before } => ("coalesce(ended, changed)", before),
    }
}

/// Returns whether a refusal that ends at this time is still active. It is needed to prevent
/// another begin.
pub(super) fn is_refusal_active(which: Prunable, retry: Option<i64>) -> bool {
    let Prunable::NeverLent { now, .. } = which else { return false };
    retry.is_some_and(|retry| retry > now.as_millisecond())
}

/// Returns the column of a title. An ISBN has thirteen digits, so it always fits.
pub(super) fn isbn_column(isbn: Isbn) -> i64 {
    i64::try_from(isbn.number()).unwrap_or_default()
}
