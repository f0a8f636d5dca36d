//! Machines and money.

use std::fmt::Write as _;

use super::{bold, millions, number, short, table};
use crate::Findings;
use crate::calibration;
use crate::deployment::{BUDGET, Deployment, GATE_CONNECTIONS, SERVER_CONNECTIONS};

pub(super) fn machines(results: &[Findings]) -> String {
    let gigabits = |bytes: f64| bytes * 8.0 / 1e9;
    let needs = |result: &Findings, which: usize| -> f64 {
        result.sizing.regions.iter().map(|region| region.needs[which]).sum()
    };
    let price = |result: &Findings, which: usize| number(result.sizing.costs()[which]);
    table(
        results,
        &[
            ("people", &|r| people(r.sizing.deployment)),
            ("loans a year", &|r| millions(r.sizing.loans)),
            ("regions", &|r| r.sizing.regions.len().to_string()),
            ("**gates** (4 cores, 10 Gbit/s), with spares", &|r| bold(r.sizing.gates() as f64)),
            ("gates that CPU alone requires", &|r| short(needs(r, 0))),
            ("gates that the network alone requires", &|r| short(needs(r, 1))),
            ("gates that connections alone require", &|r| short(needs(r, 2))),
            ("**databases** (8 cores), each with a standby", &|r| bold(r.sizing.shards() as f64)),
            ("**machines in all**: gates, databases, standbys", &|r| {
                bold((r.sizing.gates() + 2 * r.sizing.shards()) as f64)
            }),
            ("size of all databases, TB", &|r| short(r.sizing.bytes / 1e12)),
            ("connections of gates to PgBouncer", &|r| {
                number(r.sizing.database_connections() as f64)
            }),
            ("connections to PostgreSQL, at most", &|r| number(server_connections(r) as f64)),
            ("memory of a gate for connections at 60 % of the limit, GB", &|_| {
                short(GATE_CONNECTIONS * BUDGET * calibration::CONNECTION * 1024.0 / 1e9)
            }),
            ("busiest hour: open connections of readers", &|r| number(r.sizing.connections)),
            ("busiest hour: requests a second", &|r| number(r.sizing.peak.requests)),
            ("busiest hour: Gbit/s to readers", &|r| short(gigabits(r.sizing.peak.bytes))),
            ("busiest hour: registrations a second", &|r| short(r.sizing.peak.begins)),
            ("busiest hour: write transactions a second", &|r| number(r.sizing.database().writes)),
            ("busiest hour: all transactions a second", &|r| {
                number(r.sizing.database().transactions)
            }),
            ("busiest hour: database cores in use", &|r| short(r.sizing.database().cpu)),
            ("busiest hour: log of the databases, MB/s", &|r| {
                short(r.sizing.database().log_bytes / 1e6)
            }),
            ("traffic to readers, TB a month", &|r| number(r.sizing.traffic_per_month / 1e12)),
            ("cost a month: gates, €", &|r| price(r, 0)),
            ("cost a month: databases, €", &|r| price(r, 1)),
            ("cost a month: traffic, €", &|r| price(r, 2)),
            ("cost of a loan, cents", &|r| {
                short(r.sizing.costs().iter().sum::<f64>() * 12.0 * 100.0 / r.sizing.loans)
            }),
        ],
    )
}

fn server_connections(result: &Findings) -> usize {
    result.sizing.database_connections().min(result.sizing.shards() * SERVER_CONNECTIONS)
}

fn people(deployment: &Deployment) -> String {
    millions(deployment.people)
}

/// The regions of the largest deployment.
pub(super) fn regions(results: &[Findings]) -> String {
    let mut text =
        "| region | people | gates | databases | Gbit/s |\n|---|---:|---:|---:|---:|\n".to_owned();
    let sizing = &results[results.len() - 1].sizing;
    for (index, (region, share)) in sizing.regions.iter().zip(sizing.deployment.regions).enumerate()
    {
        let people = millions(sizing.deployment.people * share);
        let (gates, shards, bits) = (region.gates, region.shards, region.peak.bytes * 8.0 / 1e9);
        writeln!(text, "| {} | {people} | {gates} | {shards} | {bits:.0} |", index + 1).unwrap();
    }
    text.trim_end().to_owned()
}
