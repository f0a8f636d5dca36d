//! How far Bokbasen's clock is from ours, measured by the field `Date` of its answers.
//!
//! `transport` and `auth` note every answer here. The median of the last several counts, so that
//! one wrong `Date`, of a cache or a proxy in between, changes nothing. The result goes into
//! [`Clock`], where the gate reads it, and is limited in the direction in which it would extend
//! loans.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use http::header::{AGE, DATE};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::telemetry::Metrics;

/// How many answers the median is taken of, how many it needs at least, and how old they may be.
const SAMPLES: usize = 9;
const LEAST_SAMPLES: usize = 3;
const MAX_AGE: Duration = Duration::from_secs(600);
/// Answers that took longer say little about the time.
const SLOWEST: Duration = Duration::from_secs(5);
/// A smaller offset is within the error of a `Date`, which has whole seconds, and counts as none.
const NOISE: SignedDuration = SignedDuration::from_secs(2);
/// From here on an operator should act.
const WARNING: SignedDuration = SignedDuration::from_secs(60);
/// From here on nothing is begun and no expiry registered (page "Authentication Service": calls
/// with such a `Date` are refused). No loan is extended by more than this.
const LIMIT: SignedDuration = SignedDuration::from_mins(15);
/// A `Date` outside of these is absurd: 2020 to 2100, in seconds since the epoch.
const PLAUSIBLE: std::ops::Range<i64> = 1_577_836_800..4_102_444_800;
/// How often a lasting difference is logged.
const LOG_AGAIN: Duration = Duration::from_secs(60);
/// How long the time of a Bokbasen that answers nothing is waited for before this machine's counts.
const UNANSWERED: Duration = Duration::from_secs(15);
/// How long without an answer before one is asked for: while the clocks agree, and while they do
/// not.
const IDLE: Duration = Duration::from_secs(60);
const IDLE_OFF: Duration = Duration::from_secs(2);

/// When a call was sent, by both clocks of this machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct SentAt {
    wall: Timestamp,
    steady: Instant,
}

/// The measurement.
#[derive(Debug)]
pub(super) struct Skew {
    clock: Clock,
    metrics: Metrics,
    started: Instant,
    measured: Mutex<Measured>,
}

#[derive(Debug, Default)]
struct Measured {
    /// By how much Bokbasen's clock was ahead in each recent answer, the newest at the back.
    samples: VecDeque<(Instant, SignedDuration)>,
    /// When the last answer arrived, by both clocks.
    last: Option<SentAt>,
    /// Answers without a `Date` that can be used: where there are no others, our clock has to do.
    undated: usize,
    /// The last median of enough samples.
    median: Option<SignedDuration>,
    logged: Option<Instant>,
}

impl Skew {
    pub(super) fn new(clock: Clock, metrics: Metrics) -> Skew {
        Skew { clock, metrics, started: Instant::now(), measured: Mutex::default() }
    }

    /// To be noted before a call is sent.
    pub(super) fn sending(&self) -> SentAt {
        SentAt { wall: self.clock.now(), steady: Instant::now() }
    }

    /// Compares the clocks by an answer to a call that was sent at that moment.
    pub(super) fn note(&self, sent: SentAt, headers: &HeaderMap) {
        // An answer out of a cache tells when it was stored.
        if headers.get(AGE).is_some_and(|age| age.as_bytes() != b"0") {
            return;
        }
        let Some(theirs) = date_of(headers) else {
            let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
            measured.undated = measured.undated.saturating_add(1);
            return;
        };
        let now = self.sending();
        let took = now.steady - sent.steady;
        if took > SLOWEST || is_step(sent, now) {
            return;
        }
        let middle = sent.wall + SignedDuration::try_from(took / 2).unwrap_or_default();
        // A `Date` is cut to whole seconds: on average it is half a second behind.
        let ahead = theirs.duration_since(middle) + SignedDuration::from_millis(500);
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(median) = measured.take(now, ahead) else { return };
        let acting = if median.abs() < NOISE { SignedDuration::ZERO } else { median };
        // A loan ends early where Bokbasen's clock says so. It never lasts longer than the limit
        // allows.
        self.clock.set_lending_offset(acting.max(-LIMIT));
        self.metrics.lending_clock(acting.as_secs_f64(), level_of(acting));
        if acting.abs() < WARNING {
            measured.logged = None;
        } else if measured.logged.is_none_or(|at| at.elapsed() >= LOG_AGAIN) {
            measured.logged = Some(now.steady);
            log(acting);
        }
    }

    /// How far our clock is ahead of Bokbasen's, as far as it is known.
    pub(super) fn ahead_of_bokbasen(&self) -> Option<SignedDuration> {
        let measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        measured.median.or_else(|| measured.current_median()).map(|ahead| -ahead)
    }

    /// Whether the clocks differ by so much that nothing is begun.
    pub(super) fn is_off(&self) -> bool {
        let measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        measured.median.is_some_and(|median| median.abs() > LIMIT)
    }

    /// Whether the clocks were compared since our clock was last set: before that, no loan that
    /// seems due is ended for good. Where nothing answers for a while, our clock has to do.
    pub(super) fn is_known(&self) -> bool {
        let now = self.sending();
        let measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = measured.last.map_or(self.started, |last| last.steady);
        let is_compared = measured.samples.len() >= LEAST_SAMPLES
            && measured.last.is_some_and(|last| !is_step(last, now));
        let is_undated = measured.last.is_none() && measured.undated >= LEAST_SAMPLES;
        is_compared || is_undated || answered.elapsed() >= UNANSWERED
    }

    /// Whether Bokbasen should be asked for the time, since no other call has brought it.
    pub(super) fn is_stale(&self) -> bool {
        if !self.is_known() {
            return true;
        }
        let idle = if self.is_off() { IDLE_OFF } else { IDLE };
        let measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        measured.last.is_none_or(|last| last.steady.elapsed() >= idle)
    }
}

impl Measured {
    /// Takes a sample in, and returns the median where there are enough.
    fn take(&mut self, now: SentAt, ahead: SignedDuration) -> Option<SignedDuration> {
        if self.last.is_some_and(|last| is_step(last, now)) {
            // Our clock was set, or the machine slept: what was measured before may hold no more.
            self.samples.clear();
        }
        self.last = Some(now);
        self.samples.retain(|(at, _)| at.elapsed() < MAX_AGE);
        if self.samples.len() >= SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((now.steady, ahead));
        if self.samples.len() >= LEAST_SAMPLES {
            self.median = self.current_median();
            return self.median;
        }
        None
    }

    fn current_median(&self) -> Option<SignedDuration> {
        let mut sorted: Vec<SignedDuration> =
            self.samples.iter().map(|(_, ahead)| *ahead).collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}

/// Whether our clock was set between two moments.
fn is_step(before: SentAt, after: SentAt) -> bool {
    let steady = SignedDuration::try_from(after.steady - before.steady).unwrap_or_default();
    (after.wall.duration_since(before.wall) - steady).abs() >= NOISE
}

fn date_of(headers: &HeaderMap) -> Option<Timestamp> {
    let date = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    let theirs = Timestamp::try_from(date).ok()?;
    PLAUSIBLE.contains(&theirs.as_second()).then_some(theirs)
}

/// 1 where an operator should act, 2 where nothing is begun.
fn level_of(offset: SignedDuration) -> u8 {
    match offset.abs() {
        off if off > LIMIT => 2,
        off if off >= WARNING => 1,
        _ => 0,
    }
}

fn log(offset: SignedDuration) {
    let seconds = offset.as_secs();
    if offset.abs() > LIMIT {
        tracing::error!(
            bokbasen_ahead_seconds = seconds,
            "this machine's clock is more than 15 minutes from Bokbasen's: no loan is begun and no expiry is \
             registered; set the clock by NTP"
        );
    } else {
        tracing::warn!(
            bokbasen_ahead_seconds = seconds,
            "this machine's clock differs from Bokbasen's; set the clock by NTP"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Stage {
        clock: Clock,
        skew: Skew,
    }

    impl Stage {
        fn new() -> Stage {
            let clock = Clock::movable(Timestamp::from_second(1_790_000_000).unwrap());
            let skew = Skew::new(clock.clone(), Metrics::new().unwrap());
            Stage { clock, skew }
        }

        /// An answer whose `Date` is so many seconds ahead.
        fn answer(&self, ahead: i64) {
            let date =
                Duration::from_secs(u64::try_from(self.clock.now().as_second() + ahead).unwrap());
            let date = httpdate::fmt_http_date(std::time::UNIX_EPOCH + date);
            let headers = HeaderMap::from_iter([(DATE, date.parse().unwrap())]);
            self.skew.note(self.skew.sending(), &headers);
        }

        fn offset(&self) -> i64 {
            self.clock.lending_offset().as_secs()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_median_of_several_answers_counts() {
        let stage = Stage::new();
        stage.answer(300);
        stage.answer(300);
        assert_eq!(stage.offset(), 0, "two answers prove nothing");
        stage.answer(300);
        assert_eq!(stage.offset(), 300);
        for absurd in [-86_400, 86_400, 86_400 * 365 * 20] {
            stage.answer(absurd);
            assert_eq!(stage.offset(), 300, "one wrong answer changes nothing");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn small_differences_and_absurd_dates_are_ignored() {
        let stage = Stage::new();
        for _ in 0..SAMPLES {
            stage.answer(1);
        }
        assert_eq!(stage.offset(), 0);
        for _ in 0..SAMPLES {
            stage.answer(-86_400 * 365 * 30);
        }
        assert_eq!(stage.offset(), 0, "nobody's clock is in the last century");
    }

    #[tokio::test(start_paused = true)]
    async fn no_loan_is_extended_beyond_the_limit() {
        let stage = Stage::new();
        for _ in 0..SAMPLES {
            stage.answer(-86_400);
        }
        assert_eq!(stage.offset(), -900);
        assert!(stage.skew.is_off());
        for _ in 0..SAMPLES {
            stage.answer(86_400);
        }
        assert_eq!(stage.offset(), 86_400, "but it may end early");
        assert!(stage.skew.is_off());
        for _ in 0..=SAMPLES / 2 {
            stage.answer(0);
        }
        assert_eq!((stage.offset(), stage.skew.is_off()), (0, false), "back again");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_answers_and_steps_of_our_clock_are_not_measured() {
        let stage = Stage::new();
        for _ in 0..SAMPLES {
            stage.answer(100);
        }
        let sent = stage.skew.sending();
        stage.clock.advance(Duration::from_secs(3600));
        let headers =
            HeaderMap::from_iter([(DATE, "Sun, 20 Sep 2026 12:00:00 GMT".parse().unwrap())]);
        stage.skew.note(sent, &headers);
        assert_eq!(stage.offset(), 100);
        // After a step, the answers before it count no more.
        for _ in 0..LEAST_SAMPLES {
            stage.answer(0);
        }
        assert_eq!(stage.offset(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_is_asked_for_where_no_answer_brings_it() {
        let stage = Stage::new();
        assert!(stage.skew.is_stale());
        for _ in 0..SAMPLES {
            stage.answer(0);
        }
        assert!(!stage.skew.is_stale());
        for _ in 0..SAMPLES {
            stage.answer(3600);
        }
        tokio::time::advance(IDLE_OFF).await;
        assert!(stage.skew.is_off() && stage.skew.is_stale());
    }
}
