//! What a simulation counts.

use crate::queues::Waits;

/// What happened in one [interval](super::INTERVAL).
#[derive(Clone, Copy, Default)]
pub(crate) struct Interval {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    /// Requests that got 503.
    pub(crate) unavailable: u64,
    pub(crate) accepted: u64,
    /// Ends that Bokbasen has not acknowledged, at the end of the interval.
    pub(crate) backlog: u64,
    pub(crate) transactions: u64,
}

#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) hit: Waits,
    pub(crate) miss: Waits,
    pub(crate) registration: Waits,
    pub(crate) end: Waits,
    /// How long a gate takes to write its counts.
    pub(crate) flush: Waits,
    pub(crate) timeline: Vec<Interval>,
    /// Requests whose reader gave up for good.
    pub(crate) abandoned: u64,
    pub(crate) gate_use: f64,
    pub(crate) database_use: f64,
    pub(crate) writes: u64,
    pub(crate) metering_writes: u64,
    pub(crate) log_flushes: u64,
    /// Hits and misses that found no metadata of the file, and so queried the storage.
    pub(crate) metadata_misses: u64,
    pub(crate) popular: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) events: u64,
    pub(crate) seconds: f64,
}
