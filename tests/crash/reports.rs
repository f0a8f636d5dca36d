//! `kill -9` around usage reports, on both stores: each due report is sent at most once. What
//! Bokbasen has acknowledged and what is listed for a person together are what is due.
//!
//! `LOANGATE_REPORT_KILLS` sets the number of rounds on each store.

use std::collections::BTreeMap;
use std::time::Duration;

use loangate::ledger::AuditKey;
use loangate::sandbox::Bounds;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::kills::{chance, names};
use crate::support::{File, Postgres, Scene, Setting};

/// The readers of a round. The last one reads less than a tenth.
const READERS: usize = 3;
const SIZE: u64 = 5000;
/// The longest time until a kill, in milliseconds.
const LONGEST_LIFE: u64 = 300;
/// How long the last gate may take: in PostgreSQL, until the leases of the killed ones have
/// expired, which are declared dead one after the other. Each round adds two seconds.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long a round waits for its crash point.
const POINT_REACHED_WITHIN: Duration = Duration::from_secs(1);

fn rounds(default: usize) -> usize {
    std::env::var("LOANGATE_REPORT_KILLS").map_or(default, |rounds| rounds.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_repeat_and_lose_no_report_in_sqlite() {
    kills(rounds(20), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_repeat_and_lose_no_report_in_postgresql() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    kills(rounds(20), Some(&format!("{}?sslmode=disable", database.url()))).await;
}

/// Returns the ISBN of a reader of a round: the sandbox's books name no loan, so that each loan has
/// a title of its own.
fn isbn(round: usize, number: usize) -> String {
    let digits = format!("978{:09}", round * READERS + number);
    let sum: u32 = digits.chars().enumerate().fold(0, |sum, (place, digit)| {
        sum + digit.to_digit(10).unwrap() * if place % 2 == 0 { 1 } else { 3 }
    });
    format!("{digits}{}", (10 - sum % 10) % 10)
}

/// Where a gate ends in a round.
fn place(chance: &mut fastrand::Rng) -> Option<String> {
    const ACTIONS: [&str; 5] = [
        "commit report-added",
        "commit report-claimed",
        "send report",
        "commit reported",
        "commit report-changed",
    ];
    // The last one is reached only after a lost report. Half of the kills are at any moment.
    let action = ACTIONS[chance.usize(..ACTIONS.len() - 1)];
    chance.bool().then(|| format!("{action} {}", if chance.bool() { "before" } else { "after" }))
}

async fn kills(rounds: usize, database: Option<&str>) {
    let mut chance = chance();
    let setting = Setting { bounds: Bounds::quick(), ..Setting::default() };
    let mut scene = Scene::without_gate(setting).await;
    let sizes: Vec<String> = (0..rounds)
        .flat_map(|round| (0..READERS).map(move |number| isbn(round, number)))
        .map(|isbn| format!("{isbn},{SIZE}\n"))
        .collect();
    scene.report_usage("PAY_PER_LOAN,23.5\n", &sizes.concat(), "");
    scene.replace_in_config("interval = \"100ms\"", "interval = \"10ms\"");
    if let Some(url) = database {
        scene.use_database(url);
    }
    let rejected = json!({ "status": { "status": 429, "retry_after": 0 } });
    let failed_later = json!({ "status": { "status": 502, "made": true } });
    let faults = json!([
        { "call": "report", "probability": 0.4, "effect": { "delay": { "ms": 15 } } },
        { "call": "report", "probability": 0.1, "effect": "cut_after" },
        { "call": "report", "probability": 0.1, "effect": "cut_before" },
        { "call": "report", "probability": 0.1, "effect": rejected },
        { "call": "report", "probability": 0.05, "effect": failed_later },
    ]);
    scene.fault(&faults).await;
    let mut reached = BTreeMap::new();
    for round in 0..rounds {
        let place = place(&mut chance);
        let gate = match &place {
            Some(place) => scene.try_spawn_gate_until(place).await,
            None => Some(scene.spawn_gate().await),
        };
        for number in 0..READERS {
            let isbn = isbn(round, number);
            scene.origin.put(&format!("{isbn}/book.epub"), File::of(SIZE));
            let path = format!("/files/{isbn}/book.epub");
            let request = scene.get(&scene.http1(), &path, &scene.token(&isbn));
            // The last reader reads less than a tenth. The gate may have ended.
            let last = if number + 1 == READERS { 498 } else { 499 + chance.u64(..4500) };
            let request = request.header("range", format!("bytes=0-{last}"));
            if let Ok(answer) = request.send().await {
                let _ = answer.bytes().await;
            }
        }
        let has_crashed = match gate {
            None => true,
            Some(mut gate) if place.is_some() => {
                // The point may lie in work that this round does not have.
                let ended = async {
                    while !gate.has_ended() {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                };
                let has_ended = tokio::time::timeout(POINT_REACHED_WITHIN, ended).await.is_ok();
                gate.kill();
                has_ended
            }
            Some(mut gate) => {
                // No wait for a condition: this is the moment of the kill.
                tokio::time::sleep(Duration::from_millis(chance.u64(..LONGEST_LIFE))).await;
                gate.kill();
                false
            }
        };
        *reached.entry(place.filter(|_| has_crashed)).or_insert(0) += 1;
    }
    println!("{rounds} kills: {reached:?}");
    scene.no_faults().await;
    let gate = scene.spawn_gate().await;
    settle(&scene, rounds).await;
    check(&scene, rounds).await;
    end(scene, gate).await;
}

/// Waits until every loan of which a tenth was delivered has a settled report.
async fn settle(scene: &Scene, rounds: usize) {
    let is_settled = |report: &Value| {
        let state = report["state"].as_str().unwrap();
        state == "reported" || report["for_a_person"] == true
    };
    let due = async || {
        let reports = scene.reports().await;
        if !reports.iter().all(is_settled) {
            return false;
        }
        let loans = scene.ledger().await;
        let is_due = |loan: &&Value| covered(loan) * 10 >= SIZE;
        let due: Vec<_> = loans.iter().filter(is_due).map(|loan| loan["id"].clone()).collect();
        due.iter().all(|id| reports.iter().any(|one| one["loan"] == *id))
    };
    let deadline = Instant::now() + SETTLED_WITHIN + Duration::from_secs(2 * rounds as u64);
    while !due().await {
        if Instant::now() >= deadline {
            let open: Vec<_> =
                scene.reports().await.into_iter().filter(|one| !is_settled(one)).collect();
            panic!("not settled, or reports are missing: {open:#?}");
        }
        // The listings of many rounds take most of the machine, which the gate needs to settle.
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Returns the number of bytes that were delivered under a loan, each byte counted once.
fn covered(loan: &Value) -> u64 {
    let files = loan["delivered"].as_object().unwrap().values();
    let ranges = files.flat_map(|file| file["ranges"].as_array().unwrap());
    ranges.map(|pair| pair[1].as_u64().unwrap() - pair[0].as_u64().unwrap() + 1).sum()
}

async fn check(scene: &Scene, rounds: usize) {
    let (loans, reports) = (scene.ledger().await, scene.reports().await);
    let mut booked: BTreeMap<String, usize> = BTreeMap::new();
    for report in scene.booked_reports().await {
        *booked.entry(report["isbn"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let due: Vec<_> = loans.iter().filter(|loan| covered(loan) * 10 >= SIZE).collect();
    let (mut acknowledged, mut for_a_person, mut arrived) = (0, 0, 0);
    for loan in &due {
        let of_loan: Vec<_> = reports.iter().filter(|one| one["loan"] == loan["id"]).collect();
        assert_eq!(of_loan.len(), 1, "{loan}: {of_loan:?}");
        let sent = booked.get(loan["isbn"].as_str().unwrap()).copied().unwrap_or_default();
        assert!(sent <= 1, "sent twice: {loan}");
        if of_loan[0]["state"] == "reported" {
            assert_eq!(sent, 1, "Bokbasen lacks an acknowledged report: {loan}");
            acknowledged += 1;
        } else {
            assert_eq!(of_loan[0]["for_a_person"], true, "{of_loan:?}");
            for_a_person += 1;
            arrived += sent;
        }
    }
    assert_eq!(acknowledged + for_a_person, due.len());
    assert_eq!(reports.len(), due.len(), "a report is not due");
    assert_eq!(booked.values().sum::<usize>(), acknowledged + arrived, "Bokbasen has others");
    println!(
        "{rounds} rounds: {} loans, {} due: {acknowledged} acknowledged, {for_a_person} for a \
         person, of which {arrived} had arrived",
        loans.len(),
        due.len()
    );
    assert!(rounds < 10 || (acknowledged > 0 && for_a_person > 0), "the rounds show nothing");
}

async fn end(scene: Scene, mut gate: crate::support::Process) {
    gate.terminate();
    assert!(gate.exit().await.success());
    let store = loangate::config::load(&scene.config_file()).unwrap().config.ledger.store;
    let key = AuditKey::new(&names(&scene).audit_key());
    let verified = loangate::ledger::verify(&store, &key, &loangate::ledger::RowsRead::default())
        .await
        .unwrap();
    assert_eq!(verified.findings, Vec::<String>::new());
    assert_eq!(
        loangate::ledger::check(&store, &key, &loangate::ledger::RowsRead::default())
            .await
            .unwrap(),
        Vec::<String>::new()
    );
    scene.end().await;
}
