//! What is wrong at this moment, from the metrics, from memory and from a few counts.
//!
//! Nothing here reads or writes a row that is not found by an index, and nothing is on the path of
//! a request.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use super::codes::{Code, Severity};
use super::events::{Nodes, Rising};
use super::machine::{self, CertificateProbe, LoginKeyProbe, OrderProbe};
use super::report_books::ReportBooks;
use super::tracker::Observation;
use crate::circulation::Circulation;
use crate::clock;
use crate::ledger::{Ledger, LedgerError};
use crate::lending::Bokbasen;
use crate::telemetry::Readings;

/// How long a query may take. One that takes longer is a problem itself.
pub(super) const QUERY_DEADLINE: Duration = Duration::from_secs(5);
/// The time between two counts of ends and undecided loans.
const COUNT_INTERVAL: Duration = Duration::from_secs(30);
/// The age from which a waiting end is delayed.
const DELAYED: Duration = Duration::from_secs(3600);
/// The number of undecided loans of one process that outages and bursts of readers explain.
const MAX_UNDECIDED: usize = 100;
/// The least number of requests to an origin that says something, and the time that they cover.
const MIN_ORIGIN_REQUESTS: u64 = 5;
const ORIGIN_WINDOW: Duration = Duration::from_secs(60);

/// What is observed.
pub(crate) struct Probes {
    pub(crate) ledger: Ledger,
    pub(crate) lending: Bokbasen,
    pub(crate) circulation: Circulation,
    pub(crate) certificates: CertificateProbe,
    pub(crate) certificate_orders: OrderProbe,
    pub(crate) login_keys: LoginKeyProbe,
    /// The file of the ledger; none if it is elsewhere.
    pub(crate) file: Option<PathBuf>,
}

/// Observes, and remembers what a single moment does not show.
pub(super) struct Observer {
    probes: Probes,
    counts: Option<(Instant, Counts)>,
    report_books: ReportBooks,
    /// The readings of the last minute, the oldest first.
    recent: Vec<(Instant, Readings)>,
    late_begins: Rising,
    breaches: Rising,
    restarts: Rising,
    nodes: Nodes,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    delayed_ends: u64,
    undecided: usize,
    oldest_end: Option<Timestamp>,
    is_all_paused: bool,
    paused_libraries: usize,
}

pub(super) fn observation(code: Code, severity: Severity, what: impl Into<String>) -> Observation {
    Observation { code, subject: None, severity, what: what.into() }
}

use Severity::{Critical, Warning};

impl Observer {
    pub(super) fn new(probes: Probes) -> Observer {
        Observer {
            probes,
            counts: None,
            report_books: ReportBooks::default(),
            recent: Vec::new(),
            late_begins: Rising::default(),
            breaches: Rising::default(),
            restarts: Rising::default(),
            nodes: Nodes::default(),
        }
    }

    /// Returns whether this process reports the problems of the whole cluster: exactly one does,
    /// except for some seconds after a change of the members.
    pub(super) fn speaks_for_cluster(&self) -> bool {
        self.probes.ledger.does_work_of_all()
    }

    /// Returns the age of the oldest end that Bokbasen has not acknowledged, as of the last count.
    pub(super) fn oldest_end(&self, now: Timestamp) -> Duration {
        let oldest = self.counts.and_then(|(_, counts)| counts.oldest_end);
        let age = oldest.map(|oldest| now.duration_since(oldest));
        age.and_then(|age| age.try_into().ok()).unwrap_or_default()
    }

    /// Returns the free and all bytes of the ledger's disk; none if it is elsewhere.
    pub(super) fn disk(&self) -> Option<(u64, u64)> {
        machine::disk(&self.probes)
    }

    /// Returns all conditions of this moment.
    pub(super) async fn observe(
        &mut self,
        now: (Instant, Timestamp),
        read: &Readings,
    ) -> Vec<Observation> {
        let mut found = Vec::new();
        self.ledger(read, &mut found).await;
        self.counts(now, &mut found).await;
        self.report_books.observe(&self.probes.ledger, now, &mut found).await;
        self.lending(now.0, read, &mut found);
        self.cluster(now.0, read, &mut found);
        self.origins(now.0, read, &mut found);
        machine::observe(&self.probes, now.1, &mut found);
        if let Some(count) = self.restarts.update(now.0, read.task_restarts) {
            let what = format!("Background tasks ended early and were restarted: {count} times.");
            found.push(observation(Code::TaskRestarted, Warning, what));
        }
        found
    }

    async fn ledger(&self, read: &Readings, found: &mut Vec<Observation>) {
        let Probes { ledger, circulation, .. } = &self.probes;
        if ledger.moved().is_some() {
            let what = "The ledger was moved, so the gate delivers nothing and ends.";
            found.push(observation(Code::LedgerMoved, Critical, what));
            return;
        }
        let is_readable = timeout(QUERY_DEADLINE, ledger.check()).await.is_ok_and(|ok| ok.is_ok());
        if !is_readable {
            let what = "The ledger cannot be read: no new reader gets a file.";
            found.push(observation(Code::LedgerUnreadable, Critical, what));
        }
        if !read.is_ledger_writable {
            let what = "The ledger cannot be written: no loan begins, and no return is recorded.";
            found.push(observation(Code::LedgerUnwritable, Critical, what));
        }
        if !circulation.serves_cached_loans() {
            let what = "The changes of other gates were not read within gate.freshness, so the \
                        gate serves only loans that it reads again.";
            // With a ledger that answers, readers are served, but slower.
            let severity = if is_readable { Warning } else { Critical };
            found.push(observation(Code::FeedStale, severity, what));
        }
        let damaged = ledger.damaged_rows();
        if damaged > 0 {
            let what = format!("{damaged} rows of the ledger are damaged and skipped.");
            found.push(observation(Code::LedgerDamaged, Warning, what));
        }
        if ledger.begins_are_closed() {
            let what = "No gate begins a loan, since the database of the ledger lost steps.";
            found.push(observation(Code::BeginsClosed, Critical, what));
        } else if read.is_lease_held == Some(false) {
            let what = "The gate cannot renew its lease in the database, so it begins no loan.";
            found.push(observation(Code::LeaseLost, Critical, what));
        }
        let ahead = read.ledger_clock_ahead;
        if ahead.abs() >= 1.0 {
            let severity = if ahead.abs() >= 10.0 { Critical } else { Warning };
            let what = format!(
                "The clock of the database differs from this machine's by {:.1} seconds. From 10 \
                 on, no loan begins or expires.",
                ahead.abs()
            );
            found.push(observation(Code::LedgerClock, severity, what));
        }
    }

    /// Counts waiting ends and undecided loans, at an interval. A failure is no new count.
    async fn counts(&mut self, now: (Instant, Timestamp), found: &mut Vec<Observation>) {
        let is_due = |(at, _): &(Instant, Counts)| now.0.duration_since(*at) >= COUNT_INTERVAL;
        if self.counts.as_ref().is_none_or(is_due) {
            let ledger = &self.probes.ledger;
            let before = clock::before(now.1, DELAYED);
            let last = self.counts.map(|(_, counts)| counts).unwrap_or_default();
            let counting = async {
                let (_, delayed_ends) = ledger.count_ends(before).await?;
                let undecided = ledger.undecided().await?.len();
                let oldest_end = ledger.oldest_end().await?;
                Ok::<_, LedgerError>(Counts { delayed_ends, undecided, oldest_end, ..last })
            };
            let counts = timeout(QUERY_DEADLINE, counting).await;
            let mut counts = counts.ok().and_then(Result::ok).unwrap_or(last);
            if let Ok(Ok(pauses)) = timeout(QUERY_DEADLINE, ledger.pauses()).await {
                counts.is_all_paused = pauses.iter().any(|pause| pause.library.is_none());
                counts.paused_libraries = pauses.len() - usize::from(counts.is_all_paused);
            }
            self.counts = Some((now.0, counts));
        }
        let counts = self.counts.map(|(_, counts)| counts).unwrap_or_default();
        let Counts { delayed_ends, undecided, .. } = counts;
        if counts.is_all_paused {
            let what = "Lending of all libraries is paused, so no loan begins.";
            found.push(observation(Code::LendingPaused, Warning, what));
        } else if counts.paused_libraries > 0 {
            let libraries = counts.paused_libraries;
            let what = format!("Lending of {libraries} libraries is paused.");
            found.push(observation(Code::LendingPaused, Warning, what));
        }
        if delayed_ends > 0 {
            let what = format!("Bokbasen has not acknowledged {delayed_ends} ends for an hour.");
            found.push(observation(Code::EndsDelayed, Warning, what));
        }
        if undecided > MAX_UNDECIDED {
            let what = format!("{undecided} loans wait for Bokbasen's decision.");
            found.push(observation(Code::LoansUndecided, Warning, what));
        }
    }

    fn lending(&mut self, now: Instant, read: &Readings, found: &mut Vec<Observation>) {
        if let Some(trouble) = self.probes.lending.trouble() {
            found.push(observation(Code::LendingUnavailable, Critical, trouble.sentence()));
        }
        for kind in &read.breakers_open {
            let what = format!(
                "Calls of the kind {kind} to Bokbasen fail, and the circuit breaker suspends them."
            );
            let subject = Some(kind.clone());
            found.push(Observation { subject, ..observation(Code::BreakerOpen, Warning, what) });
        }
        match read.clock_alarm {
            0 => {}
            1 => {
                let what = "The clocks of this machine and of Bokbasen differ by a minute.";
                found.push(observation(Code::ClockSkew, Warning, what));
            }
            _ => {
                let what = "The clocks of this machine and of Bokbasen differ by 15 minutes: no \
                            loan begins, and no expiry is registered.";
                found.push(observation(Code::ClockSkew, Critical, what));
            }
        }
        if read.ends_overdue > 0 {
            let ends = read.ends_overdue;
            let what = format!("Bokbasen has not acknowledged {ends} ends for a day.");
            found.push(observation(Code::EndsOverdue, Critical, what));
        }
        if read.is_unbalanced {
            let what = "The last balance failed, or found a difference that it may not repair.";
            found.push(observation(Code::BooksUnbalanced, Warning, what));
        }
        if let Some(count) = self.late_begins.update(now, read.late_begins) {
            let what = format!(
                "{count} loans were begun by a gate that was declared dead. They were ended."
            );
            found.push(observation(Code::LateBegin, Warning, what));
        }
        if let Some(count) = self.breaches.update(now, read.lending_breaches) {
            let what = format!("{count} loans in Bokbasen's responses violate its API.");
            found.push(observation(Code::LendingBreach, Warning, what));
        }
    }

    fn cluster(&mut self, now: Instant, read: &Readings, found: &mut Vec<Observation>) {
        let Some(members) = read.members else { return };
        if let Some((live, before)) = self.nodes.update(now, members, read.fenced_others) {
            let what = format!(
                "A gate of the cluster stopped without leaving it: there are {live}, and there \
                 were {before}."
            );
            found.push(observation(Code::NodeMissing, Warning, what));
        }
    }

    /// An origin fails if most of its requests of the last minute did.
    fn origins(&mut self, now: Instant, read: &Readings, found: &mut Vec<Observation>) {
        self.recent.retain(|(at, _)| now.duration_since(*at) <= ORIGIN_WINDOW);
        let earlier = self.recent.first().map(|(_, read)| read.origins.clone());
        for (name, calls) in &read.origins {
            let before = earlier.as_ref().and_then(|origins| origins.get(name));
            let before = before.copied().unwrap_or_default();
            let failed = calls.failed.saturating_sub(before.failed);
            let answered = calls.answered.saturating_sub(before.answered);
            if failed + answered >= MIN_ORIGIN_REQUESTS && failed > answered {
                let all = failed + answered;
                let what = format!("{failed} of the last {all} requests to this storage failed.");
                let subject = Some(name.clone());
                found.push(Observation {
                    subject,
                    ..observation(Code::OriginFailing, Critical, what)
                });
            }
        }
        self.recent.push((now, read.clone()));
    }
}
