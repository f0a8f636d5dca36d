//! Transactions: a connection of the gate, a connection of the server, CPU, and the flush of the
//! log.

use std::collections::VecDeque;

use crate::calibration as cost;
use crate::deployment::{DATABASE_CORES, NODE_CONNECTIONS, SERVER_CONNECTIONS};
use crate::queues::{GroupCommit, SECOND, Servers};

use super::{Cell, Event};

/// How long a transaction waits for a connection before its request gets 503.
const DEADLINE: u64 = 2 * SECOND;

#[derive(Clone, Copy)]
pub(super) enum Work {
    Read {
        session: u32,
    },
    Intent {
        session: u32,
    },
    Pending {
        session: u32,
    },
    Accepted {
        session: u32,
    },
    Opened {
        session: u32,
    },
    Refused {
        session: u32,
    },
    /// Bokbasen could not be reached.
    NotSent {
        session: u32,
    },
    Ending {
        asked: u64,
    },
    Ended,
    Meter {
        front: u32,
        library: u32,
        rows: u32,
    },
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Created,
    WaitsForGate,
    WaitsForServer,
    Runs,
}

pub(super) struct Transaction {
    gate: usize,
    work: Work,
    serial: u64,
    stage: Stage,
}

pub(super) struct Database {
    pub(super) cores: Servers,
    pub(super) log: GroupCommit,
    is_up: bool,
    free_connections: usize,
    waiting: VecDeque<(u32, u64)>,
    serial: u64,
}

impl Database {
    pub(super) fn new() -> Database {
        Database {
            cores: Servers::new(DATABASE_CORES),
            log: GroupCommit::default(),
            is_up: true,
            free_connections: SERVER_CONNECTIONS,
            waiting: VecDeque::new(),
            serial: 0,
        }
    }

    /// Returns CPU time in microseconds, with the vacuum that it causes.
    fn cpu(work: Work) -> f64 {
        let micros = match work {
            Work::Read { .. } => cost::READ,
            Work::Intent { .. } => cost::INTENT,
            Work::Opened { .. } => cost::OPENED,
            Work::Meter { rows, .. } => cost::METER_BATCH + f64::from(rows) * cost::METER_ROW,
            _ => cost::STEP,
        };
        micros * (1.0 + cost::VACUUM)
    }
}

impl Cell<'_> {
    /// Creates a transaction, which is submitted at `ready`.
    pub(super) fn create_transaction(&mut self, gate: usize, work: Work, ready: u64) {
        self.database.serial += 1;
        let (serial, stage) = (self.database.serial, Stage::Created);
        let transaction = self.transactions.insert(Transaction { gate, work, serial, stage });
        if ready > self.queue.now {
            self.queue.schedule(ready, Event::Submit { transaction: transaction as u32 });
        } else {
            self.submit(transaction as u32);
        }
    }

    pub(super) fn submit(&mut self, number: u32) {
        let transaction = &mut self.transactions[number as usize];
        transaction.stage = Stage::WaitsForGate;
        let (gate, serial) = (transaction.gate, transaction.serial);
        self.gates[gate].waiting.push_back((number, serial));
        self.start_waiting(gate);
        let waits = |transaction: &Transaction| {
            transaction.serial == serial && transaction.stage != Stage::Runs
        };
        if self.transactions.get(number as usize).is_some_and(waits) {
            let deadline = Event::Deadline { transaction: number, serial };
            self.queue.schedule(self.queue.now + DEADLINE, deadline);
        }
    }

    /// Gives the free connections of a gate, and then of the server, to waiting transactions.
    fn start_waiting(&mut self, gate: usize) {
        while self.database.is_up && self.gates[gate].free_connections > 0 {
            let Some((number, serial)) = self.gates[gate].waiting.pop_front() else { break };
            let Some(transaction) = self.transactions.get_mut(number as usize) else { continue };
            if transaction.serial == serial {
                transaction.stage = Stage::WaitsForServer;
                self.gates[gate].free_connections -= 1;
                self.database.waiting.push_back((number, serial));
            }
        }
        while self.database.is_up && self.database.free_connections > 0 {
            let Some((number, serial)) = self.database.waiting.pop_front() else { break };
            let Some(transaction) = self.transactions.get_mut(number as usize) else { continue };
            if transaction.serial == serial {
                transaction.stage = Stage::Runs;
                self.database.free_connections -= 1;
                self.run(number, serial);
            }
        }
    }

    fn run(&mut self, number: u32, serial: u64) {
        let work = self.transactions[number as usize].work;
        let database = &mut self.database;
        let (_, computed) = database.cores.add(self.queue.now, Database::cpu(work));
        let durable = if matches!(work, Work::Read { .. }) {
            computed
        } else {
            self.outcome.writes += 1;
            self.outcome.metering_writes += u64::from(matches!(work, Work::Meter { .. }));
            database.log.commit(computed, (cost::COMMIT * 1e3) as u64)
        };
        self.interval.transactions += 1;
        let done = durable + (cost::ROUND_TRIPS * 1e3) as u64;
        self.queue.schedule(done, Event::Done { transaction: number, serial });
    }

    pub(super) fn transaction_done(&mut self, number: u32, serial: u64) {
        let runs = |transaction: &Transaction| transaction.serial == serial;
        if !self.transactions.get(number as usize).is_some_and(runs) {
            return;
        }
        let Transaction { gate, work, .. } = self.remove(number);
        let now = self.queue.now;
        match work {
            Work::Read { session } => self.found(session),
            Work::Intent { session } => self.intended(session),
            Work::Pending { session } => {
                self.queue.schedule(now + SECOND, Event::Poll { session });
            }
            Work::Accepted { session } => {
                self.create_transaction(gate, Work::Opened { session }, now);
            }
            Work::Opened { session } => self.registered(session),
            Work::Refused { session } => self.refused(session),
            Work::NotSent { session } => self.unavailable(session),
            Work::Ending { asked } => self.ending(asked),
            Work::Ended => self.backlog -= 1,
            Work::Meter { front, .. } => self.write_next_counts(front),
        }
        self.start_waiting(gate);
    }

    /// Removes a transaction, and frees its connections.
    fn remove(&mut self, number: u32) -> Transaction {
        let transaction = self.transactions.remove(number as usize);
        let connections = &mut self.gates[transaction.gate].free_connections;
        match transaction.stage {
            Stage::Created | Stage::WaitsForGate => {}
            Stage::WaitsForServer => *connections += 1,
            Stage::Runs => {
                *connections += 1;
                self.database.free_connections += 1;
            }
        }
        transaction
    }

    pub(super) fn deadline(&mut self, number: u32, serial: u64) {
        let waits = |transaction: &Transaction| {
            transaction.serial == serial && transaction.stage != Stage::Runs
        };
        if self.transactions.get(number as usize).is_some_and(waits) {
            self.fail(number);
        }
    }

    /// Ends a transaction without a result. Its reader gets 503; background work tries again.
    fn fail(&mut self, number: u32) {
        let Transaction { gate, work, .. } = self.remove(number);
        let now = self.queue.now;
        let again = now + SECOND / 2 + self.random.u64(..SECOND);
        match work {
            Work::Read { session } | Work::Intent { session } | Work::NotSent { session } => {
                self.unavailable(session);
            }
            Work::Pending { .. }
            | Work::Accepted { .. }
            | Work::Opened { .. }
            | Work::Refused { .. }
            | Work::Ended => self.create_transaction(gate, work, again),
            Work::Ending { .. } => self.queue.schedule(again, Event::EndAgain),
            Work::Meter { front, library, rows } => {
                self.return_counts(front, (library, rows));
            }
        }
        debug_assert!(self.gates[gate].free_connections <= NODE_CONNECTIONS);
    }

    pub(super) fn database_fails(&mut self) {
        self.database.is_up = false;
        let lost = |(number, transaction): (usize, &Transaction)| {
            matches!(transaction.stage, Stage::Runs | Stage::WaitsForServer)
                .then_some(number as u32)
        };
        let lost: Vec<u32> = self.transactions.iter().filter_map(lost).collect();
        for number in lost {
            self.fail(number);
        }
    }

    pub(super) fn database_recovers(&mut self) {
        self.database.is_up = true;
        for gate in 0..self.gates.len() {
            self.start_waiting(gate);
        }
    }

    /// Runs a read on a connection of its own.
    pub(super) fn run_feed(&mut self) {
        if self.database.is_up {
            self.database.cores.add(self.queue.now, cost::FEED);
            self.interval.transactions += 1;
        }
    }
}
