//! The membership of this process: joins, renews the lease, and fences members that do not.
//!
//! `open` joins, and a task of this process keeps the lease until it leaves. Each round renews the
//! own lease first, then reads the members, divides the work among them, and fences at most one
//! whose lease has expired: no round may delay the next renewal for long. If others have expired,
//! too, the next round follows at once.
//!
//! If the task panics, it is started again, and renews at once.
//!
//! A process that was fenced has lost its undecided loans for good. It joins again under a new
//! name. A process that only renewed late was not fenced by anybody, and continues.

mod begins;
mod clock_check;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::connect::Connector;
use super::copy_marks::MarkedLedger;
use super::epoch::EpochSeals;
use super::loss_detector::LossDetector;
use super::members_table::{JoiningProcess, MemberTable, Members, PostgresMembers, Renewal};
use super::observer::{Member, Observer, RENEWALS_PER_LEASE};
use super::standing::{BootTime, Standing};
use crate::clock::{self, Clock};
use crate::ledger::membership::Membership;
use crate::supervise::supervise;
use crate::telemetry::{FencedMember, LogLimit, Metrics, Task};

/// The deadline of a statement. It is shorter if renewals are more frequent.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(5);
/// The wait after a failed round, and the limit of its doubling: the lease must not expire because
/// of a short outage.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// The rounds between two deletions of old rows.
const ROUNDS_BETWEEN_DELETIONS: u32 = 600;

/// Joins the members of a ledger, and keeps the lease in the background. The id of `process` is the
/// name of its chains in the audit trail, `detector` knows what was seen before, and `seals` reads
/// the epoch.
///
/// # Errors
/// The error of the database, or `SchemaTooNew`. This process is no member then.
pub(in crate::ledger) async fn join(
    connector: Connector,
    process: JoiningProcess,
    detector: LossDetector,
    seals: EpochSeals,
    (clock, metrics): (Clock, Metrics),
) -> Result<Arc<Standing>, sqlx::Error> {
    let deadline = STATEMENT_DEADLINE.min(process.lease / RENEWALS_PER_LEASE);
    let table = PostgresMembers::new(connector, deadline, seals);
    let (standing, leave) = Standing::new(Arc::new(clock::since_boot));
    let standing = Arc::new(standing);
    let boot_time: BootTime = Arc::new(clock::since_boot);
    let clocks = (boot_time, clock);
    let mut keeper =
        Keeper::new(table, process, standing.clone(), detector, clocks, metrics.clone());
    keeper.join().await?;
    if let Err(error) = keeper.observe().await {
        // Otherwise the others would wait for a process that never serves.
        keeper.leave().await;
        return Err(error);
    }
    let watched = standing.clone();
    metrics.watch_lease(move || watched.is_member());
    tokio::spawn(keep(keeper, leave, metrics));
    Ok(standing)
}

/// Keeps the lease until the process leaves, also after a panic.
async fn keep<T: MemberTable>(
    keeper: Keeper<T>,
    leave: mpsc::Receiver<oneshot::Sender<()>>,
    metrics: Metrics,
) {
    let (keeper, left) = (Arc::new(Mutex::new((keeper, leave))), CancellationToken::new());
    let stopping = left.clone();
    supervise(Task::KeepLease, metrics, stopping, move || {
        let (keeper, left) = (keeper.clone(), left.clone());
        async move {
            let mut running = keeper.lock().await;
            let (keeper, leave) = &mut *running;
            let done = keeper.run(leave).await;
            left.cancel();
            keeper.leave().await;
            let _ = done.send(());
        }
    })
    .await;
}

/// Keeps the lease of this process.
struct Keeper<T> {
    table: T,
    standing: Arc<Standing>,
    observer: Observer,
    detector: LossDetector,
    process: JoiningProcess,
    interval: Duration,
    /// The time from one round to the next.
    wait: Duration,
    boot_time: BootTime,
    clock: Clock,
    metrics: Metrics,
    /// False after this process was fenced, until it has joined again.
    is_joined: bool,
    rounds: u32,
}

impl<T: MemberTable> Keeper<T> {
    fn new(
        table: T,
        process: JoiningProcess,
        standing: Arc<Standing>,
        detector: LossDetector,
        (boot_time, clock): (BootTime, Clock),
        metrics: Metrics,
    ) -> Keeper<T> {
        let interval = process.lease / RENEWALS_PER_LEASE;
        Keeper {
            table,
            standing,
            observer: Observer::new(interval),
            detector,
            process,
            interval,
            wait: interval,
            boot_time,
            clock,
            metrics,
            is_joined: false,
            rounds: 0,
        }
    }

    /// Renews the lease until the process leaves. Returns the sender to notify of that.
    async fn run(
        &mut self,
        leave: &mut mpsc::Receiver<oneshot::Sender<()>>,
    ) -> oneshot::Sender<()> {
        let mut retry = FIRST_RETRY;
        loop {
            tokio::select! {
                Some(done) = leave.recv() => return done,
                () = tokio::time::sleep(self.wait) => {}
            }
            // In case the round panics.
            self.wait = FIRST_RETRY;
            match self.round().await {
                Ok(next) => (retry, self.wait) = (FIRST_RETRY, next),
                Err(error) => {
                    self.log_failure(&error);
                    self.wait = retry.min(self.interval);
                    retry = (retry * 2).min(LONGEST_RETRY);
                }
            }
        }
    }

    /// Renews the lease, and observes the other members. Returns the wait for the next round.
    async fn round(&mut self) -> Result<Duration, sqlx::Error> {
        if self.is_joined {
            self.renew().await?;
        }
        if !self.is_joined {
            self.join().await?;
        }
        self.rounds = self.rounds.wrapping_add(1);
        let expired = self.observe().await?;
        let is_time = self.rounds % ROUNDS_BETWEEN_DELETIONS == 1;
        // By a clock that is ahead, rows would be deleted that other gates look for.
        if expired.is_none() && is_time && self.standing.clocks_agree() {
            self.table.delete_old().await?;
        }
        // After the loss of many gates at once, the work of the last one must not wait for as many
        // intervals.
        let wait = if expired == Some(true) { FIRST_RETRY } else { self.interval };
        Ok(wait.min(self.interval))
    }

    /// Renews the lease, unless another process has fenced this one.
    async fn renew(&mut self) -> Result<(), sqlx::Error> {
        let member = self.standing.member();
        let (started, sent) = ((self.boot_time)(), self.clock.machine_now());
        if let Some(renewal) = self.table.renew(member).await? {
            self.compare_clocks(sent, renewal.at);
            self.detector.compare_renewal(member, renewal, self.standing.clocks_agree());
            self.note_begins(renewal);
            // From the start of the statement: others may see the renewal from then on.
            self.standing.hold(renewed(member, renewal), started + self.process.lease);
            return Ok(());
        }
        self.is_joined = false;
        self.standing.lose();
        self.metrics.member_fenced(FencedMember::Own);
        tracing::error!(
            %member,
            "another process declared this one dead, since it did not renew its lease in time; \
             joining again. Its undecided loans are settled"
        );
        Ok(())
    }

    /// Becomes a member under a new name.
    async fn join(&mut self) -> Result<(), sqlx::Error> {
        // A name of its own for each attempt: a failed one may have joined all the same.
        let member = Uuid::new_v4();
        let (started, sent) = ((self.boot_time)(), self.clock.machine_now());
        let joined = self.table.join(member, self.process).await;
        let renewal = joined.inspect_err(|error| MarkedLedger::note_in(error, &self.standing))?;
        self.compare_clocks(sent, renewal.at);
        self.detector.compare_renewal(member, renewal, self.standing.clocks_agree());
        // Before the lease is held: the row of the former name may be lost and not fenced.
        let members = self.table.read(&self.detector.members()).await?;
        self.detector.compare(&members);
        self.note_begins(renewal);
        self.standing.hold(renewed(member, renewal), started + self.process.lease);
        self.is_joined = true;
        tracing::info!(%member, process = %self.process.id, "joined the members of the ledger");
        Ok(())
    }

    /// Reads the members, divides the work among them, and fences one whose lease has expired.
    /// Returns whether others are left after that; none if no lease has expired.
    async fn observe(&mut self) -> Result<Option<bool>, sqlx::Error> {
        let mut members = self.table.read(&self.detector.members()).await?;
        self.detector.compare(&members);
        self.close_begins().await;
        let me = self.standing.member();
        let others: Vec<_> =
            members.live.iter().copied().filter(|other| other.member.id != me).collect();
        let expired = self.observer.record(&others, (self.boot_time)());
        self.share(&members);
        // Another one in each round, so that a row which cannot be written does not block the rest.
        let turn = usize::try_from(self.rounds).unwrap_or(0).checked_rem(expired.len());
        let Some(next) = turn.and_then(|turn| expired.get(turn)) else { return Ok(None) };
        // A row that cannot be written must not make the rounds more frequent.
        if !self.fence(*next).await {
            return Ok(Some(false));
        }
        members.live.retain(|live| live.member.id != next.id);
        members.fenced.push(next.id);
        self.share(&members);
        Ok(Some(expired.len() > 1))
    }

    fn share(&self, members: &Members) {
        self.metrics.members(members.live.len());
        self.standing.share(members);
    }

    /// Fences a member whose lease has expired. Returns whether it is fenced by this; another round
    /// tries again after a failure.
    async fn fence(&mut self, expired: Member) -> bool {
        static LIMIT: LogLimit = LogLimit::per_minute();
        match self.table.fence(expired).await {
            Ok(true) => {
                self.metrics.member_fenced(FencedMember::Other);
                tracing::warn!(
                    member = %expired.id,
                    "declared another process dead, since it did not renew its lease"
                );
                true
            }
            // It has just renewed its lease, or another process was faster.
            Ok(false) => false,
            Err(error) => {
                if let Some(suppressed) = LIMIT.permit("fence") {
                    tracing::error!(
                        member = %expired.id,
                        %error,
                        suppressed,
                        "could not declare another process dead; retrying"
                    );
                }
                false
            }
        }
    }

    /// Leaves, so that others settle the undecided loans of this process without waiting. It has
    /// ended its streams, so no end has to wait until it has read the feed.
    async fn leave(&mut self) {
        let member = self.standing.member();
        // First of all: no begin may be sent after the others know that this process is dead.
        self.standing.lose();
        let left = self.table.leave(member).await.unwrap_or_else(|error| {
            tracing::warn!(
                %error,
                "could not leave the members of the ledger; others wait for the end of the lease"
            );
            None
        });
        let left = left.map(|renewals| Member { id: member, renewals });
        self.detector.finish(left).await;
    }

    fn log_failure(&self, error: &sqlx::Error) {
        static LIMIT: LogLimit = LogLimit::per_minute();
        if let Some(suppressed) = LIMIT.permit("lease") {
            let is_held = self.standing.is_member();
            tracing::error!(%error, is_held, suppressed, "could not renew the lease; retrying");
        }
    }
}

fn renewed(member: Uuid, renewal: Renewal) -> Member {
    Member { id: member, renewals: renewal.renewals }
}

#[cfg(test)]
mod tests;
