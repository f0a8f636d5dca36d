//! Calls to Bokbasen: limited in number, begins first, with a circuit breaker.

use std::collections::VecDeque;

use crate::calibration as cost;
use crate::deployment::LENDING_CALLS;
use crate::distributions::lognormal;
use crate::queues::SECOND;

use super::database::Work;
use super::{Cell, Event};

/// `lending.timeout`. After the first calls have failed by it, the breaker blocks further ones.
const TIMEOUT: u64 = 10 * SECOND;
/// Longest time after an outage until a trial call closes the breaker.
const TRIAL: u64 = 30 * SECOND;
const POLL_AGAIN: u64 = 30 * SECOND;

#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Call {
    Begin { session: u32 },
    Poll { session: u32 },
    End,
}

pub(super) struct Lending {
    is_up: bool,
    breaker_opens: Option<u64>,
    free: usize,
    /// Ends use at most half of the calls.
    free_for_ends: usize,
    waiting: VecDeque<Call>,
    waiting_ends: u64,
}

impl Lending {
    pub(super) fn new(gates: usize) -> Lending {
        let free = gates * LENDING_CALLS;
        Lending {
            is_up: true,
            breaker_opens: None,
            free,
            free_for_ends: free / 2,
            waiting: VecDeque::new(),
            waiting_ends: 0,
        }
    }
}

impl Cell<'_> {
    /// Calls Bokbasen, now or when a call is free.
    pub(super) fn call(&mut self, call: Call) {
        match call {
            Call::End => self.lending.waiting_ends += 1,
            _ => self.lending.waiting.push_back(call),
        }
        self.start_calls();
    }

    fn start_calls(&mut self) {
        let now = self.queue.now;
        let is_open = self.lending.breaker_opens.is_some_and(|at| now >= at);
        while is_open && let Some(call) = self.lending.waiting.pop_front() {
            self.failed(call);
        }
        while self.lending.free > 0 {
            let call = if let Some(call) = self.lending.waiting.pop_front() {
                call
            } else if !is_open && self.lending.waiting_ends > 0 && self.lending.free_for_ends > 0 {
                self.lending.waiting_ends -= 1;
                self.lending.free_for_ends -= 1;
                Call::End
            } else {
                return;
            };
            self.lending.free -= 1;
            let succeeds = self.lending.is_up;
            let wait = if succeeds {
                (lognormal(&mut self.random, cost::LENDING, 0.6) * 1e3) as u64
            } else {
                TIMEOUT
            };
            self.queue.schedule(now + wait, Event::Answer { call, succeeds });
        }
    }

    pub(super) fn answered(&mut self, call: Call, succeeds: bool) {
        self.lending.free += 1;
        if call == Call::End {
            self.lending.free_for_ends += 1;
        }
        if succeeds && self.lending.is_up {
            self.accepted(call);
        } else {
            self.failed(call);
        }
        self.start_calls();
    }

    fn accepted(&mut self, call: Call) {
        let is_refused = self.random.f64() < cost::REFUSED;
        let is_pending = self.random.f64() < cost::PENDING;
        let (session, work) = match call {
            Call::Begin { session } if is_refused => (session, Work::Refused { session }),
            Call::Begin { session } if is_pending => (session, Work::Pending { session }),
            Call::Begin { session } | Call::Poll { session } => {
                (session, Work::Accepted { session })
            }
            Call::End => {
                let gate = self.random.usize(..self.gates.len());
                return self.create_transaction(gate, Work::Ended, self.queue.now);
            }
        };
        let gate = self.gate_of(self.sessions[session as usize].front);
        self.create_transaction(gate, work, self.queue.now);
    }

    fn failed(&mut self, call: Call) {
        let now = self.queue.now;
        match call {
            Call::Begin { session } => {
                let gate = self.gate_of(self.sessions[session as usize].front);
                self.create_transaction(gate, Work::NotSent { session }, now);
            }
            Call::Poll { session } => {
                let jitter = self.random.u64(..SECOND);
                self.queue.schedule(now + POLL_AGAIN + jitter, Event::Poll { session });
            }
            Call::End => self.lending.waiting_ends += 1,
        }
    }

    pub(super) fn lending_fails(&mut self) {
        self.lending.is_up = false;
        self.lending.breaker_opens = Some(self.queue.now + TIMEOUT);
    }

    pub(super) fn lending_recovers(&mut self) {
        self.lending.is_up = true;
        let trial = self.random.u64(..TRIAL);
        self.queue.schedule(self.queue.now + trial, Event::BreakerCloses);
    }

    pub(super) fn breaker_closes(&mut self) {
        self.lending.breaker_opens = None;
        self.start_calls();
    }
}
