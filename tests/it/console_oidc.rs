//! Sign-in to the console by OpenID Connect: who gets in, in which role, and what a provider that
//! is broken or hostile does not achieve.

use std::time::{Duration, Instant};

use http::StatusCode;
use loangate::clock::Clock;
use serde_json::{Value, json};

use crate::support::console::{Browser, Seen};
use crate::support::openid_provider::{Instead, OpenIdProvider, Script, Signed};
use crate::support::scene::movable_clock;
use crate::support::{BOOK, File, LIBRARY, Scene, Setting};

/// Where the provider sends browsers to. The test takes the rest of the address to the gate.
const CONSOLE: &str = "http://127.0.0.1:9";
const DISCOVERY: &str = "/.well-known/openid-configuration";

async fn start() -> (OpenIdProvider, Scene) {
    start_at(CONSOLE).await
}

/// Starts a gate whose console has this address.
async fn start_at(url: &str) -> (OpenIdProvider, Scene) {
    let provider = OpenIdProvider::start().await;
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.replace_in_config("[ledger]", &provider.config(url));
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    scene.start_gate().await;
    (provider, scene)
}

/// Begins a sign-in, and returns where the provider sends the browser back to.
async fn authorized(browser: &mut Browser, provider: &OpenIdProvider) -> String {
    let seen = browser.get("/sign-in/oidc?next=/help").await;
    assert_eq!(seen.status, StatusCode::SEE_OTHER, "{}", seen.body);
    let back = provider.authorize(seen.location()).await;
    assert_eq!(back.path(), "/sign-in/oidc/callback");
    format!("{}?{}", back.path(), back.query().unwrap())
}

async fn sign_in(browser: &mut Browser, provider: &OpenIdProvider) -> Seen {
    let back = authorized(browser, provider).await;
    browser.get(&back).await
}

fn has_session(browser: &Browser) -> bool {
    browser.cookies.contains_key("loangate-session")
}

/// Signs somebody in with a role, and says why.
async fn person(scene: &Scene, provider: &OpenIdProvider, role: &str) -> Browser {
    let claims = json!({ "sub": role, "name": null, "realm_access": { "roles": [role] } });
    provider.say(|script| script.claims = claims);
    let mut browser = Browser::at(scene);
    let seen = sign_in(&mut browser, provider).await;
    assert_eq!(seen.status, StatusCode::OK, "{}", seen.body);
    let token = browser.get("/help").await.token();
    let fields = [("purpose", "case 7"), ("next", "/help")];
    let seen = browser.post_with("/purpose", &token, &fields).await;
    assert_eq!(seen.status, StatusCode::SEE_OTHER, "{}", seen.body);
    browser
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provider_signs_people_in_under_their_subject() {
    let (provider, scene) = start().await;
    for signed in [Signed::Es256, Signed::Rs256] {
        provider.say(|script| script.signed = signed);
        let mut browser = Browser::at(&scene);
        let seen = sign_in(&mut browser, &provider).await;
        assert_eq!(seen.status, StatusCode::OK, "{}", seen.body);
        assert_eq!(seen.headers["refresh"], "0;url=/help");
        let cookies: Vec<_> = seen.headers.get_all("set-cookie").iter().collect();
        assert!(cookies[0].to_str().unwrap().contains("SameSite=Strict"), "{cookies:?}");
        assert!(!browser.cookies.contains_key("loangate-provider"), "{browser:?}");
        let page = browser.get("/").await;
        assert_eq!(page.status, StatusCode::OK);
        assert!(page.body.contains("Kari Nordmann · support"), "{}", page.body);
    }
    let post = json!({ "token_endpoint_auth_methods_supported": ["client_secret_post"] });
    drop(scene);
    let mut other = Scene::without_gate(Setting::default()).await;
    other.replace_in_config("[ledger]", &provider.config(CONSOLE));
    other.start_gate().await;
    provider.say(|script| script.description = post);
    let mut browser = Browser::at(&other);
    assert_eq!(sign_in(&mut browser, &provider).await.status, StatusCode::OK);
    let trail: Value = other.admin("/api/v1/accesses").await.json().await.unwrap();
    let signed_in = trail["accesses"].as_array().unwrap().iter();
    let signed_in: Vec<_> = signed_in.filter(|access| access["what"] == "sign-in").collect();
    assert_eq!(signed_in[0]["who"], "oidc:f:7:kari (Kari Nordmann)");
    assert_eq!(signed_in[0]["role"], "support");
    other.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sign_in_belongs_to_one_browser_and_is_used_once() {
    let (provider, scene) = start().await;
    let mut browser = Browser::at(&scene);
    let seen = browser.get("/sign-in/oidc").await;
    let field = seen.headers["set-cookie"].to_str().unwrap();
    assert!(field.contains("SameSite=Lax") && field.contains("HttpOnly"), "{field}");
    assert!(field.contains("Max-Age=600"), "{field}");
    for parameter in ["code_challenge_method=S256", "response_type=code", "nonce=", "state="] {
        assert!(seen.location().contains(parameter), "{}", seen.location());
    }
    let back = authorized(&mut browser, &provider).await;
    assert!(back.starts_with("/sign-in/oidc/callback?"), "{back}");
    assert!(seen.location().contains("redirect_uri=http%3A%2F%2F127.0.0.1%3A9%2F"));
    // Another browser, with and without a sign-in of its own.
    let mut other = Browser::at(&scene);
    assert_eq!(other.get(&back).await.status, StatusCode::BAD_REQUEST);
    authorized(&mut other, &provider).await;
    assert_eq!(other.get(&back).await.status, StatusCode::BAD_REQUEST);
    assert!(!has_session(&other));
    // Other states, and several of them, end nothing.
    for wrong in
        ["/sign-in/oidc/callback", &back.replace("state=", "state=x"), &format!("{back}{back}")]
    {
        let seen = browser.get(wrong).await;
        assert_eq!(seen.status, StatusCode::BAD_REQUEST, "{wrong}");
    }
    assert!(!has_session(&browser));
    let cookies = browser.cookies.clone();
    assert_eq!(browser.get(&back).await.status, StatusCode::OK);
    let mut replay = Browser::at(&scene);
    replay.cookies = cookies;
    assert_eq!(replay.get(&back).await.status, StatusCode::BAD_REQUEST);
    assert!(!has_session(&replay));
    scene.end().await;
}

/// A browser has one cookie for the sign-ins of all its tabs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_tab_does_not_end_the_sign_in_of_the_first() {
    let (provider, scene) = start().await;
    let mut browser = Browser::at(&scene);
    let first = authorized(&mut browser, &provider).await;
    let second = authorized(&mut browser, &provider).await;
    for back in [&first, &second] {
        assert_eq!(browser.get(back).await.status, StatusCode::OK, "{back}");
    }
    assert!(!browser.cookies.contains_key("loangate-provider"), "{browser:?}");
    assert_eq!(browser.get(&first).await.status, StatusCode::BAD_REQUEST);
    scene.end().await;
}

/// The browser sends neither cookie with SameSite=Strict from the provider's site.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sign_in_replaces_the_session_of_the_browser() {
    let (provider, scene) = start().await;
    let mut browser = Browser::sign_in(&scene).await;
    let earlier = browser.cookies.clone();
    let back = authorized(&mut browser, &provider).await;
    browser.cookies.retain(|name, _| name == "loangate-provider");
    browser.cookies.insert("loangate-form".to_owned(), "of a page before".to_owned());
    assert_eq!(browser.get(&back).await.status, StatusCode::OK);
    assert_eq!(browser.cookies.keys().collect::<Vec<_>>(), ["loangate-session"]);
    assert_eq!(browser.get("/help").await.status, StatusCode::OK);
    browser.cookies = earlier;
    assert!(browser.get("/help").await.location().starts_with("/sign-in"));
    scene.end().await;
}

/// A proxy ends TLS, so the gate serves plain HTTP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_are_secure_behind_a_proxy_that_ends_tls() {
    let (provider, scene) = start_at("https://127.0.0.1").await;
    let mut browser = Browser::at(&scene);
    let seen = sign_in(&mut browser, &provider).await;
    assert_eq!(seen.status, StatusCode::OK, "{}", seen.body);
    for field in seen.headers.get_all("set-cookie") {
        let field = field.to_str().unwrap();
        assert!(field.starts_with("__Host-") && field.ends_with("; Secure"), "{field}");
    }
    assert_eq!(browser.cookies.keys().collect::<Vec<_>>(), ["__Host-loangate-session"]);
    assert_eq!(browser.get("/help").await.status, StatusCode::OK);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sign_in_at_another_host_moves_to_the_consoles_address() {
    let (provider, scene) = start().await;
    let mut browser = Browser::at(&scene);
    let start = format!("{}/sign-in/oidc?next=/help", scene.admin);
    for (host, is_moved) in
        [("localhost:9", true), ("[::1]", true), ("127.0.0.1", false), ("127.0.0.1:7", false)]
    {
        let seen = browser.send(browser.client.get(&start).header("host", host)).await;
        assert_eq!(seen.status, StatusCode::SEE_OTHER, "{}", seen.body);
        let console = format!("{CONSOLE}/sign-in/oidc?next=%2Fhelp&moved=true");
        assert_eq!(seen.location() == console, is_moved, "{host}: {}", seen.location());
        assert_eq!(browser.cookies.contains_key("loangate-provider"), !is_moved, "{host}");
    }
    // Once only: a proxy may replace the host.
    let moved = browser.client.get(format!("{start}&moved=true")).header("host", "localhost");
    let seen = browser.send(moved).await;
    assert!(seen.location().starts_with(&provider.url), "{}", seen.location());
    scene.end().await;
}

/// Signs in at a provider that says something else, and checks that nobody gets in.
async fn refused(
    (provider, scene): &(OpenIdProvider, Scene),
    change: impl FnOnce(&mut Script),
    name: &str,
) {
    provider.say(change);
    let mut browser = Browser::at(scene);
    let begun = browser.get("/sign-in/oidc").await;
    let seen = match begun.status {
        StatusCode::SEE_OTHER => {
            let back = provider.authorize(begun.location()).await;
            browser.get(&format!("{}?{}", back.path(), back.query().unwrap())).await
        }
        _ => begun,
    };
    let status = seen.status;
    assert!(status.is_client_error() || status.is_server_error(), "{name}: {seen:?}");
    assert!(seen.body.contains("Not signed in") || seen.body.contains("No role"), "{name}");
    assert!(!has_session(&browser), "{name}");
    assert!(browser.get("/").await.location().starts_with("/sign-in"), "{name}");
    // The admin token still signs in.
    browser.enter(&scene.admin_token()).await;
}

/// As [`refused`], at a new gate: what a provider says about itself is cached.
async fn refused_at_first(change: impl FnOnce(&mut Script), name: &str) {
    let stage = start().await;
    refused(&stage, change, name).await;
    stage.1.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_tokens_sign_nobody_in() {
    let now = Clock::system().now().as_second();
    let stage = start().await;
    for signed in [
        Signed::None,
        Signed::PublicKeyAsSecret,
        Signed::ByStranger,
        Signed::UnknownKey,
        Signed::Critical,
        Signed::Logout,
    ] {
        refused(&stage, |script| script.signed = signed, &format!("{signed:?}")).await;
    }
    for claims in [
        json!({ "nonce": "another" }),
        json!({ "nonce": null }),
        json!({ "aud": "another" }),
        json!({ "aud": [] }),
        json!({ "aud": null }),
        json!({ "aud": ["loangate console", "another"] }),
        json!({ "azp": "another" }),
        json!({ "iss": "https://login.example.no" }),
        json!({ "iss": ["https://login.example.no"] }),
        json!({ "exp": now - 61 }),
        json!({ "exp": null }),
        json!({ "iat": now + 120 }),
        json!({ "iat": now - 900 }),
        json!({ "iat": null }),
        json!({ "nbf": now + 120 }),
        json!({ "sub": "" }),
        json!({ "sub": "kari (Ola)" }),
        json!({ "sub": "x".repeat(256) }),
        json!({ "sub": null }),
        json!({ "realm_access": { "roles": ["nobody", "Support"] } }),
        json!({ "realm_access": { "roles": { "support": true } } }),
        json!({ "realm_access": "support" }),
        json!({ "realm_access": null }),
    ] {
        refused(&stage, |script| script.claims = claims.clone(), &claims.to_string()).await;
    }
    stage.1.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_provider_gives_a_clear_page() {
    for (path, instead) in [
        (DISCOVERY, Instead::Status(503)),
        (DISCOVERY, Instead::Redirect),
        (DISCOVERY, Instead::Huge(1 << 20)),
        (DISCOVERY, Instead::Text("<html>")),
        (DISCOVERY, Instead::Hang),
        ("/jwks", Instead::Status(404)),
        ("/jwks", Instead::Text("{\"keys\":[]}")),
        ("/jwks", Instead::Huge(1 << 20)),
    ] {
        let name = format!("{path} {instead:?}");
        refused_at_first(|script| script.instead = Some((path, instead)), &name).await;
    }
    for description in [
        json!({ "issuer": "https://login.example.no" }),
        json!({ "token_endpoint": "http://192.0.2.1/token" }),
        json!({ "jwks_uri": "file:///etc/passwd" }),
        json!({ "authorization_endpoint": "javascript:alert(1)" }),
        json!({ "token_endpoint": null }),
        json!({ "token_endpoint_auth_methods_supported": ["private_key_jwt"] }),
    ] {
        let name = description.to_string();
        refused_at_first(|script| script.description = description, &name).await;
    }
    let stage = start().await;
    for instead in [
        Instead::Status(500),
        Instead::Redirect,
        Instead::Huge(1 << 20),
        Instead::Text("{\"id_token\":\"a.b.c\",\"token_type\":\"Bearer\"}"),
        Instead::Text("{\"id_token\":\"a.b.c\",\"token_type\":\"mac\"}"),
        Instead::Text("{\"id_token\":null}"),
    ] {
        let name = format!("{instead:?}");
        refused(&stage, |script| script.instead = Some(("/token", instead)), &name).await;
    }
    for response in [
        json!({ "iss": "https://login.example.no" }),
        json!({ "iss": null }),
        json!({ "code": null }),
        json!({ "code": "invented" }),
        json!({ "code": null, "error": "access_denied" }),
        json!({ "error": "access_denied" }),
    ] {
        let name = response.to_string();
        refused(&stage, |script| script.response = response, &name).await;
    }
    stage.1.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provider_that_fails_is_called_seldom() {
    let (provider, scene) = start().await;
    provider.say(|script| script.instead = Some((DISCOVERY, Instead::Status(500))));
    let mut browser = Browser::at(&scene);
    for _ in 0..20 {
        assert_eq!(browser.get("/sign-in/oidc").await.status, StatusCode::BAD_GATEWAY);
    }
    // Twice, if the test takes longer than the pause between two calls.
    assert!(provider.requests(DISCOVERY) <= 2, "{}", provider.requests(DISCOVERY));
    scene.end().await;
}

/// A client that disconnects does not let the next one call the provider at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disconnected_clients_start_no_further_request() {
    let (provider, scene) = start().await;
    provider.say(|script| script.instead = Some((DISCOVERY, Instead::Hang)));
    let client = Browser::at(&scene).client;
    for _ in 0..5 {
        let request = client.get(format!("{}/sign-in/oidc", scene.admin));
        let sent = request.timeout(Duration::from_millis(500)).send().await;
        assert!(sent.is_err_and(|error| error.is_timeout()));
    }
    assert_eq!(provider.requests(DISCOVERY), 1);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_exchanges_of_one_address_end_no_other_sign_in() {
    let (provider, scene) = start().await;
    let mut browsers = Vec::new();
    for _ in 0..3 {
        let mut browser = Browser::at(&scene);
        let back = authorized(&mut browser, &provider).await;
        browsers.push((browser, back));
    }
    provider.say(|script| script.instead = Some(("/token", Instead::Hang)));
    let (mut person, back) = browsers.pop().unwrap();
    let slow: Vec<_> = browsers
        .into_iter()
        .map(|(mut browser, back)| tokio::spawn(async move { browser.get(&back).await.status }))
        .collect();
    scene.until("slow exchanges", async || provider.requests("/token") == 2).await;
    assert_eq!(person.get(&back).await.status, StatusCode::SERVICE_UNAVAILABLE);
    provider.say(|_| {});
    for slow in slow {
        assert_eq!(slow.await.unwrap(), StatusCode::BAD_GATEWAY);
    }
    assert_eq!(person.get(&back).await.status, StatusCode::OK, "it still waits");
    assert_eq!(provider.requests("/token"), 3);
    scene.end().await;
}

/// Also after a failure, when the description is fetched again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_provider_delays_a_sign_in_for_20_seconds() {
    let (provider, scene) = start().await;
    provider.say(|script| script.instead = Some(("/token", Instead::Status(404))));
    let mut browser = Browser::at(&scene);
    assert_eq!(sign_in(&mut browser, &provider).await.status, StatusCode::BAD_GATEWAY);
    let back = authorized(&mut browser, &provider).await;
    assert_eq!(provider.requests(DISCOVERY), 1, "the description is cached");
    tokio::time::sleep(Duration::from_secs(10)).await;
    provider.say(|script| script.delay = Duration::from_secs(9));
    let began = Instant::now();
    assert_eq!(browser.get(&back).await.status, StatusCode::BAD_GATEWAY);
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert_eq!(provider.requests(DISCOVERY), 2, "its token endpoint has failed");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_that_outsiders_cause_hide_no_others_in_the_log() {
    let provider = OpenIdProvider::start().await;
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.replace_in_config("[ledger]", &provider.config(CONSOLE));
    let gate = scene.spawn_gate().await;
    let mut browser = Browser::at(&scene);
    for code in ["invalid_grant", "invalid_grant", "invalid_client"] {
        provider.say(|script| script.instead = Some(("/token", Instead::Error(code))));
        assert_eq!(sign_in(&mut browser, &provider).await.status, StatusCode::BAD_GATEWAY);
    }
    let claims = json!({ "sub": "no-role-7", "realm_access": null });
    for _ in 0..2 {
        provider.say(|script| script.claims = claims.clone());
        assert_eq!(sign_in(&mut browser, &provider).await.status, StatusCode::FORBIDDEN);
    }
    let log = std::fs::read_to_string(&gate.log).unwrap();
    for text in ["invalid_grant", "invalid_client", "no-role-7"] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(text)).collect();
        assert_eq!(lines.len(), 1, "{text}: {log}");
    }
    drop(gate);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_has_its_pages_and_actions() {
    let (provider, scene) = start().await;
    let book = format!("/files/{BOOK}/book.epub");
    for (number, role) in ["support", "ops", "audit"].into_iter().enumerate() {
        let read = scene.get(&scene.http1(), &book, &scene.token(role)).send().await.unwrap();
        let request = read.headers()["x-request-id"].to_str().unwrap();
        let loan = scene.ledger().await.remove(0); // the newest first
        check_role(&scene, &provider, (number, role), request, &loan).await;
    }
    let trail: Value = scene.admin("/api/v1/accesses?limit=1000").await.json().await.unwrap();
    let accesses = trail["accesses"].as_array().unwrap();
    let of = |who: &str, what: &str| {
        accesses.iter().filter(|access| access["who"] == who && access["what"] == what).count()
    };
    assert_eq!((of("oidc:audit", "list-accesses"), of("oidc:audit", "show-loan")), (2, 0));
    assert_eq!((of("oidc:support", "end-loan"), of("oidc:support", "list-accesses")), (1, 0));
    scene.end().await;
}

/// A form: its path, its fields, and the status for support, an operator and an auditor.
type SentForm<'a> = (&'a str, &'a [(&'a str, &'a str)], [u16; 3]);

/// Opens each page and sends each form in a role. `loan` is an open one, which ends if it may.
async fn check_role(
    scene: &Scene,
    provider: &OpenIdProvider,
    (number, role): (usize, &str),
    request: &str,
    loan: &Value,
) {
    let book = format!("/files/{BOOK}/book.epub");
    let (id, borrower) = (loan["id"].as_str().unwrap(), loan["borrower"].as_str().unwrap());
    let pages = [
        // support, operator, auditor
        ("/", [200, 200, 303]),
        ("/why", [200, 200, 403]),
        (&format!("/why/{request}"), [200, 200, 403]),
        (&format!("/loans?isbn={BOOK}"), [200, 200, 403]),
        (&format!("/loans?borrower={borrower}"), [200, 200, 403]),
        (&format!("/loans/{id}"), [200, 200, 403]),
        ("/library", [200, 200, 200]),
        (&format!("/library?library={LIBRARY}"), [200, 200, 200]),
        (&format!("/library.csv?library={LIBRARY}"), [200, 200, 200]),
        (&format!("/library.xlsx?library={LIBRARY}"), [200, 200, 200]),
        ("/now", [200, 200, 403]),
        ("/problems", [200, 200, 403]),
        ("/runbook", [200, 200, 403]),
        ("/trail", [403, 200, 200]),
        ("/trail?library=NO-0301000", [403, 200, 200]),
        ("/help", [200, 200, 200]),
        ("/purpose", [200, 200, 200]),
    ];
    let why = [("library", LIBRARY), ("borrower", "kari"), ("path", &*book), ("purpose", "a")];
    let find = [("query", "kari"), ("library", LIBRARY), ("purpose", "a")];
    let act = [("reason", "a test"), ("hours", "1")];
    let availability = [("library", LIBRARY)];
    let forms: [SentForm<'_>; 7] = [
        ("/find", &find, [303, 303, 403]),
        ("/why", &why, [200, 200, 403]),
        ("/library/availability", &availability, [303, 303, 403]),
        (&format!("/loans/{id}/poll"), &act, [303, 303, 403]),
        (&format!("/loans/{id}/balance"), &act, [303, 303, 403]),
        (&format!("/loans/{id}/link"), &act, [200, 200, 403]),
        // The last one: it can be done once.
        (&format!("/loans/{id}/end"), &act, [303, 303, 403]),
    ];
    let mut browser = person(scene, provider, role).await;
    for (path, expected) in pages {
        let mut seen = browser.get(path).await;
        let deadline = Instant::now() + Duration::from_secs(60);
        // The first look at a month may have its loans only later.
        while seen.body.contains("are being counted") && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
            seen = browser.get(path).await;
        }
        assert_eq!(seen.status.as_u16(), expected[number], "{role} {path}: {}", seen.body);
        if path == "/trail" && seen.status == StatusCode::OK {
            assert!(seen.body.contains(&format!("oidc:{role}")), "{}", seen.body);
        }
        if path.starts_with("/library?") {
            // A link that would be refused is none.
            assert!(seen.body.contains(BOOK), "{}", seen.body);
            let has_link = seen.body.contains("\"/loans?isbn=");
            assert_eq!(has_link, role != "audit", "{role}: {}", seen.body);
        }
    }
    let token = browser.get("/help").await.token();
    for (path, fields, expected) in forms {
        let seen = browser.post_with(path, &token, fields).await;
        assert_eq!(seen.status.as_u16(), expected[number], "{role} {path}: {}", seen.body);
    }
    let help = browser.get("/help").await.body;
    for (place, is_shown) in [
        ("/", role != "audit"),
        ("/library", true),
        ("/now", role != "audit"),
        ("/problems", role != "audit"),
        ("/trail", role != "support"),
    ] {
        assert_eq!(help.contains(&format!("href=\"{place}\" data-key")), is_shown, "{role}");
    }
    if role == "audit" {
        for stream in ["/now/stream", "/problems/stream"] {
            assert_eq!(browser.get(stream).await.status, StatusCode::NO_CONTENT, "{stream}");
        }
        assert_eq!(browser.get("/").await.location(), "/library");
        assert_eq!(scene.ledger().await[0]["state"], "accepted");
    }
}

/// The first of several roles counts, and the trail has pages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn person_with_several_roles_has_the_first_one() {
    let (provider, scene) = start().await;
    for (roles, shown) in [
        (json!("help"), "support"),
        (json!(["audit", "support"]), "support"),
        (json!(["audit", "support", "ops"]), "operator"),
    ] {
        let claims = json!({ "realm_access": { "roles": roles } });
        provider.say(|script| script.claims = claims);
        let mut browser = Browser::at(&scene);
        sign_in(&mut browser, &provider).await;
        let page = browser.get("/help").await.body;
        assert!(page.contains(&format!("Kari Nordmann · {shown}")), "{page}");
    }
    let mut browser = person(&scene, &provider, "audit").await;
    for number in 0..60 {
        let library = format!("/trail?library=NO-{number:07}");
        assert_eq!(browser.get(&library).await.status, StatusCode::OK);
    }
    let page = browser.get("/trail").await.body;
    let older = page.split('"').find(|part| part.starts_with("/trail?after=")).unwrap();
    let older = browser.get(&older.replace("&amp;", "&")).await.body;
    assert!(page.contains("NO-0000059") && !page.contains("NO-0000001"), "{page}");
    assert!(older.contains("NO-0000001"), "{older}");
    scene.end().await;
}

/// Many accesses of one millisecond fill several pages of the trail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trail_has_pages_of_accesses_of_one_moment() {
    let scene = Scene::start_with(Setting { clock: movable_clock(), ..Setting::default() }).await;
    let mut browser = Browser::sign_in(&scene).await;
    let token = browser.get("/help").await.token();
    browser.post_with("/purpose", &token, &[("purpose", "case 7"), ("next", "/")]).await;
    for number in 0..110 {
        browser.get(&format!("/trail?library=NO-{number:07}")).await;
    }
    let (mut seen, mut path) = (String::new(), Some("/trail".to_owned()));
    for _ in 0..3 {
        let page = browser.get(&path.take().unwrap()).await.body;
        let older = page.split('"').find(|part| part.starts_with("/trail?after="));
        path = older.map(|older| older.replace("&amp;", "&"));
        seen.push_str(&page);
    }
    for number in 0..110 {
        let library = format!("NO-{number:07}");
        assert_eq!(seen.matches(&library).count(), 1, "{library}");
    }
    scene.end().await;
}

/// A browser that comes from a link of another site sends no cookie with SameSite=Strict.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sign_in_after_a_link_of_another_site_succeeds_at_once() {
    let scene = Scene::start().await;
    let mut browser = Browser::sign_in(&scene).await;
    let session = browser.cookies.clone();
    browser.cookies.clear();
    let page = browser.get("/sign-in?next=%2Fhelp").await;
    // Its form is of this site, so the browser sends both cookies.
    browser.cookies.extend(session);
    let fields = [("token", &*scene.admin_token()), ("next", "/help")];
    let seen = browser.post_with("/sign-in", &page.token(), &fields).await;
    assert_eq!((seen.status, seen.location()), (StatusCode::SEE_OTHER, "/help"));
    // No other form accepts that token.
    let mut browser = Browser::sign_in(&scene).await;
    let session = browser.cookies.clone();
    browser.cookies.clear();
    let page = browser.get("/sign-in").await;
    browser.cookies.extend(session);
    let fields = [("query", BOOK), ("purpose", "case")];
    let seen = browser.post_with("/find", &page.token(), &fields).await;
    assert_eq!(seen.status, StatusCode::FORBIDDEN);
    scene.end().await;
}
