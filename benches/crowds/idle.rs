//! Idle connections beside busy ones: the waits of the busy ones.

use std::time::Duration;

use http::Version;

use super::Figure;
use super::stage::{SMALL, Stage};
use crate::shared::load::Crowd;
use crate::shared::{Waits, cost, median};

const IDLE: usize = 10_000;
const ACTIVE: usize = 500;
/// Requests per second, and their duration.
const RATE: u32 = 2000;
const DURING: Duration = Duration::from_secs(4);
const ROUNDS: usize = 5;

pub(crate) async fn measure(stage: &Stage, alone: &Stage) -> Vec<Figure> {
    let target = stage.target(SMALL);
    let crowd = Crowd { version: Version::HTTP_11, connections: ACTIVE, streams: 1 };
    // Returns the 99th percentile in milliseconds. Panics at a wait of a minute or a failed
    // request.
    let round = async |stage: &Stage| {
        let waits = stage.client.at_rate(&stage.target(SMALL), crowd, RATE, DURING).await;
        Waits::of(waits).at(0.99).as_secs_f64() * 1e3
    };
    round(stage).await;
    round(alone).await;
    let before = cost::memory(stage.process());
    // Each connection uses a file descriptor here and one in the gate.
    let count = IDLE.min(cost::open_files().saturating_sub(4 * ACTIVE));
    let _idle = stage.client.idle(&target, Version::HTTP_11, count).await;
    let after = cost::steady(stage.process()).await;
    let (mut beside, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(round(alone).await);
        beside.push(round(stage).await);
    }
    let (beside, without) = (median(beside), median(without));
    vec![
        Figure::unbounded(
            format!("memory of each of {count} idle connections"),
            (after - before) as f64 / count as f64,
            "KiB",
        ),
        Figure::unbounded(
            format!("p99 of {ACTIVE} active connections alone, {RATE} requests/s"),
            without,
            "ms",
        ),
        Figure::unbounded("p99 beside the idle connections", beside, "ms"),
        Figure::bounded("ratio of p99, beside to alone", beside / without, "", 1.5),
    ]
}
