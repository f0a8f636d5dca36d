//! The busiest hour: waits without a fault, and what faults cost.

use super::{number, short, table};
use crate::peak::{INTERVAL, Interval, Outcome};
use crate::queues::{SECOND, Waits};
use crate::{DATABASE_FAILOVER, FAULT_AT, Findings, LENDING_OUTAGE};

pub(super) fn hour(results: &[Findings]) -> String {
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let waits = |waits: &Waits| {
        let [half, most] = [0.5, 0.99].map(|share| short(waits.percentile(share)));
        format!("{half} / {most}")
    };
    table(
        results,
        &[
            ("part of the deployment that is simulated", &|r| part(r)),
            ("gates, databases", &|r| format!("{}, 1", r.plan.gates)),
            ("hit, until its first byte: median / p99, ms", &|r| waits(&r.normal.hit)),
            ("miss, answered from the ledger, ms", &|r| waits(&r.normal.miss)),
            ("registration, ms", &|r| waits(&r.normal.registration)),
            ("return, until access ends durably, ms", &|r| waits(&r.normal.end)),
            ("busiest gate: CPU", &|r| percent(r.normal.gate_use)),
            ("database: CPU", &|r| percent(r.normal.database_use)),
            ("database: write transactions a second", &|r| {
                number(r.normal.writes as f64 / r.normal.seconds)
            }),
            ("of these, metering", &|r| {
                percent(r.normal.metering_writes as f64 / r.normal.writes as f64)
            }),
            ("write transactions in one flush of the log", &|r| {
                short(r.normal.writes as f64 / r.normal.log_flushes as f64)
            }),
            ("a gate writes its counts of bytes, s: median / p99", &|r| {
                let [half, most] =
                    [0.5, 0.99].map(|share| short(r.normal.flush.percentile(share) / 1e3));
                format!("{half} / {most}")
            }),
            ("hits for the 1,000 most popular titles", &|r| {
                percent(r.normal.popular as f64 / r.normal.hits as f64)
            }),
            ("hits that fetch a file's metadata again", &|r| {
                percent(r.normal.metadata_misses as f64 / r.normal.hits as f64)
            }),
            ("misses a second", &|r| number(r.normal.misses as f64 / (r.normal.seconds - 60.0))),
        ],
    )
}

pub(super) fn faults(results: &[Findings]) -> String {
    let refused =
        |outcome: &Outcome| -> u64 { outcome.timeline.iter().map(|i| i.unavailable).sum() };
    let worst = |outcome: &Outcome| {
        let most = outcome.timeline.iter().map(|i| i.unavailable).max().unwrap_or(0);
        number(most as f64 / seconds(INTERVAL))
    };
    let p99 = |waits: &Waits| short(waits.percentile(0.99));
    let database_end = FAULT_AT + DATABASE_FAILOVER;
    let lending_end = FAULT_AT + LENDING_OUTAGE;
    table(
        results,
        &[
            ("**One gate dies.** Hit, p99, ms", &|r| p99(&r.gate_down.hit)),
            ("miss, p99, ms", &|r| p99(&r.gate_down.miss)),
            ("busiest gate: CPU", &|r| format!("{:.0} %", r.gate_down.gate_use * 100.0)),
            ("misses a second, most", &|r| most_misses(&r.gate_down)),
            ("**Database fails over in 30 s.** Hits during it, to before", &|r| {
                hits_during(&r.failover)
            }),
            ("503 a second, most", &|r| worst(&r.failover)),
            ("503, all", &|r| number(refused(&r.failover) as f64)),
            ("seconds after it until 503s end", &|r| last_503(&r.failover, database_end)),
            ("readers who give up", &|r| number(r.failover.abandoned as f64)),
            ("**Bokbasen fails for an hour.** 503 a second, most", &|r| worst(&r.outage)),
            ("largest backlog of ends", &|r| {
                number(r.outage.timeline.iter().map(|i| i.backlog).max().unwrap_or(0) as f64)
            }),
            ("registration, p99, ms", &|r| p99(&r.outage.registration)),
            ("seconds after it until the backlog is sent", &|r| {
                backlog_sent(&r.outage, lending_end)
            }),
            ("registrations after it, most to normal", &|r| {
                let most = r.outage.timeline.iter().map(|i| i.accepted).max().unwrap_or(0) as f64;
                short(most / normal_rate(&r.outage))
            }),
            ("minutes after it until registrations are normal", &|r| {
                normal_again(&r.outage, lending_end)
            }),
            ("readers who give up", &|r| number(r.outage.abandoned as f64)),
        ],
    )
}

fn most_misses(outcome: &Outcome) -> String {
    let most = outcome.timeline.iter().map(|i| i.misses).max().unwrap_or(0);
    number(most as f64 / seconds(INTERVAL))
}

fn seconds(time: u64) -> f64 {
    time as f64 / SECOND as f64
}

/// The intervals from `time` on, with the seconds from `time` to the end of each.
fn since(outcome: &Outcome, time: u64) -> impl DoubleEndedIterator<Item = (f64, &Interval)> {
    let ends = move |(index, interval)| ((index as u64 + 1) * INTERVAL, interval);
    let intervals: Vec<_> = outcome.timeline.iter().enumerate().map(ends).collect();
    let later =
        move |(end, interval): (u64, _)| (end > time).then(|| (seconds(end - time), interval));
    intervals.into_iter().filter_map(later)
}

/// Hits during the failover relative to as long a time before it.
fn hits_during(outcome: &Outcome) -> String {
    let [from, length] = [FAULT_AT, DATABASE_FAILOVER].map(|time| (time / INTERVAL) as usize);
    let hits =
        |from: usize| -> u64 { outcome.timeline[from..from + length].iter().map(|i| i.hits).sum() };
    format!("{:.2}", hits(from) as f64 / hits(from - length) as f64)
}

fn last_503(outcome: &Outcome, end: u64) -> String {
    let last = since(outcome, end).rfind(|(_, interval)| interval.unavailable > 0);
    last.map_or("0".to_owned(), |(seconds, _)| format!("under {}", number(seconds)))
}

/// Accepted loans in an interval before the fault.
fn normal_rate(outcome: &Outcome) -> f64 {
    let before = &outcome.timeline[6..(FAULT_AT / INTERVAL) as usize];
    before.iter().map(|i| i.accepted as f64).sum::<f64>() / before.len() as f64
}

fn backlog_sent(outcome: &Outcome, end: u64) -> String {
    let normal = outcome.timeline[(FAULT_AT / INTERVAL) as usize - 1].backlog;
    let sent = since(outcome, end).find(|(_, interval)| interval.backlog <= 2 * normal + 10);
    sent.map_or("more than an hour".to_owned(), |(seconds, _)| number(seconds))
}

/// The first minute after which the registrations of five minutes are within 10 % of normal.
fn normal_again(outcome: &Outcome, end: u64) -> String {
    let accepted: Vec<f64> = since(outcome, end).map(|(_, i)| i.accepted as f64).collect();
    let normal = normal_rate(outcome);
    let windows = accepted.windows(30).skip(6).step_by(6);
    let mean = |window: &[f64]| window.iter().sum::<f64>() / window.len() as f64;
    let calm = windows.enumerate().find(|(_, window)| mean(window) < 1.1 * normal);
    calm.map_or("more than 115".to_owned(), |(minute, _)| (minute + 1).to_string())
}

fn part(result: &Findings) -> String {
    let people = result.sizing.deployment.regions[0] * result.sizing.regions[0].share;
    if people > 0.999 { "all".to_owned() } else { format!("1 in {:.0}", 1.0 / people) }
}
