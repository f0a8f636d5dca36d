//! Invariants 1, 2, 3 and 7 under random interleavings, on the real gate.
//!
//! Two readers and two titles. A case is a row of steps: requests of every kind with new and old
//! tokens, the clock moved, an answer of Bokbasen's that will be lost, the gate crashed; some of
//! them two at once. After each step the rules of [`model`] are held against what the ledger and
//! the sandbox's books say, and again at the end, when everything has come to rest. [`stage`] has
//! the gate, which crashes and is started anew.
//!
//! The eighteen cases of an ordinary run are new ones each time. More of them, or the same ones
//! again: `LOANGATE_INTERLEAVINGS=100 LOANGATE_TEST_SEED=… cargo test --test it interleavings --
//! --nocapture`. So many are tried in each of three lanes, the first of which has the seed itself.

mod model;
mod stage;

use std::cell::RefCell;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use model::{Ask, Model, What};
use stage::Stage;

/// How many cases are tried at once, since they mostly wait; and how many an ordinary run tries one
/// after the other.
const LANES: u64 = 3;
const CASES: u32 = 6;
/// How many steps a case has.
const STEPS: std::ops::Range<usize> = 20..32;

/// Something that happens.
#[derive(Clone, Debug)]
enum Action {
    /// A reader asks.
    Ask(Ask),
    /// A while passes, and a reader's app gets itself a new token. No while at all is the boundary:
    /// a token that was issued at the very moment of an end is an old one.
    NewToken { reader: usize, after_ms: u64 },
    /// The clock comes to the due time of a reader's loan, or passes it.
    Expire { key: model::Key, late_ms: u64 },
    /// Somebody sets the clock.
    Jump { seconds: i64 },
    /// Bokbasen's answer to the next calls of this kind will be lost.
    Lose { call: &'static str, how: Value, times: u32 },
    /// The gate dies.
    Crash,
}

/// What happens between two looks at the ledger and the books.
#[derive(Clone, Debug)]
enum Step {
    One(Action),
    /// Two at once, the second so many milliseconds after the first.
    Two(Action, Action, u64),
}

/// A reader and a title; one pair more often than the others, so that what happens to it meets.
fn key() -> impl Strategy<Value = model::Key> {
    prop_oneof![1 => Just((0, 0)), 1 => proptest::sample::select(model::KEYS.to_vec())]
}

fn ask() -> impl Strategy<Value = Ask> {
    let what = prop_oneof![
        5 => Just(What::Read),
        2 => Just(What::Continue),
        3 => Just(What::Return),
        2 => Just(What::Begin),
    ];
    // Mostly the token of today.
    let token_back = prop_oneof![3 => Just(0_usize), 1 => 1..4_usize];
    (key(), what, token_back, any::<bool>()).prop_map(
        |((reader, title), what, token_back, http2)| Ask { reader, title, what, token_back, http2 },
    )
}

/// A call whose answer will be lost, and how. Where it is carried out late, that is within the
/// sandbox's bound.
fn lose() -> impl Strategy<Value = Action> {
    let how = proptest::sample::select(vec![
        json!("cut_after"),
        json!("cut_before"),
        json!({ "cut_before": { "late_ms": stage::LATE_MS } }),
        json!({ "hang": { "made": true } }),
        json!({ "hang": { "made": false } }),
    ]);
    let call = prop_oneof![4 => Just("begin"), 2 => Just("return"), 1 => Just("cancel"), 1 => Just("list")];
    // What may be repeated is, twice within one call: what is lost three times is lost for whoever
    // called.
    let times = prop_oneof![Just(1_u32), Just(3)];
    (call, how, times).prop_map(|(call, how, times)| {
        let times = if call == "begin" { 1 } else { times };
        Action::Lose { call, how, times }
    })
}

fn action() -> impl Strategy<Value = Action> {
    let late_ms = prop_oneof![Just(0), Just(1), 2..5000_u64];
    let seconds = prop_oneof![2 => -3600..=3600_i64, 1 => -70..=70_i64];
    let after_ms = prop_oneof![1 => Just(0), 3 => 1..5000_u64];
    prop_oneof![
        10 => ask().prop_map(Action::Ask),
        4 => (key(), after_ms).prop_map(|((reader, _), after_ms)| Action::NewToken { reader, after_ms }),
        1 => (key(), late_ms).prop_map(|(key, late_ms)| Action::Expire { key, late_ms }),
        1 => seconds.prop_map(|seconds| Action::Jump { seconds }),
        3 => lose(),
        1 => Just(Action::Crash),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => action().prop_map(Step::One),
        1 => (action(), action(), 0..40_u64).prop_map(|(first, second, ms)| Step::Two(first, second, ms)),
    ]
}

/// Tries so many cases, one after the other, that this seed decides.
fn run(seed: u64, cases: u32) -> model::Tally {
    let config = Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        // A case takes seconds, and does not fail every time: the moments are the machine's.
        max_shrink_iters: 40,
        failure_persistence: None,
        ..Config::default()
    };
    let runtime = Runtime::new().unwrap();
    let told = RefCell::new(model::Tally::new());
    let steps = proptest::collection::vec(step(), STEPS);
    let tried = TestRunner::new(config).run(&steps, |steps| {
        add(&mut told.borrow_mut(), runtime.block_on(play(steps)));
        Ok(())
    });
    runtime.shutdown_background();
    tried.unwrap_or_else(|failed| panic!("LOANGATE_TEST_SEED={seed}: {failed}"));
    told.into_inner()
}

fn add(told: &mut model::Tally, more: model::Tally) {
    more.into_iter().for_each(|(what, count)| *told.entry(what).or_default() += count);
}

#[test]
fn whatever_happens_in_whatever_order_no_byte_without_a_loan_none_twice_and_every_end_arrives() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("LOANGATE_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    let cases = number("LOANGATE_INTERLEAVINGS").map_or(CASES, |cases| cases.try_into().unwrap());
    println!("LOANGATE_TEST_SEED={seed} LOANGATE_INTERLEAVINGS={cases}");
    let mut told = model::Tally::new();
    std::thread::scope(|scope| {
        let lanes = (0..LANES).map(|lane| scope.spawn(move || run(seed.wrapping_add(lane), cases)));
        for lane in lanes.collect::<Vec<_>>() {
            add(&mut told, lane.join().unwrap());
        }
    });
    println!("{told:?}");
}

/// One case, from an empty ledger to the end.
async fn play(steps: Vec<Step>) -> model::Tally {
    let mut stage = Stage::set().await;
    let mut model = Model::new(stage.now());
    let mut seen = stage.look().await;
    for step in steps {
        let mut times = (stage.now(), stage.now());
        let mut asked = Vec::new();
        for (action, after_ms) in step.actions() {
            // Not to wait for anything: this is the moment at which the second falls.
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            asked.extend(start(&mut stage, &model, &seen, action).await);
            times = (times.0.min(stage.now()), times.1.max(stage.now()));
        }
        let crashed = stage.is_dead();
        let mut answered = Vec::new();
        for asking in asked {
            answered.push(asking.await.unwrap());
        }
        for (action, _) in step.actions() {
            // What was issued in this step was in nobody's hands before its end.
            if let Action::NewToken { reader, .. } = action {
                model.issue(*reader, stage.now());
            }
        }
        if crashed {
            stage.restart().await;
        }
        let after = stage.look().await;
        model.judge(&seen, &after, &answered, times, crashed, &format!("{step:?}"));
        seen = after;
    }
    rest(&mut stage, &mut model).await;
    stage.end().await;
    model.tally
}

impl Step {
    /// What happens, and how many milliseconds after what came before.
    fn actions(&self) -> impl Iterator<Item = (&Action, u64)> {
        let (first, second) = match self {
            Step::One(action) => (action, None),
            Step::Two(first, second, ms) => (first, Some((second, *ms))),
        };
        std::iter::once((first, 0)).chain(second)
    }
}

/// Lets an action happen; a request is only sent, and its answer awaited by the caller.
async fn start(
    stage: &mut Stage,
    model: &Model,
    seen: &stage::Seen,
    action: &Action,
) -> Option<tokio::task::JoinHandle<model::Answered>> {
    match action {
        Action::Ask(ask) => return Some(stage.send(*ask, model.token(ask))),
        Action::NewToken { after_ms, .. } => stage.clock.advance(Duration::from_millis(*after_ms)),
        Action::Expire { key, late_ms } => {
            if let Some(due) = seen.due(*key) {
                stage.pass(due, *late_ms);
            }
        }
        Action::Jump { seconds } => stage.jump(*seconds),
        Action::Lose { call, how, times } => {
            stage.scene.fault(&json!({ "call": call, "times": times, "effect": how })).await;
        }
        Action::Crash => stage.crash(),
    }
    None
}

/// The end: nothing misbehaves any more, everything comes to rest, and every reader can borrow
/// every title again.
async fn rest(stage: &mut Stage, model: &mut Model) {
    stage.scene.no_faults().await;
    // As late as it has ever been, wherever the clock was set to meanwhile; and then later than
    // every end, also of what that makes due.
    stage.clock.set(model.latest.max(stage.now()));
    let before = loop {
        stage.until_quiet().await;
        let seen = stage.look().await;
        if seen.last_end().is_none_or(|end| end.as_second() < stage.now().as_second()) {
            break seen;
        }
        stage.clock.advance(Duration::from_secs(1));
    };
    model.judge_rest(&before);
    for (reader, title) in model::KEYS {
        model.issue(reader, stage.now());
        let ask = Ask { reader, title, what: What::Read, token_back: 0, http2: title == 0 };
        stage.until_served(ask, model.token(&ask)).await;
    }
    let after = stage.look().await;
    model.judge_rest(&after);
    model.judge_served_again(&before, &after);
    model.count_ends(&after);
}
