//! The requests that wait to be stored, and how many of them may be.
//!
//! `request_recorder` uses it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::recent_requests::RecentRequest;
use crate::loan::{Borrower, LibraryId, LoanKey};

/// The most requests of one reader that are stored in a minute, and the most readers that are
/// counted. An audiobook player sends a few in a minute.
const SHARE: u32 = 60;
const MAX_READERS: usize = 50_000;
const MINUTE: Duration = Duration::from_secs(60);

/// How many requests are stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// The most rows that are stored at once.
    pub(super) rows: u32,
    /// The most rows that are added at once after a quiet time, and the most that wait.
    pub(super) burst: u32,
}

/// Requests that wait, and the budget for them.
#[derive(Debug)]
pub(super) struct Queue {
    limit: usize,
    refused: VecDeque<RecentRequest>,
    sent: VecDeque<RecentRequest>,
    shares: Shares,
    pub(super) budget: Budget,
}

/// How many requests of each reader are stored in a minute. One whose app repeats a request must
/// not displace those of the others.
#[derive(Debug)]
struct Shares {
    begun: Instant,
    counts: HashMap<(LibraryId, Borrower), u32>,
}

/// The number of rows that may be written now. It grows so slowly that the rows of a lifetime are
/// not more than the limit.
#[derive(Debug)]
pub(super) struct Budget {
    rows: f64,
    burst: f64,
    rows_a_second: f64,
    added: Instant,
}

impl Queue {
    /// Creates a queue whose rows are stored for this time.
    pub(super) fn new(limit: Limit, lifetime: Duration) -> Queue {
        let Limit { rows, burst } = limit;
        let budget = Budget {
            rows: f64::from(burst),
            burst: f64::from(burst),
            // What a burst adds is within the limit, too.
            rows_a_second: f64::from(rows.saturating_sub(burst)) / lifetime.as_secs_f64().max(1.0),
            added: Instant::now(),
        };
        let (refused, sent) = (VecDeque::new(), VecDeque::new());
        let shares = Shares { begun: Instant::now(), counts: HashMap::new() };
        Queue { limit: burst as usize, refused, sent, shares, budget }
    }

    /// Adds a request. Returns whether one is dropped for it: the oldest one that was not refused,
    /// if there is one. One of a reader who has had their share is dropped itself.
    pub(super) fn add(&mut self, request: RecentRequest, now: Instant) -> bool {
        if request.asked.is_some_and(|asked| !self.shares.take(&asked.key, now)) {
            return true;
        }
        match request.answer.is_err() {
            true => self.refused.push_back(request),
            false => self.sent.push_back(request),
        }
        self.len() > self.limit
            && self.sent.pop_front().or_else(|| self.refused.pop_front()).is_some()
    }

    /// Returns the next requests to store, those that were refused first.
    pub(super) fn next(&self, count: usize) -> impl Iterator<Item = &RecentRequest> {
        self.refused.iter().chain(&self.sent).take(count)
    }

    /// Removes the first requests, in the order of [`Queue::next`].
    pub(super) fn remove(&mut self, count: usize) {
        let refused = count.min(self.refused.len());
        self.refused.drain(..refused);
        self.sent.drain(..(count - refused).min(self.sent.len()));
    }

    /// Returns the number of requests that wait.
    pub(super) fn len(&self) -> usize {
        self.refused.len() + self.sent.len()
    }
}

impl Shares {
    /// Counts a request of a reader. Returns whether it is within their share.
    fn take(&mut self, key: &LoanKey, now: Instant) -> bool {
        if now.saturating_duration_since(self.begun) >= MINUTE {
            self.counts.clear();
            self.begun = now;
        }
        let reader = (key.library, key.borrower);
        if self.counts.len() >= MAX_READERS && !self.counts.contains_key(&reader) {
            return true;
        }
        let count = self.counts.entry(reader).or_default();
        *count += 1;
        *count <= SHARE
    }
}

impl Budget {
    /// Adds what has become free until now.
    pub(super) fn add(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.added).as_secs_f64();
        self.rows = (self.rows + passed * self.rows_a_second).min(self.burst);
        self.added = now;
    }

    /// Returns how many rows may be written.
    pub(super) fn rows(&self) -> usize {
        self.rows as usize
    }

    /// Spends this number of rows.
    pub(super) fn spend(&mut self, rows: usize) {
        self.rows -= rows as f64;
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::problem::Problem;
    use crate::server::explain::Step;
    use crate::server::recent_requests::Asked;
    use crate::telemetry::{RequestId, Via};

    const LIMIT: Limit = Limit { rows: 1000, burst: 10 };
    const DAY: Duration = Duration::from_secs(86_400);

    fn request(answer: Result<StatusCode, Problem>) -> RecentRequest {
        RecentRequest {
            id: RequestId::generate(),
            began: std::time::Instant::now(),
            method: "GET",
            path: None,
            step: Step::Gate,
            asked: None,
            via: Via::None,
            answer,
        }
    }

    #[test]
    fn rows_of_a_lifetime_are_not_more_than_the_limit() {
        let mut queue = Queue::new(LIMIT, DAY);
        let (begun, mut written) = (Instant::now(), 0);
        for second in 0..86_400 {
            for _ in 0..20 {
                queue.add(request(Err(Problem::LoanEnded)), begun);
            }
            queue.budget.add(begun + Duration::from_secs(second));
            let rows = queue.next(queue.budget.rows()).count();
            queue.remove(rows);
            queue.budget.spend(rows);
            written += rows;
            assert!(queue.len() <= 10 && rows <= 10);
        }
        assert!((900..=1000).contains(&written), "{written}");
    }

    #[test]
    fn refused_requests_are_written_first_and_dropped_last() {
        let (mut queue, now) = (Queue::new(LIMIT, DAY), Instant::now());
        let dropped = (0..20).filter(|_| queue.add(request(Ok(StatusCode::OK)), now)).count();
        assert_eq!((dropped, queue.len()), (10, 10));
        for _ in 0..4 {
            assert!(queue.add(request(Err(Problem::LoanEnded)), now));
        }
        assert_eq!(queue.next(5).filter(|next| next.answer.is_err()).count(), 4);
        queue.remove(5);
        assert_eq!(
            (queue.len(), queue.next(9).filter(|next| next.answer.is_err()).count()),
            (5, 0)
        );
    }

    #[test]
    fn one_reader_does_not_displace_the_others() {
        let limit = Limit { rows: 100_000, burst: 1000 };
        let (mut queue, now) = (Queue::new(limit, DAY), Instant::now());
        let of = |borrower: u8| {
            let isbn = "9788299999014".parse().unwrap();
            let (library, borrower) =
                ("NO-1".parse().unwrap(), Borrower::from_bytes([borrower; 16]));
            let asked = Asked { key: LoanKey { library, borrower, isbn }, issued: None };
            RecentRequest { asked: Some(asked), ..request(Err(Problem::LoanEnded)) }
        };
        let stored = |queue: &mut Queue, borrower, now| {
            (0..5000).filter(|_| !queue.add(of(borrower), now)).count()
        };
        assert_eq!(stored(&mut queue, 1, now), SHARE as usize);
        assert!(!queue.add(of(2), now));
        assert_eq!(stored(&mut queue, 1, now + MINUTE), SHARE as usize, "a minute later");
    }
}
