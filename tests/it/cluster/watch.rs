//! What the gates of one PostgreSQL share for operators: each shows the problems and the
//! figures of all, and a problem of the whole cluster reaches a person whichever gate dies.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Executor;
use tokio::time::{Instant, sleep};

use crate::support::BOOK;
use crate::support::alerts::receiver;
use crate::support::cluster::{Cluster, ClusterGate, Plan, Store};
use crate::support::console::Browser;

const PATIENCE: Duration = Duration::from_secs(120);
const REFUSED: &str = "<code>title-not-found</code>";

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "timed out waiting for: {what}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Returns the problems that a gate lists, and the names of the gates that it knows.
async fn problems(gate: &ClusterGate) -> (Vec<Value>, Vec<String>) {
    let list: Value = gate.admin("/api/v1/problems").await.unwrap().json().await.unwrap();
    let nodes = list["nodes"].as_array().unwrap().iter();
    let nodes = nodes.map(|node| node["node"].as_str().unwrap().to_owned());
    (list["problems"].as_array().unwrap().clone(), nodes.collect())
}

async fn node_of(gate: &ClusterGate) -> String {
    let list: Value = gate.admin("/api/v1/problems").await.unwrap().json().await.unwrap();
    list["node"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_gate_shows_the_problems_and_figures_of_all() {
    let Some(cluster) = Cluster::start(Plan::new(2, Store::Postgres)).await else { return };
    let [first, second] = &cluster.gates[..] else { panic!() };
    let (name, other) = (node_of(first).await, node_of(second).await);
    until("both gates know each other", async || {
        problems(first).await.1 == [name.clone(), other.clone()]
            && problems(second).await.1 == [other.clone(), name.clone()]
    })
    .await;

    // The second gate alone serves a reader, and alone has a problem.
    let client = cluster.scene.http1();
    for path in [format!("/files/{BOOK}/book.epub"), "/nothing".to_owned()] {
        let request = client.get(format!("{}{path}", second.base()));
        let answer = request.bearer_auth(cluster.scene.token("kari")).send().await.unwrap();
        answer.bytes().await.unwrap();
    }
    cluster.fault(&json!({ "call": "list", "effect": "garbage", "times": 100 })).await;
    second.post("/api/v1/balance").await;
    for gate in [first, second] {
        until("both gates list it", async || {
            let (listed, _) = problems(gate).await;
            let is_it = |problem: &Value| {
                problem["code"] == "books-unbalanced" && problem["node"] == other.as_str()
            };
            listed.iter().filter(|problem| is_it(problem)).count() == 1
        })
        .await;
    }
    let token =
        std::fs::read_to_string(cluster.scene.dir.path().join("certs/admin.token")).unwrap();
    let mut browser = Browser::new(&first.admin_url());
    browser.enter(token.trim()).await;
    let page = browser.get("/problems").await.body;
    assert!(page.contains("/runbook#books-unbalanced") && page.contains(&other), "{page}");
    let deadline = Instant::now() + PATIENCE;
    let page = loop {
        let page = browser.get("/now").await.body;
        if page.contains(REFUSED) {
            break page;
        }
        assert!(Instant::now() < deadline, "the refusal of the other gate is not shown: {page}");
        sleep(Duration::from_millis(500)).await;
    };
    // It is in the charts of the gate that refused, and not in those of the other one.
    let address_of = |node: &str| {
        let link = page.split("<a href=\"").find(|part| part.contains(&format!(">{node}</a>")));
        link.unwrap().split('"').next().unwrap().replace("&amp;", "&")
    };
    assert!(browser.get(&address_of(&other)).await.body.contains(REFUSED));
    assert!(!browser.get(&address_of(&name)).await.body.contains(REFUSED));

    // A gate that is dead is left out after its lease.
    second.kill();
    until("the dead gate is left out", async || {
        let (listed, nodes) = problems(first).await;
        nodes == [name.clone()] && listed.iter().all(|problem| problem["node"] == name.as_str())
    })
    .await;
    second.restart().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn problem_of_the_cluster_is_sent_whichever_gate_dies() {
    let (url, received) = receiver().await;
    let Some(cluster) = Cluster::start(Plan::new(2, Store::Postgres)).await else { return };
    for gate in &cluster.gates {
        let text = std::fs::read_to_string(&gate.config).unwrap();
        let hook = format!(
            "\n[[alerts.webhooks]]\nurl = \"{url}\"\n\
             secret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"\n"
        );
        std::fs::write(&gate.config, text + &hook).unwrap();
        gate.kill();
    }
    for gate in &cluster.gates {
        gate.restart().await;
    }
    let opened_by = || {
        let requests = received.lock().unwrap().clone();
        let bodies = requests.iter().filter_map(|request| request.split_once("\r\n\r\n"));
        let events = bodies.map(|(_, body)| serde_json::from_str::<Value>(body).unwrap());
        let opened = events.filter(|event| {
            event["type"] == "problem.opened" && event["data"]["code"] == "begins-closed"
        });
        opened.map(|event| event["data"]["node"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let store = cluster.store.postgres().unwrap();
    let close = "INSERT INTO meta (name, value) VALUES ('begins closed', '')";
    store.database.connect().await.execute(close).await.unwrap();
    until("one gate sends it", async || !opened_by().is_empty()).await;
    for gate in &cluster.gates {
        until("both gates have it", async || {
            problems(gate).await.0.iter().any(|problem| problem["code"] == "begins-closed")
        })
        .await;
    }
    let speaker = opened_by()[0].clone();
    let mut others = Vec::new();
    for gate in &cluster.gates {
        let node = node_of(gate).await;
        if node == speaker { gate.kill() } else { others.push(node) }
    }
    assert_eq!(others.len(), 1);
    // Whether the dead gate had sent it is unknown to the other one.
    until("the other gate sends it", async || opened_by().contains(&others[0])).await;
}
