//! Readers who stall after 64 KiB of a large file: the memory that the gate holds for them, and the
//! cost of a fast reader beside them.

use std::time::Duration;

use http::Version;

use super::Figure;
use super::stage::{LARGE, SMALL, Stage};
use crate::shared::load::Crowd;
use crate::shared::{cost, median};

/// Number of bytes after which a reader stalls.
const TAKEN: usize = 64 << 10;
const ROUNDS: usize = 5;
/// Number of 100 MiB files in a round of the fast reader.
const FILES: usize = 8;

pub(crate) async fn measure(
    stage: &Stage,
    alone: &Stage,
    version: Version,
    wanted: usize,
) -> Vec<Figure> {
    let target = stage.target(LARGE);
    let fast = async |stage: &Stage| {
        let crowd = Crowd { version, connections: 1, streams: 1 };
        let target = stage.target(LARGE);
        stage.costs(stage.client.closed(&target, crowd, FILES)).await / (FILES * LARGE) as f64 * 1e9
    };
    fast(stage).await;
    fast(alone).await;
    let before = cost::memory(stage.process());
    let mut stalled = Vec::with_capacity(wanted);
    while stalled.len() < wanted {
        match stage.client.stalled(&target, version, TAKEN).await {
            Some(reader) => stalled.push(reader),
            None => {
                println!(
                    "the next reader gets no data: the system has no more memory for TCP \
                     (net.ipv4.tcp_mem)"
                );
                break;
            }
        }
    }
    let count = stalled.len();
    let at_once = cost::steady(stage.process()).await;
    // The allocator returns memory to the system only during other work, which every gate has.
    let others = Crowd { version: Version::HTTP_11, connections: 20, streams: 1 };
    stage.client.at_rate(&stage.target(SMALL), others, 100, Duration::from_secs(4)).await;
    let after = cost::steady(stage.process()).await;
    let system = cost::memory_of_tcp();
    let (mut beside, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(fast(alone).await);
        beside.push(fast(stage).await);
    }
    drop(stalled);
    let (beside, without) = (median(beside), median(without));
    let megabytes = |kib: u64| kib as f64 * 1024.0 / 1e6;
    let held = format!("resident memory with {count} stalled readers");
    vec![
        match version {
            Version::HTTP_11 if count >= wanted => {
                Figure::bounded(held, megabytes(after), "MB", 250.0)
            }
            _ => Figure::unbounded(held, megabytes(after), "MB"),
        },
        Figure::unbounded("resident memory before any other work", megabytes(at_once), "MB"),
        Figure::unbounded("resident memory before their requests", megabytes(before), "MB"),
        Figure::unbounded(
            "memory of each stalled reader",
            after.saturating_sub(before) as f64 / count.max(1) as f64,
            "KiB",
        ),
        Figure::unbounded("kernel memory for TCP, both sides and the origin", system, "MB"),
        Figure::unbounded("fast reader alone", without, "CPU s/GB"),
        Figure::unbounded("fast reader beside them", beside, "CPU s/GB"),
        Figure::bounded("ratio, beside to alone", beside / without, "", 1.1),
    ]
}
