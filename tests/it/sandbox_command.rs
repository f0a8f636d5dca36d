//! `loangate sandbox`, started as an integrator does for own tests.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// A sandbox process, killed at the end of the test.
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
    let printed = serde_json::from_str(&line).unwrap();
    Started(child, printed)
}

#[tokio::test]
async fn sandbox_prints_its_addresses_and_applies_its_options() {
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
    let printed = &started.1;
    for name in
        ["url", "token_url", "login_url", "client_id", "client_secret", "username", "password"]
    {
        assert!(printed[name].is_string(), "{name}: {printed}");
    }
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = printed["url"].as_str().unwrap();
    let get = async |path: &str| -> Value {
        client.get(format!("{url}/sandbox/{path}")).send().await.unwrap().json().await.unwrap()
    };
    assert_eq!(get("settings").await["list_lag_ms"], 7);
    assert_eq!(get("faults").await.as_array().unwrap().len(), 2);
    assert_eq!(get("books").await, json!({ "loans": [], "reports": [] }));
    // The printed credentials grant access.
    let credentials = json!({
        "client_id": printed["client_id"], "client_secret": printed["client_secret"],
        "audience": "https://api.bokbasen.io/loan/", "grant_type": "client_credentials",
    });
    let token = client
        .post(printed["token_url"].as_str().unwrap())
        .json(&credentials)
        .send()
        .await
        .unwrap();
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
fn invalid_sandbox_options_are_reported() {
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
