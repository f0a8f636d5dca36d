//! Crashes: the gate is a process of its own, and dies at random moments and at every place where
//! it matters.
//!
//! The sandbox and the origin live in the tests' process, and outlive it as Bokbasen and the
//! storage do. `kills` are kills at random moments under load; `crash_points` are the places before
//! and after each commit and each call, one by one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

// Shared with the other tests, which use more of it.
#[allow(dead_code, unused_imports)]
#[path = "../support/mod.rs"]
mod support;

mod crash_points;
mod kills;
