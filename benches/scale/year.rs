//! A year of a sample of borrowers: every loan with its sessions and its end.
//!
//! The sample gives the rates of the busiest hour and the stocks (live loans, open connections) per
//! inhabitant. They are the same for every deployment, which differs only in its people.

use fastrand::Rng;

use crate::deployment::{AUDIOBOOK, AUDIOBOOKS, E_BOOK, Kind, LOANS_PER_YEAR, RETURNED};
use crate::distributions::{Demand, exponential, time_of_day};
use crate::queues::{DAY, EventQueue, HOUR, SECOND};

/// Number of borrowers that are simulated.
pub(crate) const SAMPLE: f64 = 200_000.0;
/// Days before the year, after which the number of live loans is steady.
const WARM_UP: u64 = 42;

/// Events per second, for each inhabitant.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rates {
    pub(crate) begins: f64,
    pub(crate) sessions: f64,
    pub(crate) requests: f64,
    pub(crate) bytes: f64,
    pub(crate) returns: f64,
    pub(crate) expiries: f64,
}

impl Rates {
    fn all(&mut self) -> [&mut f64; 6] {
        let Rates { begins, sessions, requests, bytes, returns, expiries } = self;
        [begins, sessions, requests, bytes, returns, expiries]
    }

    /// Each rate of this and another one, joined.
    fn join(mut self, mut other: Rates, join: impl Fn(f64, f64) -> f64) -> Rates {
        for (one, other) in self.all().into_iter().zip(other.all()) {
            *one = join(*one, *other);
        }
        self
    }

    pub(crate) fn times(self, factor: f64) -> Rates {
        self.join(self, |rate, _| rate * factor)
    }
}

pub(crate) struct Year {
    pub(crate) mean: Rates,
    /// The busiest hour of each rate.
    pub(crate) peak: Rates,
    /// Most live loans and open connections, for each inhabitant.
    pub(crate) live_loans: f64,
    pub(crate) connections: f64,
    /// Requests per second in each hour of the day: of the mean day and of the busiest one.
    pub(crate) mean_day: [f64; 24],
    pub(crate) busiest_day: [f64; 24],
    pub(crate) events: u64,
}

#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
enum Event {
    Begin,
    Session { loan: u32 },
    SessionEnd,
    Return { loan: u32 },
    Expiry { loan: u32 },
}

struct Loan {
    audiobook: bool,
    sessions_left: u32,
    due: u64,
    live: bool,
}

struct Sample {
    random: Rng,
    queue: EventQueue<Event>,
    demand: Demand,
    loans: Vec<Loan>,
    hours: Vec<Rates>,
    live: [u64; 2],
    open: [u64; 2],
}

/// Simulates a year.
pub(crate) fn simulate(seed: u64) -> Year {
    let end = (WARM_UP + 365) * DAY;
    let mut sample = Sample {
        random: Rng::with_seed(seed),
        queue: EventQueue::new(),
        demand: Demand::new(),
        loans: Vec::new(),
        hours: vec![Rates::default(); (end / HOUR) as usize],
        live: [0; 2],
        open: [0; 2],
    };
    sample.queue.schedule(0, Event::Begin);
    while let Some(event) = sample.queue.next(end) {
        sample.handle(event);
    }
    sample.summary()
}

impl Sample {
    fn handle(&mut self, event: Event) {
        let now = self.queue.now;
        match event {
            Event::Begin => {
                let rate = SAMPLE * LOANS_PER_YEAR / (365 * DAY) as f64;
                let next = self.demand.next(&mut self.random, now, rate);
                self.queue.schedule(next, Event::Begin);
                self.begin();
            }
            Event::Session { loan } => self.session(loan),
            Event::SessionEnd => self.open[0] -= 1,
            Event::Return { loan } => self.end(loan, |rates| &mut rates.returns),
            Event::Expiry { loan } => self.end(loan, |rates| &mut rates.expiries),
        }
    }

    fn rates(&mut self, at: u64) -> &mut Rates {
        let hour = ((at / HOUR) as usize).min(self.hours.len() - 1);
        &mut self.hours[hour]
    }

    fn begin(&mut self) {
        let now = self.queue.now;
        let audiobook = self.random.f64() < AUDIOBOOKS;
        let kind = kind(audiobook);
        let sessions_left = self.random.u32(kind.sessions.0..=kind.sessions.1);
        let due = now + kind.days * DAY;
        let loan = self.loans.len() as u32;
        self.loans.push(Loan { audiobook, sessions_left, due, live: true });
        self.rates(now).begins += 1.0;
        count(&mut self.live);
        self.queue.schedule(due, Event::Expiry { loan });
        self.session(loan);
    }

    /// Reads for one session, and schedules the next one or the return.
    fn session(&mut self, number: u32) {
        let now = self.queue.now;
        let loan = &mut self.loans[number as usize];
        if !loan.live {
            return;
        }
        let kind = kind(loan.audiobook);
        loan.sessions_left -= 1;
        let (left, due) = (loan.sessions_left, loan.due);
        self.rates(now).sessions += 1.0;
        self.add_requests(kind);
        count(&mut self.open);
        let length = (f64::from(kind.requests) * kind.pace * SECOND as f64) as u64;
        self.queue.schedule(now + length, Event::SessionEnd);
        if left > 0 {
            let gap = exponential(&mut self.random, kind.gap * DAY as f64) as u64;
            let next = (now + gap) / DAY * DAY + time_of_day(&mut self.random);
            let next = if next > now + length { next } else { next + DAY };
            if next < due {
                self.queue.schedule(next, Event::Session { loan: number });
            }
        } else if self.random.f64() < RETURNED {
            let after = exponential(&mut self.random, 2.0 * HOUR as f64) as u64;
            self.queue.schedule(now + length + after, Event::Return { loan: number });
        }
    }

    /// Counts the requests of a session in the hours in which they are sent.
    fn add_requests(&mut self, kind: &Kind) {
        let pace = (kind.pace * SECOND as f64) as u64;
        let (mut at, mut left) = (self.queue.now, u64::from(kind.requests));
        while left > 0 {
            let in_this_hour = (HOUR - at % HOUR).div_ceil(pace).min(left);
            let rates = self.rates(at);
            rates.requests += in_this_hour as f64;
            rates.bytes += in_this_hour as f64 * kind.bytes;
            at += in_this_hour * pace;
            left -= in_this_hour;
        }
    }

    fn end(&mut self, loan: u32, rate: fn(&mut Rates) -> &mut f64) {
        let loan = &mut self.loans[loan as usize];
        if !std::mem::take(&mut loan.live) {
            return;
        }
        self.live[0] -= 1;
        let now = self.queue.now;
        *rate(self.rates(now)) += 1.0;
    }

    fn summary(&self) -> Year {
        let per_second = 1.0 / (SAMPLE * 3600.0);
        let hours = &self.hours[(WARM_UP * 24) as usize..];
        let fold = |join: fn(f64, f64) -> f64| {
            let start = Rates::default();
            hours.iter().fold(start, |all, hour| all.join(*hour, join)).times(per_second)
        };
        let day = |day: &[Rates]| -> f64 { day.iter().map(|hour| hour.requests).sum() };
        let days: Vec<&[Rates]> = hours.chunks(24).collect();
        let busiest = days.iter().max_by(|one, two| day(one).total_cmp(&day(two))).unwrap();
        let requests = |hour: &Rates| hour.requests * per_second;
        let mean_of = |hour: usize| {
            days.iter().map(|day| requests(&day[hour])).sum::<f64>() / days.len() as f64
        };
        Year {
            mean: fold(|sum, rate| sum + rate).times(1.0 / hours.len() as f64),
            peak: fold(f64::max),
            live_loans: self.live[1] as f64 / SAMPLE,
            connections: self.open[1] as f64 / SAMPLE,
            mean_day: std::array::from_fn(mean_of),
            busiest_day: std::array::from_fn(|hour| requests(&busiest[hour])),
            events: self.queue.count(),
        }
    }
}

/// Adds one to a count, and notes the largest.
fn count(count: &mut [u64; 2]) {
    count[0] += 1;
    count[1] = count[1].max(count[0]);
}

pub(crate) fn kind(audiobook: bool) -> &'static Kind {
    if audiobook { &AUDIOBOOK } else { &E_BOOK }
}
