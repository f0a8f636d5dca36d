//! The busiest hour of one cell: the fullest database of a region, and its part of the gates.
//!
//! Every request, transaction and call to Bokbasen is an event. Cores, connections of a gate,
//! connections of the server and calls to Bokbasen are limited and have waiting lines. A fault can
//! interrupt the hour.
//!
//! Where a region has one database, the cell is the region. Otherwise it is a sample: `fronts` are
//! the region's real gates, of which only this database's part is simulated. They determine which
//! decisions a gate has cached, and how many rows one metering transaction has.

mod background;
mod database;
mod lending;
mod outcome;
mod plan;
mod readers;

use std::collections::VecDeque;

use fastrand::Rng;
use slab::Slab;

use crate::calibration as cost;
use crate::deployment::{GATE_CORES, NODE_CONNECTIONS, TITLES};
use crate::queues::{EventQueue, MINUTE, SECOND, Servers};

use background::Front;
use database::{Database, Transaction};
use lending::{Call, Lending};
pub(crate) use outcome::{Interval, Outcome};
pub(crate) use plan::Plan;
use readers::Session;

/// Length of an interval of [`Interval`].
pub(crate) const INTERVAL: u64 = 10 * SECOND;
/// Time before anything is counted, in which lines and caches fill.
const WARM_UP: u64 = MINUTE;

/// What fails, from when to when, in microseconds.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    None,
    Lending { from: u64, to: u64 },
    Database { from: u64, to: u64 },
    Gate { at: u64 },
}

#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
enum Event {
    Arrival,
    Request {
        session: u32,
    },
    /// The reader of a session sends its first request again.
    Retry {
        session: u32,
    },
    Submit {
        transaction: u32,
    },
    Done {
        transaction: u32,
        serial: u64,
    },
    Deadline {
        transaction: u32,
        serial: u64,
    },
    Poll {
        session: u32,
    },
    Answer {
        call: Call,
        succeeds: bool,
    },
    End,
    EndAgain,
    SendEnd,
    Flush {
        front: u32,
    },
    Feed {
        front: u32,
    },
    FaultBegins,
    FaultEnds,
    BreakerCloses,
    Tick,
}

struct Gate {
    cores: Servers,
    is_up: bool,
    free_connections: usize,
    waiting: VecDeque<(u32, u64)>,
}

struct Cell<'a> {
    plan: &'a Plan,
    fault: Fault,
    random: Rng,
    queue: EventQueue<Event>,
    gates: Vec<Gate>,
    fronts: Vec<Front>,
    /// When the metadata of a title becomes stale, in seconds, by front and title.
    metadata: Vec<u32>,
    sessions: Slab<Session>,
    transactions: Slab<Transaction>,
    database: Database,
    lending: Lending,
    /// Ends that Bokbasen has not acknowledged.
    backlog: u64,
    interval: Interval,
    outcome: Outcome,
}

/// Simulates a cell at the rates of its busiest hour.
pub(crate) fn simulate(plan: &Plan, fault: Fault, length: u64, seed: u64) -> Outcome {
    let gate = Gate {
        cores: Servers::new(GATE_CORES),
        is_up: true,
        free_connections: NODE_CONNECTIONS,
        waiting: VecDeque::new(),
    };
    let mut cell = Cell {
        plan,
        fault,
        random: Rng::with_seed(seed),
        queue: EventQueue::new(),
        gates: std::iter::repeat_with(|| gate.clone_empty()).take(plan.gates).collect(),
        fronts: (0..plan.fronts).map(|_| Front::default()).collect(),
        metadata: vec![0; plan.fronts * TITLES],
        sessions: Slab::new(),
        transactions: Slab::new(),
        database: Database::new(),
        lending: Lending::new(plan.gates),
        backlog: 0,
        interval: Interval::default(),
        outcome: Outcome::default(),
    };
    cell.start();
    while let Some(event) = cell.queue.next(length) {
        cell.handle(event);
    }
    cell.finish(length)
}

impl Gate {
    fn clone_empty(&self) -> Gate {
        Gate { cores: self.cores.clone(), waiting: VecDeque::new(), ..*self }
    }
}

impl Cell<'_> {
    fn start(&mut self) {
        if self.plan.has_hits {
            self.resume_running_sessions();
        }
        for front in 0..self.plan.fronts as u32 {
            let flush = self.random.u64(..5 * SECOND);
            self.queue.schedule(flush, Event::Flush { front });
            let feed = self.random.u64(..SECOND / 2);
            self.queue.schedule(feed, Event::Feed { front });
        }
        for event in [Event::Arrival, Event::End] {
            self.queue.schedule(0, event);
        }
        self.queue.schedule(INTERVAL, Event::Tick);
        let (begins, ends) = match self.fault {
            Fault::None => return,
            Fault::Gate { at } => (at, None),
            Fault::Lending { from, to } | Fault::Database { from, to } => (from, Some(to)),
        };
        self.queue.schedule(begins, Event::FaultBegins);
        if let Some(at) = ends {
            self.queue.schedule(at, Event::FaultEnds);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrival => self.arrival(),
            Event::Request { session } => self.request(session),
            Event::Retry { session } => self.first_request(session),
            Event::Submit { transaction } => self.submit(transaction),
            Event::Done { transaction, serial } => self.transaction_done(transaction, serial),
            Event::Deadline { transaction, serial } => self.deadline(transaction, serial),
            Event::Poll { session } => self.call(Call::Poll { session }),
            Event::Answer { call, succeeds } => self.answered(call, succeeds),
            Event::End => self.end_arrival(),
            Event::EndAgain => self.end_loan(),
            Event::SendEnd => self.call(Call::End),
            Event::Flush { front } => self.flush(front),
            Event::Feed { front } => self.poll_feed(front),
            Event::FaultBegins => self.fault_begins(),
            Event::FaultEnds => self.fault_ends(),
            Event::BreakerCloses => self.breaker_closes(),
            Event::Tick => self.tick(),
        }
    }

    fn fault_begins(&mut self) {
        match self.fault {
            Fault::None => {}
            Fault::Lending { .. } => self.lending_fails(),
            Fault::Database { .. } => self.database_fails(),
            Fault::Gate { .. } => self.gates[0].is_up = false,
        }
    }

    fn fault_ends(&mut self) {
        match self.fault {
            Fault::None | Fault::Gate { .. } => {}
            Fault::Lending { .. } => self.lending_recovers(),
            Fault::Database { .. } => self.database_recovers(),
        }
    }

    fn is_counted(&self) -> bool {
        self.queue.now >= WARM_UP
    }

    fn tick(&mut self) {
        let now = self.queue.now;
        self.queue.schedule(now + INTERVAL, Event::Tick);
        let interval = Interval { backlog: self.backlog, ..std::mem::take(&mut self.interval) };
        self.outcome.timeline.push(interval);
    }

    fn finish(mut self, length: u64) -> Outcome {
        let cores = |gate: &Gate| gate.cores.busy / (length as f64 * gate.cores.count() as f64);
        self.outcome.gate_use = self.gates.iter().map(cores).fold(0.0, f64::max);
        let database = &self.database;
        self.outcome.database_use =
            database.cores.busy / (length as f64 * database.cores.count() as f64);
        self.outcome.log_flushes = database.log.flushes;
        self.outcome.events = self.queue.count();
        self.outcome.seconds = length as f64 / SECOND as f64;
        self.outcome
    }
}

/// Returns the CPU time of a request for `bytes`, in microseconds.
fn hit_cost(bytes: f64) -> f64 {
    cost::HIT + bytes / 1e9 * cost::BYTES * 1e6
}
