//! Invariants 1, 2, 3 and 7 under random interleavings, on the real gate.
//!
//! Two readers and two titles. A case is a sequence of steps: requests of every kind with new and
//! old tokens, changes of the clock, lost responses of Bokbasen, a blocked ledger, crashes of the
//! gate. Some steps do two at once. After each step, and when all work is done, the rules of
//! [`model`] are checked against the ledger and the sandbox's books. [`stage`] runs the gate,
//! crashes it and restarts it.
//!
//! An ordinary run tries eighteen new cases. To run more, or the same again:
//! `LOANGATE_INTERLEAVINGS=100 LOANGATE_TEST_SEED=… cargo test --test it interleavings --
//! --nocapture`. Each of three lanes runs that many cases, and the first lane uses the seed itself.

mod model;
mod stage;

use std::cell::RefCell;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use model::{Model, ReaderRequest, RequestKind};
use stage::Stage;

/// Number of concurrent cases, which mostly wait, and of cases per lane in an ordinary run.
const LANES: u64 = 3;
const CASES: u32 = 6;
/// Number of steps in a case.
const STEPS: std::ops::Range<usize> = 20..32;

/// An action of a reader, the clock, Bokbasen or the gate.
#[derive(Clone, Debug)]
enum Action {
    /// A reader sends a request.
    Request(ReaderRequest),
    /// Time passes, and a reader's app gets a new token. Zero is the boundary case: a token issued
    /// at the moment of an end is an old one.
    NewToken { reader: usize, after_ms: u64 },
    /// The clock reaches the due time of a reader's loan, or passes it.
    Expire { key: model::Key, late_ms: u64 },
    /// The clock is set.
    Jump { seconds: i64 },
    /// Bokbasen's responses to the next calls of this kind are lost.
    Lose { call: &'static str, how: Value, times: u32 },
    /// Another process writes to the ledger for this long, and the gate's writes wait.
    BlockLedger { ms: u64 },
    /// The gate crashes at this moment.
    Crash,
}

/// The actions between two checks of the ledger and the books.
#[derive(Clone, Debug)]
enum Step {
    One(Action),
    /// Two actions, the second this many milliseconds after the first.
    Two(Action, Action, u64),
}

/// A reader and a title. One pair is more frequent, so that its actions interact.
fn key() -> impl Strategy<Value = model::Key> {
    prop_oneof![1 => Just((0, 0)), 1 => proptest::sample::select(model::KEYS.to_vec())]
}

fn reader_request() -> impl Strategy<Value = ReaderRequest> {
    let what = prop_oneof![
        5 => Just(RequestKind::Read),
        2 => Just(RequestKind::Continue),
        3 => Just(RequestKind::Return),
        2 => Just(RequestKind::Begin),
    ];
    // Mostly the newest token.
    let token_back = prop_oneof![3 => Just(0_usize), 1 => 1..4_usize];
    (key(), what, token_back, any::<bool>()).prop_map(
        |((reader, title), what, token_back, http2)| ReaderRequest {
            reader,
            title,
            what,
            token_back,
            http2,
        },
    )
}

/// A call whose response is lost, and how. A late execution stays within the sandbox's bound.
fn lose() -> impl Strategy<Value = Action> {
    let how = proptest::sample::select(vec![
        json!("cut_after"),
        json!("cut_before"),
        json!({ "cut_before": { "late_ms": stage::LATE_MS } }),
        json!({ "hang": { "made": true } }),
        json!({ "hang": { "made": false } }),
    ]);
    let call = prop_oneof![
        4 => Just("begin"),
        2 => Just("return"),
        1 => Just("cancel"),
        1 => Just("list"),
    ];
    // A repeatable call is sent up to three times, so three losses fail the whole call.
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
        10 => reader_request().prop_map(Action::Request),
        4 => (key(), after_ms)
            .prop_map(|((reader, _), after_ms)| Action::NewToken { reader, after_ms }),
        1 => (key(), late_ms).prop_map(|(key, late_ms)| Action::Expire { key, late_ms }),
        1 => seconds.prop_map(|seconds| Action::Jump { seconds }),
        3 => lose(),
        // Mostly longer than the gate's patience, so that an intent is written after its request.
        2 => (200..500_u64).prop_map(|ms| Action::BlockLedger { ms }),
        1 => Just(Action::Crash),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => action().prop_map(Step::One),
        1 => (action(), action(), 0..40_u64)
            .prop_map(|(first, second, ms)| Step::Two(first, second, ms)),
    ]
}

/// Runs this many cases in sequence, generated from this seed.
fn run(seed: u64, cases: u32) -> model::Tally {
    let config = Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        // A case takes seconds and failures depend on timing, so shrinking is limited.
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
fn random_interleavings_keep_the_loan_invariants() {
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

/// Runs one case, from an empty ledger to the final checks.
async fn play(steps: Vec<Step>) -> model::Tally {
    let mut stage = Stage::set_up().await;
    let mut model = Model::new(stage.now());
    let mut seen = stage.observe().await;
    for step in steps {
        let mut times = (stage.now(), stage.now());
        let mut sent = Vec::new();
        for (action, after_ms) in step.actions() {
            // No wait for a condition: this is the moment of the second action.
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            sent.extend(start(&mut stage, &model, &seen, action).await);
            times = (times.0.min(stage.now()), times.1.max(stage.now()));
        }
        let crashed = stage.is_dead();
        let mut answered = Vec::new();
        for request in sent {
            answered.push(request.await.unwrap());
        }
        for (action, _) in step.actions() {
            // A token that was issued in this step did not exist before the step's ends.
            if let Action::NewToken { reader, .. } = action {
                model.issue(*reader, stage.now());
            }
        }
        if crashed {
            stage.restart().await;
        }
        let after = stage.observe().await;
        model.judge(&seen, &after, &answered, times, crashed, &format!("{step:?}"));
        seen = after;
    }
    finish(&mut stage, &mut model).await;
    stage.end().await;
    model.tally
}

impl Step {
    /// Returns the actions, each with its delay in milliseconds after the previous one.
    fn actions(&self) -> impl Iterator<Item = (&Action, u64)> {
        let (first, second) = match self {
            Step::One(action) => (action, None),
            Step::Two(first, second, ms) => (first, Some((second, *ms))),
        };
        std::iter::once((first, 0)).chain(second)
    }
}

/// Starts an action. The caller awaits the response of a request.
async fn start(
    stage: &mut Stage,
    model: &Model,
    seen: &stage::Seen,
    action: &Action,
) -> Option<tokio::task::JoinHandle<model::Answered>> {
    match action {
        Action::Request(ask) => return Some(stage.send(*ask, model.token(ask))),
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
        Action::BlockLedger { ms } => stage.block_ledger(Duration::from_millis(*ms)).await,
        Action::Crash => stage.crash(),
    }
    None
}

/// Removes all faults, waits for all work, and checks that each reader can borrow each title.
async fn finish(stage: &mut Stage, model: &mut Model) {
    stage.scene.no_faults().await;
    // The clock moves past its latest value, whatever it was set to, and then past every end,
    // including those that this makes due.
    stage.clock.set(model.latest.max(stage.now()));
    let before = loop {
        stage.until_quiet().await;
        let seen = stage.observe().await;
        if seen.last_end().is_none_or(|end| end.as_second() < stage.now().as_second()) {
            break seen;
        }
        stage.clock.advance(Duration::from_secs(1));
    };
    model.judge_rest(&before);
    for (reader, title) in model::KEYS {
        model.issue(reader, stage.now());
        let ask = ReaderRequest {
            reader,
            title,
            what: RequestKind::Read,
            token_back: 0,
            http2: title == 0,
        };
        stage.until_served(ask, model.token(&ask)).await;
    }
    let after = stage.observe().await;
    model.judge_rest(&after);
    model.judge_served_again(&before, &after);
    model.count_ends(&after);
}
