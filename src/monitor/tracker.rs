//! Which problems there are now. A condition becomes a problem when it has lasted for a while, and
//! the problem ends when the condition was absent for a while, so the list does not flap.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::codes::{Code, Severity};

/// How long the condition of a problem must be absent until the problem has ended.
const CLEAR: Duration = Duration::from_secs(60);
/// The maximum number of conditions. More of one kind cannot be told apart by a person.
const MAX_CONDITIONS: usize = 100;

/// A condition that was seen now.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Observation {
    pub(super) code: Code,
    /// What it is about, if several can have it: an origin, a file, a kind of call.
    pub(super) subject: Option<String>,
    pub(super) severity: Severity,
    /// What is wrong, as a sentence without a borrower's data.
    pub(super) what: String,
}

/// A problem that needs a person now.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[schema(as = OperatorProblem)]
pub(crate) struct Problem {
    /// The kind, which never changes its name.
    pub(crate) code: &'static str,
    /// What it is about, if several can have it: an origin, a file, a kind of call.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub(crate) subject: Option<String>,
    /// How bad it is.
    pub(crate) severity: Severity,
    /// The gate that sees it: its machine and the first port of its public listener.
    pub(crate) node: String,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) since: Timestamp,
    /// What is wrong.
    pub(crate) what: String,
    /// What to do.
    pub(crate) advice: &'static str,
    /// The heading in the documentation.
    pub(crate) runbook: String,
}

/// A problem that has begun or ended.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) code: Code,
    pub(super) problem: Problem,
    /// When it ended; none if it has begun.
    pub(super) resolved: Option<Timestamp>,
}

/// The conditions that were seen recently.
#[derive(Debug)]
pub(super) struct Tracker {
    node: String,
    conditions: BTreeMap<(Code, Option<String>), Condition>,
}

#[derive(Debug)]
struct Condition {
    /// When it was first seen, by both clocks.
    first: (Instant, Timestamp),
    last: Instant,
    is_open: bool,
    severity: Severity,
    what: String,
}

impl Tracker {
    pub(super) fn new(node: &str) -> Tracker {
        Tracker { node: node.to_owned(), conditions: BTreeMap::new() }
    }

    /// Records all conditions of this moment. Returns the problems that have begun or ended.
    pub(super) fn update(
        &mut self,
        now: (Instant, Timestamp),
        observed: Vec<Observation>,
    ) -> Vec<Change> {
        let mut changed = Vec::new();
        for Observation { code, subject, severity, what } in observed {
            let key = (code, subject);
            if !self.conditions.contains_key(&key) && self.conditions.len() >= MAX_CONDITIONS {
                continue;
            }
            let condition = self.conditions.entry(key.clone()).or_insert_with(|| Condition {
                first: now,
                last: now.0,
                is_open: false,
                severity,
                what: String::new(),
            });
            let is_worse = condition.is_open && severity > condition.severity;
            let is_due = now.0.duration_since(condition.first.0) >= code.hold();
            (condition.last, condition.severity, condition.what) = (now.0, severity, what);
            if is_worse || (is_due && !condition.is_open) {
                condition.is_open = true;
                let problem = condition.problem(&key, &self.node);
                changed.push(Change { code, problem, resolved: None });
            }
        }
        let node = &self.node;
        self.conditions.retain(|key, condition| {
            let is_present = now.0.duration_since(condition.last) < CLEAR;
            if !is_present && condition.is_open {
                let problem = condition.problem(key, node);
                changed.push(Change { code: key.0, problem, resolved: Some(now.1) });
            }
            is_present
        });
        changed
    }

    /// Returns the problems that there are, the worst first.
    pub(super) fn open(&self) -> Vec<(Code, Problem)> {
        let open = self.conditions.iter().filter(|(_, condition)| condition.is_open);
        let mut open: Vec<_> =
            open.map(|(key, condition)| (key.0, condition.problem(key, &self.node))).collect();
        sort(&mut open);
        open
    }
}

/// Sorts problems: the worst first, and then the oldest.
pub(super) fn sort(problems: &mut [(Code, Problem)]) {
    problems.sort_by_key(|(_, problem)| (std::cmp::Reverse(problem.severity), problem.since));
}

impl Condition {
    fn problem(&self, (code, subject): &(Code, Option<String>), node: &str) -> Problem {
        let (what, since) = (self.what.clone(), self.first.1);
        Problem::new(*code, subject.clone(), self.severity, node, since, what)
    }
}

impl Problem {
    /// Returns a problem of this kind, with what to do.
    pub(super) fn new(
        code: Code,
        subject: Option<String>,
        severity: Severity,
        node: &str,
        since: Timestamp,
        what: String,
    ) -> Problem {
        Problem {
            code: code.name(),
            subject,
            severity,
            node: node.to_owned(),
            since,
            what,
            advice: code.advice(),
            runbook: format!("docs/runbook.md#{}", code.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(5);

    fn seen(code: Code, severity: Severity) -> Vec<Observation> {
        vec![Observation { code, subject: None, severity, what: "It is so.".to_owned() }]
    }

    /// Updates once for each character, five seconds apart: `x` is seen, `X` is seen and critical,
    /// and `.` is not. Returns `+` where a problem began, `-` where it ended, and else a blank.
    fn changes(code: Code, seen_at: &str) -> String {
        let mut tracker = Tracker::new("node");
        let (start, mut now) = (Timestamp::UNIX_EPOCH, Instant::now());
        let mut step = |letter| {
            let observed = match letter {
                'x' => seen(code, Severity::Warning),
                'X' => seen(code, Severity::Critical),
                _ => Vec::new(),
            };
            let changed = tracker.update((now, start), observed);
            now += STEP;
            match changed.as_slice() {
                [] => ' ',
                [Change { resolved: None, .. }] => '+',
                [Change { resolved: Some(_), .. }] => '-',
                more => panic!("{more:?}"),
            }
        };
        seen_at.chars().map(&mut step).collect()
    }

    #[test]
    fn problem_begins_after_its_hold_and_ends_after_a_clear_minute() {
        let (held, at_once) = (Code::FeedStale, Code::EndsOverdue);
        assert_eq!(held.hold(), STEP * 2);
        assert_eq!(changes(held, "xxxx............."), "  +            - ");
        assert_eq!(changes(at_once, "x............."), "+           - ");
        // A condition that comes and goes is one problem, and not many.
        assert_eq!(changes(held, "x.x.x.......x.............."), "  +                     -  ");
        // A moment is no problem, and the next one much later is another moment.
        assert_eq!(changes(held, "x............x.............").trim(), "");
    }

    #[test]
    fn problem_that_gets_worse_is_reported_again() {
        assert_eq!(changes(Code::EndsOverdue, "xxXXxxX"), "+ +   +");
    }

    #[test]
    fn worst_and_oldest_problems_come_first_and_are_bounded() {
        let mut tracker = Tracker::new("node");
        let now = (Instant::now(), Timestamp::UNIX_EPOCH);
        let many = (0..1000).map(|number| Observation {
            code: Code::CertificateExpires,
            subject: Some(number.to_string()),
            severity: Severity::Warning,
            what: String::new(),
        });
        tracker.update(now, seen(Code::EndsOverdue, Severity::Critical));
        tracker.update(now, many.collect());
        let open = tracker.open();
        assert_eq!(open.len(), MAX_CONDITIONS);
        assert_eq!(open[0].1.code, "ends-overdue");
        assert_eq!(open[0].1.runbook, "docs/runbook.md#ends-overdue");
    }
}
