//! The deadlines of a connection: when it is closed, and for which limit. A state machine without
//! I/O.
//!
//! `http1` and `http2` describe their connection as [`Observed`] and carry out the [`Step`] that
//! [`Deadlines::check`] returns. Each deadline runs from the start of its phase. Single bytes,
//! PINGs and other frames extend none of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::limits::{Limit, Limits};

/// How long an ending connection stays open without a request in flight. An HTTP/2 client needs a
/// round trip to receive the GOAWAY, and requests that cross it still get a response.
const ENDING_GRACE: Duration = Duration::from_secs(1);
/// The same while a client that cannot know of the drain has sent no request since it began. It may
/// have sent one, or is about to.
pub(super) const NEXT_REQUEST_GRACE: Duration = Duration::from_secs(3);
/// The interval of `h2_resets_per_minute`.
const MINUTE: Duration = Duration::from_secs(60);
/// The longest interval between checks while a response is in flight, since its end may not wake
/// the task.
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How many requests an ending connection still accepts, in multiples of its concurrent streams.
/// The client sends them before it receives the GOAWAY. A client that sends more ignores the
/// GOAWAY.
const LATE_REQUESTS_PER_STREAM: u64 = 4;

/// The observed state of a connection after its TLS handshake.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Observed {
    /// Whether the client's HTTP/2 preface, its SETTINGS included, is incomplete.
    pub(super) awaits_preface: bool,
    /// Whether a part of a request's head has arrived.
    pub(super) partial_head: bool,
    /// The number of complete heads received.
    pub(super) requests: u64,
    /// Whether a request is being handled, or a file is being sent.
    pub(super) running: bool,
    /// Whether bytes wait to be sent. Without `running`, they are the rest of a response.
    pub(super) unsent: bool,
    /// A number that changes whenever the client reads some of them.
    pub(super) progress: u64,
    /// The number of streams that the client has reset.
    pub(super) resets: u64,
    /// Whether the budget of frames that do no work is spent.
    pub(super) overspent: bool,
}

/// What to do with a connection after a check.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// Nothing. Check again at this time at the latest, and on every event.
    Wait(Instant),
    /// Accept no further request, by `Connection: close` or GOAWAY, and close once the responses in
    /// flight are sent.
    Finish(Limit),
    /// Close now. Without a limit, the connection was already ending.
    Close(Option<Limit>),
}

/// How the client learns that the connection begins to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DrainNotice {
    /// It does not: over HTTP/1.1, only a response can say that it is the last one.
    None,
    /// By a GOAWAY, after which it sends no further request.
    Goaway,
}

/// The deadlines of one connection.
#[derive(Debug)]
pub(super) struct Deadlines {
    limits: Arc<Limits>,
    opened: Instant,
    idle_since: Instant,
    /// When the first byte of an unfinished head arrived.
    head_since: Option<Instant>,
    /// When the client last read some bytes of a response.
    sent_at: Instant,
    /// When the connection began to end, and its number of requests at that time. The cause is its
    /// age, its number of requests, idleness or a drain.
    ending: Option<(Instant, u64)>,
    /// How long an ending connection stays open before its next request.
    next_grace: Duration,
    requests: u64,
    progress: u64,
    /// The start of the minute in which resets are counted, and the number of resets before it.
    resets: (Instant, u64),
}

impl Deadlines {
    /// Starts the deadlines at the end of the handshake.
    pub(super) fn new(limits: Arc<Limits>, now: Instant) -> Deadlines {
        Deadlines {
            limits,
            opened: now,
            idle_since: now,
            head_since: None,
            sent_at: now,
            ending: None,
            next_grace: ENDING_GRACE,
            requests: 0,
            progress: 0,
            resets: (now, 0),
        }
    }

    /// Ends the connection once no request is in flight, because the gate drains, or the connection
    /// is evicted.
    pub(super) fn drain(&mut self, now: Instant, is_evicted: bool, notice: DrainNotice) {
        let is_unaware = self.requests == 0 || notice == DrainNotice::None;
        if self.ending.is_none() && is_unaware && !is_evicted {
            self.next_grace = NEXT_REQUEST_GRACE;
        }
        self.ending.get_or_insert((now, self.requests));
    }

    /// The number of requests at the last check.
    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// Records the observed state and returns what to do.
    pub(super) fn check(&mut self, now: Instant, observed: &Observed) -> Step {
        if observed.overspent {
            return Step::Close(Some(Limit::H2Frames));
        }
        if self.has_too_many_resets(now, observed.resets) {
            return Step::Close(Some(Limit::H2Resets));
        }
        self.record(now, observed);
        if let Some(limit) = self.limit_to_end(now) {
            return self.finish(now, limit);
        }
        if self.ignores_goaway() {
            return Step::Close(Some(Limit::Requests));
        }
        let next = match self.deadline(observed) {
            // A request may be in flight from the client. It still gets a response, and the client
            // learns that later requests will not.
            Some((deadline, Some(Limit::Idle))) if deadline <= now && self.ending.is_none() => {
                return self.finish(now, Limit::Idle);
            }
            Some((deadline, limit)) if deadline <= now => return Step::Close(limit),
            Some((deadline, _)) => deadline,
            None => now + MAX_CHECK_INTERVAL,
        };
        match self.ending {
            None => Step::Wait(next.min(self.opened + self.limits.connection_age)),
            Some(_) => Step::Wait(next),
        }
    }

    fn finish(&mut self, now: Instant, limit: Limit) -> Step {
        self.ending = Some((now, self.requests));
        Step::Finish(limit)
    }

    /// Whether the client keeps sending requests after the GOAWAY.
    fn ignores_goaway(&self) -> bool {
        let late = u64::from(self.limits.h2_streams) * LATE_REQUESTS_PER_STREAM;
        self.ending.is_some_and(|(_, before)| self.requests > before + late)
    }

    fn record(&mut self, now: Instant, observed: &Observed) {
        let has_new_request = self.requests != observed.requests;
        if observed.running || observed.unsent || has_new_request {
            self.idle_since = now;
        }
        if has_new_request || !observed.partial_head {
            self.head_since = None;
        }
        if observed.partial_head {
            self.head_since.get_or_insert(now);
        }
        if observed.running || !observed.unsent || self.progress != observed.progress {
            self.sent_at = now;
        }
        (self.requests, self.progress) = (observed.requests, observed.progress);
    }

    /// Returns the limit that makes the connection begin to end now, if one does.
    fn limit_to_end(&self, now: Instant) -> Option<Limit> {
        if self.ending.is_some() {
            return None;
        }
        if self.requests >= self.limits.requests_per_connection {
            return Some(Limit::Requests);
        }
        (now >= self.opened + self.limits.connection_age).then_some(Limit::Age)
    }

    /// Returns when the connection must be closed unless its state changes before.
    fn deadline(&self, observed: &Observed) -> Option<(Instant, Option<Limit>)> {
        let (since, allowed, limit) = if observed.awaits_preface {
            (self.opened, self.limits.preface, Limit::Preface)
        } else if let Some(began) = self.head_since {
            (began, self.limits.head, Limit::Head)
        } else if observed.running {
            return None;
        } else if observed.unsent {
            return Some((self.sent_at + self.limits.send, Some(Limit::Send)));
        } else {
            (self.idle_since, self.limits.idle, Limit::Idle)
        };
        let deadline = since + allowed;
        let Some((ending, before)) = self.ending.filter(|_| !observed.running) else {
            return Some((deadline, Some(limit)));
        };
        // An incomplete head does not count as a request in flight.
        let grace = if self.requests == before { self.next_grace } else { ENDING_GRACE };
        let grace = ending.max(since) + grace;
        if limit == Limit::Idle || grace < deadline {
            Some((grace, None))
        } else {
            Some((deadline, Some(limit)))
        }
    }

    fn has_too_many_resets(&mut self, now: Instant, resets: u64) -> bool {
        let (began, before) = self.resets;
        if now.duration_since(began) >= MINUTE {
            self.resets = (now, resets);
            return false;
        }
        resets.saturating_sub(before) > self.limits.h2_resets_per_minute
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Observed = Observed {
        awaits_preface: false,
        partial_head: false,
        requests: 0,
        running: false,
        unsent: false,
        progress: 0,
        resets: 0,
        overspent: false,
    };

    /// Checks a connection every half second until it is closed. `observed` returns its state at a
    /// number of seconds after the handshake.
    fn outcome(
        limits: Limits,
        observed: impl Fn(f64) -> Observed,
    ) -> (Vec<(f64, Limit)>, f64, Option<Limit>) {
        let began = Instant::now();
        let mut deadlines = Deadlines::new(Arc::new(limits), began);
        let mut finishes = Vec::new();
        for half in 0..100_000 {
            let second = f64::from(half) / 2.0;
            match deadlines.check(began + Duration::from_secs_f64(second), &observed(second)) {
                Step::Wait(_) => {}
                Step::Finish(limit) => finishes.push((second, limit)),
                Step::Close(limit) => return (finishes, second, limit),
            }
        }
        panic!("the connection was never closed");
    }

    /// Returns when a connection is closed or begins to end, and for which limit.
    fn closing(observed: impl Fn(f64) -> Observed) -> (f64, Option<Limit>) {
        let (finishes, second, limit) = outcome(Limits::default(), observed);
        finishes.first().map_or((second, limit), |(second, limit)| (*second, Some(*limit)))
    }

    #[test]
    fn each_phase_has_its_own_deadline() {
        assert_eq!(closing(|_| IDLE), (75.0, Some(Limit::Idle)));
        assert_eq!(
            closing(|_| Observed { awaits_preface: true, ..IDLE }),
            (10.0, Some(Limit::Preface))
        );
        let half_head = |second| Observed { partial_head: second >= 30.0, ..IDLE };
        assert_eq!(closing(half_head), (50.0, Some(Limit::Head)));
        assert_eq!(closing(|_| Observed { unsent: true, ..IDLE }), (60.0, Some(Limit::Send)));
        // An incomplete head blocks an HTTP/2 connection, even with requests in flight.
        assert_eq!(
            closing(|_| Observed { partial_head: true, running: true, ..IDLE }),
            (20.0, Some(Limit::Head))
        );
    }

    #[test]
    fn idle_time_starts_at_the_end_of_the_last_response() {
        let once = |second| Observed { running: second < 100.0, requests: 1, ..IDLE };
        assert_eq!(closing(once), (174.5, Some(Limit::Idle)));
        // A request that starts and ends between two checks counts as well.
        let quick = |second| Observed { requests: u64::from(second >= 50.0), ..IDLE };
        assert_eq!(closing(quick), (125.0, Some(Limit::Idle)));
    }

    #[test]
    fn idle_connection_is_closed_after_its_goaway() {
        let (finishes, second, limit) = outcome(Limits::default(), |_| IDLE);
        assert_eq!((finishes, second, limit), (vec![(75.0, Limit::Idle)], 76.0, None));
        // A request that crosses the GOAWAY gets a response.
        let late = |second| Observed { running: (75.5..100.0).contains(&second), ..IDLE };
        let (finishes, second, limit) = outcome(Limits::default(), late);
        assert_eq!((finishes, second, limit), (vec![(75.0, Limit::Idle)], 100.5, None));
    }

    #[test]
    fn partial_frames_do_not_extend_idle_time() {
        // Half the header of a PING counts as a partial head until the other half arrives.
        let pings = |second: f64| Observed { partial_head: second % 8.0 < 4.0, ..IDLE };
        assert_eq!(closing(pings), (76.0, Some(Limit::Idle)));
    }

    #[test]
    fn progress_extends_the_send_deadline_only() {
        let slow = |second: f64| Observed {
            unsent: true,
            progress: (second.min(300.0) / 50.0) as u64,
            ..IDLE
        };
        assert_eq!(closing(slow), (360.0, Some(Limit::Send)));
        let idle = |second: f64| Observed { progress: second as u64, ..IDLE };
        assert_eq!(closing(idle), (75.0, Some(Limit::Idle)));
    }

    #[test]
    fn age_ends_a_connection_after_its_responses() {
        let download = |second| Observed { running: second < 9000.0, requests: 1, ..IDLE };
        let (finishes, second, limit) = outcome(Limits::default(), download);
        assert_eq!(finishes, [(3600.0, Limit::Age)]);
        assert_eq!((second, limit), (9000.5, None));
    }

    #[test]
    fn connection_ends_after_its_last_request() {
        let limits = Limits { requests_per_connection: 5, ..Limits::default() };
        let observed = |second: f64| Observed { requests: second as u64, ..IDLE };
        let (finishes, second, limit) = outcome(limits, |second| observed(second.min(5.0)));
        assert_eq!((finishes, second, limit), (vec![(5.0, Limit::Requests)], 6.0, None));
    }

    #[test]
    fn client_that_ignores_the_goaway_is_disconnected() {
        let limits = Limits { requests_per_connection: 1000, h2_streams: 10, ..Limits::default() };
        let observed =
            |second: f64| Observed { running: true, requests: (second * 10.0) as u64, ..IDLE };
        let (finishes, second, limit) = outcome(limits, observed);
        assert_eq!(finishes, [(100.0, Limit::Requests)]);
        assert_eq!((second, limit), (104.5, Some(Limit::Requests)));
    }

    #[test]
    fn drain_waits_for_responses_in_flight_only() {
        for (what, observed) in [
            ("idle", IDLE),
            ("no preface", Observed { awaits_preface: true, ..IDLE }),
            ("half a head", Observed { partial_head: true, ..IDLE }),
        ] {
            let began = Instant::now();
            let mut deadlines = Deadlines::new(Arc::new(Limits::default()), began);
            let observed = Observed { requests: 1, ..observed };
            deadlines.check(began, &observed);
            deadlines.drain(began + Duration::from_secs(1), false, DrainNotice::Goaway);
            let step = |deadlines: &mut Deadlines, second| {
                deadlines.check(began + Duration::from_secs(second), &observed)
            };
            assert!(matches!(step(&mut deadlines, 1), Step::Wait(_)), "{what}");
            assert_eq!(step(&mut deadlines, 2), Step::Close(None), "{what}");
        }
        let began = Instant::now();
        let mut deadlines = Deadlines::new(Arc::new(Limits::default()), began);
        deadlines.drain(began, false, DrainNotice::None);
        let running = Observed { running: true, ..IDLE };
        assert!(matches!(
            deadlines.check(began + Duration::from_secs(5000), &running),
            Step::Wait(_)
        ));
    }

    #[test]
    fn drain_waits_for_the_next_request_of_an_unaware_client() {
        let grace = NEXT_REQUEST_GRACE.as_secs_f64();
        use DrainNotice::{Goaway, None as Nothing};
        for (is_evicted, before, notice, requested, end) in [
            (false, 0, Goaway, 99.0, grace),
            (false, 0, Goaway, 2.5, 3.5),
            (false, 5, Goaway, 99.0, 1.0),
            (false, 5, Nothing, 99.0, grace),
            (false, 5, Nothing, 2.5, 3.5),
            (true, 0, Nothing, 99.0, 1.0),
            (true, 5, Nothing, 99.0, 1.0),
        ] {
            let began = Instant::now();
            let mut deadlines = Deadlines::new(Arc::new(Limits::default()), began);
            deadlines.check(began, &Observed { requests: before, ..IDLE });
            deadlines.drain(began, is_evicted, notice);
            let closed = (0..100).map(|half| f64::from(half) / 2.0).find(|second| {
                let requests = before + u64::from(*second >= requested);
                let now = began + Duration::from_secs_f64(*second);
                deadlines.check(now, &Observed { requests, ..IDLE }) == Step::Close(None)
            });
            assert_eq!(closed, Some(end), "{is_evicted} {before} {notice:?} {requested}");
        }
    }

    #[test]
    fn only_many_resets_in_a_minute_close() {
        let limits = Limits { h2_resets_per_minute: 60, ..Limits::default() };
        let observed = |rate: f64| {
            move |second: f64| Observed {
                running: second < 500.0,
                resets: (second * rate) as u64,
                ..IDLE
            }
        };
        let (finishes, ..) = outcome(limits.clone(), observed(1.0));
        assert_eq!(finishes, [(574.5, Limit::Idle)], "a player that seeks");
        let (_, second, limit) = outcome(limits, observed(100.0));
        assert_eq!((second, limit), (1.0, Some(Limit::H2Resets)), "a rapid reset");
    }

    #[test]
    fn spent_frame_budget_closes_despite_requests_in_flight() {
        let spent = Observed { running: true, overspent: true, ..IDLE };
        assert_eq!(closing(|_| spent), (0.0, Some(Limit::H2Frames)));
    }

    #[test]
    fn next_check_is_not_after_the_deadline() {
        let began = Instant::now();
        let limits = Limits { idle: Duration::from_secs(3), ..Limits::default() };
        let mut deadlines = Deadlines::new(Arc::new(limits), began);
        assert_eq!(deadlines.check(began, &IDLE), Step::Wait(began + Duration::from_secs(3)));
        let running = Observed { running: true, ..IDLE };
        assert_eq!(deadlines.check(began, &running), Step::Wait(began + MAX_CHECK_INTERVAL));
    }
}
