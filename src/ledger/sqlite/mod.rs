//! The ledger in a SQLite file: schema, rows, queries, the write connection and maintenance.

pub(super) mod connection;
pub(super) mod damaged_rows;
pub(super) mod delivered;
pub(super) mod doubts;
pub(super) mod maintenance;
mod open;
mod open_check;
pub(super) mod opened_mark;
pub(super) mod process;
mod prune;
mod reader;
pub(super) mod row;

pub use delivered::Delivered;
pub use doubts::Doubts;
pub use maintenance::{backup, check};
pub use open_check::probe;
pub use prune::{Prunable, Pruned, prune};
