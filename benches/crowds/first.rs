//! A reader's first request, for which a loan is registered, and one whose loan the ledger has: all
//! that they cost, with what follows from them.

use super::Figure;
use super::stage::{SMALL, Stage};

const READERS: usize = 2000;
const CONNECTIONS: usize = 32;

pub(crate) async fn measure(stage: &mut Stage) -> Vec<Figure> {
    let tokens = stage.tokens(READERS);
    let registered = costs(stage, &tokens).await;
    assert_eq!(
        stage.scene.books().await.len(),
        READERS + 1,
        "one loan each, and the one that connects"
    );
    stage.restart().await;
    let found = costs(stage, &tokens).await;
    let again = costs(stage, &tokens).await;
    assert_eq!(stage.scene.books().await.len(), READERS + 1, "found, not registered again");
    vec![
        Figure::asked("a first request, whose loan is registered", registered, "CPU ms", 1.0),
        Figure::asked("one whose loan is found in the ledger", found, "CPU ms", 0.3),
        Figure::told("one whose loan is in the cache", again, "CPU ms"),
    ]
}

/// The CPU of one request of each of these, in milliseconds.
async fn costs(stage: &Stage, tokens: &[String]) -> f64 {
    let target = stage.target(SMALL);
    let mut opened = stage.client.idle(&target, http::Version::HTTP_11, CONNECTIONS).await;
    let load = stage.client.in_turn(&mut opened, &target, tokens, tokens.len());
    stage.costs_in_all(load).await / tokens.len() as f64 * 1e3
}
