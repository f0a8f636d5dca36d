//! Which of the processes on one SQLite file sends which ends. Bokbasen would get each end from
//! every process otherwise.
//!
//! The processes divide the loans by rendezvous hashing, as those on PostgreSQL do, but without a
//! common record of who they are. So each gives a share up before the other takes it:
//!
//! - A new process sends nothing at first. The others give its share up shortly before it begins.
//! - A process that is dead has no share at once.
//! - A process whose heartbeat has stopped is suspended, and has no share until it is back for as
//!   long as a new one. It notices that itself, and sends nothing for that long either.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use uuid::Uuid;

use crate::ledger::buckets::{bucket_of, owner_of};
use crate::loan::LoanId;

/// How long a new process sends nothing while another one runs.
const JOINING: Duration = Duration::from_secs(40);
/// When the others give its share up, after they have seen it first. Their calls in progress end
/// before it begins: one end may take several calls.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(20);
/// A process without a heartbeat for so long is suspended.
const SUSPENDED_AFTER: Duration = Duration::from_secs(60);
/// A process takes itself for suspended sooner than others do.
const AWAY_AFTER: Duration = Duration::from_secs(50);
/// A process that cannot list the others for so long sends all ends: better twice than never.
const UNKNOWN_FOR: Duration = Duration::from_secs(60);

/// The shares of the ends as this process sees them.
#[derive(Debug)]
pub(super) struct EndShares {
    own: Uuid,
    /// From when this process sends.
    sends_from: Instant,
    /// The last heartbeat of this process.
    beaten: Instant,
    /// Since when the others cannot be listed.
    unknown_since: Option<Instant>,
    others: HashMap<Uuid, Other>,
    /// The processes that have a share, in ascending order.
    members: Vec<Uuid>,
    /// How often these have changed.
    version: u64,
}

/// What is known of another process.
#[derive(Debug)]
struct Other {
    heartbeat: Option<SystemTime>,
    /// When the heartbeat was seen to change.
    beaten: Instant,
    /// From when it has a share.
    counts_from: Instant,
}

impl EndShares {
    /// Creates the shares of a new process. `others` are the live ones, each with its heartbeat.
    pub(super) fn new(own: Uuid, others: Vec<(Uuid, Option<SystemTime>)>) -> EndShares {
        let now = Instant::now();
        let older = |(id, heartbeat)| (id, Other { heartbeat, beaten: now, counts_from: now });
        let others: HashMap<Uuid, Other> = others.into_iter().map(older).collect();
        let sends_from = if others.is_empty() { now } else { now + JOINING };
        let mut shares = EndShares {
            own,
            sends_from,
            beaten: now,
            unknown_since: None,
            others,
            members: Vec::new(),
            version: 0,
        };
        shares.set_members(shares.members_at(now));
        shares
    }

    /// Updates the shares by which other processes live now. This one gave a heartbeat at `beaten`,
    /// before they were listed.
    pub(super) fn refresh(&mut self, beaten: Instant, alive: Vec<(Uuid, Option<SystemTime>)>) {
        let now = Instant::now();
        let was_suspended = self.note_heartbeat(beaten) > AWAY_AFTER;
        self.unknown_since = None;
        let mut before = std::mem::take(&mut self.others);
        for (id, heartbeat) in alive {
            let other = match before.remove(&id) {
                None => Other { heartbeat, beaten: now, counts_from: now + GIVEN_UP_AFTER },
                Some(other) if was_suspended => Other { heartbeat, beaten: now, ..other },
                Some(other) if other.heartbeat == heartbeat => other,
                Some(other) if other.is_suspended(now) => {
                    Other { heartbeat, beaten: now, counts_from: now + GIVEN_UP_AFTER }
                }
                Some(other) => Other { heartbeat, beaten: now, ..other },
            };
            self.others.insert(id, other);
        }
        if !self.others.values().any(|other| other.counts(now)) {
            // Nobody else sends, so nobody has to give anything up.
            self.sends_from = self.sends_from.min(now);
        } else if was_suspended {
            self.sends_from = now + JOINING;
        }
        self.set_members(self.members_at(now));
    }

    /// Keeps the shares as they are, since the others cannot be listed. Returns whether that begins
    /// now. If it does not end, this process sends all ends.
    pub(super) fn keep(&mut self, beaten: Instant) -> bool {
        self.note_heartbeat(beaten);
        let begins = self.unknown_since.is_none();
        if self.unknown_since.get_or_insert(beaten).elapsed() > UNKNOWN_FOR {
            self.set_members(vec![self.own]);
        }
        begins
    }

    /// Returns the time since the heartbeat before this one.
    fn note_heartbeat(&mut self, beaten: Instant) -> Duration {
        beaten.saturating_duration_since(std::mem::replace(&mut self.beaten, beaten))
    }

    fn set_members(&mut self, members: Vec<Uuid>) {
        if members != self.members {
            self.members = members;
            self.version += 1;
        }
    }

    /// Returns a number that is another one after each change of the shares.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    fn members_at(&self, now: Instant) -> Vec<Uuid> {
        let others = self.others.iter().filter(|(_, other)| other.counts(now));
        let own = Some(self.own).filter(|_| self.sends_from <= now);
        let mut members: Vec<Uuid> = others.map(|(id, _)| *id).chain(own).collect();
        members.sort_unstable();
        members
    }

    /// Whether this process sends the end of this loan.
    pub(super) fn includes(&self, loan: LoanId) -> bool {
        self.members.contains(&self.own)
            && owner_of(bucket_of(loan.uuid()), &self.members) == Some(self.own)
    }
}

impl Other {
    fn is_suspended(&self, now: Instant) -> bool {
        now - self.beaten > SUSPENDED_AFTER
    }

    fn counts(&self, now: Instant) -> bool {
        self.counts_from <= now && !self.is_suspended(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processes that see each other as the real ones do.
    #[derive(Default)]
    struct Machine {
        processes: Vec<(Uuid, EndShares)>,
        suspended: Vec<Uuid>,
        heartbeats: HashMap<Uuid, SystemTime>,
        seconds: u64,
    }

    impl Machine {
        fn alive(&self, but: Uuid) -> Vec<(Uuid, Option<SystemTime>)> {
            let ids = self.processes.iter().map(|(id, _)| *id).filter(|id| *id != but);
            ids.map(|id| (id, self.heartbeats.get(&id).copied())).collect()
        }

        fn start(&mut self) -> Uuid {
            let id = Uuid::new_v4();
            let shares = EndShares::new(id, self.alive(id));
            self.processes.push((id, shares));
            id
        }

        fn kill(&mut self, id: Uuid) {
            self.processes.retain(|(process, _)| *process != id);
        }

        /// Each process that runs updates its shares once a second, at its own moment.
        async fn run(&mut self, seconds: u64, loans: &[LoanId]) {
            for _ in 0..seconds {
                self.seconds += 1;
                for number in 0..self.processes.len() {
                    tokio::time::advance(Duration::from_millis(1)).await;
                    let id = self.processes[number].0;
                    if !self.suspended.contains(&id) {
                        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(self.seconds);
                        self.heartbeats.insert(id, now);
                        let alive = self.alive(id);
                        self.processes[number].1.refresh(Instant::now(), alive);
                    }
                    let most = self.senders(loans).into_iter().max();
                    assert!(most <= Some(1), "{most:?} processes send one end");
                }
                tokio::time::advance(Duration::from_secs(1)).await;
            }
        }

        /// The number of processes that send the end of each loan.
        fn senders(&self, loans: &[LoanId]) -> Vec<usize> {
            let running = || {
                let processes = self.processes.iter();
                processes.filter(|(id, _)| !self.suspended.contains(id))
            };
            let senders =
                |loan: &LoanId| running().filter(|(_, shares)| shares.includes(*loan)).count();
            loans.iter().map(senders).collect()
        }

        fn assert_all_sent(&self, loans: &[LoanId]) {
            assert!(self.senders(loans).iter().all(|senders| *senders == 1));
        }
    }

    fn loans() -> Vec<LoanId> {
        (0..100).map(|_| LoanId::random()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn processes_that_come_and_go_never_send_one_end_twice() {
        let (mut machine, loans) = (Machine::default(), loans());
        let first = machine.start();
        machine.assert_all_sent(&loans);
        machine.run(5, &loans).await;
        let second = machine.start();
        machine.run(15, &loans).await;
        machine.assert_all_sent(&loans);
        let third = machine.start();
        machine.run(70, &loans).await;
        machine.assert_all_sent(&loans);
        assert!(machine.processes.iter().all(|(_, shares)| shares.members.len() == 3));
        machine.kill(second);
        machine.run(1, &loans).await;
        machine.assert_all_sent(&loans);
        // All that had a share die while another one joins.
        let last = machine.start();
        machine.run(3, &loans).await;
        machine.kill(first);
        machine.kill(third);
        machine.run(1, &loans).await;
        machine.assert_all_sent(&loans);
        assert!(machine.processes.iter().all(|(id, _)| *id == last));
    }

    #[tokio::test(start_paused = true)]
    async fn share_of_a_suspended_process_is_taken_and_given_back() {
        let (mut machine, loans) = (Machine::default(), loans());
        let first = machine.start();
        machine.start();
        machine.run(70, &loans).await;
        machine.suspended.push(first);
        machine.run(62, &loans).await;
        machine.assert_all_sent(&loans);
        machine.suspended.clear();
        // What it still believes is what `refresh` corrects first.
        let alive = machine.alive(first);
        machine.processes[0].1.refresh(Instant::now(), alive);
        machine.run(15, &loans).await;
        machine.assert_all_sent(&loans);
        machine.run(50, &loans).await;
        machine.assert_all_sent(&loans);
        assert!(machine.processes.iter().all(|(_, shares)| shares.members.len() == 2));
    }

    #[tokio::test(start_paused = true)]
    async fn machine_that_was_suspended_is_not_taken_for_dead_processes() {
        let (mut machine, loans) = (Machine::default(), loans());
        machine.start();
        machine.start();
        machine.run(70, &loans).await;
        tokio::time::advance(Duration::from_secs(600)).await;
        machine.run(70, &loans).await;
        machine.assert_all_sent(&loans);
    }

    #[tokio::test(start_paused = true)]
    async fn process_that_cannot_see_the_others_sends_all_ends_in_the_end() {
        let (mut machine, loans) = (Machine::default(), loans());
        machine.start();
        machine.start();
        machine.run(70, &loans).await;
        let (id, mut blind) = machine.processes.swap_remove(0);
        let (members, version) = (blind.members.clone(), blind.version());
        assert!(blind.keep(Instant::now()) && !blind.keep(Instant::now()));
        for _ in 0..59 {
            tokio::time::advance(Duration::from_secs(1)).await;
            blind.keep(Instant::now());
        }
        assert_eq!((&blind.members, blind.version()), (&members, version));
        tokio::time::advance(Duration::from_secs(2)).await;
        blind.keep(Instant::now());
        assert_eq!((&blind.members[..], blind.version()), (&[id][..], version + 1));
        // It sees them again, and has not been away.
        blind.refresh(Instant::now(), machine.alive(id));
        assert!(blind.members.contains(&id));
    }
}
