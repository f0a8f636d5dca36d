//! What all gates of a cluster have in common for a person: their problems in one list, and their
//! figures in one chart.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::codes::Code;
use super::figures::Activity;
use super::peers::{Peer, minute};
use super::series::Window;
use super::status::Status;
use super::tracker::{self, Problem};
use super::{MAX_FIGURES, Monitor, Seen};
use crate::lock::lock;

/// How long the figures of this gate and of others may take until they are here. A chart ends that
/// long ago, since its last slot would look as if something had stopped.
const OWN_DELAY: Duration = Duration::from_secs(12);
const DELAY_OF_OTHERS: Duration = Duration::from_secs(45);

/// A gate of the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    /// The random id of its process.
    pub(crate) id: String,
    /// Its name.
    pub(crate) node: String,
    /// Whether it is the one that was asked.
    pub(crate) is_own: bool,
    /// The number of its problems.
    pub(crate) problems: usize,
    /// Those of them that are not listed, or of a kind that only its version knows.
    pub(crate) unlisted: usize,
    /// Its last minute; none if it has just started.
    pub(crate) recent: Option<Activity>,
}

/// The problems that need a person now.
#[derive(Clone, Debug)]
pub(crate) struct Problems {
    /// When they were last looked for.
    pub(crate) at: Timestamp,
    /// The name of the gate that was asked.
    pub(crate) node: String,
    /// All live gates, the one that was asked first.
    pub(crate) gates: Vec<Gate>,
    /// The problems of all gates, the worst first. One of the whole cluster is listed once.
    pub(crate) problems: Vec<(Code, Problem)>,
}

/// The figures of a window.
#[derive(Clone, Debug)]
pub(crate) struct Overview {
    /// When the last reading was taken.
    pub(crate) at: Timestamp,
    /// The id of the gate that is shown; none for all together.
    pub(crate) gate: Option<String>,
    /// All live gates, the one that was asked first.
    pub(crate) gates: Vec<Gate>,
    /// The beginning of the first slot, and the time from one slot to the next in seconds.
    pub(crate) start: Timestamp,
    pub(crate) step: i64,
    /// The rates of each slot; none where nothing is known.
    pub(crate) slots: Vec<Option<Activity>>,
    /// The last minute.
    pub(crate) recent: Option<Activity>,
    /// How well readers are served.
    pub(crate) status: Status,
}

impl Monitor {
    /// Returns the problems that need a person now.
    pub(crate) fn problems(&self) -> Problems {
        let seen = lock(&self.inner.seen);
        let node = self.inner.node.clone();
        Problems { at: seen.at, node, gates: self.gates(&seen), problems: merged(&seen) }
    }

    /// Returns the number of problems that need a person now.
    pub(crate) fn problem_count(&self) -> usize {
        let seen = lock(&self.inner.seen);
        let unlisted = seen.peers.live(Instant::now()).map(|(_, peer)| peer.more).sum::<usize>();
        merged(&seen).len() + unlisted
    }

    /// Returns the figures of a window, of the gate with this id or of all together.
    pub(crate) fn overview(&self, window: Window, gate: Option<&str>) -> Overview {
        let seen = lock(&self.inner.seen);
        let gates = self.gates(&seen);
        let gate = gate.filter(|id| gates.iter().any(|gate| gate.id == *id));
        let is_shown = |id: &str| gate.is_none_or(|gate| gate == id);
        let own = is_shown(&self.inner.id).then_some(&seen.history);
        let others: Vec<&Peer> =
            seen.peers.all().filter(|(id, _)| is_shown(id)).map(|(_, peer)| peer).collect();
        let delay = if others.is_empty() { OWN_DELAY } else { DELAY_OF_OTHERS };
        let end = window.slot(crate::clock::before(seen.at, delay));
        let (step, count) = window.grid();
        let first = end - i64::try_from(count).unwrap_or_default() + 1;
        let slots = (first..=end).map(|slot| {
            let histories = own.into_iter().chain(others.iter().map(|peer| &peer.history));
            sum(histories.filter_map(|history| history.activity(window, slot)))
        });
        let recent = gates.iter().filter(|gate| is_shown(&gate.id));
        Overview {
            at: seen.at,
            gate: gate.map(str::to_owned),
            start: Timestamp::from_second(first.saturating_mul(step)).unwrap_or_default(),
            step,
            slots: slots.collect(),
            recent: sum(recent.filter_map(|gate| gate.recent.clone())),
            status: seen.status,
            gates,
        }
    }

    /// Returns the live gates: this one, and the others by name.
    fn gates(&self, seen: &Seen) -> Vec<Gate> {
        let own = Gate {
            id: self.inner.id.clone(),
            node: self.inner.node.clone(),
            is_own: true,
            problems: seen.tracker.open().len(),
            unlisted: 0,
            recent: minute(seen.series.newest(MAX_FIGURES)),
        };
        let others = seen.peers.live(Instant::now()).map(|(id, peer)| Gate {
            id: id.to_owned(),
            node: peer.node.clone(),
            is_own: false,
            problems: peer.problems.len().saturating_add(peer.more),
            unlisted: peer.more,
            recent: peer.recent.clone(),
        });
        let mut gates: Vec<_> = others.collect();
        gates.sort_by(|one, other| (&one.node, &one.id).cmp(&(&other.node, &other.id)));
        gates.insert(0, own);
        gates
    }
}

fn sum(activities: impl Iterator<Item = Activity>) -> Option<Activity> {
    activities.reduce(|mut sum, other| {
        sum.add(&other);
        sum
    })
}

/// Returns the problems of all live gates. What every gate of the cluster sees is listed as this
/// gate sees it, or else as the one that has seen it first.
fn merged(seen: &Seen) -> Vec<(Code, Problem)> {
    let own = seen.tracker.open();
    let mut listed: BTreeSet<Code> = own.iter().map(|(code, _)| *code).collect();
    let mut others: Vec<_> = seen
        .peers
        .live(Instant::now())
        .flat_map(|(_, peer)| peer.problems.iter().cloned())
        .collect();
    others.sort_by_key(|(_, problem)| problem.since);
    others.retain(|(code, _)| !code.is_of_cluster() || listed.insert(*code));
    let mut all = [own, others].concat();
    tracker::sort(&mut all);
    all
}
