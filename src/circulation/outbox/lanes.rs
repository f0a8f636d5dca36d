//! The lanes of the outbox, and how many calls each may have in flight.

use std::collections::VecDeque;
use std::time::Duration;

use crate::circulation::Circulation;
use crate::lending::{CallKind, Passage};
use crate::loan::Loan;

/// Maximum number of the breaker's trial calls in flight per lane. Either an old or a new end may
/// succeed, so hanging trials of one lane must not use up those of the other.
const LANE_TRIALS: usize = 2;

/// A group of calls that is limited separately from the other lanes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Lane {
    /// Fresh ends, the newest first.
    Newest,
    /// Fresh ends, the oldest first.
    Oldest,
    /// Failed ends.
    Retries,
}

impl Lane {
    /// Order in which the lanes get free calls: of a few trials, the newest ends get the first.
    pub(super) const ALL: [Lane; 3] = [Lane::Newest, Lane::Oldest, Lane::Retries];

    pub(super) fn is_retries(self) -> bool {
        self == Lane::Retries
    }
}

/// Ends that a lane has read, and the number of its calls in flight.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Due ends as last read from the ledger, each with its arrival number.
    pub(super) next: VecDeque<(u64, Loan)>,
    pub(super) in_flight: usize,
}

/// The queues of all lanes.
#[derive(Debug, Default)]
pub(super) struct Queues([Queue; 3]);

impl Queues {
    pub(super) fn of(&mut self, lane: Lane) -> &mut Queue {
        let [newest, oldest, retries] = &mut self.0;
        match lane {
            Lane::Newest => newest,
            Lane::Oldest => oldest,
            Lane::Retries => retries,
        }
    }
}

/// How many ends a lane may have in flight.
#[derive(Clone, Copy, Debug)]
pub(super) enum Capacity {
    Open(usize),
    /// A few trials, which show whether Bokbasen responds again. The breaker holds the others back.
    Trial(usize),
    Closed(Duration),
}

impl Capacity {
    pub(super) fn has_room(self, in_flight: usize) -> bool {
        match self {
            Capacity::Open(limit) => in_flight < limit,
            Capacity::Trial(limit) => in_flight < limit,
            Capacity::Closed(_) => false,
        }
    }
}

/// Returns how many ends a lane may have in flight now.
pub(super) fn capacity(circulation: &Circulation, lane: Lane) -> Capacity {
    let lending = &circulation.inner.lending;
    capacity_of(
        lane,
        lending.most_at_once(CallKind::End),
        lending.passage(CallKind::End, lane.is_retries()),
    )
}

/// Returns the limit of a lane if all lanes together may have `limit` ends in flight.
pub(super) fn capacity_of(lane: Lane, limit: usize, passage: Passage) -> Capacity {
    let limit = match lane {
        Lane::Oldest => limit.div_ceil(2),
        Lane::Newest => limit / 2,
        Lane::Retries => (limit / 2).max(1),
    };
    match passage {
        Passage::Open => Capacity::Open(limit),
        Passage::Trial => Capacity::Trial(limit.min(LANE_TRIALS)),
        Passage::Closed(wait) => Capacity::Closed(wait),
    }
}
