//! The audit trail: chains of keyed hashes over the steps of all loans. SQLite has one chain, and
//! PostgreSQL one for each process and library.
//!
//! The hash of a step covers the step, the loan's row after it, and the hash of the previous step.
//! The executor extends the chain in the transaction that writes the step. [`super::verify`] walks
//! the chain and reports each step and loan that was changed, removed or moved.
//!
//! The newest link is also stored in a head file outside of the database, at most about a second
//! later. It reveals that the last steps were removed. Copy it to another machine for more
//! certainty.
//!
//! The hash of a row is salted. When a borrower is forgotten, the salts of the loan's steps are
//! erased, and a new step covers the row without the borrower. When loans are pruned, anchors
//! replace their steps.
//!
//! Each chain of PostgreSQL names the newest links of the other chains of its library now and then,
//! in head records. So the last steps of a chain cannot be removed without those of the others.
//!
//! The accesses of the staff are steps without a loan, in the chain of their library.
//!
//! This module computes hashes and compares them. Queries are in the stores.

mod chain;
pub(super) mod chain_heads;
pub(super) mod head_file;
pub(super) mod head_record;
mod head_writer;
pub(super) mod process_file;
mod removal;
mod walk;

pub use chain::{AuditKey, AuditStep, Head};
pub(super) use chain::{NewStep, StoredStep};
pub(super) use head_writer::{HeadRecorder, HeadWriter};
pub(super) use removal::{Removal, Surroundings};
pub(super) use walk::{Anchor, ExpectedEnd, Walk};
pub use walk::{Chains, Verified};
