//! What a single moment does not show: counters that rise, and nodes that were there before.

use std::time::Duration;

use tokio::time::Instant;

/// How long an event without an end is a problem: a late begin, a breach, a restart.
const EVENT: Duration = Duration::from_secs(86_400);

/// A counter whose rise is a problem for a while.
#[derive(Debug, Default)]
pub(super) struct Rising {
    last: Option<u64>,
    rose: Option<Instant>,
    by: u64,
}

impl Rising {
    /// Returns by how much the counter has risen recently, if it has.
    pub(super) fn update(&mut self, now: Instant, count: u64) -> Option<u64> {
        let rise = count.saturating_sub(self.last.unwrap_or_default());
        self.last = Some(count);
        if rise > 0 {
            (self.rose, self.by) = (Some(now), self.by.saturating_add(rise));
        }
        if self.rose.is_none_or(|rose| now.duration_since(rose) >= EVENT) {
            (self.rose, self.by) = (None, 0);
        }
        self.rose.map(|_| self.by)
    }
}

/// The nodes of the cluster that this one has declared dead.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    fenced: Option<u64>,
    /// The highest number of live nodes since the last one was declared dead, or in this process.
    most: u64,
    /// When a node was declared dead, and how many there were before.
    missing: Option<(Instant, u64)>,
}

impl Nodes {
    /// Returns how many nodes there are and were, if one is missing.
    pub(super) fn update(&mut self, now: Instant, live: u64, fenced: u64) -> Option<(u64, u64)> {
        if fenced > self.fenced.unwrap_or_default() {
            let before = self.missing.map_or(self.most, |(_, before)| before);
            self.missing = Some((now, before.max(live + 1)));
        }
        self.fenced = Some(fenced);
        // A node that is missing may have been given up.
        let is_over = |(since, before): &(Instant, u64)| {
            live >= *before || now.duration_since(*since) >= EVENT
        };
        if self.missing.as_ref().is_some_and(is_over) {
            (self.missing, self.most) = (None, live);
        }
        // A node that left in an orderly way is not missing.
        self.most = if self.missing.is_some() { self.most } else { live };
        self.missing.map(|(_, before)| (live, before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rise_of_a_counter_is_a_problem_for_a_day() {
        let (mut rising, start) = (Rising::default(), Instant::now());
        assert_eq!(rising.update(start, 0), None);
        assert_eq!(rising.update(start, 2), Some(2));
        assert_eq!(rising.update(start + EVENT / 2, 3), Some(3));
        assert_eq!(rising.update(start + EVENT, 3), Some(3));
        assert_eq!(rising.update(start + EVENT * 2, 3), None);
        assert_eq!(rising.update(start + EVENT * 2, 4), Some(1));
    }

    #[test]
    fn node_is_missing_until_it_is_back_and_not_after_it_left() {
        let (mut nodes, start) = (Nodes::default(), Instant::now());
        assert_eq!(nodes.update(start, 3, 0), None);
        assert_eq!(nodes.update(start, 2, 0), None, "it left");
        assert_eq!(nodes.update(start, 1, 1), Some((1, 2)));
        assert_eq!(nodes.update(start, 1, 1), Some((1, 2)));
        assert_eq!(nodes.update(start, 2, 1), None, "it is back");
        assert_eq!(nodes.update(start, 1, 2), Some((1, 2)));
        assert_eq!(nodes.update(start + EVENT, 1, 2), None, "it was given up");
    }
}
