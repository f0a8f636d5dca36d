//! The poll interval of a pending loan.

use std::time::Duration;

use tokio::time::Instant;

/// First wait between two polls, and the limit up to which it doubles, with and without a waiting
/// caller. Bokbasen decides most loans within two seconds.
pub(in crate::circulation) const FIRST_WAIT: Duration = Duration::from_millis(100);
pub(in crate::circulation) const LONGEST_WAIT: Duration = Duration::from_secs(2);
pub(super) const LONGEST_IDLE_WAIT: Duration = Duration::from_secs(60);

/// Poll interval of a loan, which grows with each poll.
#[derive(Clone, Copy, Debug)]
pub(super) struct PollBackoff {
    polls: u32,
    wait: Duration,
    last: Instant,
    /// Bokbasen's Retry-After, or the end of `lending.settle`.
    not_before: Instant,
}

impl PollBackoff {
    /// The first poll is due at once.
    pub(super) fn new(now: Instant) -> PollBackoff {
        PollBackoff::from(now, now)
    }

    /// The first poll is due at this time.
    pub(super) fn from(now: Instant, not_before: Instant) -> PollBackoff {
        PollBackoff { polls: 0, wait: FIRST_WAIT, last: now, not_before }
    }

    /// Returns the number of polls since the begin.
    pub(super) fn polls(&self) -> u32 {
        self.polls
    }

    /// Records a poll that decided nothing.
    pub(super) fn record_poll(&mut self, now: Instant, not_before: Instant) {
        if self.polls > 0 {
            self.wait = (self.wait * 2).min(LONGEST_IDLE_WAIT);
        }
        self.polls = self.polls.saturating_add(1);
        self.last = now;
        self.not_before = not_before;
    }

    /// Limits the wait to that of a loan with a waiting caller.
    pub(super) fn shorten_wait(&mut self) {
        self.wait = self.wait.min(LONGEST_WAIT);
    }

    /// Makes the next poll due now.
    pub(super) fn make_due(&mut self, now: Instant) {
        self.last = now.checked_sub(LONGEST_IDLE_WAIT).unwrap_or(now);
        self.not_before = now;
    }

    /// Returns when the next poll is due.
    pub(super) fn next(&self, is_waited_for: bool) -> Instant {
        let longest = if is_waited_for { LONGEST_WAIT } else { LONGEST_IDLE_WAIT };
        let wait = if self.polls == 0 { Duration::ZERO } else { self.wait.min(longest) };
        (self.last + wait).max(self.not_before)
    }
}

#[cfg(test)]
impl PollBackoff {
    /// Returns the interval of a loan that was polled this often, and last at this time.
    pub(super) fn polled(polls: u32, last: Instant) -> PollBackoff {
        PollBackoff { polls, ..PollBackoff::new(last) }
    }

    /// Returns the longest interval of a loan without a waiting caller.
    pub(super) fn longest_idle(last: Instant) -> PollBackoff {
        PollBackoff { wait: LONGEST_IDLE_WAIT, ..PollBackoff::polled(20, last) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_back_off_further_without_a_waiting_caller() {
        let now = Instant::now();
        let mut backoff = PollBackoff::new(now);
        assert_eq!(backoff.next(true), now, "the first poll is due at once");
        let mut waits = Vec::new();
        for _ in 0..12 {
            backoff.record_poll(now, now);
            waits.push((backoff.next(true) - now, backoff.next(false) - now));
        }
        let millis = |(waited, idle): &(Duration, Duration)| (waited.as_millis(), idle.as_millis());
        assert_eq!(millis(&waits[0]), (100, 100));
        assert_eq!(millis(&waits[4]), (1600, 1600));
        assert_eq!(millis(&waits[5]), (2000, 3200));
        assert_eq!(millis(&waits[11]), (2000, 60_000));
        backoff.record_poll(now, now + Duration::from_secs(7));
        assert_eq!(
            backoff.next(true),
            now + Duration::from_secs(7),
            "Bokbasen's Retry-After counts"
        );
    }
}
