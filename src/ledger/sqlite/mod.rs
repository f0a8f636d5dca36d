//! The ledger in a SQLite file.
//!
//! Only the other modules of the ledger call it. `connection` and `transaction` implement
//! [`super::store`], `process` implements [`super::membership`], and [`Queries`] reads. The
//! functions for support commands open the file themselves, also while a gate is running.

mod accesses;
mod anchors;
mod brake_counts;
mod chain;
mod connection;
mod copy_marks;
mod delivered;
mod doubts;
mod end_shares;
mod examinations;
mod exclusive;
mod listing;
mod maintenance;
mod open;
mod open_check;
mod pauses;
mod process;
mod prune;
mod queries;
mod reconcile;
mod reports;
mod requests;
mod restore;
mod retention;
mod row;
mod sql;
mod transaction;
mod usage;
mod verify;
mod worklist;

pub(super) use accesses::prune_accesses;
pub(super) use chain::read_head;
pub(super) use connection::BEGIN;
pub(super) use exclusive::ExclusiveFile;
pub use maintenance::backup;
pub(super) use maintenance::{check, empty_log, open as open_to_read};
pub(super) use open::{Opened, open};
pub use open_check::probe;
pub(super) use prune::{count_prunable, prune};
pub(super) use queries::Queries;
pub(super) use reconcile::assume_lost_steps;
pub use reconcile::reconcile_file;
pub use restore::{RestoreError, Restored, restore};
pub(super) use verify::{check_loans, verify};

#[cfg(test)]
mod tests;
