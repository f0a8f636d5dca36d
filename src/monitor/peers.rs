//! The other gates of the cluster, as their bulletins show them, in bounded memory.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::bulletin::{self, GateState};
use super::codes::Code;
use super::figures::{Activity, Figures};
use super::history::History;
use super::tracker::Problem;
use crate::ledger::Bulletin;
use crate::telemetry::LogLimit;

/// How long a gate that publishes nothing is shown.
const SILENCE: Duration = Duration::from_secs(60);
/// How long the figures of a gate that is gone stay in the charts.
const MEMORY: Duration = Duration::from_secs(86_400);
/// The most gates whose figures are stored. More cannot be state apart by a person.
const MAX_PEERS: usize = 31;

/// The other gates, by the id of their process.
#[derive(Debug, Default)]
pub(super) struct Peers(BTreeMap<String, Peer>);

/// Another gate.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: String,
    /// Whether the last exchange had a bulletin of it.
    is_listed: bool,
    /// When its bulletin was written, by the clock of this machine.
    heard: Instant,
    pub(super) problems: Vec<(Code, Problem)>,
    /// Problems that are not listed, or of a kind that this version does not know.
    pub(super) more: usize,
    /// Its last minute.
    pub(super) recent: Option<Activity>,
    /// The end of its newest figures.
    last: Timestamp,
    pub(super) history: History,
}

impl Peers {
    /// Records the bulletins of the other gates. `own` is the id of this one.
    pub(super) fn update(
        &mut self,
        now: (Instant, Timestamp),
        own: &str,
        bulletins: Vec<Bulletin>,
    ) {
        static LIMIT: LogLimit = LogLimit::per_minute();
        self.0.values_mut().for_each(|peer| peer.is_listed = false);
        for Bulletin { age, content } in bulletins {
            let heard = now.0.checked_sub(age).unwrap_or(now.0);
            match bulletin::read(&content, now.1) {
                Some(state) if state.id == own => {}
                Some(state) => self.hear(heard, state),
                None => {
                    if let Some(suppressed) = LIMIT.permit("bulletin") {
                        tracing::warn!(suppressed, "a bulletin of another gate cannot be read");
                    }
                }
            }
        }
        self.forget(now.0);
    }

    fn hear(&mut self, heard: Instant, state: GateState) {
        let GateState { id, node, problems, more, figures } = state;
        let peer = self.0.entry(id).or_insert_with(|| Peer {
            node: String::new(),
            is_listed: true,
            heard,
            problems: Vec::new(),
            more: 0,
            recent: None,
            last: Timestamp::MIN,
            history: History::default(),
        });
        for newer in figures.iter().filter(|figures| figures.at > peer.last) {
            peer.history.add(newer);
        }
        peer.last = figures.iter().map(|figures| figures.at).fold(peer.last, Timestamp::max);
        peer.recent = minute(figures.iter());
        (peer.node, peer.problems, peer.more) = (node, problems, more);
        (peer.heard, peer.is_listed) = (heard, true);
    }

    /// Forgets gates that are gone for long, and the ones that are gone the longest if they are too
    /// many.
    fn forget(&mut self, now: Instant) {
        self.0.retain(|_, peer| now.duration_since(peer.heard) < MEMORY);
        while self.0.len() > MAX_PEERS {
            let gone = self.0.iter().min_by_key(|(_, peer)| (peer.is_listed, peer.heard));
            let Some(id) = gone.map(|(id, _)| id.clone()) else { return };
            self.0.remove(&id);
        }
    }

    /// Returns the gates that are alive, with their ids.
    pub(super) fn live(&self, now: Instant) -> impl Iterator<Item = (&str, &Peer)> {
        let is_live = move |peer: &Peer| peer.is_listed && now.duration_since(peer.heard) < SILENCE;
        self.all().filter(move |(_, peer)| is_live(peer))
    }

    /// Returns all gates of the last day, with their ids.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &Peer)> {
        self.0.iter().map(|(id, peer)| (id.as_str(), peer))
    }
}

/// Returns the rates over all of these figures; none if there are none.
pub(super) fn minute<'a>(figures: impl Iterator<Item = &'a Figures>) -> Option<Activity> {
    let sum = figures.cloned().reduce(|mut sum, later| {
        sum.add(&later);
        sum
    });
    sum.as_ref().map(Activity::of)
}

#[cfg(test)]
mod tests {
    use super::super::series::Window;
    use super::*;

    fn figures(second: i64) -> Figures {
        let at = Timestamp::from_second(second).unwrap();
        Figures { at, seconds: 10.0, loans: 1, ..Figures::default() }
    }

    fn bulletin(id: usize, figures: &[Figures]) -> Bulletin {
        let content = bulletin::write((&format!("{id:08x}"), "gate"), &[], figures.iter());
        Bulletin { age: Duration::from_secs(1), content }
    }

    #[test]
    fn figures_are_counted_once_and_gates_that_are_gone_stay_in_the_charts_only() {
        let (mut peers, start) = (Peers::default(), Instant::now() + MEMORY);
        let at = |second: u32| {
            let seconds = Duration::from_secs(second.into());
            (start + seconds, Timestamp::from_second(1_790_000_010 + i64::from(second)).unwrap())
        };
        let first = [0, 10].map(|second| figures(1_790_000_010 + second));
        let second = [10, 19].map(|second| figures(1_790_000_010 + second));
        peers.update(at(10), "own", vec![bulletin(1, &first)]);
        peers.update(at(20), "own", vec![bulletin(1, &second)]);
        let (id, peer) = peers.live(at(20).0).next().unwrap();
        assert_eq!(id, "00000001");
        let slot = Window::Hour.slot(at(10).1);
        let counted = peer.history.activity(Window::Hour, slot).unwrap();
        // Three loans in thirty seconds: the figures in both bulletins count once.
        assert!((counted.loans - 6.0).abs() < 0.001, "{counted:?}");

        // It is silent, and then it is back, and then its row is removed.
        assert_eq!(peers.live(at(78).0).count(), 1);
        assert_eq!(peers.live(at(79).0).count(), 0);
        peers.update(at(90), "own", vec![bulletin(1, &[])]);
        assert_eq!(peers.live(at(90).0).count(), 1);
        peers.update(at(100), "own", Vec::new());
        assert_eq!((peers.live(at(100).0).count(), peers.all().count()), (0, 1));
        peers.update(at(86_600), "own", Vec::new());
        assert_eq!(peers.all().count(), 0);
    }

    #[test]
    fn own_and_invalid_bulletins_are_left_out_and_gates_are_bounded() {
        let now = (Instant::now() + MEMORY, Timestamp::from_second(1_790_000_000).unwrap());
        let mut peers = Peers::default();
        let mut bulletins: Vec<_> = (0..1000).map(|id| bulletin(id, &[])).collect();
        bulletins.push(Bulletin { age: Duration::MAX, content: "garbage".to_owned() });
        peers.update(now, "0000002a", bulletins);
        assert_eq!(peers.all().count(), MAX_PEERS);
        assert!(peers.all().all(|(id, _)| id != "0000002a"));
    }
}
