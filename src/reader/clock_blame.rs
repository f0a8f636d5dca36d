//! Whose clock is wrong when a credential comes from the future: the issuer's or the gate's own.
//!
//! `reader/mod.rs` calls it. Two witnesses are compared with the credential: Bokbasen's clock, and
//! the credentials that were issued a moment ago and were good. The log has the finding once a
//! minute.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

use super::jwt::LEEWAY;
use crate::telemetry::LogLimit;

/// How far the gate's clock may be from Bokbasen's and still count as right: half the leeway of
/// tokens.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(30);
/// How long a good credential speaks for the gate's clock.
const WITNESS: i64 = 600;
/// How old a credential may be to count as issued a moment ago: an older one is good by a clock
/// that is behind, too.
const FRESH: i64 = 30;
/// No credential has been good so far.
const NONE: i64 = i64::MIN;

type Reference = Box<dyn Fn() -> Option<SignedDuration> + Send + Sync>;

/// Whose clock is wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Blame {
    /// That of the login service, or of the program that made the link.
    Issuer,
    /// The gate's own.
    Gate,
    /// There is no witness.
    Unknown,
}

/// The witnesses.
pub(super) struct Witnesses {
    /// How far the gate's clock is ahead of Bokbasen's.
    reference: OnceLock<Reference>,
    /// When, by the gate's clock, a fresh credential was last good, in seconds since the epoch.
    last_fresh: AtomicI64,
    limit: LogLimit,
}

impl Witnesses {
    pub(super) fn new() -> Witnesses {
        Witnesses {
            reference: OnceLock::new(),
            last_fresh: AtomicI64::new(NONE),
            limit: LogLimit::per_minute(),
        }
    }

    /// Sets where Bokbasen's clock is read. A second call changes nothing.
    pub(super) fn compare_with(
        &self,
        reference: impl Fn() -> Option<SignedDuration> + Send + Sync + 'static,
    ) {
        let _ = self.reference.set(Box::new(reference));
    }

    /// Notes a credential that was good at `now`.
    pub(super) fn was_good(&self, issued: Option<Timestamp>, now: Timestamp) {
        let is_fresh =
            |issued: Timestamp| (0..=FRESH).contains(&(now.as_second() - issued.as_second()));
        if issued.is_some_and(is_fresh) {
            self.last_fresh.store(now.as_second(), Ordering::Relaxed);
        }
    }

    /// Whose clock is wrong if a credential begins `at`, later than the leeway allows; logged once
    /// a minute.
    pub(super) fn judge(&self, at: Timestamp, now: Timestamp) -> Blame {
        let gate_ahead = self.reference.get().and_then(|reference| reference());
        let blame = self.verdict(gate_ahead, at, now);
        let kind = match blame {
            Blame::Issuer => "issuer",
            Blame::Gate => "gate",
            Blame::Unknown => "unknown",
        };
        if let Some(suppressed) = self.limit.permit(kind) {
            let ahead_s = at.duration_since(now).as_secs();
            let gate_ahead_of_bokbasen_s = gate_ahead.map(|ahead| ahead.as_secs());
            tracing::warn!(
                wrong_clock = kind,
                ahead_s,
                gate_ahead_of_bokbasen_s,
                suppressed,
                "credential issued in the future"
            );
        }
        blame
    }

    fn verdict(&self, gate_ahead: Option<SignedDuration>, at: Timestamp, now: Timestamp) -> Blame {
        if let Some(ahead) = gate_ahead {
            // By Bokbasen's clock the credential may be good: then the gate's own is behind.
            let theirs = now.saturating_sub(ahead).unwrap_or(now);
            let leeway = SignedDuration::try_from(LEEWAY).unwrap_or(TOLERANCE);
            return match ahead.abs() {
                apart if apart <= TOLERANCE => Blame::Issuer,
                _ if at.duration_since(theirs) <= leeway => Blame::Gate,
                _ => Blame::Unknown,
            };
        }
        // Others' clocks agree with the gate's at this very moment.
        match self.last_fresh.load(Ordering::Relaxed) {
            NONE => Blame::Unknown,
            last if (0..=WITNESS).contains(&(now.as_second() - last)) => Blame::Issuer,
            _ => Blame::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn bokbasens_clock_tells_whose_is_wrong() {
        let judged = |gate_ahead: i64, issued: i64| {
            let witnesses = Witnesses::new();
            witnesses.compare_with(move || Some(SignedDuration::from_secs(gate_ahead)));
            witnesses.judge(at(issued), at(0))
        };
        assert_eq!(judged(0, 300), Blame::Issuer);
        assert_eq!(judged(-20, 300), Blame::Issuer);
        assert_eq!(judged(-300, 300), Blame::Gate);
        assert_eq!(judged(-250, 300), Blame::Gate);
        assert_eq!(judged(-120, 3000), Blame::Unknown, "both are wrong");
        assert_eq!(judged(300, 300), Blame::Unknown, "both are wrong");
    }

    #[test]
    fn fresh_good_credentials_speak_for_the_gate() {
        let witnesses = Witnesses::new();
        assert_eq!(witnesses.judge(at(300), at(0)), Blame::Unknown);
        witnesses.was_good(Some(at(-3600)), at(0));
        witnesses.was_good(Some(at(40)), at(0));
        witnesses.was_good(None, at(0));
        assert_eq!(witnesses.judge(at(300), at(0)), Blame::Unknown, "none of these was fresh");
        witnesses.was_good(Some(at(-5)), at(0));
        assert_eq!(witnesses.judge(at(300), at(0)), Blame::Issuer);
        assert_eq!(witnesses.judge(at(2000), at(WITNESS + 1)), Blame::Unknown, "that was long ago");
    }
}
