//! The rows of `meta` that a copy of a ledger writes.
//!
//! `copy` writes them. Both stores read the first one when a gate opens the ledger.

/// The name of the row that a destination has until its copy is complete. No gate opens it.
pub(super) const IN_PROGRESS: &str = "copy in progress";

/// The beginning of the names of the rows that say where a ledger was copied from. A number
/// follows: a ledger may be copied several times.
pub(super) const COPIED_FROM: &str = "copied from ";
