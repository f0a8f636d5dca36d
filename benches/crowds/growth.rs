//! A hit must cost the same whether few are connected or many, and whether few loans are cached or many.

use http::Version;

use super::stage::{SMALL, Stage};
use super::{Figure, median};
use crate::shared::load::Opened;

const REQUESTS: usize = 20_000;
const ROUNDS: usize = 5;
const ACTIVE: usize = 10;
const CONNECTED: usize = 5000;
const FEW: usize = 100;
const MANY: usize = 10_000;

pub(crate) async fn measure(stage: &Stage) -> Vec<Figure> {
    let mut figures = decisions(stage).await;
    figures.extend(connections(stage).await);
    figures
}

/// The CPU of a request over these connections by these readers, in microseconds.
async fn hit(stage: &Stage, opened: &mut [Opened], tokens: &[String]) -> f64 {
    let target = stage.target(SMALL);
    stage.costs(stage.client.in_turn(opened, &target, tokens, REQUESTS)).await / REQUESTS as f64 * 1e6
}

async fn decisions(stage: &Stage) -> Vec<Figure> {
    let target = stage.target(SMALL);
    let tokens: Vec<String> = (0..MANY).map(|number| stage.token(&format!("reader-{number}"))).collect();
    let mut opened = stage.client.idle(&target, Version::HTTP_11, ACTIVE).await;
    let mut few = Vec::new();
    stage.costs_in_all(stage.client.in_turn(&mut opened, &target, &tokens[..FEW], FEW)).await;
    for _ in 0..ROUNDS {
        few.push(hit(stage, &mut opened, &tokens[..FEW]).await);
    }
    stage.costs_in_all(stage.client.in_turn(&mut opened, &target, &tokens, MANY)).await;
    let (mut same, mut many) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        same.push(hit(stage, &mut opened, &tokens[..FEW]).await);
        many.push(hit(stage, &mut opened, &tokens).await);
    }
    let [few, same, many] = [few, same, many].map(median);
    vec![
        Figure::told(format!("a hit with {FEW} decisions cached"), few, "CPU µs"),
        Figure::told(format!("the same readers' with {MANY} cached"), same, "CPU µs"),
        Figure::asked(format!("with {MANY} cached, to with {FEW}"), same / few, "", 1.15),
        Figure::told(format!("a hit of {MANY} readers in turn"), many, "CPU µs"),
        Figure::asked(format!("of {MANY} in turn, to of {FEW}"), many / few, "", 1.15),
    ]
}

async fn connections(stage: &Stage) -> Vec<Figure> {
    let (target, token) = (stage.target(SMALL), [stage.token("kari")]);
    let mut active = stage.client.idle(&target, Version::HTTP_11, ACTIVE).await;
    let rounds = async |opened: &mut [Opened]| {
        let mut all = Vec::new();
        for _ in 0..ROUNDS {
            all.push(hit(stage, opened, &token).await);
        }
        all
    };
    let mut alone = rounds(&mut active).await;
    let mut others = stage.client.idle(&target, Version::HTTP_11, CONNECTED - ACTIVE).await;
    let beside = rounds(&mut active).await;
    let spread = rounds(&mut others).await;
    drop(others);
    alone.extend(rounds(&mut active).await);
    let [alone, beside, spread] = [alone, beside, spread].map(median);
    vec![
        Figure::told(format!("a hit with {ACTIVE} connections"), alone, "CPU µs"),
        Figure::told(format!("with {CONNECTED}, over {ACTIVE} of them"), beside, "CPU µs"),
        Figure::asked(format!("with {CONNECTED}, to with {ACTIVE}"), beside / alone, "", 1.15),
        Figure::told(format!("over all {} in turn", CONNECTED - ACTIVE), spread, "CPU µs"),
        Figure::told("over all in turn, to over few", spread / alone, ""),
    ]
}
