//! Tests of loan states, licences and refusals.

use super::*;

#[tokio::test]
async fn loan_pends_for_its_polls_and_returns_are_idempotent() {
    let caller = Caller::of(permissive()).await;
    caller.put("/sandbox/settings", json!({ "pending_polls": 2, "poll_after_seconds": 3 })).await;
    let id = caller.begin("r").await.id();
    for _ in 0..2 {
        let pending = caller.get(&format!("/v1/loans/{id}")).await;
        assert_eq!(pending.body["status"], "PENDING");
        assert_eq!(pending.headers["retry-after"], "3");
        assert!(pending.body.get("due").is_none());
    }
    let accepted = caller.get(&format!("/v1/loans/{id}")).await;
    assert_eq!(accepted.body["status"], "ACCEPTED");
    assert_eq!(accepted.body["due"], "2026-02-05T12:00:00Z");
    assert!(!accepted.headers.contains_key("retry-after"));
    let first = caller.end(&id).await;
    assert_eq!((first.status, &first.body["status"]), (200, &json!("RETURNED")));
    caller.clock.advance(std::time::Duration::from_secs(60));
    assert_eq!(caller.end(&id).await.body, first.body, "unchanged");
    assert_eq!(caller.cancel(&id).await.code(), (409, "CANCEL_WINDOW_CLOSED"));
    assert_eq!(caller.loans().await[0]["ends"], 2);
}

#[tokio::test]
async fn pending_loan_allows_cancel_only_until_its_limit() {
    let caller = Caller::of(permissive()).await;
    caller.put("/sandbox/settings", json!({ "pending_polls": 1000 })).await;
    let (one, two) = (caller.begin("one").await.id(), caller.begin("two").await.id());
    assert_eq!(caller.end(&one).await.code(), (409, "LOAN_PENDING"));
    assert_eq!(caller.cancel(&one).await.body["status"], "CANCELLED");
    assert_eq!(caller.cancel(&one).await.status, 200);
    assert_eq!(caller.end(&one).await.code(), (409, "ALREADY_ENDED"));
    caller.clock.advance(std::time::Duration::from_secs(60));
    assert_eq!(caller.status(&two).await, "ACCEPTED");
}

#[tokio::test]
async fn cancel_window_closes() {
    let caller = Caller::of(permissive()).await;
    let (one, two) = (caller.begin("one").await.id(), caller.begin("two").await.id());
    assert_eq!(caller.status(&one).await, "ACCEPTED");
    assert_eq!(caller.status(&two).await, "ACCEPTED");
    caller.clock.advance(std::time::Duration::from_secs(15 * 60));
    assert_eq!(caller.cancel(&one).await.status, 200);
    caller.clock.advance(std::time::Duration::from_millis(1));
    assert_eq!(caller.cancel(&two).await.code(), (409, "CANCEL_WINDOW_CLOSED"));
}

#[tokio::test]
async fn same_reference_twice_makes_two_loans() {
    let caller = Caller::of(permissive()).await;
    assert_ne!(caller.begin("r").await.id(), caller.begin("r").await.id());
    let found = caller.get("/v1/loans?reference=r").await;
    assert_eq!(found.body.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn listing_lags_and_has_pages() {
    let caller = Caller::of(permissive()).await;
    caller.put("/sandbox/settings", json!({ "list_lag_ms": 2000, "page_size": 1 })).await;
    let first = caller.begin("r").await.id();
    caller.clock.advance(std::time::Duration::from_millis(1999));
    assert_eq!(caller.get("/v1/loans?reference=r").await.body, json!([]));
    caller.clock.advance(std::time::Duration::from_millis(1));
    let second = caller.begin("r").await.id();
    let page = caller.get("/v1/loans?reference=r").await;
    assert_eq!(page.body[0]["loanId"], first);
    let next = page.headers["next"].to_str().unwrap().to_owned();
    let empty = caller.get(&format!("/v1/loans?next={next}")).await;
    assert_eq!(empty.body, json!([]), "the second is still hidden");
    caller.clock.advance(std::time::Duration::from_secs(2));
    let next = empty.headers["next"].to_str().unwrap();
    let page = caller.get(&format!("/v1/loans?next={next}")).await;
    assert_eq!(page.body[0]["loanId"], second);
    let all = caller.get(&format!("/v1/loans?library={LIBRARY}&after=20260115120001")).await;
    assert_eq!(all.body[0]["loanId"], second, "the first was made before");
    caller.clock.advance(std::time::Duration::from_secs(181 * 24 * 3600));
    let mut caller = caller;
    caller.log_in().await;
    let old = caller.get(&format!("/v1/loans?next={next}")).await;
    assert_eq!(old.code(), (400, "MALFORMED"));
}

#[tokio::test]
async fn lag_hides_recent_loans_by_id_and_reference() {
    let caller = Caller::of(permissive()).await;
    caller.put("/sandbox/settings", json!({ "list_lag_ms": 0, "get_lag_ms": 1000 })).await;
    let id = caller.begin("r").await.id();
    let shown = async |id: &str| caller.get(&format!("/v1/loans/{id}")).await.status;
    assert_eq!(
        (shown(&id).await, caller.cancel(&id).await.status),
        (404, 200),
        "a write does not lag"
    );
    caller.clock.advance(std::time::Duration::from_secs(1));
    assert_eq!(shown(&id).await, 200);

    let lag =
        |call: &str| json!({ "call": call, "isbn": TITLE, "effect": { "lag": { "ms": 5000 } } });
    caller.put("/sandbox/faults", json!([lag("get"), lag("list"), lag("cancel")])).await;
    let id = caller.begin("s").await.id();
    for late in [false, true] {
        let statuses = (shown(&id).await, caller.cancel(&id).await.status);
        let listed = caller.get("/v1/loans?reference=s").await.body.as_array().unwrap().len();
        assert_eq!((statuses, listed), if late { ((200, 200), 1) } else { ((404, 404), 0) });
        caller.clock.advance(std::time::Duration::from_secs(5));
    }
}

fn one_copy() -> Settings {
    let mut licence = Licence::new("only", "EXCLUSIVE", None);
    licence.exclusive = true;
    let library = |isil: &str| Library { isil: isil.parse().unwrap(), refuse: None };
    Settings {
        world: World {
            libraries: vec![library(LIBRARY), library("NO-0301001")],
            titles: vec![Title {
                isbn: TITLE.parse().unwrap(),
                licences: vec![licence],
                loan_days: 1,
                refuse: None,
            }],
            ..World::default()
        },
        bounds: Bounds::quick(),
        ..Settings::default()
    }
}

#[tokio::test]
async fn exclusive_licence_has_one_live_loan_per_library() {
    let mut caller = Caller::of(one_copy()).await;
    let path = format!("/v1/libraries/{LIBRARY}/availability?isbn={TITLE}");
    let first = caller.begin("1").await.id();
    let availability = caller.get(&path).await.body;
    assert_eq!(availability[0]["available"], false);
    assert_eq!(availability[0]["licenses"][0]["nextFree"], "2026-01-16T12:00:00Z");
    let refused = caller.begin("2").await.id();
    let refused = caller.get(&format!("/v1/loans/{refused}")).await.body;
    assert_eq!(refused["refusal"]["code"], "NO_FREE_LICENSE");
    assert_eq!(refused["refusal"]["retryAfter"], 60);
    let mut elsewhere = caller.begin_body("3");
    elsewhere["library"] = json!("NO-0301001");
    let elsewhere = caller.post("/v1/loans", elsewhere).await.id();
    assert_eq!(caller.status(&elsewhere).await, "ACCEPTED");
    caller.end(&first).await;
    let third = caller.begin("4").await.id();
    assert_eq!(caller.status(&third).await, "ACCEPTED");
    caller.clock.advance(std::time::Duration::from_secs(24 * 3600));
    caller.log_in().await;
    assert_eq!(caller.get(&path).await.body[0]["available"], true);
    assert_eq!(caller.status(&third).await, "ACCEPTED", "no return was sent");
}

#[tokio::test]
async fn rules_refuse_loans_and_can_change() {
    let caller = Caller::of(one_copy()).await;
    let code = async |reference: &str| {
        let id = caller.begin(reference).await.id();
        let loan = caller.get(&format!("/v1/loans/{id}")).await.body;
        caller.end(&id).await;
        loan["refusal"]["code"].as_str().unwrap_or("").to_owned()
    };
    assert_eq!(code("0").await, "");
    let title = format!("/sandbox/titles/{TITLE}");
    caller.put(&title, json!({ "refuse": "TITLE_NOT_LENDABLE" })).await;
    assert_eq!(code("1").await, "TITLE_NOT_LENDABLE");
    caller.put("/sandbox/borrowers/somebody", json!({ "refuse": "BORROWER_LIMIT" })).await;
    assert_eq!(code("2").await, "BORROWER_LIMIT");
    let library = format!("/sandbox/libraries/{LIBRARY}");
    caller.put(&library, json!({ "refuse": "BUDGET_EXCEEDED" })).await;
    assert_eq!(code("3").await, "BUDGET_EXCEEDED");
    caller.put(&library, json!({})).await;
    caller.put("/sandbox/borrowers/somebody", json!({ "refuse": null })).await;
    caller.put(&title, json!({ "licenses": [{ "licenseId": "L", "type": "PACKAGE" }] })).await;
    assert_eq!(code("4").await, "");
    let mut begin_body = caller.begin_body("5");
    begin_body["licenseId"] = json!("other");
    let id = caller.post("/v1/loans", begin_body).await.id();
    let loan = caller.get(&format!("/v1/loans/{id}")).await.body;
    assert_eq!(loan["refusal"]["code"], "LICENSE_NOT_FOUND");
}

#[tokio::test]
async fn invalid_requests_are_rejected() {
    let caller = Caller::of(one_copy()).await;
    let with = |key: &str, value: Value| {
        let mut begin_body = caller.begin_body("r");
        begin_body[key] = value;
        begin_body
    };
    for (begin_body, response) in [
        (with("extra", json!(1)), (400, "MALFORMED")),
        (with("isbn", json!("9780306406158")), (400, "MALFORMED")),
        (with("library", json!("Oslo")), (400, "MALFORMED")),
        (with("begin", json!("2026-01-15T13:00:00+01:00")), (400, "MALFORMED")),
        (with("reference", json!("")), (400, "MALFORMED")),
        (with("borrower", json!(7)), (400, "MALFORMED")),
        (with("library", json!("NO-9999999")), (403, "NO_CONTRACT")),
        (with("isbn", json!("9788203365133")), (404, "TITLE_NOT_FOUND")),
    ] {
        assert_eq!(
            caller.post("/v1/loans", begin_body.clone()).await.code(),
            response,
            "{begin_body}"
        );
    }
    assert_eq!(caller.get("/v1/loans").await.code(), (400, "MALFORMED"));
    assert_eq!(caller.get("/v1/lones").await.code(), (404, "NO_SUCH_PATH"));
    assert_eq!(caller.get("/v1/loans/X").await.code(), (404, "LOAN_NOT_FOUND"));
    assert!(caller.loans().await.is_empty());
}

#[tokio::test]
async fn world_parses_from_toml_with_clear_errors() {
    let world: World = toml::from_str(
        r#"
        [[libraries]]
        isil = "NO-0301000"
        refuse = "BUDGET_EXCEEDED"
        [[titles]]
        isbn = "9780306406157"
        loanDays = 14
        licenses = [{ licenseId = "A", type = "PAY_PER_LOAN", count = 3 }]
        [[borrowers]]
        borrower = "somebody"
        refuse = "BORROWER_LIMIT"
        "#,
    )
    .unwrap();
    assert_eq!(world.titles[0].licences[0].count, Some(3));
    assert!(!format!("{world:?}").contains("somebody"));
    let error = toml::from_str::<World>("[[libraries]]\nisil = \"Oslo\"").unwrap_err();
    assert!(error.to_string().contains("ISIL"), "{error}");
}
