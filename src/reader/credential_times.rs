//! Checks of the times that a credential states.

use std::time::Duration;

use jiff::Timestamp;

use super::Reader;
use super::clock_blame::ClockEvidence;
use super::credential::Credential;
use super::jwt::LEEWAY;
use super::refusal::{JwtFault, LinkFault, Refusal};
use crate::clock;

/// Checks that a credential does not live longer than allowed.
///
/// Otherwise it could outlive the record of an ended loan and borrow the title again (invariant 7).
/// Without an issue time, the latest possible one counts: now. A link's grace period does not
/// count, since no loan begins in it.
pub(super) fn check_lifetime(
    reader: &Reader,
    now: Timestamp,
    longest: Duration,
    credential: &Credential<'_>,
) -> Result<(), Refusal> {
    let issued = reader.issued.unwrap_or(now);
    if clock::until(issued, reader.expires) <= longest {
        return Ok(());
    }
    Err(match credential {
        Credential::Token(_) => Refusal::Token(JwtFault::LivesTooLong),
        Credential::Link(_) => Refusal::Link(LinkFault::LivesTooLong),
    })
}

/// Returns whether no credential of this issue time is accepted yet, since its issuer's clock may
/// be ahead by the leeway only.
pub(crate) fn is_issued_ahead(issued: Timestamp, now: Timestamp) -> bool {
    issued > clock::after(now, LEEWAY)
}

/// Checks that a link was not issued in the future, and that its grace is not over.
pub(super) fn check_link_times(
    reader: &Reader,
    clock_evidence: &ClockEvidence,
    now: Timestamp,
    grace_until: Timestamp,
) -> Result<(), Refusal> {
    if let Some(issued) = reader.issued.filter(|issued| is_issued_ahead(*issued, now)) {
        return Err(Refusal::Link(LinkFault::IssuedAhead(clock_evidence.diagnose(issued, now))));
    }
    if now >= grace_until {
        return Err(Refusal::Link(LinkFault::Expired));
    }
    Ok(())
}

/// Truncates a time to whole seconds, as links contain it, so that it is never later.
pub(super) fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
