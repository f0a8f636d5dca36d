//! Tests of the books across restarts and kills.

use std::io::Write;

use super::*;

fn kept_in(dir: &std::path::Path) -> Settings {
    Settings { dir: Some(dir.to_owned()), ..permissive() }
}

#[tokio::test]
async fn books_have_the_documented_shape() {
    let caller = Caller::of(permissive()).await;
    let id = caller.begin("r").await.id();
    caller.end(&id).await;
    let report =
        json!({ "isbn": TITLE, "model": "PAY_PER_LOAN", "price": 23.5, "date": "2026-01-15" });
    assert_eq!(caller.post("/reporting/loan/v1", report).await.status, 204);
    let books = caller.get("/sandbox/books").await.body;
    let at = "2026-01-15T12:00:00Z";
    assert_eq!(
        books,
        json!({
            "loans": [{
                "loanId": id, "reference": "r", "library": LIBRARY, "isbn": TITLE,
                "borrower": "somebody",
                "status": "RETURNED", "made": at, "accepted": at, "ended": at,
                "ends": 1, "endReceived": at,
            }],
            "reports": [{
                "isbn": TITLE, "model": "PAY_PER_LOAN", "price": 23.5, "date": "2026-01-15",
                "received": at,
            }],
        })
    );
}

#[tokio::test]
async fn books_survive_a_restart_and_ids_stay_unique() {
    let dir = tempfile::tempdir().unwrap();
    let caller = Caller::of(kept_in(dir.path())).await;
    let ended = caller.begin("ended").await.id();
    caller.end(&ended).await;
    caller.put("/sandbox/settings", json!({ "pending_polls": 1 })).await;
    let pending = caller.begin("pending").await.id();
    let before = caller.loans().await;
    caller.sandbox.stop().await;

    let again = Caller::of(kept_in(dir.path())).await;
    assert_eq!(again.loans().await, before);
    assert_eq!(again.status(&pending).await, "PENDING");
    assert_eq!(again.status(&pending).await, "ACCEPTED");
    let found = again.get("/v1/loans?reference=ended").await.body;
    assert_eq!(found[0]["loanId"], ended);
    let new = again.begin("new").await.id();
    assert!(new != ended && new != pending);
}

#[tokio::test]
async fn lent_licence_stays_lent_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let title =
        json!({ "licenses": [{ "licenseId": "L", "type": "EXCLUSIVE", "exclusive": true }] });
    let path = format!("/sandbox/titles/{TITLE}");
    let caller = Caller::of(kept_in(dir.path())).await;
    caller.put(&path, title.clone()).await;
    let first = caller.begin("1").await.id();
    caller.sandbox.stop().await;

    let again = Caller::of(kept_in(dir.path())).await;
    again.put(&path, title).await;
    let second = again.begin("2").await.id();
    assert_eq!(again.status(&second).await, "REFUSED");
    assert_eq!(again.end(&first).await.status, 200);
    let third = again.begin("3").await.id();
    assert_eq!(again.status(&third).await, "ACCEPTED");
}

#[tokio::test]
async fn start_drops_a_partial_line_and_names_a_broken_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("books.jsonl");
    let append = |text: &str| {
        let mut file = std::fs::OpenOptions::new().append(true).open(&file).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let caller = Caller::of(kept_in(dir.path())).await;
    caller.begin("r").await;
    let before = caller.loans().await;
    caller.sandbox.stop().await;
    append("{\"loan\":{\"id\":\"BL0000");
    let again = Caller::of(kept_in(dir.path())).await;
    assert_eq!(again.loans().await, before);
    again.begin("s").await;
    again.sandbox.stop().await;
    append("garbage\n");
    let error = Sandbox::start(kept_in(dir.path()), Clock::system()).await.unwrap_err();
    assert!(error.to_string().contains("books.jsonl"), "{error}");
}

#[tokio::test]
async fn sandboxes_cannot_share_books_or_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let caller = Caller::of(kept_in(dir.path())).await;
    let error = Sandbox::start(kept_in(dir.path()), Clock::system()).await.unwrap_err();
    assert!(error.to_string().contains("another sandbox"), "{error}");
    let taken = Settings { listen: caller.sandbox.address(), ..permissive() };
    let error = Sandbox::start(taken, Clock::system()).await.unwrap_err();
    assert!(matches!(error, SandboxError::Listen { .. }), "{error}");
}

#[tokio::test]
async fn stop_closes_the_listener_and_debug_has_no_secret() {
    let caller = Caller::of(permissive()).await;
    caller.begin("r").await;
    let shown = format!("{:?}", caller.sandbox);
    for secret in ["sandbox-client-secret", "sandbox-password", &caller.token, "somebody"] {
        assert!(!shown.contains(secret), "{secret}");
    }
    let address = caller.sandbox.address();
    caller.sandbox.stop().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
