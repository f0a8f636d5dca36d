//! Cost of a reader's first request: with a new loan, and with a loan of the ledger. Includes all
//! work that follows from it.

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
        "not one loan per reader and one for the connection"
    );
    stage.restart().await;
    let found = costs(stage, &tokens).await;
    let again = costs(stage, &tokens).await;
    assert_eq!(stage.scene.books().await.len(), READERS + 1, "a loan was registered again");
    vec![
        Figure::bounded("first request, loan registered", registered, "CPU ms", 1.0),
        Figure::bounded("first request, loan found in the ledger", found, "CPU ms", 0.3),
        Figure::unbounded("later request, loan in the cache", again, "CPU ms"),
    ]
}

/// Returns the CPU time per request of these readers, in milliseconds.
async fn costs(stage: &Stage, tokens: &[String]) -> f64 {
    let target = stage.target(SMALL);
    let mut opened = stage.client.idle(&target, http::Version::HTTP_11, CONNECTIONS).await;
    let load = stage.client.in_turn(&mut opened, &target, tokens, tokens.len());
    stage.costs_in_all(load).await / tokens.len() as f64 * 1e3
}
