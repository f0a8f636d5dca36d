//! The console over HTTP: sessions, forms, what is found and shown, and what stays private.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::support::console::{Browser, Seen, TOKEN_FIELD};
use crate::support::scene::{Setting, movable_clock};
use crate::support::{BOOK, File, LIBRARY, Postgres, Scene};

const HOSTILE: &str = "\"><script>alert(1)</script>";

async fn start() -> Scene {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene
}

async fn read(scene: &Scene, borrower: &str, path: &str) -> reqwest::Response {
    scene.get(&scene.http1(), path, &scene.token(borrower)).send().await.unwrap()
}

fn book() -> String {
    format!("/files/{BOOK}/book.epub")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn console_without_a_session_shows_the_sign_in_only() {
    let scene = start().await;
    let mut browser = Browser::at(&scene);
    for path in ["/", "/loans?isbn=9788299999014", "/loans/x", "/why", "/why/x", "/trail", "/help"]
    {
        let seen = browser.get(path).await;
        assert_eq!(seen.status, StatusCode::SEE_OTHER, "{path}");
        assert!(seen.location().starts_with("/sign-in"), "{path}: {}", seen.location());
    }
    let loan = "/loans/f81d4fae-7dec-41d0-a765-00a0c91e6bf6/end";
    for path in ["/find", "/why", loan, "/sign-out", "/purpose"] {
        let seen = browser.post(path, &[("reason", "a")]).await;
        assert_eq!(seen.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let page = browser.get("/sign-in").await;
    assert_eq!(page.status, StatusCode::OK);
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    for (name, value) in [
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(page.headers[name], value);
    }
    assert!(!page.body.contains(" style=") && !page.body.contains("<style"), "{}", page.body);
    for file in page.body.split('"').filter(|part| part.starts_with("/assets/")) {
        let seen = browser.get(file).await;
        assert_eq!(seen.status, StatusCode::OK, "{file}");
        assert!(seen.headers["cache-control"].to_str().unwrap().contains("immutable"));
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sign_in_needs_the_token_and_delays_guesses() {
    let scene = start().await;
    let mut browser = Browser::at(&scene);
    for wrong in ["", "wrong", &scene.admin_token()[1..]] {
        let seen = browser.post("/sign-in", &[("token", wrong)]).await;
        assert_eq!(seen.status, StatusCode::UNAUTHORIZED, "{wrong}");
        assert!(!browser.cookies.contains_key("loangate-session"));
    }
    let fields = [("token", &*scene.admin_token()), ("next", "//evil.example.no/")];
    let seen = browser.post("/sign-in", &fields).await;
    assert_eq!((seen.status, seen.location()), (StatusCode::SEE_OTHER, "/"));
    let field = seen.headers["set-cookie"].to_str().unwrap();
    assert!(field.contains("HttpOnly") && field.contains("SameSite=Strict"), "{field}");
    assert_eq!(browser.get("/").await.status, StatusCode::OK);

    let session = browser.cookies.clone();
    let seen = browser.post("/sign-out", &[]).await;
    assert!(seen.location().starts_with("/sign-in"));
    browser.cookies = session;
    assert!(browser.get("/").await.location().starts_with("/sign-in"), "the session is over");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn form_needs_its_own_token_and_origin() {
    let scene = start().await;
    let mut browser = Browser::sign_in(&scene).await;
    let mut other = Browser::sign_in(&scene).await;
    let foreign = other.get("/").await.token();
    let fields = [("query", BOOK), ("purpose", "case")];
    for token in ["", "x", &foreign] {
        let seen = browser.post_with("/find", token, &fields).await;
        assert_eq!(seen.status, StatusCode::FORBIDDEN, "{token}");
    }
    let token = browser.get("/").await.token();
    let fields = [&fields[..], &[(TOKEN_FIELD, &token)]].concat();
    let host = scene.admin.split_once("://").unwrap().1.to_owned();
    for (name, value, status) in [
        ("origin", "https://evil.example.no", StatusCode::FORBIDDEN),
        ("origin", "null", StatusCode::FORBIDDEN),
        ("sec-fetch-site", "cross-site", StatusCode::FORBIDDEN),
        ("sec-fetch-site", "same-site", StatusCode::FORBIDDEN),
        ("sec-fetch-site", "same-origin", StatusCode::SEE_OTHER),
        ("origin", &format!("http://{host}"), StatusCode::SEE_OTHER),
    ] {
        let request = browser.client.post(format!("{}/find", browser.base)).form(&fields);
        let seen = browser.send(request.header(name, value)).await;
        assert_eq!(seen.status, status, "{name}: {value}");
    }
    let long = "a".repeat(20_000);
    let seen = browser.post("/find", &[("query", &long), ("purpose", "case")]).await;
    assert_eq!(seen.status, StatusCode::BAD_REQUEST);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_ends_when_it_is_idle() {
    let clock = movable_clock();
    let scene = Scene::start_with(Setting { clock: clock.clone(), ..Setting::default() }).await;
    let mut browser = Browser::sign_in(&scene).await;
    let page = browser.get("/").await;
    assert_eq!(page.status, StatusCode::OK);
    clock.advance(Duration::from_secs(31 * 60));
    let fields = [("query", BOOK), ("purpose", "case")];
    let seen = browser.post_with("/find", &page.token(), &fields).await;
    assert_eq!(seen.status, StatusCode::UNAUTHORIZED);
    assert!(browser.get("/").await.location().starts_with("/sign-in"));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loan_is_found_by_each_of_its_ids() {
    let scene = start().await;
    let answer = read(&scene, "kari", &book()).await;
    let request = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let loan = scene.ledger().await.remove(0);
    let text = |name: &str| loan[name].as_str().unwrap().to_owned();
    let (id, borrower, lending_id) = (text("id"), text("borrower"), text("lending_id"));
    let of_borrower = format!("/loans?borrower={borrower}");
    let mut browser = Browser::sign_in(&scene).await;
    for (query, library, path) in [
        (&*id, "", format!("/loans/{id}")),
        (&format!("bokbasen:{lending_id}"), "", format!("/loans/{id}")),
        (&borrower, "", of_borrower.clone()),
        (&borrower, LIBRARY, format!("{of_borrower}&library={LIBRARY}")),
        ("kari", LIBRARY, format!("{of_borrower}&library={LIBRARY}")),
        (BOOK, "", format!("/loans?isbn={BOOK}")),
        (&request, "", format!("/why/{request}")),
        (&format!("urn:uuid:{request}"), "", format!("/why/{request}")),
    ] {
        let seen = browser.find(query, library).await;
        assert_eq!(seen.status, StatusCode::SEE_OTHER, "{query}: {}", seen.body);
        assert_eq!(seen.location(), path, "{query}");
        let seen = browser.follow(seen).await;
        assert_eq!(seen.status, StatusCode::OK, "{query}");
        assert!(seen.body.contains(&borrower), "{query}: {}", seen.body);
    }
    for (query, library) in
        [(&*lending_id, ""), ("nobody", ""), (&*id.replace('a', "b"), ""), ("kari", "no isil")]
    {
        let seen = browser.find(query, library).await;
        assert_eq!(seen.status, StatusCode::OK, "{query}");
        assert!(!seen.body.contains("value=\"nobody\""), "the page shows the query");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn look_at_loans_needs_a_purpose() {
    let scene = start().await;
    read(&scene, "kari", &book()).await;
    let id = scene.ledger().await[0]["id"].as_str().unwrap().to_owned();
    let mut browser = Browser::sign_in(&scene).await;
    for path in [format!("/loans/{id}"), format!("/loans?isbn={BOOK}")] {
        let seen = browser.get(&path).await;
        assert!(seen.location().starts_with("/purpose?next=%2Floans"), "{}", seen.location());
    }
    let next = format!("/loans/{id}");
    let seen = browser.post("/purpose", &[("purpose", "case 1"), ("next", &next)]).await;
    assert_eq!(seen.location(), next);
    assert_eq!(browser.follow(seen).await.status, StatusCode::OK);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_and_actions_are_in_the_trail() {
    let scene = start().await;
    let answer = read(&scene, "kari", &book()).await;
    let request = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let loan = scene.ledger().await.remove(0);
    let (id, borrower) = (loan["id"].as_str().unwrap(), loan["borrower"].as_str().unwrap());
    let mut browser = Browser::sign_in(&scene).await;
    for (query, library) in [("kari", LIBRARY), (BOOK, ""), (id, ""), (&request, "")] {
        let seen = browser.find(query, library).await;
        assert_eq!(browser.follow(seen).await.status, StatusCode::OK, "{query}");
    }
    let (path, library) = (book(), LIBRARY);
    let fields =
        [("library", library), ("borrower", "kari"), ("path", &path), ("purpose", "case 12")];
    browser.post("/why", &fields).await;
    browser.post(&format!("/loans/{id}/link"), &[("reason", "a test"), ("hours", "1")]).await;
    browser.post(&format!("/loans/{id}/poll"), &[("reason", "a doubt")]).await;
    browser.post(&format!("/loans/{id}/end"), &[("reason", "asked for")]).await;
    let trail = scene.admin("/api/v1/accesses").await.text().await.unwrap();
    assert!(!trail.contains("kari"), "{trail}");
    let trail: serde_json::Value = serde_json::from_str(&trail).unwrap();
    let by_ida = trail["accesses"].as_array().unwrap().iter().rev();
    let by_ida = by_ida.filter(|access| access["who"] == "admin token: Ida");
    let found: Vec<_> = by_ida
        .map(|access| {
            assert_eq!(access["role"], "operator");
            json!([access["what"], access["library"], access["target"], access["why"]])
        })
        .collect();
    let of_loan = json!({ "loan": id });
    let expected = [
        json!(["sign-in", null, null, null]),
        json!(["find", LIBRARY, { "borrower": borrower }, "case 4711"]),
        json!(["list-loans", LIBRARY, { "borrower": borrower }, "case 4711"]),
        json!(["list-loans", null, { "isbn": BOOK }, "case 4711"]),
        json!(["find", LIBRARY, of_loan, "case 4711"]),
        json!(["show-loan", LIBRARY, of_loan, "case 4711"]),
        json!(["explain", LIBRARY, { "request": request }, "case 4711"]),
        json!(["explain", LIBRARY, { "borrower": borrower }, "case 12"]),
        json!(["mint-link", LIBRARY, of_loan, "a test"]),
        json!(["poll-loan", LIBRARY, of_loan, "a doubt"]),
        json!(["end-loan", LIBRARY, of_loan, "asked for"]),
    ];
    assert_eq!(found, expected);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_recorded_is_not_shown_or_done() {
    let scene = start().await;
    let answer = read(&scene, "kari", &book()).await;
    let request = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let loan = scene.ledger().await.remove(0);
    let (id, borrower) = (loan["id"].as_str().unwrap(), loan["borrower"].as_str().unwrap());
    let mut browser = Browser::sign_in(&scene).await;
    browser.post("/purpose", &[("purpose", "case"), ("next", "/")]).await;
    let options = SqliteConnectOptions::new().filename(scene.dir.path().join("data/loangate.db"));
    let mut ledger = SqliteConnection::connect_with(&options).await.unwrap();
    let trigger = "CREATE TRIGGER unrecorded BEFORE INSERT ON history \
         WHEN new.to_state = 'access' BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    sqlx::query(trigger).execute(&mut ledger).await.unwrap();
    for path in [
        format!("/loans/{id}"),
        format!("/loans?borrower={borrower}"),
        format!("/loans?isbn={BOOK}"),
        format!("/why/{request}"),
    ] {
        let seen = browser.get(&path).await;
        assert_eq!(seen.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        let shown = ["<table", "timeline", "<ol"].map(|part| seen.body.contains(part));
        assert_eq!(shown, [false; 3], "{path}: {}", seen.body);
    }
    for action in ["end", "link", "poll"] {
        let fields = [("reason", "a test"), ("hours", "1")];
        let seen = browser.post(&format!("/loans/{id}/{action}"), &fields).await;
        assert_eq!(seen.status, StatusCode::SERVICE_UNAVAILABLE, "{action}");
        assert!(!seen.body.contains("/~"), "{action}: {}", seen.body);
    }
    let path = book();
    let fields = [("library", LIBRARY), ("borrower", "kari"), ("path", &path), ("purpose", "a")];
    let seen = browser.post("/why", &fields).await;
    assert_eq!(seen.status, StatusCode::SERVICE_UNAVAILABLE);
    let mut other = Browser::at(&scene);
    let seen = other.post("/sign-in", &[("token", &scene.admin_token())]).await;
    assert_eq!(seen.status, StatusCode::SERVICE_UNAVAILABLE, "a sign-in is recorded too");
    sqlx::query("DROP TRIGGER unrecorded").execute(&mut ledger).await.unwrap();
    ledger.close().await.unwrap();
    scene
        .until("the ledger", async || scene.admin("/api/v1/loans").await.status().is_success())
        .await;
    assert_eq!(scene.ledger().await[0]["state"], "accepted");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_are_secure_over_tls() {
    let config = vec![("[admin]", "[admin]\ntls = true")];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    let mut browser = Browser::at(&scene);
    browser.client = scene.http1();
    let seen = browser.post("/sign-in", &[("token", &scene.admin_token())]).await;
    let fields: Vec<_> = seen.headers.get_all("set-cookie").iter().collect();
    let session = fields[0].to_str().unwrap();
    assert!(session.starts_with("__Host-loangate-session=") && session.contains("; Secure"));
    assert_eq!(browser.get("/").await.status, StatusCode::OK);
    // The scene's own clients speak plain HTTP to the admin listener.
    drop(scene);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_of_loans_has_pages() {
    let scene = start().await;
    for number in 0..30 {
        read(&scene, &format!("reader-{number}"), &book()).await;
    }
    let mut browser = Browser::sign_in(&scene).await;
    let seen = browser.find(BOOK, "").await;
    let first = browser.follow(seen).await;
    let next = first.body.split('"').find(|part| part.contains("after=")).unwrap();
    let second = browser.get(&next.replace("&amp;", "&")).await;
    let ids = |seen: &Seen| {
        let ids = seen.body.split('"').filter(|part| part.starts_with("/loans/"));
        ids.map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!((ids(&first).len(), ids(&second).len()), (25, 5));
    assert!(ids(&first).is_disjoint(&ids(&second)));
    assert!(!second.body.contains("rel=\"next\""), "{}", second.body);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loan_ends_for_a_reason_only() {
    let scene = start().await;
    read(&scene, "kari", &book()).await;
    let id = scene.ledger().await[0]["id"].as_str().unwrap().to_owned();
    let mut browser = Browser::sign_in(&scene).await;
    browser.find(&id, "").await;
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !browser.get(&format!("/loans/{id}")).await.body.contains("1.0 kB") {
        assert!(std::time::Instant::now() < deadline, "the delivered file is not shown");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let end = format!("/loans/{id}/end");
    for reason in ["", "  ", "a\nb", &"a".repeat(201)] {
        let seen = browser.post(&end, &[("reason", reason)]).await;
        assert!(seen.location().ends_with("done=reason-missing"), "{reason}");
    }
    assert_eq!(scene.ledger().await[0]["state"], "accepted");
    let seen = browser.post(&end, &[("reason", "asked for by the library")]).await;
    assert!(seen.location().ends_with("done=ended"), "{}", seen.location());
    let page = browser.follow(seen).await;
    assert!(page.body.contains("asked for by the library"), "{}", page.body);
    assert_eq!(read(&scene, "kari", "/loans").await.status(), StatusCode::OK);
    scene.until("the end", async || scene.ledger().await[0]["state"] == "ended").await;
    let missing = "/loans/f81d4fae-7dec-41d0-a765-00a0c91e6bf6/end";
    assert_eq!(browser.post(missing, &[("reason", "a")]).await.status, StatusCode::NOT_FOUND);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn link_is_for_an_open_loan_and_in_no_address() {
    let scene = start().await;
    read(&scene, "kari", &book()).await;
    let id = scene.ledger().await[0]["id"].as_str().unwrap().to_owned();
    let mut browser = Browser::sign_in(&scene).await;
    browser.find(&id, "").await;
    let link = format!("/loans/{id}/link");
    for (hours, reason) in [("0", "test"), ("x", "test"), ("999999", "test"), ("1", "")] {
        let seen = browser.post(&link, &[("reason", reason), ("hours", hours)]).await;
        assert_eq!(seen.status, StatusCode::SEE_OTHER, "{hours} {reason}");
    }
    let seen = browser.post(&link, &[("reason", "test"), ("hours", "1")]).await;
    assert_eq!(seen.status, StatusCode::OK, "{}", seen.body);
    let (_, after) = seen.body.split_once("/~").unwrap();
    let url = format!("{}/~{}{}", scene.base, after.split('/').next().unwrap(), book());
    let read_by_link = scene.http1().get(url).send().await.unwrap();
    assert_eq!(read_by_link.status(), StatusCode::OK);
    assert_eq!(scene.books().await.len(), 1, "the link began no loan");

    browser.post(&format!("/loans/{id}/end"), &[("reason", "test")]).await;
    let seen = browser.post(&link, &[("reason", "test"), ("hours", "1")]).await;
    assert!(seen.location().ends_with("done=no-link"), "a link would begin a loan again");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undecided_loan_is_polled_and_registered_once() {
    let config = vec![("[lending]", "[gate]\npatience = \"1s\"\n\n[lending]")];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    let pend = json!({ "call": "begin", "effect": { "pending_polls": { "n": 1_000_000 } } });
    scene.fault(&pend).await;
    let answer = read(&scene, "kari", &book()).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let loan = scene.ledger().await.remove(0);
    let id = loan["id"].as_str().unwrap().to_owned();
    let mut browser = Browser::sign_in(&scene).await;
    browser.find(&id, "").await;
    let seen = browser.post(&format!("/loans/{id}/poll"), &[("reason", "test")]).await;
    assert!(seen.location().ends_with("done=polled"), "{}", seen.location());
    assert_eq!(scene.books().await.len(), 1);
    scene.no_faults().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reason_of_a_refusal_is_explained_in_each_language() {
    let scene = start().await;
    let refuse = json!({ "refuse": { "code": "NO_FREE_LICENSE" } });
    scene.fault(&json!({ "call": "begin", "effect": refuse })).await;
    let answer = read(&scene, "kari", &book()).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    let request = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let mut browser = Browser::sign_in(&scene).await;
    let seen = browser.find(&request, "").await;
    let path = seen.location().to_owned();
    for (language, lang, words) in [
        ("en", "lang=\"en\"", "are on loan"),
        ("nb", "lang=\"nb\"", "eksemplarer av denne tittelen er utlånt"),
    ] {
        browser.post("/preferences", &[("language", language)]).await;
        let page = browser.get(&path).await;
        assert!(page.body.contains(lang) && page.body.contains(words), "{}", page.body);
        assert!(page.body.contains("NO_FREE_LICENSE"), "{}", page.body);
    }
    let fields =
        [("library", LIBRARY), ("borrower", "kari"), ("path", &*book()), ("purpose", "case")];
    let page = browser.post("/why", &fields).await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.body.contains("eksemplarer") && !page.body.contains("kari"), "{}", page.body);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn language_follows_the_browser_until_it_is_chosen() {
    let scene = start().await;
    let mut browser = Browser::at(&scene);
    let mut title = async |accept: &str| {
        let request = browser.client.get(format!("{}/sign-in", browser.base));
        browser.send(request.header("accept-language", accept)).await.body
    };
    assert!(title("nb-NO,en;q=0.5").await.contains("Logg inn"));
    assert!(title("de").await.contains("Sign in"));
    browser.post("/preferences", &[("language", "nb"), ("theme", "dark")]).await;
    let request = browser.client.get(format!("{}/sign-in", browser.base));
    let page = browser.send(request.header("accept-language", "en")).await.body;
    assert!(page.contains("Logg inn") && page.contains("data-theme=\"dark\""), "{page}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_texts_stay_texts() {
    let scene = start().await;
    let refuse = json!({ "refuse": { "code": HOSTILE, "message": HOSTILE } });
    scene.fault(&json!({ "call": "begin", "effect": refuse })).await;
    read(&scene, "kari", &book()).await;
    scene.no_faults().await;
    read(&scene, "ola", &book()).await;
    let loans = scene.ledger().await;
    let mut browser = Browser::at(&scene);
    let fields = [("token", &*scene.admin_token()), ("name", HOSTILE)];
    assert_eq!(browser.post("/sign-in", &fields).await.status, StatusCode::SEE_OTHER);
    let purpose = [("purpose", HOSTILE), ("query", HOSTILE)];
    let mut pages = vec![browser.post("/find", &purpose).await];
    for loan in &loans {
        let path = format!("/loans/{}", loan["id"].as_str().unwrap());
        pages.push(browser.get(&path).await);
        let seen = browser.post(&format!("{path}/end"), &[("reason", HOSTILE)]).await;
        pages.push(browser.follow(seen).await);
    }
    let encoded: String = url::form_urlencoded::byte_serialize(HOSTILE.as_bytes()).collect();
    for path in [
        format!("/loans/{encoded}"),
        format!("/loans?isbn={encoded}"),
        format!("/loans?borrower={encoded}&library={encoded}"),
        format!("/why/{encoded}"),
        format!("/purpose?next=/{encoded}"),
        format!("/trail?library={encoded}"),
        "/trail".to_owned(),
        format!("/sign-in/oidc/callback?state={encoded}&error={encoded}"),
        format!("/loans/{}?done={encoded}", loans[0]["id"].as_str().unwrap()),
        format!("/?{encoded}"),
    ] {
        pages.push(browser.get(&path).await);
    }
    let path = format!("/files/{BOOK}/{encoded}");
    let fields =
        [("library", LIBRARY), ("borrower", HOSTILE), ("path", &path), ("purpose", HOSTILE)];
    pages.push(browser.post("/why", &fields).await);
    let answer = read(&scene, "ola", &path).await;
    let request = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    pages.push(browser.get(&format!("/why/{request}")).await);
    let mut escaped = 0;
    for page in pages {
        assert!(!page.body.contains("<script>"), "{}", page.body);
        escaped += usize::from(page.body.contains("&lt;script&gt;"));
    }
    assert!(escaped >= 5, "the texts were shown on {escaped} pages");
    scene.end().await;
}

/// PostgreSQL may log each statement with its values.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn card_number_without_a_library_reaches_no_database() {
    const LOG_ALL: &str = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I \
         SET log_min_duration_statement = 0', current_database()); END $$";
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    sqlx::raw_sql(LOG_ALL).execute(&mut database.connect_as_admin().await).await.unwrap();
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.use_database(&format!("{}?sslmode=disable", database.url()));
    scene.start_gate().await;
    let mut browser = Browser::sign_in(&scene).await;
    for card in ["N004711999", "4711999004", "kari@example.no"] {
        let seen = browser.find(card, "").await;
        assert_eq!(seen.status, StatusCode::OK, "{card}");
        browser.find(card, LIBRARY).await;
    }
    browser.find("bokbasen:BL4711555", "").await;
    let log = server.log();
    assert!(log.contains("BL4711555"), "the server does not log values");
    for card in ["N004711999", "4711999004", "kari@example.no"] {
        assert!(!log.contains(card), "{card}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn described_request_carries_what_explain_takes() {
    let scene = start().await;
    read(&scene, "kari", &book()).await;
    let mut browser = Browser::sign_in(&scene).await;
    let path = book();
    let reader =
        [("library", LIBRARY), ("borrower", "kari"), ("path", &*path), ("purpose", "case")];
    let past = "if-range: \"other\"\r\n\r\nRange: bytes=999999-";
    for (more, words) in [
        (&[][..], "The file would be sent"),
        (&[("method", "POST")], "method-not-allowed"),
        (&[("headers", "Range: bytes=999999-")], "range-not-satisfiable"),
        (&[("headers", past)], "The file would be sent"),
        (&[("headers", "If-Match: \"other\"")], "precondition-failed"),
        (&[("method", "a b")], "This is no method"),
        (&[("issued", "yesterday")], "This is no time"),
        (&[("headers", "no field")], "These are no header fields"),
        (&[("headers", "a\u{1}: b")], "These are no header fields"),
    ] {
        let page = browser.post("/why", &[&reader[..], more].concat()).await;
        assert_eq!(page.status, StatusCode::OK, "{more:?}");
        assert!(page.body.contains(words), "{more:?}: {}", page.body);
        assert!(!page.body.contains("999999") && !page.body.contains("yesterday"), "{more:?}");
    }
    let id = scene.ledger().await[0]["id"].as_str().unwrap().to_owned();
    browser.post(&format!("/loans/{id}/end"), &[("reason", "test")]).await;
    for (issued, words) in [("2020-01-01T00:00:00Z", "loan-ended"), ("", "It begins a loan")] {
        let fields = [&reader[..], &[("issued", issued)]].concat();
        let page = browser.post("/why", &fields).await;
        assert!(page.body.contains(words), "{issued}: {}", page.body);
    }
    scene.end().await;
}

/// A proxy or a person changed an address. The page of each says so, and leads on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_address_has_a_page() {
    let scene = start().await;
    let mut browser = Browser::sign_in(&scene).await;
    for path in [
        "/loans?isbn=9788299999014&isbn=9788299999014",
        "/loans/%ff",
        "/loans/x?done=a&done=b",
        "/why/%ff",
        "/library?library=a&library=b",
        "/library.csv?library=a&library=b",
        "/trail?library=a&library=b",
        "/now?window=day&window=hour",
        "/now/stream?window=day&window=hour",
        "/purpose?next=a&next=b",
        "/sign-in?next=a&next=b",
    ] {
        let seen = browser.get(path).await;
        assert_eq!(seen.status, StatusCode::BAD_REQUEST, "{path}");
        assert!(seen.body.contains("The address of the page cannot be read"), "{path}");
        assert!(seen.body.contains("href=\"/\""), "{path}");
    }
    let ended = browser.post("/loans/%ff/end", &[("reason", "a")]).await;
    assert_eq!(ended.status, StatusCode::BAD_REQUEST);
    assert!(ended.body.contains("The address of the page cannot be read"), "{}", ended.body);
    scene.end().await;
}
