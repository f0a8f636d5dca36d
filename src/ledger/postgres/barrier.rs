//! How far all processes have read the change feed.
//!
//! Each process increments its counter in `members` after it has read the feed to its end and
//! announced what it read. It never begins a read before its last acknowledgement has succeeded or
//! failed. If a counter has grown by three since an end was committed, the process has announced
//! the end, see [`READS`].
//!
//! A process that cannot acknowledge stops to use what it cached `gate.freshness` after its last
//! acknowledged read began. Each process has its own value of it, and records that when it joins.
//! An observer knows that this time is over if it has seen the counter unchanged for longer, by a
//! clock that nobody can set. But such a process may still read loans from the ledger, and use them
//! for some seconds. So an end also waits for [`MARGIN`] after it was seen.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::members_table::duration_of;
use super::queries::Queries;
use super::settings::PostgresSettings;
use super::sql::statement;
use crate::clock;
use crate::ledger::LedgerError;
use crate::lock::lock;

/// How much longer than `gate.freshness` a process counts as delivering: it notices within some
/// seconds that its feed is too old, and clocks run at different rates. It is also longer than a
/// process without acknowledgements uses a loan that it has read from the ledger.
const MARGIN: Duration = Duration::from_secs(15);
/// The increments after which a process has read what was committed before.
///
/// The first may come from an acknowledgement that the process counts as failed, and that takes
/// effect later. The process may have begun its next read before that, so the second increment may
/// also be of a read that began too early. But the second acknowledgement had to wait for the row
/// until the first took effect, and the third read began after the second acknowledgement.
const READS: i64 = 3;

/// How long a member that was declared dead counts, in milliseconds: longer than it delivers. A
/// process that fails at each start leaves a member each time.
const COUNTED_FENCED_MS: u128 = 600_000;
const _: () = assert!(
    COUNTED_FENCED_MS > PostgresSettings::MAX_FRESHNESS.as_millis() + 2 * MARGIN.as_millis()
);

/// A row for the time of the database, also if nobody is a member. The number is
/// [`COUNTED_FENCED_MS`].
pub(super) const POLLS: &str = "SELECT (extract(epoch FROM now()) * 1000)::bigint AS now, \
     member, process, polls, freshness FROM (SELECT 1) AS one LEFT JOIN members \
     ON fenced IS NULL \
     OR NOT has_left AND fenced > (extract(epoch FROM now()) * 1000)::bigint - 600000";

/// The counters of all members, as one query has read them.
#[derive(Clone, Debug, Default)]
pub(super) struct Polls {
    /// The time of the database, in milliseconds.
    pub(super) now: i64,
    members: HashMap<Uuid, MemberPolls>,
}

/// The counter of a member.
#[derive(Clone, Copy, Debug)]
struct MemberPolls {
    /// The same for all names that a process has in its life.
    process: Uuid,
    polls: i64,
    /// How long it delivers without an acknowledged read.
    freshness: Duration,
}

impl Polls {
    /// Reads the counters.
    pub(super) async fn read(connection: &mut PgConnection) -> Result<Polls, sqlx::Error> {
        Polls::of(&statement(POLLS).fetch_all(connection).await?)
    }

    /// Returns the number of members that may still deliver files.
    pub(super) fn count(&self) -> usize {
        self.members.len()
    }

    #[cfg(test)]
    pub(super) fn names(&self) -> impl Iterator<Item = Uuid> {
        self.members.keys().copied()
    }

    #[cfg(test)]
    pub(super) fn freshness_of(&self, member: Uuid) -> Option<Duration> {
        self.members.get(&member).map(|member| member.freshness)
    }

    fn of(rows: &[PgRow]) -> Result<Polls, sqlx::Error> {
        let mut polls = Polls::default();
        for row in rows {
            polls.now = row.try_get("now")?;
            let Some(member) = row.try_get("member")? else { continue };
            let (process, counter) = (row.try_get("process")?, row.try_get("polls")?);
            let freshness = duration_of(row.try_get("freshness")?);
            polls.members.insert(member, MemberPolls { process, polls: counter, freshness });
        }
        Ok(polls)
    }
}

/// What this process has observed of the counters. The task that follows the feed updates it.
#[derive(Debug, Default)]
pub(super) struct PollTracker(Mutex<Observations>);

#[derive(Debug, Default)]
struct Observations {
    /// When the last observation began and ended, in time since the machine started.
    began: Duration,
    ended: Duration,
    members: HashMap<Uuid, Observed>,
}

#[derive(Clone, Copy, Debug)]
struct Observed {
    member: MemberPolls,
    /// When the counter was first seen with its value.
    since: Duration,
}

impl PollTracker {
    /// Records counters that were read between these times.
    pub(super) fn observe(&self, polls: &Polls, began: Duration, ended: Duration) {
        let mut observations = lock(&self.0);
        // Of two overlapping reads, nobody knows which is newer.
        if began < observations.ended {
            return;
        }
        let before = std::mem::take(&mut observations.members);
        observations.members = polls
            .members
            .iter()
            .map(|(name, member)| {
                let same = before.get(name).filter(|seen| seen.member.polls == member.polls);
                let since = same.map_or(ended, |seen| seen.since);
                (*name, Observed { member: *member, since })
            })
            .collect();
        (observations.began, observations.ended) = (began, ended);
    }

    /// Returns whether each process of `base` has read the feed since, or has stopped to deliver
    /// files. `base` was read before `ended`.
    fn is_past(&self, base: &Polls, ended: Duration) -> bool {
        let observations = lock(&self.0);
        if observations.began < ended {
            return false;
        }
        let may_be_silent = observations.began.saturating_sub(ended) >= MARGIN;
        let processes = observations.processes(base);
        base.members.values().all(|member| match processes.get(&member.process) {
            Some(process) => process.reads >= READS || may_be_silent && process.is_silent,
            None => true, // it has left
        })
    }
}

/// What was observed of a process under all its names.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// The acknowledged reads since a base.
    reads: i64,
    /// Whether it has not acknowledged for so long that it delivers only what it reads now.
    is_silent: bool,
}

impl Observations {
    /// Returns the progress of each process since `base`.
    fn processes(&self, base: &Polls) -> HashMap<Uuid, Progress> {
        let mut processes = HashMap::with_capacity(self.members.len());
        for (name, seen) in &self.members {
            let before = base.members.get(name).map_or(0, |member| member.polls);
            let process = processes
                .entry(seen.member.process)
                .or_insert(Progress { reads: 0, is_silent: true });
            // After a failover, the last increments may be lost.
            process.reads += seen.member.polls.saturating_sub(before).max(0);
            process.is_silent &= self.is_silent(seen);
        }
        processes
    }

    /// Whether this process has seen a member not acknowledge for as long as the member delivers. A
    /// member that was declared dead may still deliver, and the clock of the database may be set,
    /// so neither counts.
    fn is_silent(&self, seen: &Observed) -> bool {
        let silent = self.began.saturating_sub(seen.since);
        silent >= seen.member.freshness.saturating_add(MARGIN)
    }
}

/// A point in time that all processes have to read past.
#[derive(Clone, Debug)]
pub(in crate::ledger) struct Barrier {
    base: Polls,
    /// When `base` had been read.
    ended: Duration,
    tracker: Arc<PollTracker>,
}

impl Barrier {
    /// Creates a barrier for everything that was committed before `base` was read. That read
    /// ended at `ended`, in time since this machine started.
    pub(super) fn new(base: Polls, ended: Duration, tracker: Arc<PollTracker>) -> Barrier {
        Barrier { base, ended, tracker }
    }

    pub(in crate::ledger) fn is_past(&self) -> bool {
        self.tracker.is_past(&self.base, self.ended)
    }
}

impl Queries {
    /// Returns a barrier for everything that was committed before this call.
    pub(in crate::ledger) async fn barrier(&self) -> Result<Barrier, LedgerError> {
        let rows = self.background_rows(statement(POLLS)).await?;
        let base = Polls::of(&rows).map_err(LedgerError::Server)?;
        Ok(Barrier::new(base, clock::since_boot(), self.polls.clone()))
    }
}

#[cfg(test)]
#[path = "barrier_tests.rs"]
mod tests;
