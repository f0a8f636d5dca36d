//! Cost of a cache hit, which must not grow with the number of connections or of cached loans.

use http::Version;

use super::Figure;
use super::stage::{SMALL, Stage};
use crate::shared::load::Opened;
use crate::shared::median;

const REQUESTS: usize = 20_000;
const ROUNDS: usize = 5;
const ACTIVE: usize = 10;
const CONNECTED: usize = 5000;
const FEW: usize = 100;
const MANY: usize = 10_000;

pub(crate) async fn measure(stage: &Stage, small: &Stage) -> Vec<Figure> {
    let mut figures = decisions(stage, small).await;
    figures.extend(connections(stage, small).await);
    figures
}

/// Returns the CPU time per request over these connections by these readers, in microseconds.
async fn hit(stage: &Stage, opened: &mut [Opened], tokens: &[String]) -> f64 {
    let target = stage.target(SMALL);
    stage.costs(stage.client.in_turn(opened, &target, tokens, REQUESTS)).await / REQUESTS as f64
        * 1e6
}

async fn decisions(stage: &Stage, small: &Stage) -> Vec<Figure> {
    let mut opened = stage.client.idle(&stage.target(SMALL), Version::HTTP_11, ACTIVE).await;
    let mut opened_small = small.client.idle(&small.target(SMALL), Version::HTTP_11, ACTIVE).await;
    let (tokens, tokens_small) = (stage.tokens(MANY), small.tokens(FEW));
    stage
        .costs_in_all(stage.client.in_turn(&mut opened, &stage.target(SMALL), &tokens, MANY))
        .await;
    small
        .costs_in_all(small.client.in_turn(
            &mut opened_small,
            &small.target(SMALL),
            &tokens_small,
            FEW,
        ))
        .await;
    let (mut few, mut same, mut many) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        few.push(hit(small, &mut opened_small, &tokens_small).await);
        same.push(hit(stage, &mut opened, &tokens[..FEW]).await);
        many.push(hit(stage, &mut opened, &tokens).await);
    }
    let [few, same, many] = [few, same, many].map(median);
    vec![
        Figure::unbounded(format!("hit, {FEW} readers, {FEW} decisions cached"), few, "CPU µs"),
        Figure::unbounded(format!("hit, {FEW} readers, {MANY} decisions cached"), same, "CPU µs"),
        Figure::bounded("ratio, many to few cached", same / few, "", 1.15),
        Figure::unbounded(
            format!("hit, {MANY} readers in turn, {MANY} decisions cached"),
            many,
            "CPU µs",
        ),
        Figure::bounded("ratio, many to few readers", many / few, "", 1.15),
    ]
}

async fn connections(stage: &Stage, small: &Stage) -> Vec<Figure> {
    let mut active = stage.client.idle(&stage.target(SMALL), Version::HTTP_11, ACTIVE).await;
    let mut active_small = small.client.idle(&small.target(SMALL), Version::HTTP_11, ACTIVE).await;
    let mut others =
        stage.client.idle(&stage.target(SMALL), Version::HTTP_11, CONNECTED - ACTIVE).await;
    let (token, token_small) = ([stage.token("kari")], [small.token("kari")]);
    let (mut alone, mut beside, mut spread) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(hit(small, &mut active_small, &token_small).await);
        beside.push(hit(stage, &mut active, &token).await);
        spread.push(hit(stage, &mut others, &token).await);
    }
    let [alone, beside, spread] = [alone, beside, spread].map(median);
    vec![
        Figure::unbounded(format!("hit, {ACTIVE} connections"), alone, "CPU µs"),
        Figure::unbounded(format!("hit, {ACTIVE} of {CONNECTED} connections"), beside, "CPU µs"),
        Figure::bounded(
            format!("ratio, {CONNECTED} to {ACTIVE} connections"),
            beside / alone,
            "",
            1.15,
        ),
        Figure::unbounded(
            format!("hit, the other {} connections in turn", CONNECTED - ACTIVE),
            spread,
            "CPU µs",
        ),
        Figure::unbounded(format!("ratio, all in turn to {ACTIVE} alone"), spread / alone, ""),
    ]
}
