//! Two concurrent long downloads: how the gate's CPU time is spread over its workers.

use std::collections::BTreeMap;

use http::Version;

use super::Figure;
use super::stage::{LARGE, Stage};
use crate::shared::load::Crowd;
use crate::shared::{cost, median};

const TRIES: usize = 20;
/// Number of 100 MiB files in each download.
const FILES: usize = 3;

pub(crate) async fn measure(stage: &Stage) -> Vec<Figure> {
    let target = stage.target(LARGE);
    let one = Crowd { version: Version::HTTP_11, connections: 1, streams: 1 };
    stage.client.closed(&target, one, 1).await; // registers the loan
    let mut shares = Vec::new();
    for _ in 0..TRIES {
        let before = workers(stage);
        tokio::join!(
            stage.client.closed(&target, one, FILES),
            stage.client.closed(&target, one, FILES)
        );
        let after = workers(stage);
        let spent: Vec<f64> = after.iter().map(|(name, cpu)| cpu - before[name]).collect();
        shares.push(spent.iter().copied().fold(0.0, f64::max) / spent.iter().sum::<f64>() * 100.0);
    }
    let over = shares.iter().filter(|share| **share > 60.0).count();
    let most = shares.iter().copied().fold(0.0, f64::max);
    vec![
        Figure::unbounded("busiest worker's share, median", median(shares), "% of CPU"),
        Figure::bounded(
            format!("busiest worker's share, maximum of {TRIES} tries"),
            most,
            "% of CPU",
            60.0,
        ),
        Figure::unbounded("tries with a share over 60 %", over as f64, ""),
    ]
}

/// The CPU seconds of each worker so far.
fn workers(stage: &Stage) -> BTreeMap<String, f64> {
    let threads = cost::threads(stage.process()).into_iter();
    threads
        .filter(|thread| thread.name.starts_with("worker-"))
        .map(|thread| (thread.name, thread.cpu))
        .collect()
}
