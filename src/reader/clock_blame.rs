//! Diagnosis of credentials issued in the future: is the issuer's clock wrong, or the gate's?
//!
//! `reader/mod.rs` calls it. It compares the credential with Bokbasen's clock or, if that is
//! unknown, relies on other credentials that were valid right after their issue. The finding is
//! logged once a minute.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

use super::jwt::LEEWAY;
use crate::telemetry::LogLimit;

/// Largest offset from Bokbasen's clock at which the gate's clock counts as right: half the leeway.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(30);
/// How long a fresh valid credential is evidence for the gate's clock, in seconds.
const EVIDENCE_LIFETIME: i64 = 600;
/// Greatest age of a fresh credential, in seconds. An older one is also valid by a slow clock.
const MAX_FRESH_AGE: i64 = 30;
/// Marks that no fresh credential has been valid so far.
const NEVER: i64 = i64::MIN;

type Reference = Box<dyn Fn() -> Option<SignedDuration> + Send + Sync>;

/// The party whose clock is wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum WrongClock {
    /// The login service, or the program that minted the link.
    Issuer,
    /// The machine of this gate.
    Gate,
    /// There is no evidence, or both clocks are wrong.
    Unknown,
}

/// Evidence for or against the gate's clock.
pub(super) struct ClockEvidence {
    /// How far the gate's clock is ahead of Bokbasen's.
    reference: OnceLock<Reference>,
    /// When a fresh credential was last valid, by the gate's clock, in Unix seconds.
    last_fresh: AtomicI64,
    limit: LogLimit,
}

impl ClockEvidence {
    pub(super) fn new() -> ClockEvidence {
        ClockEvidence {
            reference: OnceLock::new(),
            last_fresh: AtomicI64::new(NEVER),
            limit: LogLimit::per_minute(),
        }
    }

    /// Sets the source of the offset from Bokbasen's clock. A second call changes nothing.
    pub(super) fn compare_with(
        &self,
        reference: impl Fn() -> Option<SignedDuration> + Send + Sync + 'static,
    ) {
        let _ = self.reference.set(Box::new(reference));
    }

    /// Records a credential that was valid at `now`.
    pub(super) fn record_valid(&self, issued: Option<Timestamp>, now: Timestamp) {
        let is_fresh = |issued: Timestamp| {
            (0..=MAX_FRESH_AGE).contains(&(now.as_second() - issued.as_second()))
        };
        if issued.is_some_and(is_fresh) {
            self.last_fresh.store(now.as_second(), Ordering::Relaxed);
        }
    }

    /// Returns whose clock is wrong if a credential begins `at`, later than the leeway allows. Logs
    /// the finding once a minute.
    pub(super) fn diagnose(&self, at: Timestamp, now: Timestamp) -> WrongClock {
        let gate_ahead = self.reference.get().and_then(|reference| reference());
        let wrong_clock = self.decide(gate_ahead, at, now);
        let name = match wrong_clock {
            WrongClock::Issuer => "issuer",
            WrongClock::Gate => "gate",
            WrongClock::Unknown => "unknown",
        };
        if let Some(suppressed) = self.limit.permit(name) {
            let ahead_s = at.duration_since(now).as_secs();
            let gate_ahead_of_bokbasen_s = gate_ahead.map(|ahead| ahead.as_secs());
            tracing::warn!(
                wrong_clock = name,
                ahead_s,
                gate_ahead_of_bokbasen_s,
                suppressed,
                "credential issued in the future"
            );
        }
        wrong_clock
    }

    fn decide(
        &self,
        gate_ahead: Option<SignedDuration>,
        at: Timestamp,
        now: Timestamp,
    ) -> WrongClock {
        if let Some(ahead) = gate_ahead {
            // If the credential is valid by Bokbasen's clock, the gate's own clock is behind.
            let theirs = now.saturating_sub(ahead).unwrap_or(now);
            let leeway = SignedDuration::try_from(LEEWAY).unwrap_or(TOLERANCE);
            return match ahead.abs() {
                offset if offset <= TOLERANCE => WrongClock::Issuer,
                _ if at.duration_since(theirs) <= leeway => WrongClock::Gate,
                _ => WrongClock::Unknown,
            };
        }
        // A recent fresh credential shows that another issuer's clock agrees with the gate's.
        match self.last_fresh.load(Ordering::Relaxed) {
            NEVER => WrongClock::Unknown,
            last if (0..=EVIDENCE_LIFETIME).contains(&(now.as_second() - last)) => {
                WrongClock::Issuer
            }
            _ => WrongClock::Unknown,
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
    fn bokbasens_clock_shows_whose_clock_is_wrong() {
        let diagnosed = |gate_ahead: i64, issued: i64| {
            let clock_evidence = ClockEvidence::new();
            clock_evidence.compare_with(move || Some(SignedDuration::from_secs(gate_ahead)));
            clock_evidence.diagnose(at(issued), at(0))
        };
        assert_eq!(diagnosed(0, 300), WrongClock::Issuer);
        assert_eq!(diagnosed(-20, 300), WrongClock::Issuer);
        assert_eq!(diagnosed(-300, 300), WrongClock::Gate);
        assert_eq!(diagnosed(-250, 300), WrongClock::Gate);
        assert_eq!(diagnosed(-120, 3000), WrongClock::Unknown, "both are wrong");
        assert_eq!(diagnosed(300, 300), WrongClock::Unknown, "both are wrong");
    }

    #[test]
    fn fresh_valid_credentials_clear_the_gates_clock() {
        let clock_evidence = ClockEvidence::new();
        assert_eq!(clock_evidence.diagnose(at(300), at(0)), WrongClock::Unknown);
        clock_evidence.record_valid(Some(at(-3600)), at(0));
        clock_evidence.record_valid(Some(at(40)), at(0));
        clock_evidence.record_valid(None, at(0));
        assert_eq!(
            clock_evidence.diagnose(at(300), at(0)),
            WrongClock::Unknown,
            "none of these was fresh"
        );
        clock_evidence.record_valid(Some(at(-5)), at(0));
        assert_eq!(clock_evidence.diagnose(at(300), at(0)), WrongClock::Issuer);
        assert_eq!(
            clock_evidence.diagnose(at(2000), at(EVIDENCE_LIFETIME + 1)),
            WrongClock::Unknown,
            "the evidence is too old"
        );
    }
}
