//! When a connection is closed, and for which limit: a state machine without I/O.
//!
//! The HTTP/1.1 and the HTTP/2 loop describe what they see of their connection as [`Seen`], and do
//! what [`Step`] says. Each deadline runs from the start of its phase, so that single bytes, PINGs
//! and other frames extend none of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::limits::{Limit, Limits};

/// How long a connection that is ending may stay open while nothing runs on it: an HTTP/2 client
/// needs a round trip to learn that its requests under way are still answered.
const ENDING_GRACE: Duration = Duration::from_secs(1);
/// The interval of `h2_resets_per_minute`.
const MINUTE: Duration = Duration::from_secs(60);
/// The longest wait while an answer runs, whose end may pass unseen.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Requests that an ending connection may still carry, in multiples of its concurrent streams:
/// those that the client sends before the GOAWAY arrives. A client that ignores it has more.
const LATE_REQUESTS: u64 = 4;

/// What can be seen of a connection after its TLS handshake.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// The client's HTTP/2 preface is not complete, its SETTINGS included.
    pub(super) awaits_preface: bool,
    /// A part of a request's head has arrived.
    pub(super) partial_head: bool,
    /// The heads that have arrived whole.
    pub(super) requests: u64,
    /// A request is being handled, or a file is being sent.
    pub(super) running: bool,
    /// Something waits to be sent. Without `running` that is the rest of an answer.
    pub(super) unsent: bool,
    /// A number that changes whenever the client takes some of it.
    pub(super) progress: u64,
    /// The streams that the client has reset.
    pub(super) resets: u64,
    /// The budget of frames that do no work is spent.
    pub(super) overspent: bool,
}

/// What to do with a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// Nothing; look again at this time at the latest, and whenever something happens.
    Wait(Instant),
    /// Accept no further request, and close once the running answers are sent: `Connection: close`
    /// or GOAWAY.
    Finish(Limit),
    /// Close now. Without a limit the connection was ending anyway.
    Close(Option<Limit>),
}

/// The deadlines of one connection.
#[derive(Debug)]
pub(super) struct Deadlines {
    limits: Arc<Limits>,
    opened: Instant,
    idle_since: Instant,
    /// When the first byte of an unfinished head arrived.
    head_since: Option<Instant>,
    /// When the client last took something of an answer.
    sent_at: Instant,
    /// When the connection began to end, for its age, its requests or a drain, and the requests
    /// until then.
    ending: Option<(Instant, u64)>,
    requests: u64,
    progress: u64,
    /// When the minute began that resets are counted in, and how many there were before.
    resets: (Instant, u64),
}

impl Deadlines {
    /// Starts when the handshake is over.
    pub(super) fn new(limits: Arc<Limits>, now: Instant) -> Deadlines {
        Deadlines {
            limits,
            opened: now,
            idle_since: now,
            head_since: None,
            sent_at: now,
            ending: None,
            requests: 0,
            progress: 0,
            resets: (now, 0),
        }
    }

    /// The gate drains: the connection ends once nothing runs on it.
    pub(super) fn drain(&mut self, now: Instant) {
        self.ending.get_or_insert((now, self.requests));
    }

    /// The requests that had been seen at the last look.
    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// Notes what is seen now, and says what to do.
    pub(super) fn look(&mut self, now: Instant, seen: &Seen) -> Step {
        if seen.overspent {
            return Step::Close(Some(Limit::H2Frames));
        }
        if self.has_too_many_resets(now, seen.resets) {
            return Step::Close(Some(Limit::H2Resets));
        }
        self.note(now, seen);
        if let Some(limit) = self.ends_for(now) {
            return self.finish(now, limit);
        }
        if self.ignores_its_end() {
            return Step::Close(Some(Limit::Requests));
        }
        let next = match self.deadline(seen) {
            // A request may be on its way: it is answered, and the client learns that no other will
            // be.
            Some((deadline, Some(Limit::Idle))) if deadline <= now && self.ending.is_none() => {
                return self.finish(now, Limit::Idle);
            }
            Some((deadline, limit)) if deadline <= now => return Step::Close(limit),
            Some((deadline, _)) => deadline,
            None => now + LONGEST_WAIT,
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

    /// Whether the client sends requests although it has been asked to stop.
    fn ignores_its_end(&self) -> bool {
        let late = u64::from(self.limits.h2_streams) * LATE_REQUESTS;
        self.ending.is_some_and(|(_, before)| self.requests > before + late)
    }

    fn note(&mut self, now: Instant, seen: &Seen) {
        let has_new_request = self.requests != seen.requests;
        if seen.running || seen.unsent || has_new_request {
            self.idle_since = now;
        }
        if has_new_request || !seen.partial_head {
            self.head_since = None;
        }
        if seen.partial_head {
            self.head_since.get_or_insert(now);
        }
        if seen.running || !seen.unsent || self.progress != seen.progress {
            self.sent_at = now;
        }
        (self.requests, self.progress) = (seen.requests, seen.progress);
    }

    /// The limit for which the connection begins to end now.
    fn ends_for(&self, now: Instant) -> Option<Limit> {
        if self.ending.is_some() {
            return None;
        }
        if self.requests >= self.limits.requests_per_connection {
            return Some(Limit::Requests);
        }
        (now >= self.opened + self.limits.connection_age).then_some(Limit::Age)
    }

    /// When the connection is to be closed if nothing happens before.
    fn deadline(&self, seen: &Seen) -> Option<(Instant, Option<Limit>)> {
        let (since, allowed, limit) = if seen.awaits_preface {
            (self.opened, self.limits.preface, Limit::Preface)
        } else if let Some(began) = self.head_since {
            (began, self.limits.head, Limit::Head)
        } else if seen.running {
            return None;
        } else if seen.unsent {
            return Some((self.sent_at + self.limits.send, Some(Limit::Send)));
        } else {
            (self.idle_since, self.limits.idle, Limit::Idle)
        };
        let deadline = since + allowed;
        let Some((ending, _)) = self.ending.filter(|_| !seen.running) else {
            return Some((deadline, Some(limit)));
        };
        // A head that is not complete is no running answer.
        let grace = ending.max(since) + ENDING_GRACE;
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

    const IDLE: Seen = Seen {
        awaits_preface: false,
        partial_head: false,
        requests: 0,
        running: false,
        unsent: false,
        progress: 0,
        resets: 0,
        overspent: false,
    };

    /// A connection that is looked at every half second; `seen` depends on the second since its
    /// handshake.
    fn fate(limits: Limits, seen: impl Fn(f64) -> Seen) -> (Vec<(f64, Limit)>, f64, Option<Limit>) {
        let began = Instant::now();
        let mut deadlines = Deadlines::new(Arc::new(limits), began);
        let mut finishes = Vec::new();
        for half in 0..100_000 {
            let second = f64::from(half) / 2.0;
            match deadlines.look(began + Duration::from_secs_f64(second), &seen(second)) {
                Step::Wait(_) => {}
                Step::Finish(limit) => finishes.push((second, limit)),
                Step::Close(limit) => return (finishes, second, limit),
            }
        }
        panic!("it was never closed");
    }

    /// When it is closed, or begins to end, and for which limit.
    fn closed(seen: impl Fn(f64) -> Seen) -> (f64, Option<Limit>) {
        let (finishes, second, limit) = fate(Limits::default(), seen);
        finishes.first().map_or((second, limit), |(second, limit)| (*second, Some(*limit)))
    }

    #[test]
    fn each_silence_has_its_own_deadline() {
        assert_eq!(closed(|_| IDLE), (75.0, Some(Limit::Idle)));
        assert_eq!(closed(|_| Seen { awaits_preface: true, ..IDLE }), (10.0, Some(Limit::Preface)));
        let half_head = |second| Seen { partial_head: second >= 30.0, ..IDLE };
        assert_eq!(closed(half_head), (50.0, Some(Limit::Head)));
        assert_eq!(closed(|_| Seen { unsent: true, ..IDLE }), (60.0, Some(Limit::Send)));
        // An unfinished head blocks an HTTP/2 connection whatever runs on it.
        assert_eq!(
            closed(|_| Seen { partial_head: true, running: true, ..IDLE }),
            (20.0, Some(Limit::Head))
        );
    }

    #[test]
    fn idle_time_runs_from_the_end_of_the_last_answer() {
        let once = |second| Seen { running: second < 100.0, requests: 1, ..IDLE };
        assert_eq!(closed(once), (174.5, Some(Limit::Idle)));
        // A request that is answered between two looks counts as well.
        let quick = |second| Seen { requests: u64::from(second >= 50.0), ..IDLE };
        assert_eq!(closed(quick), (125.0, Some(Limit::Idle)));
    }

    #[test]
    fn an_idle_connection_is_closed_after_its_goodbye() {
        let (finishes, second, limit) = fate(Limits::default(), |_| IDLE);
        assert_eq!((finishes, second, limit), (vec![(75.0, Limit::Idle)], 76.0, None));
        // A request that crosses the goodbye is answered.
        let late = |second| Seen { running: (75.5..100.0).contains(&second), ..IDLE };
        let (finishes, second, limit) = fate(Limits::default(), late);
        assert_eq!((finishes, second, limit), (vec![(75.0, Limit::Idle)], 100.5, None));
    }

    #[test]
    fn parts_of_frames_do_not_extend_idle_time() {
        // Half the header of a PING is taken for a head until its rest arrives.
        let pings = |second: f64| Seen { partial_head: second % 8.0 < 4.0, ..IDLE };
        assert_eq!(closed(pings), (76.0, Some(Limit::Idle)));
    }

    #[test]
    fn progress_extends_the_time_to_send_and_nothing_else() {
        let slow = |second: f64| Seen {
            unsent: true,
            progress: (second.min(300.0) / 50.0) as u64,
            ..IDLE
        };
        assert_eq!(closed(slow), (360.0, Some(Limit::Send)));
        let idle = |second: f64| Seen { progress: second as u64, ..IDLE };
        assert_eq!(closed(idle), (75.0, Some(Limit::Idle)));
    }

    #[test]
    fn age_ends_a_connection_after_its_running_answers() {
        let download = |second| Seen { running: second < 9000.0, requests: 1, ..IDLE };
        let (finishes, second, limit) = fate(Limits::default(), download);
        assert_eq!(finishes, [(3600.0, Limit::Age)]);
        assert_eq!((second, limit), (9000.5, None));
    }

    #[test]
    fn a_connection_ends_after_its_last_request() {
        let limits = Limits { requests_per_connection: 5, ..Limits::default() };
        let seen = |second: f64| Seen { requests: second as u64, ..IDLE };
        let (finishes, second, limit) = fate(limits, |second| seen(second.min(5.0)));
        assert_eq!((finishes, second, limit), (vec![(5.0, Limit::Requests)], 6.0, None));
    }

    #[test]
    fn a_client_that_ignores_its_end_is_closed() {
        let limits = Limits { requests_per_connection: 1000, h2_streams: 10, ..Limits::default() };
        let seen = |second: f64| Seen { running: true, requests: (second * 10.0) as u64, ..IDLE };
        let (finishes, second, limit) = fate(limits, seen);
        assert_eq!(finishes, [(100.0, Limit::Requests)]);
        assert_eq!((second, limit), (104.5, Some(Limit::Requests)));
    }

    #[test]
    fn a_drain_waits_for_running_answers_only() {
        for (what, seen) in [
            ("idle", IDLE),
            ("no preface", Seen { awaits_preface: true, ..IDLE }),
            ("half a head", Seen { partial_head: true, ..IDLE }),
        ] {
            let began = Instant::now();
            let mut deadlines = Deadlines::new(Arc::new(Limits::default()), began);
            deadlines.look(began, &seen);
            deadlines.drain(began + Duration::from_secs(1));
            let step = |deadlines: &mut Deadlines, second| {
                deadlines.look(began + Duration::from_secs(second), &seen)
            };
            assert!(matches!(step(&mut deadlines, 1), Step::Wait(_)), "{what}");
            assert_eq!(step(&mut deadlines, 2), Step::Close(None), "{what}");
        }
        let began = Instant::now();
        let mut deadlines = Deadlines::new(Arc::new(Limits::default()), began);
        deadlines.drain(began);
        let running = Seen { running: true, ..IDLE };
        assert!(matches!(
            deadlines.look(began + Duration::from_secs(5000), &running),
            Step::Wait(_)
        ));
    }

    #[test]
    fn many_resets_in_a_minute_close_and_few_do_not() {
        let limits = Limits { h2_resets_per_minute: 60, ..Limits::default() };
        let seen = |rate: f64| {
            move |second: f64| Seen {
                running: second < 500.0,
                resets: (second * rate) as u64,
                ..IDLE
            }
        };
        let (finishes, ..) = fate(limits.clone(), seen(1.0));
        assert_eq!(finishes, [(574.5, Limit::Idle)], "a player that jumps");
        let (_, second, limit) = fate(limits, seen(100.0));
        assert_eq!((second, limit), (1.0, Some(Limit::H2Resets)), "a rapid reset");
    }

    #[test]
    fn spent_frames_close_whatever_runs() {
        let spent = Seen { running: true, overspent: true, ..IDLE };
        assert_eq!(closed(|_| spent), (0.0, Some(Limit::H2Frames)));
    }

    #[test]
    fn the_next_look_is_never_after_the_deadline() {
        let began = Instant::now();
        let limits = Limits { idle: Duration::from_secs(3), ..Limits::default() };
        let mut deadlines = Deadlines::new(Arc::new(limits), began);
        assert_eq!(deadlines.look(began, &IDLE), Step::Wait(began + Duration::from_secs(3)));
        let running = Seen { running: true, ..IDLE };
        assert_eq!(deadlines.look(began, &running), Step::Wait(began + LONGEST_WAIT));
    }
}
