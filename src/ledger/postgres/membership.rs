//! The membership of this process: joins, renews the lease, and fences members that do not.
//!
//! `open` joins, and a task of this process keeps the lease until it leaves. Each round renews the
//! own lease first, then reads the other members and fences those whose lease has expired.
//!
//! A process that was fenced has lost its undecided loans for good. It joins again under a new
//! name. A process that only renewed late was not fenced by anybody, and continues.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::connect::Connector;
use super::members_table::{MemberTable, PostgresMembers};
use super::observer::Observer;
use super::standing::{BootTime, Standing};
use crate::clock::{self, Clock};
use crate::telemetry::{FencedMember, LogLimit, Metrics};

/// The renewals in the duration of a lease.
const RENEWALS_PER_LEASE: u32 = 5;
/// The deadline of a statement. It is shorter if renewals are more frequent.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(5);
/// The wait after a failed round, and the limit of its doubling: the lease must not expire because
/// of a short outage.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// The rounds between two deletions of old rows.
const ROUNDS_BETWEEN_DELETIONS: u32 = 600;
/// From this difference on, an operator should set one of the clocks.
const WARNING_DIFFERENCE: Duration = Duration::from_secs(1);

/// Joins the members of a ledger, and keeps the lease in the background. `process` is the name of
/// this process's chains in the audit trail.
///
/// # Errors
/// The error of the database. This process is no member then.
pub(in crate::ledger) async fn join(
    connector: Connector,
    process: Uuid,
    lease: Duration,
    clock: Clock,
    metrics: Metrics,
) -> Result<Arc<Standing>, sqlx::Error> {
    let deadline = STATEMENT_DEADLINE.min(lease / RENEWALS_PER_LEASE);
    let table = PostgresMembers::new(connector, deadline);
    let (standing, leave) = Standing::new(Arc::new(clock::since_boot));
    let standing = Arc::new(standing);
    let boot_time: BootTime = Arc::new(clock::since_boot);
    let mut keeper =
        Keeper::new(table, process, standing.clone(), lease, (boot_time, clock), metrics);
    keeper.join().await?;
    keeper.observe().await?;
    tokio::spawn(keeper.run(leave));
    Ok(standing)
}

/// Keeps the lease of this process.
struct Keeper<T> {
    table: T,
    standing: Arc<Standing>,
    observer: Observer,
    /// The same for all names that this process has in its life.
    process: Uuid,
    lease: Duration,
    interval: Duration,
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
        process: Uuid,
        standing: Arc<Standing>,
        lease: Duration,
        (boot_time, clock): (BootTime, Clock),
        metrics: Metrics,
    ) -> Keeper<T> {
        let interval = lease / RENEWALS_PER_LEASE;
        Keeper {
            table,
            standing,
            // The margin allows for clocks that run at different rates.
            observer: Observer::new(lease, interval, interval),
            process,
            lease,
            interval,
            boot_time,
            clock,
            metrics,
            is_joined: false,
            rounds: 0,
        }
    }

    /// Renews the lease until the process leaves.
    async fn run(mut self, mut leave: mpsc::Receiver<oneshot::Sender<()>>) {
        let mut retry = FIRST_RETRY;
        let mut wait = self.interval;
        loop {
            tokio::select! {
                Some(done) = leave.recv() => {
                    self.leave().await;
                    let _ = done.send(());
                    return;
                }
                () = tokio::time::sleep(wait) => {}
            }
            match self.round().await {
                Ok(()) => (retry, wait) = (FIRST_RETRY, self.interval),
                Err(error) => {
                    self.log_failure(&error);
                    wait = retry.min(self.interval);
                    retry = (retry * 2).min(LONGEST_RETRY);
                }
            }
            self.metrics.lease(self.standing.is_member());
        }
    }

    /// Renews the lease, and observes the other members.
    async fn round(&mut self) -> Result<(), sqlx::Error> {
        if self.is_joined {
            self.renew().await?;
        }
        if !self.is_joined {
            self.join().await?;
        }
        self.rounds = self.rounds.wrapping_add(1);
        if self.rounds % ROUNDS_BETWEEN_DELETIONS == 1 {
            self.table.delete_old().await?;
        }
        self.observe().await
    }

    /// Renews the lease, unless another process has fenced this one.
    async fn renew(&mut self) -> Result<(), sqlx::Error> {
        let member = self.standing.member();
        let (started, sent) = ((self.boot_time)(), self.clock.machine_now());
        if let Some(database) = self.table.renew(member).await? {
            self.compare_clocks(sent, database);
            // From the start of the statement: others may see the renewal from then on.
            self.standing.hold(member, started + self.lease);
            return Ok(());
        }
        self.is_joined = false;
        self.standing.lose();
        self.metrics.member_fenced(FencedMember::Own);
        self.metrics.lease(false);
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
        let database = self.table.join(member, self.process).await?;
        self.compare_clocks(sent, database);
        self.standing.hold(member, started + self.lease);
        self.is_joined = true;
        self.metrics.lease(true);
        tracing::info!(%member, process = %self.process, "joined the members of the ledger");
        Ok(())
    }

    /// Reads the members, and fences those whose lease has expired.
    async fn observe(&mut self) -> Result<(), sqlx::Error> {
        let mut members = self.table.read().await?;
        let me = self.standing.member();
        let others: Vec<_> = members.live.iter().copied().filter(|other| other.id != me).collect();
        for expired in self.observer.record(&others, (self.boot_time)()) {
            if !self.table.fence(expired).await? {
                continue; // it has just renewed its lease, or another process was faster
            }
            self.metrics.member_fenced(FencedMember::Other);
            tracing::warn!(
                member = %expired.id,
                "declared another process dead, since it did not renew its lease"
            );
            members.live.retain(|member| member.id != expired.id);
            members.fenced.push(expired.id);
        }
        self.metrics.members(members.live.len());
        self.standing.share(&members);
        Ok(())
    }

    /// Leaves, so that others settle the undecided loans of this process without waiting. It has
    /// ended its streams, so no end has to wait until it has read the feed.
    async fn leave(&mut self) {
        let member = self.standing.member();
        // First of all: no begin may be sent after the others know that this process is dead.
        self.standing.lose();
        self.metrics.lease(false);
        if let Err(error) = self.table.leave(member).await {
            tracing::warn!(
                %error,
                "could not leave the members of the ledger; others wait for the end of the lease"
            );
        }
    }

    fn compare_clocks(&self, sent: jiff::Timestamp, database: jiff::Timestamp) {
        static LIMIT: LogLimit = LogLimit::per_minute();
        let difference = self.standing.compare_clocks(sent, database, self.clock.machine_now());
        self.metrics.ledger_clock(difference.seconds());
        if difference.amount() <= WARNING_DIFFERENCE {
            return;
        }
        let Some(_) = LIMIT.permit("clock") else { return };
        let seconds = difference.seconds();
        if difference.is_too_large() {
            tracing::error!(
                seconds,
                "the clocks of this machine and of the database differ by more than 10 s; no loan \
                 is begun or expires until one of them is set"
            );
        } else {
            tracing::warn!(
                seconds,
                "the clocks of this machine and of the database differ; synchronize them"
            );
        }
    }

    fn log_failure(&self, error: &sqlx::Error) {
        static LIMIT: LogLimit = LogLimit::per_minute();
        if let Some(suppressed) = LIMIT.permit("lease") {
            let is_held = self.standing.is_member();
            tracing::error!(%error, is_held, suppressed, "could not renew the lease; retrying");
        }
    }
}

#[cfg(test)]
mod tests;
