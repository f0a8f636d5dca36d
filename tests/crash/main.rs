//! Crash tests: the gate is a separate process, which is killed at random moments and crashes at
//! every critical point.
//!
//! The sandbox and the origin run in the test process and survive the crashes, as Bokbasen and the
//! storage do. `kills` kills the gate at random moments under load; `crash_points` crashes it
//! before and after each commit and each call; `reports` does both around usage reports.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

// Shared with `tests/it`, which uses more of it.
#[allow(dead_code, unused_imports)]
#[path = "../support/mod.rs"]
mod support;

mod crash_points;
mod kills;
mod reports;
