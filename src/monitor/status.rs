//! What an integrator's own status page shows: how well readers are served, and since when.
//!
//! It is derived from the problems, and has no private data.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::codes::{Code, Level};
use super::tracker::Problem;

/// How well a part of the service works, and since when.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub(crate) struct ComponentStatus {
    pub(crate) status: Level,
    /// When it began to work this well.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) since: Timestamp,
}

/// How well readers are served.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub(crate) struct Status {
    /// `down` if no file can be read, or nothing works.
    status: Level,
    /// When it became so.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// When the gate last looked.
    #[schema(value_type = String, format = DateTime)]
    updated: Timestamp,
    components: Components,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[schema(as = StatusComponents)]
struct Components {
    /// Files under loans that have begun.
    reading: ComponentStatus,
    /// New loans.
    borrowing: ComponentStatus,
    /// Returns.
    returning: ComponentStatus,
}

impl ComponentStatus {
    fn update(&mut self, now: Timestamp, status: Level) {
        if self.status != status {
            *self = ComponentStatus { status, since: now };
        }
    }
}

impl Status {
    /// Returns the status of a gate that has just started, and has no problem.
    pub(crate) fn new(now: Timestamp) -> Status {
        let ok = ComponentStatus { status: Level::Ok, since: now };
        let components = Components { reading: ok, borrowing: ok, returning: ok };
        Status { status: Level::Ok, since: now, updated: now, components }
    }

    /// Returns the status of reading, borrowing and returning.
    pub(crate) fn components(&self) -> [ComponentStatus; 3] {
        let Components { reading, borrowing, returning } = self.components;
        [reading, borrowing, returning]
    }

    /// Derives the status from the problems that each gate of the cluster has now.
    pub(super) fn update(&mut self, now: Timestamp, gates: &[&[(Code, Problem)]]) {
        let worst = levels_of_all(gates);
        let [reading, borrowing, returning] = worst;
        let Components { reading: read, borrowing: borrow, returning: give_back } =
            &mut self.components;
        read.update(now, reading);
        borrow.update(now, borrowing);
        give_back.update(now, returning);
        // Readers with a loan are served while nobody can borrow.
        let status = match (reading, worst.into_iter().max().unwrap_or_default()) {
            (Level::Down, _) => Level::Down,
            (_, Level::Ok) => Level::Ok,
            _ => Level::Degraded,
        };
        let mut overall = ComponentStatus { status: self.status, since: self.since };
        overall.update(now, status);
        (self.status, self.since, self.updated) = (overall.status, overall.since, now);
    }
}

/// Returns the levels of reading, borrowing and returning. What does not work at some gates only is
/// degraded: the other gates serve readers.
fn levels_of_all(gates: &[&[(Code, Problem)]]) -> [Level; 3] {
    let (mut worst, mut best) = ([Level::Ok; 3], [Level::Down; 3]);
    for problems in gates {
        let levels = levels_of(problems);
        worst.iter_mut().zip(levels).for_each(|(worst, level)| *worst = (*worst).max(level));
        best.iter_mut().zip(levels).for_each(|(best, level)| *best = (*best).min(level));
    }
    for (worst, best) in worst.iter_mut().zip(best) {
        if *worst == Level::Down && best != Level::Down {
            *worst = Level::Degraded;
        }
    }
    worst
}

/// Returns the levels of one gate.
pub(super) fn levels_of(problems: &[(Code, Problem)]) -> [Level; 3] {
    let mut worst = [Level::Ok; 3];
    for (code, problem) in problems {
        let impact = code.impact(problem.severity);
        let levels = [impact.reading, impact.borrowing, impact.returning];
        worst.iter_mut().zip(levels).for_each(|(worst, level)| *worst = (*worst).max(level));
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::super::codes::Severity;
    use super::*;

    fn open(code: Code, severity: Severity) -> (Code, Problem) {
        let (since, what) = (Timestamp::UNIX_EPOCH, String::new());
        (code, Problem::new(code, None, severity, "", since, what))
    }

    #[test]
    fn status_follows_the_problems_and_says_since_when() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut status = Status::new(at(0));
        let mut levels = |second, problems: &[(Code, Problem)]| {
            status.update(at(second), &[problems]);
            let Components { reading, borrowing, returning } = status.components;
            let levels = [reading, borrowing, returning].map(|component| component.status);
            (status.status, levels, status.since.as_second(), borrowing.since.as_second())
        };
        use Level::{Degraded, Down, Ok};
        use Severity::{Critical, Warning};
        let skew = |severity| open(Code::ClockSkew, severity);
        assert_eq!(levels(1, &[]), (Ok, [Ok; 3], 0, 0));
        assert_eq!(levels(2, &[skew(Warning)]), (Ok, [Ok; 3], 0, 0));
        assert_eq!(levels(3, &[skew(Critical)]), (Degraded, [Ok, Down, Degraded], 3, 3));
        let overdue = open(Code::EndsOverdue, Critical);
        assert_eq!(levels(4, &[overdue, skew(Critical)]), (Degraded, [Ok, Down, Degraded], 3, 3));
        let moved = open(Code::LedgerMoved, Critical);
        assert_eq!(levels(5, &[moved]), (Down, [Down; 3], 5, 3));
        assert_eq!(levels(6, &[]), (Ok, [Ok; 3], 6, 6));
    }

    #[test]
    fn what_fails_at_one_gate_of_several_is_degraded() {
        use Level::{Degraded, Down, Ok};
        let unreadable = [open(Code::LedgerUnreadable, Severity::Critical)];
        let expired = [open(Code::CertificateInvalid, Severity::Critical)];
        assert_eq!(levels_of_all(&[&unreadable]), [Degraded, Down, Down]);
        assert_eq!(levels_of_all(&[&unreadable, &[]]), [Degraded; 3]);
        assert_eq!(levels_of_all(&[&unreadable, &expired]), [Degraded, Down, Down]);
        assert_eq!(levels_of_all(&[&[], &[]]), [Ok; 3]);
    }
}
