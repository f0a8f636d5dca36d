//! `loangate sandbox`, as an integrator starts it for tests of an own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// A sandbox that is ended with the test.
struct Started(Child, Value);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(arguments: &[&str]) -> Started {
    let mut child = Command::new(env!("CARGO_BIN_EXE_loangate"))
        .args(["sandbox", "--listen", "127.0.0.1:0", "--json"])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let told = serde_json::from_str(&line).unwrap();
    Started(child, told)
}

#[tokio::test]
async fn it_says_how_to_reach_it_and_takes_bounds_faults_and_a_world() {
    let dir = tempfile::tempdir().unwrap();
    let world = dir.path().join("world.json");
    std::fs::write(&world, json!({ "libraries": [{ "isil": "NO-1" }], "titles": [] }).to_string())
        .unwrap();
    let started = start(&[
        "--world",
        world.to_str().unwrap(),
        "--bounds",
        r#"{"list_lag_ms": 7}"#,
        "--fault",
        r#"{"call": "list", "effect": "hang"}"#,
        "--fault",
        r#"{"call": "get", "times": 2, "effect": "garbage"}"#,
    ]);
    let told = &started.1;
    for name in
        ["url", "token_url", "login_url", "client_id", "client_secret", "username", "password"]
    {
        assert!(told[name].is_string(), "{name}: {told}");
    }
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = told["url"].as_str().unwrap();
    let get = async |path: &str| -> Value {
        client.get(format!("{url}/sandbox/{path}")).send().await.unwrap().json().await.unwrap()
    };
    assert_eq!(get("settings").await["list_lag_ms"], 7);
    assert_eq!(get("faults").await.as_array().unwrap().len(), 2);
    assert_eq!(get("books").await, json!({ "loans": [], "reports": [] }));
    // The credentials that it told open it.
    let asked = json!({
        "client_id": told["client_id"], "client_secret": told["client_secret"],
        "audience": "https://api.bokbasen.io/loan/", "grant_type": "client_credentials",
    });
    let token = client.post(told["token_url"].as_str().unwrap()).json(&asked).send().await.unwrap();
    let token: Value = token.json().await.unwrap();
    let begin = json!({
        "library": "NO-1", "isbn": "9788299999014", "borrower": "b", "reference": "r",
        "begin": "2026-01-01T00:00:00Z",
    });
    let request =
        client.post(format!("{url}/v1/loans")).bearer_auth(token["access_token"].as_str().unwrap());
    let answer = request.json(&begin).send().await.unwrap();
    assert_eq!(answer.status(), 404, "this world has no titles");
}

#[test]
fn what_it_cannot_read_it_refuses_with_a_sentence() {
    for (arguments, says) in [
        (&["--bounds", r#"{"lag": 1}"#][..], "unknown field `lag`"),
        (&["--fault", r#"{"call": "fetch", "effect": "hang"}"#], "unknown variant `fetch`"),
        (&["--world", "/nowhere.json"], "/nowhere.json: No such file"),
    ] {
        let ran = Command::new(env!("CARGO_BIN_EXE_loangate"))
            .arg("sandbox")
            .args(arguments)
            .output()
            .unwrap();
        let errors = String::from_utf8(ran.stderr).unwrap();
        assert!(!ran.status.success() && errors.contains(says), "{errors}");
    }
}
