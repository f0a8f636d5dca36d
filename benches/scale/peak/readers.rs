//! Sessions of readers: the first request, which may begin a loan, and the hits after it.

use crate::calibration as cost;
use crate::deployment::{AUDIOBOOKS, TITLES};
use crate::distributions::exponential;
use crate::queues::{MINUTE, SECOND};
use crate::year::kind;

use super::database::Work;
use super::lending::Call;
use super::{Cell, Event, hit_cost};

/// `Retry-After` of a 503, in seconds. Apps double it each time, up to `LONGEST_RETRY`.
const RETRY_AFTER: f64 = 5.0;
const LONGEST_RETRY: f64 = 300.0;
/// Attempts before an app reports the error, and how often its user then tries again later.
const ATTEMPTS: u32 = 8;
const ROUNDS: u32 = 3;
const PAUSE: f64 = 20.0 * MINUTE as f64;
/// `metadata_ttl`, in seconds.
const METADATA_TTL: u32 = 60;
/// Number of titles that count as popular.
pub(crate) const POPULAR: u32 = 1_000;
/// Mean days between two sessions of a loan.
const GAP: f64 = 1.2;

#[derive(Clone, Copy)]
pub(super) struct Session {
    pub(super) front: u32,
    library: u32,
    title: u32,
    audiobook: bool,
    begins_loan: bool,
    left: u32,
    /// When the first request of this attempt arrived.
    asked: u64,
    attempts: u32,
    rounds: u32,
}

impl Cell<'_> {
    /// Opens the sessions that are running when the hour begins.
    pub(super) fn resume_running_sessions(&mut self) {
        for audiobook in [true, false] {
            let kind = kind(audiobook);
            let part =
                if audiobook { self.audiobook_sessions() } else { 1.0 - self.audiobook_sessions() };
            let length = f64::from(kind.requests) * kind.pace;
            for _ in 0..(self.plan.rates.sessions * part * length) as u64 {
                let left = self.random.u32(1..=kind.requests);
                let session = self.new_session(audiobook, false, left);
                let pace = (kind.pace * SECOND as f64) as u64;
                let at = self.random.u64(..pace);
                self.queue.schedule(at, Event::Request { session });
            }
        }
    }

    /// Returns the part of sessions that are of audiobooks.
    fn audiobook_sessions(&self) -> f64 {
        let mean = |audiobook| {
            let kind = kind(audiobook);
            f64::from(kind.sessions.0 + kind.sessions.1) / 2.0
        };
        let (audio, text) = (AUDIOBOOKS * mean(true), (1.0 - AUDIOBOOKS) * mean(false));
        audio / (audio + text)
    }

    fn new_session(&mut self, audiobook: bool, begins_loan: bool, left: u32) -> u32 {
        let library = self.plan.libraries.choose(&mut self.random) as u32;
        let title = self.plan.titles.choose(&mut self.random) as u32;
        let front = self.random.u32(..self.plan.fronts as u32);
        let (asked, attempts, rounds) = (self.queue.now, 0, 0);
        let session = Session {
            front,
            library,
            title,
            audiobook,
            begins_loan,
            left,
            asked,
            attempts,
            rounds,
        };
        self.sessions.insert(session) as u32
    }

    /// A session begins, as soon as a Poisson process says so.
    pub(super) fn arrival(&mut self) {
        let rates = self.plan.rates;
        let next = exponential(&mut self.random, SECOND as f64 / rates.sessions) as u64;
        self.queue.schedule(self.queue.now + next, Event::Arrival);
        let begins_loan = self.random.f64() < rates.begins / rates.sessions;
        let audiobooks = if begins_loan { AUDIOBOOKS } else { self.audiobook_sessions() };
        let audiobook = self.random.f64() < audiobooks;
        let session = self.new_session(audiobook, begins_loan, kind(audiobook).requests);
        self.first_request(session);
    }

    /// Connects, and requests the first bytes: a hit, a miss or a registration.
    pub(super) fn first_request(&mut self, number: u32) {
        let now = self.queue.now;
        let front = self.choose_front();
        let session = &mut self.sessions[number as usize];
        session.front = front;
        session.asked = now;
        let begins_loan = session.begins_loan;
        let gate = self.gate_of(front);
        let (work, work_cost) = if begins_loan {
            (Work::Intent { session: number }, cost::REGISTRATION)
        } else if self.is_cached(front) {
            self.gates[gate].cores.add(now, cost::HANDSHAKE);
            return self.request(number);
        } else {
            (Work::Read { session: number }, cost::MISS)
        };
        let (_, ready) = self.gates[gate].cores.add(now, cost::HANDSHAKE + work_cost);
        self.create_transaction(gate, work, ready);
    }

    /// Chooses a gate as a load balancer does, among those that are up.
    pub(super) fn choose_front(&mut self) -> u32 {
        loop {
            let front = self.random.u32(..self.plan.fronts as u32);
            if self.gates[self.gate_of(front)].is_up {
                return front;
            }
        }
    }

    pub(super) fn gate_of(&self, front: u32) -> usize {
        front as usize % self.plan.gates
    }

    /// Whether an earlier session of the loan was at this gate, recently enough.
    fn is_cached(&mut self, front: u32) -> bool {
        let (mut age, earlier) = (0.0, self.random.u32(1..=8));
        for _ in 0..earlier {
            age += exponential(&mut self.random, GAP * 86_400.0);
            if age > self.plan.cached_for {
                return false;
            }
            if self.random.u32(..self.plan.fronts as u32) == front {
                return true;
            }
        }
        false
    }

    /// A request whose decision is cached.
    pub(super) fn request(&mut self, number: u32) {
        let now = self.queue.now;
        let session = self.sessions[number as usize];
        let gate = self.gate_of(session.front);
        if !self.gates[gate].is_up {
            self.sessions[number as usize].begins_loan = false;
            return self.first_request(number);
        }
        let kind = kind(session.audiobook);
        let (start, _) = self.gates[gate].cores.add(now, hit_cost(kind.bytes));
        let has_metadata = self.find_metadata(&session);
        if self.is_counted() {
            self.outcome.hit.add(start - now + cost::HIT as u64);
            self.outcome.hits += 1;
            self.outcome.metadata_misses += u64::from(!has_metadata);
            self.outcome.popular += u64::from(session.title < POPULAR);
        }
        self.interval.hits += 1;
        self.fronts[session.front as usize].delivered.push((session.library, 1));
        if session.left <= 1 || !self.plan.has_hits {
            self.sessions.remove(number as usize);
            return;
        }
        self.sessions[number as usize].left -= 1;
        let pace = kind.pace * SECOND as f64 * (0.9 + 0.2 * self.random.f64());
        self.queue.schedule(now + pace as u64, Event::Request { session: number });
    }

    /// Whether the gate has cached the metadata of a file. Caches them if not.
    fn find_metadata(&mut self, session: &Session) -> bool {
        let now = (self.queue.now / SECOND) as u32;
        let stale = &mut self.metadata[session.front as usize * TITLES + session.title as usize];
        let is_cached = now < *stale;
        if !is_cached {
            *stale = now + METADATA_TTL;
        }
        is_cached
    }

    /// Responds to the first request after the ledger found the loan.
    pub(super) fn found(&mut self, session: u32) {
        self.interval.misses += 1;
        if self.is_counted() {
            let wait = self.queue.now - self.sessions[session as usize].asked;
            self.outcome.miss.add(wait);
            self.outcome.misses += 1;
        }
        self.request(session);
    }

    /// Responds to the first request after the loan is opened.
    pub(super) fn registered(&mut self, session: u32) {
        self.interval.accepted += 1;
        if self.is_counted() {
            let wait = self.queue.now - self.sessions[session as usize].asked;
            self.outcome.registration.add(wait);
        }
        self.sessions[session as usize].begins_loan = false;
        self.request(session);
    }

    pub(super) fn intended(&mut self, session: u32) {
        self.call(Call::Begin { session });
    }

    /// Ends a session whose loan Bokbasen refused.
    pub(super) fn refused(&mut self, session: u32) {
        self.sessions.remove(session as usize);
    }

    /// Responds with 503. The app tries again, and later its user.
    pub(super) fn unavailable(&mut self, number: u32) {
        self.interval.unavailable += 1;
        let session = &mut self.sessions[number as usize];
        session.attempts += 1;
        let wait = if session.attempts < ATTEMPTS {
            let backoff = RETRY_AFTER * f64::from(1 << (session.attempts - 1).min(10));
            backoff.min(LONGEST_RETRY) * SECOND as f64 * (0.75 + 0.5 * self.random.f64())
        } else if session.rounds + 1 < ROUNDS {
            session.rounds += 1;
            session.attempts = 0;
            exponential(&mut self.random, PAUSE)
        } else {
            self.outcome.abandoned += 1;
            self.sessions.remove(number as usize);
            return;
        };
        self.queue.schedule(self.queue.now + wait as u64, Event::Retry { session: number });
    }
}
