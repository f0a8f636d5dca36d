//! What a gate has counted since its start, and what it has now: a part of its status.
//!
//! `status` shows it. `loangate top` calculates rates from two looks, so that they are as recent as
//! its looks are.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::Parts;
use crate::telemetry::{self, Readings};

/// What a gate has counted since its start.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StatusCounts)]
pub(super) struct Counts {
    /// Loans that Bokbasen accepted.
    loans: u64,
    /// Answered requests, by what decided: `cache`, `ledger` or `registered` under a loan.
    answered: BTreeMap<String, u64>,
    /// Refused requests, by the type of the problem.
    refused: BTreeMap<String, u64>,
    /// Body bytes sent to readers.
    bytes: u64,
    /// Calls to Bokbasen.
    lending: CallCounts,
    /// Requests to each storage.
    origins: BTreeMap<String, CallCounts>,
}

/// Calls of another system.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StatusCallCounts)]
struct CallCounts {
    answered: u64,
    failed: u64,
}

/// What a gate has at this moment.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StatusCurrent)]
pub(super) struct Current {
    /// Open connections of readers.
    connections: u64,
    /// The most connections that may be open.
    connections_limit: usize,
    /// Response bodies in progress.
    streams: u64,
    /// Ends that this gate sends and Bokbasen has not acknowledged.
    ends_waiting: u64,
    /// Whether the ledger can be written.
    ledger_writable: bool,
}

/// Reads the metrics.
pub(super) fn read(parts: &Parts) -> (Counts, Current) {
    let readings = parts.metrics.readings();
    let current = Current {
        connections: readings.connections,
        connections_limit: parts.requests.connections_limit(),
        streams: readings.streams,
        ends_waiting: readings.ends_waiting,
        ledger_writable: readings.is_ledger_writable,
    };
    (Counts::of(readings), current)
}

impl Counts {
    fn of(readings: Readings) -> Counts {
        let origins = readings.origins.into_iter();
        Counts {
            loans: readings.loans,
            answered: readings.answered,
            refused: readings.refused,
            bytes: readings.bytes,
            lending: calls(readings.lending),
            origins: origins.map(|(name, counts)| (name, calls(counts))).collect(),
        }
    }
}

fn calls(counts: telemetry::Calls) -> CallCounts {
    CallCounts { answered: counts.answered, failed: counts.failed }
}
