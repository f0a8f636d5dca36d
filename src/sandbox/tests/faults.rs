//! Tests of every fault over HTTP.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// Sends a begin over a plain TCP connection.
async fn send_begin(caller: &Caller, reference: &str) -> TcpStream {
    let body = caller.begin_body(reference).to_string();
    let request = format!(
        "POST /v1/loans HTTP/1.1\r\nHost: sandbox\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        caller.token,
        body.len()
    );
    let mut stream = TcpStream::connect(caller.sandbox.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Reads all bytes until the sandbox closes the connection.
async fn bytes_until_end(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// Waits until the books have `count` loans.
async fn until_loans(caller: &Caller, count: usize) {
    let wait = async {
        while caller.loans().await.len() < count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap();
}

async fn fault(caller: &Caller, call: &str, effect: Value) {
    let fault = json!([{ "call": call, "times": 1, "effect": effect }]);
    caller.put("/sandbox/faults", fault).await;
}

#[tokio::test]
async fn cut_before_sends_no_byte_and_makes_no_loan() {
    let caller = Caller::of(permissive()).await;
    fault(&caller, "begin", json!("cut_before")).await;
    let stream = send_begin(&caller, "r").await;
    assert_eq!(bytes_until_end(stream).await, b"");
    assert!(caller.loans().await.is_empty());
    assert_eq!(caller.begin("r").await.status, 202, "the fault has ended");
}

#[tokio::test]
async fn cut_after_sends_no_byte_but_makes_a_loan() {
    let caller = Caller::of(permissive()).await;
    fault(&caller, "begin", json!("cut_after")).await;
    let stream = send_begin(&caller, "r").await;
    assert_eq!(bytes_until_end(stream).await, b"");
    let loans = caller.loans().await;
    assert_eq!((loans.len(), &loans[0]["reference"]), (1, &json!("r")));
}

#[tokio::test]
async fn cut_begin_can_take_effect_late() {
    let caller = Caller::of(permissive()).await;
    caller.put("/sandbox/settings", json!({ "post_bound_ms": 10 })).await;
    fault(&caller, "begin", json!({ "cut_before": { "late_ms": 3_600_000 } })).await;
    assert_eq!(bytes_until_end(send_begin(&caller, "r").await).await, b"");
    until_loans(&caller, 1).await;
}

#[tokio::test]
async fn delayed_begin_takes_effect_after_a_disconnect() {
    let caller = Caller::of(permissive()).await;
    caller.put("/sandbox/settings", json!({ "post_bound_ms": 200 })).await;
    fault(&caller, "begin", json!({ "delay": { "ms": 3_600_000 } })).await;
    let stream = send_begin(&caller, "r").await;
    // The begin has arrived once its fault is used up.
    while caller.get("/sandbox/faults").await.body != json!([]) {
        tokio::task::yield_now().await;
    }
    drop(stream);
    until_loans(&caller, 1).await;
}

#[tokio::test]
async fn hanging_call_ends_when_the_sandbox_stops() {
    let caller = Caller::of(permissive()).await;
    fault(&caller, "begin", json!({ "hang": { "made": true } })).await;
    let stream = send_begin(&caller, "r").await;
    until_loans(&caller, 1).await;
    caller.sandbox.stop().await;
    assert_eq!(bytes_until_end(stream).await, b"");
}

#[tokio::test]
async fn delayed_responses_arrive() {
    let caller = Caller::of(permissive()).await;
    fault(&caller, "begin", json!({ "delay": { "ms": 5 } })).await;
    assert_eq!(caller.begin("r").await.status, 202);
    fault(&caller, "*", json!({ "delay_long_tail": { "median_ms": 1, "max_ms": 5 } })).await;
    assert_eq!(caller.get("/v1/loans?reference=r").await.status, 200);
}

#[tokio::test]
async fn status_faults_work_with_and_without_a_loan() {
    let caller = Caller::of(permissive()).await;
    fault(&caller, "begin", json!({ "status": { "status": 429, "retry_after": 7 } })).await;
    let response = caller.begin("r").await;
    assert_eq!(response.code(), (429, "TOO_MANY_REQUESTS"));
    assert_eq!(response.headers["retry-after"], "7");
    assert!(caller.loans().await.is_empty());
    fault(&caller, "begin", json!({ "status": { "status": 502, "made": true } })).await;
    assert_eq!(caller.begin("r").await.status, 502);
    assert_eq!(caller.loans().await.len(), 1);
}

#[tokio::test]
async fn responses_can_have_garbage_or_an_unknown_status() {
    let caller = Caller::of(permissive()).await;
    fault(&caller, "begin", json!("garbage")).await;
    let response = caller.begin("r").await;
    assert_eq!((response.status, response.body), (202, Value::Null));
    let id = caller.loans().await[0]["loanId"].as_str().unwrap().to_owned();
    fault(&caller, "get", json!("unknown_status")).await;
    let status = caller.status(&id).await;
    assert!(serde_json::from_value::<loan::Status>(status.clone()).is_err(), "{status}");
    assert_eq!(caller.status(&id).await, "ACCEPTED");
}

#[tokio::test]
async fn faults_refuse_delay_or_duplicate_loans() {
    let caller = Caller::of(permissive()).await;
    let refuse = json!({ "refuse": { "code": "NEW_CODE", "message": "Nei.", "retry_after": 9 } });
    fault(&caller, "begin", refuse).await;
    let id = caller.begin("r").await.id();
    let refused = caller.get(&format!("/v1/loans/{id}")).await.body;
    assert_eq!(
        refused["refusal"],
        json!({ "code": "NEW_CODE", "message": "Nei.", "retryAfter": 9 })
    );
    fault(&caller, "begin", json!({ "pending_polls": { "n": 1 } })).await;
    let id = caller.begin("r").await.id();
    assert_eq!(caller.status(&id).await, "PENDING");
    assert_eq!(caller.status(&id).await, "ACCEPTED");
    fault(&caller, "begin", json!("duplicate")).await;
    caller.begin("twice").await;
    let twice = caller.get("/v1/loans?reference=twice").await.body;
    assert_eq!(twice.as_array().unwrap().len(), 2);
    let body = json!({ "library": LIBRARY, "isbn": TITLE, "reference": "mine" });
    assert_eq!(caller.post("/sandbox/loans", body).await.status, 201);
    let mine = caller.get("/v1/loans?reference=mine").await.body;
    assert_eq!(mine[0]["status"], "ACCEPTED");
}

#[tokio::test]
async fn tokens_expire_on_time_or_by_a_fault() {
    let mut caller = Caller::of(permissive()).await;
    fault(&caller, "begin", json!("expire_token")).await;
    assert_eq!(caller.begin("r").await.code(), (401, "TOKEN_EXPIRED"));
    assert_eq!(caller.begin("r").await.code(), (401, "TOKEN_INVALID"));
    caller.log_in().await;
    assert_eq!(caller.begin("r").await.status, 202);
    caller.clock.advance(Duration::from_secs(3600));
    assert_eq!(caller.begin("r").await.code(), (401, "TOKEN_EXPIRED"));
    assert_eq!(caller.loans().await.len(), 1);
}

#[tokio::test]
async fn down_affects_calls_but_not_the_control_api() {
    let caller = Caller::of(permissive()).await;
    caller.put("/sandbox/settings", json!({ "down": true })).await;
    assert_eq!(caller.begin("r").await.code(), (503, "UNAVAILABLE"));
    caller.put("/sandbox/settings", json!({ "down": false })).await;
    assert_eq!(caller.begin("r").await.status, 202);
    let wrong = json!({ "downn": true });
    let response = caller.try_call(Method::PUT, "/sandbox/settings", Some(wrong)).await.unwrap();
    assert_eq!(response.code(), (400, "MALFORMED"));
}

#[tokio::test]
async fn clock_skew_changes_date_and_rejects_legacy_calls() {
    let caller = Caller::of(permissive()).await;
    let form = "username=sandbox-name&password=sandbox-password";
    let response = caller
        .http
        .post(caller.sandbox.login_url())
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form);
    let response = response.send().await.unwrap();
    assert_eq!(response.status(), 201);
    let ticket = response.headers()["boknett-tgt"].to_str().unwrap().to_owned();
    let call = async || {
        let url = format!("{}/v1/loans?reference=r", caller.sandbox.url());
        let request = caller.http.get(url).header("authorization", format!("Boknett {ticket}"));
        let response = request.header("date", "Thu, 15 Jan 2026 12:00:00 GMT").send();
        response.await.unwrap()
    };
    let near = call().await;
    assert_eq!(near.status(), 200);
    assert_eq!(near.headers()["date"], "Thu, 15 Jan 2026 12:00:00 GMT");
    caller.put("/sandbox/settings", json!({ "clock_skew_seconds": 901 })).await;
    let far = call().await;
    assert_eq!(far.status(), 401);
    assert_eq!(far.headers()["date"], "Thu, 15 Jan 2026 12:15:01 GMT");
    assert_eq!(far.json::<Value>().await.unwrap()["code"], "CLOCK_SKEW");
}
