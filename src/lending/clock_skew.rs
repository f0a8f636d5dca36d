//! Offset between Bokbasen's clock and ours, measured by the header `Date` of its responses.
//!
//! `transport` and `auth` record every response here. The median of the last few counts, so that
//! one wrong `Date` of a cache or proxy has no effect. The offset is stored in [`Clock`], where the
//! gate reads it. It is limited in the direction that would extend loans.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use http::HeaderMap;
use http::header::{AGE, DATE};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::lock::lock;
use crate::telemetry::Metrics;

/// The most responses in the median, the fewest that it needs, and their greatest age.
const SAMPLES: usize = 9;
const MIN_SAMPLES: usize = 3;
const MAX_AGE: Duration = Duration::from_secs(600);
/// The longest round trip of a sample; slower ones are too inexact.
const MAX_ROUND_TRIP: Duration = Duration::from_secs(5);
/// Smaller offsets count as zero: a `Date` has whole seconds only.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(2);
/// The offset from which an operator should act.
const WARNING_OFFSET: SignedDuration = SignedDuration::from_secs(60);
/// The offset beyond which no loan is begun and no expiry is registered: Bokbasen refuses calls
/// with such a `Date` (page "Authentication Service"). No loan is extended by more than this.
const MAX_OFFSET: SignedDuration = SignedDuration::from_mins(15);
/// The range of a plausible `Date`: 2020 to 2100, in seconds since the epoch.
const PLAUSIBLE: std::ops::Range<i64> = 1_577_836_800..4_102_444_800;
/// The interval at which a lasting offset is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// How long to wait for Bokbasen's time before this machine's clock is trusted.
const COMPARISON_TIMEOUT: Duration = Duration::from_secs(15);
/// The time without a sample after which Bokbasen is polled for its time: while the clocks agree,
/// and while they do not.
const POLL_AFTER: Duration = Duration::from_secs(60);
const POLL_AFTER_WHILE_OFF: Duration = Duration::from_secs(2);

/// A point in time on this machine's wall clock and monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct SentAt {
    wall: Timestamp,
    monotonic: Instant,
}

/// The measured offset, kept up to date from responses.
#[derive(Debug)]
pub(super) struct Skew {
    clock: Clock,
    metrics: Metrics,
    started: Instant,
    measured: Mutex<Measured>,
}

#[derive(Debug, Default)]
struct Measured {
    /// How far Bokbasen's clock was ahead in each recent response, the newest at the back.
    samples: VecDeque<(Instant, SignedDuration)>,
    /// The time of the last sample.
    last: Option<SentAt>,
    /// The number of responses without a usable `Date`. If there are only such, our clock is
    /// trusted.
    undated: usize,
    /// The last median of enough samples.
    median: Option<SignedDuration>,
    logged: Option<Instant>,
}

impl Skew {
    pub(super) fn new(clock: Clock, metrics: Metrics) -> Skew {
        Skew { clock, metrics, started: Instant::now(), measured: Mutex::default() }
    }

    /// Returns the current time; the caller passes it to [`Skew::note`] with the response.
    pub(super) fn sending(&self) -> SentAt {
        SentAt { wall: self.clock.now(), monotonic: Instant::now() }
    }

    /// Compares the clocks by the response to a call that was sent at `sent`.
    pub(super) fn note(&self, sent: SentAt, headers: &HeaderMap) {
        // The `Date` of a cached response is the time at which it was stored.
        if headers.get(AGE).is_some_and(|age| age.as_bytes() != b"0") {
            return;
        }
        let Some(theirs) = date_of(headers) else {
            let mut measured = lock(&self.measured);
            measured.undated = measured.undated.saturating_add(1);
            return;
        };
        let now = self.sending();
        let took = now.monotonic - sent.monotonic;
        if took > MAX_ROUND_TRIP || is_step(sent, now) {
            return;
        }
        let middle = sent.wall + SignedDuration::try_from(took / 2).unwrap_or_default();
        // A `Date` is truncated to whole seconds: on average it is half a second behind.
        let ahead = theirs.duration_since(middle) + SignedDuration::from_millis(500);
        let mut measured = lock(&self.measured);
        let Some(median) = measured.add(now, ahead) else { return };
        let offset = if median.abs() < TOLERANCE { SignedDuration::ZERO } else { median };
        // A loan may end early by Bokbasen's clock, but is extended by the limit at most.
        self.clock.set_lending_offset(offset.max(-MAX_OFFSET));
        self.metrics.lending_clock(offset.as_secs_f64(), level_of(offset));
        if offset.abs() < WARNING_OFFSET {
            measured.logged = None;
        } else if measured.logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            measured.logged = Some(now.monotonic);
            log(offset);
        }
    }

    /// Returns how far our clock is ahead of Bokbasen's, if known.
    pub(super) fn ahead_of_bokbasen(&self) -> Option<SignedDuration> {
        let measured = lock(&self.measured);
        measured.median.or_else(|| measured.current_median()).map(|ahead| -ahead)
    }

    /// Whether the offset exceeds the limit, so that no loan is begun.
    pub(super) fn is_off(&self) -> bool {
        let measured = lock(&self.measured);
        measured.median.is_some_and(|median| median.abs() > MAX_OFFSET)
    }

    /// Whether the clocks were compared since our clock was last set. Before that, no loan that
    /// seems due is ended for good. If nothing answers for a while, our clock is trusted.
    pub(super) fn is_known(&self) -> bool {
        let now = self.sending();
        let measured = lock(&self.measured);
        let answered = measured.last.map_or(self.started, |last| last.monotonic);
        let is_compared = measured.samples.len() >= MIN_SAMPLES
            && measured.last.is_some_and(|last| !is_step(last, now));
        let is_undated = measured.last.is_none() && measured.undated >= MIN_SAMPLES;
        is_compared || is_undated || answered.elapsed() >= COMPARISON_TIMEOUT
    }

    /// Whether Bokbasen should be polled for its time, since no other call sampled it recently.
    pub(super) fn is_stale(&self) -> bool {
        if !self.is_known() {
            return true;
        }
        let idle = if self.is_off() { POLL_AFTER_WHILE_OFF } else { POLL_AFTER };
        let measured = lock(&self.measured);
        measured.last.is_none_or(|last| last.monotonic.elapsed() >= idle)
    }
}

impl Measured {
    /// Adds a sample, and returns the median if there are enough.
    fn add(&mut self, now: SentAt, ahead: SignedDuration) -> Option<SignedDuration> {
        if self.last.is_some_and(|last| is_step(last, now)) {
            // Our clock was set, or the machine was suspended: earlier samples may be wrong.
            self.samples.clear();
        }
        self.last = Some(now);
        self.samples.retain(|(at, _)| at.elapsed() < MAX_AGE);
        if self.samples.len() >= SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((now.monotonic, ahead));
        if self.samples.len() >= MIN_SAMPLES {
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

/// Whether our clock was set between two points in time.
fn is_step(before: SentAt, after: SentAt) -> bool {
    let monotonic =
        SignedDuration::try_from(after.monotonic - before.monotonic).unwrap_or_default();
    (after.wall.duration_since(before.wall) - monotonic).abs() >= TOLERANCE
}

fn date_of(headers: &HeaderMap) -> Option<Timestamp> {
    let date = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    let theirs = Timestamp::try_from(date).ok()?;
    PLAUSIBLE.contains(&theirs.as_second()).then_some(theirs)
}

/// Returns the alarm level: 1 if an operator should act, 2 if no loan is begun.
fn level_of(offset: SignedDuration) -> u8 {
    match offset.abs() {
        off if off > MAX_OFFSET => 2,
        off if off >= WARNING_OFFSET => 1,
        _ => 0,
    }
}

fn log(offset: SignedDuration) {
    let seconds = offset.as_secs();
    if offset.abs() > MAX_OFFSET {
        tracing::error!(
            bokbasen_ahead_seconds = seconds,
            "this machine's clock is more than 15 minutes from Bokbasen's: no loan is begun and \
             no expiry is registered; set the clock by NTP"
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

        /// Records a response whose `Date` is `ahead` seconds ahead.
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
    async fn median_of_several_responses_counts() {
        let stage = Stage::new();
        stage.answer(300);
        stage.answer(300);
        assert_eq!(stage.offset(), 0, "two responses are too few");
        stage.answer(300);
        assert_eq!(stage.offset(), 300);
        for absurd in [-86_400, 86_400, 86_400 * 365 * 20] {
            stage.answer(absurd);
            assert_eq!(stage.offset(), 300, "one wrong response has no effect");
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
        assert_eq!(stage.offset(), 0, "implausible dates are ignored");
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
        assert_eq!(stage.offset(), 86_400, "a loan may end early");
        assert!(stage.skew.is_off());
        for _ in 0..=SAMPLES / 2 {
            stage.answer(0);
        }
        assert_eq!((stage.offset(), stage.skew.is_off()), (0, false), "the clocks agree again");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_responses_and_clock_steps_are_not_sampled() {
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
        // After a step, earlier samples no longer count.
        for _ in 0..MIN_SAMPLES {
            stage.answer(0);
        }
        assert_eq!(stage.offset(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn time_is_polled_if_no_response_carries_it() {
        let stage = Stage::new();
        assert!(stage.skew.is_stale());
        for _ in 0..SAMPLES {
            stage.answer(0);
        }
        assert!(!stage.skew.is_stale());
        for _ in 0..SAMPLES {
            stage.answer(3600);
        }
        tokio::time::advance(POLL_AFTER_WHILE_OFF).await;
        assert!(stage.skew.is_off() && stage.skew.is_stale());
    }
}
