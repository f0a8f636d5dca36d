//! Which gate sends the problems that all gates of a cluster have in common.
//!
//! One gate speaks for the cluster, and no gate or two do for some seconds while the members
//! change. The gate that begins to speak does not know what the last one has sent, so it sends all
//! problems of the cluster that there are, and those that have ended recently. A receiver may get
//! an event twice, and misses none.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::codes::Code;
use super::tracker::{Change, Problem};

/// How long the end of a problem is remembered, longer than it takes until another gate speaks.
const MEMORY: Duration = Duration::from_secs(600);
/// The most ends that are remembered.
const MAX_ENDS: usize = 100;

/// Whether this gate speaks for the cluster, and what it has not said.
#[derive(Debug, Default)]
pub(super) struct ClusterSpeaker {
    speaks: bool,
    /// Problems of the cluster that ended while this gate did not speak.
    ended: VecDeque<(Instant, Change)>,
}

impl ClusterSpeaker {
    /// Returns what this gate sends of the problems that have begun or ended. `open` are those that
    /// there are now.
    pub(super) fn choose(
        &mut self,
        now: Instant,
        speaks: bool,
        changes: Vec<Change>,
        open: &[(Code, Problem)],
    ) -> Vec<Change> {
        let begins_to_speak = speaks && !self.speaks;
        self.speaks = speaks;
        let (of_cluster, mut sent): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|change| change.code.is_of_cluster());
        if begins_to_speak {
            let ended = self.ended.drain(..);
            let recent = ended.filter(|(at, _)| now.duration_since(*at) < MEMORY);
            sent.extend(recent.map(|(_, change)| change));
            sent.extend(of_cluster.into_iter().filter(|change| change.resolved.is_some()));
            let open = open.iter().filter(|(code, _)| code.is_of_cluster());
            sent.extend(open.map(|(code, problem)| Change {
                code: *code,
                problem: problem.clone(),
                resolved: None,
            }));
        } else if speaks {
            sent.extend(of_cluster);
        } else {
            let ended = of_cluster.into_iter().filter(|change| change.resolved.is_some());
            self.ended.extend(ended.map(|change| (now, change)));
            let excess = self.ended.len().saturating_sub(MAX_ENDS);
            self.ended.drain(..excess);
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::codes::Severity;
    use super::*;

    fn problem(code: Code) -> (Code, Problem) {
        let (severity, since) = (Severity::Critical, Timestamp::UNIX_EPOCH);
        (code, Problem::new(code, None, severity, "node", since, "It is so.".to_owned()))
    }

    fn change(code: Code, has_ended: bool) -> Change {
        let resolved = has_ended.then_some(Timestamp::UNIX_EPOCH);
        Change { code, problem: problem(code).1, resolved }
    }

    fn sent(changes: &[Change]) -> Vec<(Code, bool)> {
        changes.iter().map(|change| (change.code, change.resolved.is_some())).collect()
    }

    #[test]
    fn gate_that_begins_to_speak_sends_what_the_last_one_may_not_have_sent() {
        let (mut speaker, now) = (ClusterSpeaker::default(), Instant::now());
        let (closed, moved, skew) = (Code::BeginsClosed, Code::LedgerMoved, Code::ClockSkew);
        let began = vec![change(closed, false), change(skew, false)];
        let open = [problem(closed), problem(skew)];
        let chosen = speaker.choose(now, false, began, &open);
        assert_eq!(sent(&chosen), [(skew, false)], "another gate speaks");
        let ended = vec![change(moved, true)];
        assert_eq!(sent(&speaker.choose(now, false, ended, &open)), []);
        // The other gate has died.
        let chosen = speaker.choose(now, true, Vec::new(), &open);
        assert_eq!(sent(&chosen), [(moved, true), (closed, false)]);
        assert_eq!(sent(&speaker.choose(now, true, Vec::new(), &open)), [], "once");
        let chosen = speaker.choose(now, true, vec![change(closed, true)], &[]);
        assert_eq!(sent(&chosen), [(closed, true)]);
    }

    #[test]
    fn problem_that_begins_as_the_gate_begins_to_speak_is_sent_once() {
        let (mut speaker, now) = (ClusterSpeaker::default(), Instant::now());
        let closed = Code::BeginsClosed;
        let began = vec![change(closed, false)];
        let chosen = speaker.choose(now, true, began, &[problem(closed)]);
        assert_eq!(sent(&chosen), [(closed, false)]);
    }

    #[test]
    fn old_ends_are_forgotten_and_bounded() {
        let (mut speaker, now) = (ClusterSpeaker::default(), Instant::now());
        for _ in 0..1000 {
            speaker.choose(now, false, vec![change(Code::BeginsClosed, true)], &[]);
        }
        assert_eq!(speaker.ended.len(), MAX_ENDS);
        assert_eq!(sent(&speaker.choose(now + MEMORY, true, Vec::new(), &[])), []);
    }
}
