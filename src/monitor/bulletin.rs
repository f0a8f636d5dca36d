//! What a gate reports to the other gates of its cluster: its problems and its last minute, as
//! JSON.
//!
//! A bulletin of another gate is data from outside: perhaps of another version, perhaps forged. Its
//! texts and lists are bounded, and what it must not have makes it invalid. A problem of a kind
//! that this version does not know is counted.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::codes::{Code, Severity};
use super::figures::Figures;
use super::tracker::Problem;
use crate::language::is_unprintable;
use crate::ledger::MAX_BULLETIN;
use crate::telemetry::{Calls, Durations};

/// The most figures of a bulletin: a minute of them.
pub(super) const MAX_FIGURES: usize = 6;
const MAX_PROBLEMS: usize = 20;
const MAX_ORIGINS: usize = 16;
const MAX_REFUSALS: usize = 40;
/// The longest texts, in characters.
const MAX_NODE: usize = 120;
const MAX_SLUG: usize = 48;
const MAX_SUBJECT: usize = 200;
const MAX_SENTENCE: usize = 400;
/// The longest interval of figures, in seconds: a gate may have been suspended.
const MAX_SECONDS: f64 = 86_400.0;

#[derive(Debug, Deserialize, Serialize)]
struct Bulletin {
    /// The random id of the process of the gate.
    id: String,
    node: String,
    problems: Vec<WireProblem>,
    /// Problems that are not listed.
    more: usize,
    /// The oldest first.
    figures: VecDeque<WireFigures>,
}

#[derive(Debug, Deserialize, Serialize)]
struct WireProblem {
    code: String,
    subject: Option<String>,
    severity: Severity,
    /// Seconds since the epoch.
    since: i64,
    what: String,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct WireFigures {
    /// Seconds since the epoch.
    at: i64,
    seconds: f64,
    loans: u64,
    requests: u64,
    hits: u64,
    misses: u64,
    refusals: BTreeMap<String, u64>,
    bytes: u64,
    head: Vec<u64>,
    /// Answered and failed calls.
    lending: [u64; 2],
    lending_seconds: Vec<u64>,
    origins: BTreeMap<String, [u64; 2]>,
    ends_waiting: u64,
    oldest_end: u64,
    streams: u64,
    nodes: u64,
}

/// What a valid bulletin says of its gate.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct GateState {
    pub(super) id: String,
    pub(super) node: String,
    pub(super) problems: Vec<(Code, Problem)>,
    /// Problems that are not listed, or of a kind that this version does not know.
    pub(super) more: usize,
    pub(super) figures: Vec<Figures>,
}

/// Returns the bulletin of this gate.
pub(super) fn write<'a>(
    (id, node): (&str, &str),
    problems: &[(Code, Problem)],
    figures: impl Iterator<Item = &'a Figures>,
) -> String {
    let listed = problems.iter().take(MAX_PROBLEMS).map(|(_, problem)| WireProblem::of(problem));
    let mut bulletin = Bulletin {
        id: id.to_owned(),
        node: clipped(node, MAX_NODE),
        problems: listed.collect(),
        more: problems.len().saturating_sub(MAX_PROBLEMS),
        figures: figures.map(WireFigures::of).collect(),
    };
    loop {
        let text = serde_json::to_string(&bulletin).unwrap_or_default();
        if text.len() <= MAX_BULLETIN {
            return text;
        }
        // A problem is worth more than a figure, and the worst ones are the first.
        if bulletin.figures.pop_front().is_none() && bulletin.problems.pop().is_some() {
            bulletin.more += 1;
        }
    }
}

/// Reads a bulletin of another gate at this time; none if it is not valid.
pub(super) fn read(text: &str, now: Timestamp) -> Option<GateState> {
    let bulletin: Bulletin =
        serde_json::from_str(text).ok().filter(|_| text.len() <= MAX_BULLETIN)?;
    let is_id = bulletin.id.len() == 8 && bulletin.id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_bounded = bulletin.problems.len() <= MAX_PROBLEMS
        && bulletin.figures.len() <= MAX_FIGURES
        && is_text(&bulletin.node, MAX_NODE);
    if !is_id || !is_bounded {
        return None;
    }
    let Bulletin { id, node, problems, mut more, figures } = bulletin;
    let mut known = Vec::new();
    for problem in problems {
        match Code::parse(&problem.code) {
            Some(code) => known.push((code, problem.checked(code, &node)?)),
            None => more = more.saturating_add(1),
        }
    }
    let figures: Option<Vec<_>> = figures.into_iter().map(WireFigures::checked).collect();
    let mut figures = figures?;
    // A gate whose clock is wrong has no place in the charts.
    figures.retain(|figures| figures.at.duration_since(now).abs().as_mins() < 5);
    Some(GateState { id, node, problems: known, more: more.min(1000), figures })
}

fn clipped(text: &str, length: usize) -> String {
    text.chars().filter(|letter| !is_unprintable(*letter)).take(length).collect()
}

fn is_text(text: &str, length: usize) -> bool {
    !text.is_empty() && text.chars().count() <= length && !text.contains(is_unprintable)
}

fn is_slug(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= MAX_SLUG && text.bytes().all(is_letter)
}

impl WireProblem {
    fn of(problem: &Problem) -> WireProblem {
        let subject = problem.subject.as_ref().map(|subject| clipped(subject, MAX_SUBJECT));
        WireProblem {
            code: problem.code.to_owned(),
            subject: subject.filter(|subject| !subject.is_empty()),
            severity: problem.severity,
            since: problem.since.as_second(),
            what: clipped(&problem.what, MAX_SENTENCE),
        }
    }

    /// Returns the problem of this gate; none if it is not valid. What to do is said by this
    /// version.
    fn checked(self, code: Code, node: &str) -> Option<Problem> {
        let is_valid = is_text(&self.what, MAX_SENTENCE)
            && self.subject.as_ref().is_none_or(|subject| is_text(subject, MAX_SUBJECT));
        let since = Timestamp::from_second(self.since).ok().filter(|_| is_valid)?;
        Some(Problem::new(code, self.subject, self.severity, node, since, self.what))
    }
}

impl WireFigures {
    fn of(figures: &Figures) -> WireFigures {
        let calls = |calls: &Calls| [calls.answered, calls.failed];
        let origins = figures.origins.iter().take(MAX_ORIGINS);
        let refusals = figures.refusals.iter().take(MAX_REFUSALS);
        WireFigures {
            at: figures.at.as_second(),
            seconds: figures.seconds.min(MAX_SECONDS),
            loans: figures.loans,
            requests: figures.requests,
            hits: figures.hits,
            misses: figures.misses,
            refusals: refusals.map(|(kind, count)| (kind.clone(), *count)).collect(),
            bytes: figures.bytes,
            head: figures.head.counts(),
            lending: calls(&figures.lending),
            lending_seconds: figures.lending_seconds.counts(),
            origins: origins
                .map(|(name, counts)| (clipped(name, MAX_NODE), calls(counts)))
                .filter(|(name, _)| !name.is_empty())
                .collect(),
            ends_waiting: figures.ends_waiting,
            oldest_end: figures.oldest_end,
            streams: figures.streams,
            nodes: figures.nodes,
        }
    }

    /// Returns the figures; none if they are not valid.
    fn checked(self) -> Option<Figures> {
        let is_valid = self.seconds > 0.0
            && self.seconds <= MAX_SECONDS
            && self.refusals.len() <= MAX_REFUSALS
            && self.refusals.keys().all(|kind| is_slug(kind))
            && self.origins.len() <= MAX_ORIGINS
            && self.origins.keys().all(|name| is_text(name, MAX_NODE));
        let at = Timestamp::from_second(self.at).ok().filter(|_| is_valid)?;
        let calls = |[answered, failed]: [u64; 2]| Calls { answered, failed };
        let origins = self.origins.into_iter();
        Some(Figures {
            at,
            seconds: self.seconds,
            loans: self.loans,
            requests: self.requests,
            hits: self.hits,
            misses: self.misses,
            refusals: self.refusals,
            bytes: self.bytes,
            // Another version may have other buckets. Its other figures are as good.
            head: Durations::of_counts(&self.head).unwrap_or_default(),
            lending: calls(self.lending),
            lending_seconds: Durations::of_counts(&self.lending_seconds).unwrap_or_default(),
            origins: origins.map(|(name, counts)| (name, calls(counts))).collect(),
            ends_waiting: self.ends_waiting,
            oldest_end: self.oldest_end,
            streams: self.streams,
            nodes: self.nodes,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ID: &str = "0123abcd";

    fn now() -> Timestamp {
        Timestamp::from_second(1_790_000_000).unwrap()
    }

    fn figures() -> Figures {
        Figures {
            at: now(),
            seconds: 10.0,
            loans: 3,
            refusals: [("loan-refused".to_owned(), 2)].into(),
            head: Durations::of_counts(&[1; 13]).unwrap(),
            origins: [("files".to_owned(), Calls { answered: 4, failed: 1 })].into(),
            ..Figures::default()
        }
    }

    fn problem(what: &str) -> (Code, Problem) {
        let subject = Some("files".to_owned());
        let code = Code::OriginFailing;
        let problem =
            Problem::new(code, subject, Severity::Critical, "gate:1", now(), what.to_owned());
        (code, problem)
    }

    #[test]
    fn bulletin_is_read_as_it_was_written() {
        let problems = [problem("It fails.")];
        let text = write((ID, "gate:1"), &problems, [figures()].iter());
        let state = read(&text, now()).unwrap();
        assert_eq!((state.id.as_str(), state.node.as_str(), state.more), (ID, "gate:1", 0));
        assert_eq!(state.problems, problems);
        assert_eq!(state.figures, [figures()]);
    }

    #[test]
    fn bulletin_is_bounded_and_keeps_the_worst_problems() {
        let what = "\u{1}å\"".repeat(1000);
        let many: Vec<_> = (0..100).map(|_| problem(&what)).collect();
        let mut large = figures();
        large.origins = (0..1000).map(|n| (format!("{n}{what}"), Calls::default())).collect();
        let text = write((ID, &what), &many, [&large; MAX_FIGURES].into_iter());
        assert!(text.len() <= MAX_BULLETIN, "{}", text.len());
        let state = read(&text, now()).unwrap();
        assert!(state.problems.len() >= 10, "{}", state.problems.len());
        assert_eq!(state.problems.len() + state.more, 100);
    }

    #[test]
    fn hostile_bulletins_are_refused() {
        let valid: Value =
            serde_json::from_str(&write((ID, "g"), &[problem("x")], [figures()].iter())).unwrap();
        assert!(read(&valid.to_string(), now()).is_some());
        let long = "x".repeat(500);
        let many: BTreeMap<String, u64> = (0..50).map(|n| (format!("a-{n}"), 1)).collect();
        for (pointer, value) in [
            ("/id", json!("")),
            ("/id", json!("../../..")),
            ("/node", json!("")),
            ("/node", json!("a\nb")),
            ("/node", json!("a\u{202e}b")),
            ("/node", json!(long)),
            ("/problems", json!(vec![&valid["problems"][0]; 21])),
            ("/problems/0/what", json!(long)),
            ("/problems/0/what", json!("a\u{0}")),
            ("/problems/0/subject", json!(long)),
            ("/problems/0/severity", json!("terrible")),
            ("/problems/0/since", json!(i64::MAX)),
            ("/more", json!(-1)),
            ("/figures", json!(vec![&valid["figures"][0]; 7])),
            ("/figures/0/at", json!(i64::MIN)),
            ("/figures/0/seconds", json!(0)),
            ("/figures/0/seconds", json!(-1.0)),
            ("/figures/0/seconds", json!(1e300)),
            ("/figures/0/seconds", Value::Null),
            ("/figures/0/loans", json!(-1)),
            ("/figures/0/refusals", json!(many)),
            ("/figures/0/refusals", json!({ "<script>": 1 })),
            ("/figures/0/origins", json!({ "": [1, 2] })),
            ("/figures/0/origins", json!({ "a": [1, 2, 3] })),
            ("", json!([])),
        ] {
            let mut bulletin = valid.clone();
            *bulletin.pointer_mut(pointer).unwrap() = value.clone();
            assert_eq!(read(&bulletin.to_string(), now()), None, "{pointer}: {value}");
        }
        for text in ["", "{}", "[[[[", &"[".repeat(MAX_BULLETIN), &"x".repeat(MAX_BULLETIN + 1)] {
            assert_eq!(read(text, now()), None);
        }
    }

    #[test]
    fn other_versions_and_wrong_clocks_are_read_as_far_as_possible() {
        let text = write((ID, "g"), &[problem("x")], [figures()].iter());
        let mut newer: Value = serde_json::from_str(&text).unwrap();
        newer["problems"][0]["code"] = json!("of-a-newer-version");
        newer["figures"][0]["head"] = json!([1, 2, 3]);
        newer["colour"] = json!("red");
        let state = read(&newer.to_string(), now()).unwrap();
        assert_eq!((state.problems.len(), state.more), (0, 1));
        assert_eq!((state.figures[0].loans, state.figures[0].head.buckets.len()), (3, 0));
        newer["figures"][0]["at"] = json!(now().as_second() + 3600);
        assert_eq!(read(&newer.to_string(), now()).unwrap().figures, []);
    }
}
