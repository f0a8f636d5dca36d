//! Retention: afterwards nothing in the ledger's file links a loan to its borrower, or two loans to
//! each other. The audit trail still verifies, and an old token still begins nothing.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use crate::support::demo::is_in_files;
use crate::support::scene::{Setting, movable_clock};
use crate::support::{AUDIO, BOOK, File, Scene};

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn borrower_is_forgotten_after_the_retention_and_not_before() {
    let clock = movable_clock();
    let config = vec![
        ("[readers.jwt]", "[readers]\nmax_lifetime = \"2d\"\n\n[readers.jwt]"),
        ("[privacy]", "[privacy]\nretention = \"30d\""),
    ];
    let mut scene =
        Scene::start_with(Setting { config, clock: clock.clone(), ..Setting::default() }).await;
    for isbn in [BOOK, AUDIO] {
        scene.origin.put(&format!("{isbn}/file"), File::of(1000));
    }
    let token = scene.token("kari");
    let get = async |scene: &Scene, isbn: &str, token: &str| {
        scene
            .get(&scene.http1(), &format!("/files/{isbn}/file"), token)
            .send()
            .await
            .unwrap()
            .status()
    };
    for isbn in [BOOK, AUDIO] {
        assert_eq!(get(&scene, isbn, &token).await, StatusCode::OK);
        let url = format!("{}/loans/{isbn}", scene.base);
        scene.http1().delete(url).bearer_auth(&token).send().await.unwrap();
    }
    let ended = async || scene.ledger().await.iter().all(|loan| loan["state"] == "ended");
    scene.until("both loans have ended", ended).await;
    let before = scene.ledger().await;
    let pseudonym = before[0]["borrower"].as_str().unwrap().to_owned();
    assert_eq!(before[1]["borrower"], pseudonym.as_str());
    let borrower: loangate::loan::Borrower = pseudonym.parse().unwrap();

    clock.advance(29 * DAY);
    // A live loan of the same reader is never forgotten.
    let fresh = scene.token("kari");
    assert_eq!(get(&scene, BOOK, &fresh).await, StatusCode::OK);
    clock.advance(2 * DAY);
    let forgotten = async || {
        scene.ledger().await.iter().filter(|loan| loan["forgotten"].is_string()).count() == 2
    };
    scene.until("both are forgotten", forgotten).await;
    let after = scene.ledger().await;
    let borrowers: BTreeSet<&str> =
        after.iter().map(|loan| loan["borrower"].as_str().unwrap()).collect();
    assert_eq!(borrowers.len(), 3, "the forgotten loans share a pseudonym: {after:?}");
    assert!(borrowers.contains(pseudonym.as_str()), "the live loan keeps its pseudonym");
    assert_eq!(
        get(&scene, BOOK, &scene.token("kari")).await,
        StatusCode::OK,
        "the live loan still opens its title"
    );
    assert_eq!(
        get(&scene, BOOK, &token).await,
        StatusCode::UNAUTHORIZED,
        "an old token opens nothing after it"
    );

    // When the last loan is forgotten too, nothing in the files contains the pseudonym.
    let url = format!("{}/loans/{BOOK}", scene.base);
    scene.http1().delete(url).bearer_auth(scene.token("kari")).send().await.unwrap();
    let ended = async || scene.ledger().await.iter().all(|loan| loan["state"] == "ended");
    scene.until("the loan has ended", ended).await;
    assert!(
        is_in_files(&scene.dir.path().join("data"), borrower.as_bytes()),
        "the search must find the pseudonym before it is forgotten"
    );
    clock.advance(31 * DAY);
    let forgotten = async || scene.ledger().await.iter().all(|loan| loan["forgotten"].is_string());
    scene.until("all are forgotten", forgotten).await;
    scene
        .until("no file has it, also while the gate runs", async || {
            !is_in_files(&scene.dir.path().join("data"), borrower.as_bytes())
        })
        .await;
    scene.stop_gate().await;
    assert!(
        !is_in_files(&scene.dir.path().join("data"), borrower.as_bytes()),
        "not even in a free page"
    );
    for arguments in [["audit", "verify"], ["ledger", "check"]] {
        let run = Command::new(env!("CARGO_BIN_EXE_loangate"))
            .args(arguments)
            .arg("--config")
            .arg(scene.config_file())
            .output()
            .unwrap();
        assert!(run.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
    }
    scene.start_gate().await;
    let listed: Value =
        scene.admin(&format!("/api/v1/loans?borrower={pseudonym}")).await.json().await.unwrap();
    assert_eq!(listed["loans"], serde_json::json!([]));
    scene.end().await;
}
