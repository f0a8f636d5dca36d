//! Keys of login services that are fetched: found by discovery, rotated under load, kept through an
//! outage, and never replaced by what a hostile server sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use loangate::clock::Clock;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::openid_provider::{Instead, OpenIdProvider, SigningKey};
use crate::support::scene::movable_clock;
use crate::support::{BOOK, File, LIBRARY, Scene, Setting, metric};

const PATH: &str = "/files/9788299999014/book.epub";
const FILE_KEYS: &str = "jwks = \"certs/jwks.json\"\nalgorithms = [\"EdDSA\"]\n\
                         issuer = \"https://login.example.no\"";
const DISCOVERY: &str = "/.well-known/openid-configuration";
/// The shortest time between two fetches.
const INTERVAL: Duration = Duration::from_secs(10);
/// Longer than keys are fresh.
const STALE: Duration = Duration::from_secs(700);

/// A gate and its login service.
struct Login {
    scene: Scene,
    provider: OpenIdProvider,
    client: reqwest::Client,
    clock: Clock,
    tokens: AtomicU64,
}

impl Login {
    /// Reloads the configuration, and waits until it is in use.
    async fn reload(&self) {
        let response = self.scene.admin_post("/api/v1/reload", &Value::Null).await;
        assert_eq!(response.status(), StatusCode::OK, "{}", response.text().await.unwrap());
    }

    /// Starts a gate that knows only the issuer, and these keys of `[readers.jwt]`.
    async fn start(keys: &str) -> Login {
        Login::start_with(keys, |_| {}).await
    }

    async fn start_with(keys: &str, say: impl FnOnce(&OpenIdProvider)) -> Login {
        let provider = OpenIdProvider::start().await;
        say(&provider);
        let clock = movable_clock();
        let setting = Setting { clock: clock.clone(), ..Setting::default() };
        let mut scene = Scene::without_gate(setting).await;
        scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
        scene.replace_in_config(FILE_KEYS, &one_service(&provider.url, keys));
        scene.start_gate().await;
        let client = scene.http2();
        Login { scene, provider, client, clock, tokens: AtomicU64::new(0) }
    }

    /// Returns claims that no token had before.
    fn claims(&self) -> Value {
        let now = self.clock.now().as_second();
        json!({
            "iss": self.provider.url, "aud": "loangate", "sub": "kari", "library": LIBRARY,
            "iat": now, "exp": now + 86_400, "jti": self.tokens.fetch_add(1, Ordering::Relaxed),
        })
    }

    fn token(&self, key: &SigningKey) -> String {
        key.sign(&self.claims())
    }

    async fn get(&self, token: &str) -> (StatusCode, Value) {
        let answer = self.scene.get(&self.client, PATH, token).send().await.unwrap();
        let (status, wait) = (answer.status(), answer.headers().get("retry-after").cloned());
        let body = answer.bytes().await.unwrap();
        let problem = serde_json::from_slice(&body).unwrap_or_default();
        assert_eq!(wait.is_some(), status == StatusCode::SERVICE_UNAVAILABLE, "{problem}");
        (status, problem)
    }

    async fn status(&self, token: &str) -> StatusCode {
        self.get(token).await.0
    }

    /// Polls until a token gets this status.
    async fn until(&self, token: &str, expected: StatusCode) {
        let holds = async || self.status(token).await == expected;
        self.scene.until(&format!("{expected} for the token"), holds).await;
    }

    async fn fetches(&self, outcome: &str) -> f64 {
        let metrics = self.scene.metrics().await;
        let label = format!("outcome=\"{outcome}\"");
        metric(&metrics, "loangate_login_key_fetches_total", &label)
    }

    /// Moves the clock, and polls until one more fetch has this outcome.
    async fn fetch_again(&self, after: Duration, outcome: &str) {
        let before = self.fetches(outcome).await;
        self.clock.advance(after);
        let holds = async || self.fetches(outcome).await > before;
        self.scene.until("a fetch", holds).await;
    }

    async fn readiness(&self) -> (StatusCode, String) {
        let answer = self.scene.admin("/readyz").await;
        (answer.status(), answer.text().await.unwrap())
    }
}

/// Returns the keys of a login service whose keys are fetched.
fn one_service(issuer: &str, keys: &str) -> String {
    format!("issuer = \"{issuer}\"\nalgorithms = [\"ES256\"]\n{keys}")
}

#[tokio::test]
async fn issuer_alone_is_enough_and_jwks_url_needs_no_discovery() {
    let login = Login::start("").await;
    login.until(&login.token(SigningKey::usual()), StatusCode::OK).await;
    let (status, text) = login.readiness().await;
    assert!(status == StatusCode::OK && !text.contains("login service"), "{text}");
    let metrics = login.scene.metrics().await;
    let issuer = format!("issuer=\"{}\"", login.provider.url);
    assert_eq!(metric(&metrics, "loangate_login_key_fetches_total", &issuer), 1.0);
    assert_eq!(metric(&metrics, "loangate_login_key_age_seconds", &issuer), 0.0);
    // The keys are fresh for ten minutes, and other tokens cause no fetch.
    login.clock.advance(Duration::from_secs(599));
    for _ in 0..5 {
        assert_eq!(login.status(&login.token(SigningKey::usual())).await, StatusCode::OK);
    }
    assert_eq!(login.provider.requests("/jwks"), 1);
    login.fetch_again(Duration::from_secs(1), "ok").await;

    let url = format!("jwks_url = \"{}/jwks\"", login.provider.url);
    login.scene.replace_in_config("algorithms = [\"ES256\"]", "algorithms = [\"ES256\"]\nURL");
    login.scene.replace_in_config("URL", &url);
    login.reload().await;
    login.until(&login.token(SigningKey::usual()), StatusCode::OK).await;
    assert_eq!(login.provider.requests(DISCOVERY), 2);
    assert_eq!(login.provider.requests("/jwks"), 3);
    login.scene.end().await;
}

#[tokio::test]
async fn rotation_under_load_refuses_nobody() {
    let login = Arc::new(Login::start("").await);
    login.until(&login.token(SigningKey::usual()), StatusCode::OK).await;
    let keys: Vec<_> = (0..6).map(|number| SigningKey::create(&format!("k{number}"))).collect();
    login.provider.say(|script| script.keys = Some(vec![keys[0].jwk.clone()]));
    login.clock.advance(INTERVAL);
    assert_eq!(login.status(&login.token(&keys[0])).await, StatusCode::OK);
    let (newest, served) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (keys, stop) = (Arc::new(keys), Arc::new(AtomicBool::new(false)));
    let readers = (0..8).map(|_| {
        let (login, keys, stop) = (login.clone(), keys.clone(), stop.clone());
        let (newest, served) = (newest.clone(), served.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let newest = newest.load(Ordering::SeqCst);
                let count = served.load(Ordering::SeqCst);
                // Tokens of the key before the newest one are still about.
                let key = &keys[if count % 3 == 0 { newest.saturating_sub(1) } else { newest }];
                let (status, problem) = login.get(&login.token(key)).await;
                assert_eq!(status, StatusCode::OK, "{problem}");
                served.fetch_add(1, Ordering::SeqCst);
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    for number in 1..keys.len() {
        login.clock.advance(INTERVAL);
        let published = keys[number - 1..=number].iter().map(|key| key.jwk.clone()).collect();
        login.provider.say(|script| script.keys = Some(published));
        newest.store(number, Ordering::SeqCst);
        let before = served.load(Ordering::SeqCst);
        let is_loaded = async || {
            served.load(Ordering::SeqCst) > before + 40 || readers.iter().any(|it| it.is_finished())
        };
        login.scene.until("requests after the rotation", is_loaded).await;
        assert_eq!(login.provider.requests("/jwks"), 2 + number, "one fetch for each rotation");
    }
    stop.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.await.unwrap();
    }
    Arc::into_inner(login).unwrap().scene.end().await;
}

#[tokio::test]
async fn known_keys_serve_readers_through_an_outage() {
    let login = Login::start("keep_keys = \"2h\"").await;
    let (known, early) = (SigningKey::usual(), login.token(SigningKey::usual()));
    login.until(&early, StatusCode::OK).await;
    login.provider.say(|script| script.instead = Some((DISCOVERY, Instead::Status(503))));
    for _ in 0..6 {
        login.fetch_again(Duration::from_secs(600), "failed").await;
        assert_eq!(login.status(&login.token(known)).await, StatusCode::OK);
        assert_eq!(login.status(&early).await, StatusCode::OK);
    }
    let (status, text) = login.readiness().await;
    assert!(status == StatusCode::OK && text.contains("are old and cannot be fetched"), "{text}");
    let listed = async || {
        let problems = login.scene.admin("/api/v1/problems").await.text().await.unwrap();
        problems.contains("\"login-keys\"") && problems.contains(&login.provider.url)
    };
    login.scene.until("the problem", listed).await;
    // An unknown key is not refused for good while nobody can say whose it is.
    let (status, problem) = login.get(&login.token(&SigningKey::create("new"))).await;
    assert_eq!((status.as_u16(), &problem["type"]), (503, &json!("login-unavailable")));

    login.clock.advance(Duration::from_secs(7200));
    login.until(&early, StatusCode::SERVICE_UNAVAILABLE).await;
    let (status, problem) = login.get(&login.token(known)).await;
    assert_eq!((status.as_u16(), &problem["type"]), (503, &json!("login-unavailable")));
    let (status, text) = login.readiness().await;
    assert!(status == StatusCode::OK && text.contains("There are no keys"), "{text}");
    login.provider.say(|_| {});
    login.clock.advance(INTERVAL);
    login.until(&early, StatusCode::OK).await;
    login.scene.end().await;
}

#[tokio::test]
async fn gate_starts_without_the_login_service() {
    let down = |provider: &OpenIdProvider| {
        provider.say(|script| script.instead = Some(("/jwks", Instead::Status(500))));
    };
    let login = Login::start_with("", down).await;
    let (status, problem) = login.get(&login.token(SigningKey::usual())).await;
    assert_eq!((status.as_u16(), &problem["type"]), (503, &json!("login-unavailable")));
    let (status, text) = login.readiness().await;
    assert!(status == StatusCode::OK && text.contains("it answered 500"), "{text}");
    let body = json!({ "library": LIBRARY, "borrower": "kari", "isbn": "9788299999014" });
    let minted: Value = login.scene.admin_post("/api/v1/links", &body).await.json().await.unwrap();
    let url = format!("{}{PATH}?{}", login.scene.base, minted["query"].as_str().unwrap());
    assert_eq!(login.client.get(url).send().await.unwrap().status(), StatusCode::OK);
    login.provider.say(|_| {});
    login.clock.advance(INTERVAL);
    login.until(&login.token(SigningKey::usual()), StatusCode::OK).await;
    login.scene.end().await;
}

#[tokio::test]
async fn flood_of_unknown_keys_causes_one_fetch_in_ten_seconds() {
    let login = Arc::new(Login::start("").await);
    login.until(&login.token(SigningKey::usual()), StatusCode::OK).await;
    let stranger = SigningKey::create("stranger");
    for flood in 1..=2 {
        login.clock.advance(INTERVAL);
        let requests: Vec<_> = (0..300)
            .map(|number| {
                let kid = json!(format!("{flood} {number}"));
                let token = stranger.sign_as(&kid, &login.claims());
                let login = login.clone();
                tokio::spawn(async move { login.status(&token).await })
            })
            .collect();
        let fetched = async || login.provider.requests("/jwks") == 1 + flood;
        login.scene.until("the fetch", fetched).await;
        // Readers with a known key do not wait behind the flood.
        for _ in 0..20 {
            assert_eq!(login.status(&login.token(SigningKey::usual())).await, StatusCode::OK);
        }
        let mut refused = 0;
        for request in requests {
            match request.await.unwrap() {
                StatusCode::UNAUTHORIZED => refused += 1,
                status => assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE),
            }
        }
        // Those that the fetch looked up. In the second flood, these may be ones of the first.
        assert!(refused > 0 || flood == 2);
        assert_eq!(login.provider.requests("/jwks"), 1 + flood);
    }
    Arc::into_inner(login).unwrap().scene.end().await;
}

#[tokio::test]
async fn removed_key_stops_working_for_cached_tokens_too() {
    let (old, new) = (SigningKey::create("old"), SigningKey::create("new"));
    let both = vec![old.jwk.clone(), new.jwk.clone()];
    let publish = |provider: &OpenIdProvider| {
        provider.say(|script| {
            script.keys = Some(both);
            script.cache_control = "public, max-age=120";
        });
    };
    let login = Login::start_with("", publish).await;
    let (by_old, by_new) = (login.token(&old), login.token(&new));
    login.until(&by_old, StatusCode::OK).await;
    assert_eq!(login.status(&by_new).await, StatusCode::OK);
    login.provider.say(|script| script.keys = Some(vec![new.jwk.clone()]));
    login.clock.advance(Duration::from_secs(119));
    assert_eq!(login.status(&by_old).await, StatusCode::OK, "max-age is not over");
    login.fetch_again(Duration::from_secs(1), "ok").await;
    login.until(&by_old, StatusCode::UNAUTHORIZED).await;
    assert_eq!(login.status(&login.token(&old)).await, StatusCode::UNAUTHORIZED);
    assert_eq!(login.status(&by_new).await, StatusCode::OK);
    login.scene.end().await;
}

#[tokio::test]
async fn hostile_answers_change_no_keys() {
    let login = Login::start("").await;
    login.until(&login.token(SigningKey::usual()), StatusCode::OK).await;
    let stranger = SigningKey::create("stranger");
    let many = vec![stranger.jwk.clone(); 1000];
    let deep = "[".repeat(100_000).leak();
    let elsewhere = OpenIdProvider::start().await;
    let description = |member: &str, value: &str| {
        login.provider.say(|script| script.description = json!({ member: value }));
    };
    let instead =
        |path, instead| login.provider.say(|script| script.instead = Some((path, instead)));
    let redirect = |path| {
        let to = format!("{}{path}", elsewhere.url);
        instead(path, Instead::RedirectTo(to));
    };
    let hostile: [(&str, &dyn Fn()); 12] = [
        ("invalid", &|| instead("/jwks", Instead::Huge(1 << 20))),
        ("invalid", &|| instead(DISCOVERY, Instead::Huge(1 << 20))),
        ("failed", &|| redirect("/jwks")),
        ("failed", &|| redirect(DISCOVERY)),
        ("invalid", &|| instead("/jwks", Instead::Text("<html>garbage"))),
        ("invalid", &|| instead("/jwks", Instead::Text(deep))),
        ("invalid", &|| instead("/jwks", Instead::Text("{\"keys\":7}"))),
        ("invalid", &|| login.provider.say(|script| script.keys = Some(many.clone()))),
        ("invalid", &|| description("issuer", &elsewhere.url)),
        ("invalid", &|| description("jwks_uri", "http://login.example.no/jwks")),
        ("invalid", &|| description("jwks_uri", "file:///etc/passwd")),
        ("failed", &|| instead("/jwks", Instead::Hang)),
    ];
    for (number, (outcome, say)) in hostile.into_iter().enumerate() {
        say();
        login.fetch_again(if number == 0 { STALE } else { INTERVAL }, outcome).await;
        let known = login.token(SigningKey::usual());
        assert_eq!(login.status(&known).await, StatusCode::OK, "{number}");
        let status = login.status(&login.token(&stranger)).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{number}");
    }
    assert_eq!(elsewhere.requests("/jwks") + elsewhere.requests(DISCOVERY), 0);
    login.scene.end().await;
}

#[tokio::test]
async fn secret_keys_and_other_purposes_sign_no_token() {
    let stranger = SigningKey::create("stranger");
    let mut encrypts = stranger.jwk.clone();
    encrypts["use"] = json!("enc");
    let secret = b"a shared secret of more than thirty-two bytes";
    let k = data_encoding::BASE64URL_NOPAD.encode(secret);
    let oct = json!({ "kty": "oct", "kid": "oct", "alg": "HS256", "k": k });
    let keys = vec![oct, encrypts, SigningKey::usual().jwk.clone()];
    let publish = |provider: &OpenIdProvider| provider.say(|script| script.keys = Some(keys));
    let login = Login::start_with("", publish).await;
    login.until(&login.token(SigningKey::usual()), StatusCode::OK).await;
    let header = jsonwebtoken::Header {
        kid: Some("oct".to_owned()),
        ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256)
    };
    let key = jsonwebtoken::EncodingKey::from_secret(secret);
    let by_secret = jsonwebtoken::encode(&header, &login.claims(), &key).unwrap();
    assert_eq!(login.status(&by_secret).await, StatusCode::UNAUTHORIZED);
    login.clock.advance(INTERVAL);
    assert_eq!(login.status(&login.token(&stranger)).await, StatusCode::UNAUTHORIZED);
    login.scene.end().await;
}

/// Answers with a head, and then with bytes that never end, in steps of this size and time.
async fn endless(step: usize, pause: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = socket.read(&mut [0; 4096]).await;
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n";
                let _ = socket.write_all(head.as_bytes()).await;
                while socket.write_all(&vec![b' '; step]).await.is_ok() {
                    tokio::time::sleep(pause).await;
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn endless_answers_end_by_size_or_by_time() {
    for (step, pause, outcome) in
        [(65_536, Duration::ZERO, "invalid"), (1, Duration::from_millis(100), "failed")]
    {
        let url = endless(step, pause).await;
        let mut scene = Scene::without_gate(Setting::default()).await;
        scene.replace_in_config(FILE_KEYS, &one_service(&url, ""));
        scene.start_gate().await;
        let ended = async || {
            let label = format!("outcome=\"{outcome}\"");
            metric(&scene.metrics().await, "loangate_login_key_fetches_total", &label) > 0.0
        };
        scene.until(&format!("a fetch that ends as {outcome}"), ended).await;
        scene.end().await;
    }
}

#[tokio::test]
async fn reload_changes_login_services_and_keeps_their_keys() {
    let login = Login::start("").await;
    login.until(&login.token(SigningKey::usual()), StatusCode::OK).await;
    login.provider.say(|script| script.instead = Some(("/jwks", Instead::Status(500))));
    let other = OpenIdProvider::start().await;
    let text = std::fs::read_to_string(login.scene.config_file()).unwrap();
    let second = format!(
        "[[readers.issuers]]\n{}\naudience = \"books\"\nlibrary = \"{LIBRARY}\"\n\
         borrowers = \"second\"\n\n[readers.links]",
        one_service(&other.url, "")
    );
    let text = text.replace("[readers.links]", &second);
    let text = text.replace("[readers.jwt]", "[[readers.issuers]]\nborrowers = \"default\"");
    std::fs::write(login.scene.config_file(), text).unwrap();
    login.reload().await;
    let known = login.token(SigningKey::usual());
    assert_eq!(login.status(&known).await, StatusCode::OK, "the keys of the first are known");
    let mut claims = login.claims();
    claims["iss"] = json!(other.url);
    claims["library"] = Value::Null;
    let wrong = SigningKey::usual().sign(&claims);
    login.until(&wrong, StatusCode::UNAUTHORIZED).await;
    claims["aud"] = json!("books");
    assert_eq!(login.status(&SigningKey::usual().sign(&claims)).await, StatusCode::OK);
    // Kari of each login service is another borrower, with a loan of her own.
    let borrowers: std::collections::BTreeSet<String> =
        login.scene.books().await.iter().map(|loan| loan["borrower"].to_string()).collect();
    assert_eq!(borrowers.len(), 2, "{borrowers:?}");
    login.scene.end().await;
}

#[tokio::test]
async fn provider_needs_a_certificate_that_the_machine_trusts() {
    for is_trusted in [false, true] {
        let mut scene = Scene::without_gate(Setting::default()).await;
        scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
        let provider = OpenIdProvider::start_tls(scene.dir.path()).await;
        scene.replace_in_config(FILE_KEYS, &one_service(&provider.url, ""));
        let ca = scene.ca().display().to_string();
        let variable = if is_trusted { "SSL_CERT_FILE" } else { "LOANGATE_UNUSED" };
        let mut gate = scene.spawn_gate_with(variable, &ca).await;
        let outcome = format!("outcome=\"{}\"", if is_trusted { "ok" } else { "failed" });
        let ended = async || {
            metric(&scene.metrics().await, "loangate_login_key_fetches_total", &outcome) > 0.0
        };
        scene.until(&outcome, ended).await;
        let now = Clock::system().now().as_second();
        let claims = json!({
            "iss": provider.url, "aud": "loangate", "sub": "kari", "library": LIBRARY,
            "iat": now, "exp": now + 3600,
        });
        let token = SigningKey::usual().sign(&claims);
        let answer = scene.get(&scene.http2(), PATH, &token).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), if is_trusted { 200 } else { 503 });
        assert_eq!(provider.requests("/jwks"), usize::from(is_trusted));
        gate.terminate();
        assert!(gate.exit().await.success());
        scene.end().await;
    }
}

#[tokio::test]
async fn explanation_waits_for_a_new_key_too() {
    let login = Login::start("").await;
    login.until(&login.token(SigningKey::usual()), StatusCode::OK).await;
    let new = SigningKey::create("new");
    login.provider.say(|script| script.keys = Some(vec![new.jwk.clone()]));
    login.clock.advance(INTERVAL);
    let field = format!("Authorization: Bearer {}", login.token(&new));
    let question = json!({ "path": PATH, "headers": [field] });
    let answer = login.scene.admin_post("/api/v1/explain", &question).await;
    let explained: Value = answer.json().await.unwrap();
    assert_eq!(explained["status"], 200, "{explained}");
    let trail = login.scene.admin("/api/v1/accesses").await.text().await.unwrap();
    let borrower = login.scene.ledger().await[0]["borrower"].as_str().unwrap().to_owned();
    assert!(trail.contains(&borrower), "whose request it is, is in the trail: {trail}");
    login.scene.end().await;
}

#[tokio::test]
async fn online_check_fetches_the_keys_of_each_login_service() {
    let scene = Scene::without_gate(Setting::default()).await;
    let (good, bad) = (OpenIdProvider::start().await, OpenIdProvider::start().await);
    bad.say(|script| script.instead = Some((DISCOVERY, Instead::Status(404))));
    let text = std::fs::read_to_string(scene.config_file()).unwrap();
    let entry = |service: &str| {
        format!("{service}\naudience = \"a\"\nborrowers = \"default\"\n\n[[readers.issuers]]\n")
    };
    let of = |provider: &OpenIdProvider| entry(&one_service(&provider.url, ""));
    let no_keys = "http://127.0.0.1:1/x";
    let by_url = entry(&one_service(no_keys, &format!("jwks_url = \"{}/jwks\"", good.url)));
    let other = entry(&one_service("http://127.0.0.1:2", "").replace("ES256", "EdDSA"));
    let other =
        other.replacen("EdDSA\"]", &format!("EdDSA\"]\njwks_url = \"{}/jwks\"", good.url), 1);
    let all = [of(&good), of(&bad), by_url, other].concat();
    let text = text.replace(
        &format!("[readers.jwt]\n{FILE_KEYS}"),
        &format!("[[readers.issuers]]\n{all}borrowers = \"default\"\n{FILE_KEYS}"),
    );
    std::fs::write(scene.config_file(), &text).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_loangate"));
    command.args(["check", "--online"]).current_dir(scene.dir.path());
    let checked = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let printed = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (output, errors) = (printed(&checked.stdout), printed(&checked.stderr));
    for line in [
        &format!("ok: login service {}: usable keys: 1", good.url),
        &format!("ok: login service {no_keys}: usable keys: 1"),
        "ok: the readers' key set certs/jwks.json can be read",
    ] {
        assert!(output.lines().any(|result| result == line), "no {line}: {output}{errors}");
    }
    let line_of = |number: usize, key: &str| {
        let entries = text.match_indices("[[readers.issuers]]").map(|(at, _)| at);
        let entry = entries.clone().nth(number).unwrap();
        let at = entry + text[entry..].find(key).unwrap();
        1 + text[..at].matches('\n').count()
    };
    let (second, fourth) = (line_of(1, "issuer ="), line_of(3, "jwks_url ="));
    for error in [
        format!(
            "config.toml:{second}: readers.issuers[1].issuer: the keys of {} cannot be fetched: it \
             answered 404 Not Found. Check the address",
            bad.url
        ),
        format!(
            "config.toml:{fourth}: readers.issuers[3].jwks_url: http://127.0.0.1:2 has no key for \
             the allowed algorithms [EdDSA]. Allow its own"
        ),
    ] {
        assert!(!checked.status.success() && errors.contains(&error), "no {error}: {errors}");
    }
    scene.end().await;
}

#[tokio::test]
async fn loans_api_waits_for_a_new_key_too() {
    let login = Login::start("").await;
    login.until(&login.token(SigningKey::usual()), StatusCode::OK).await;
    let new = SigningKey::create("new");
    login.provider.say(|script| script.keys = Some(vec![new.jwk.clone()]));
    login.clock.advance(INTERVAL);
    let (status, loans) = login.scene.call_api("GET", "/loans", &login.token(&new), "").await;
    assert_eq!((status, loans["loans"].as_array().map(Vec::len)), (StatusCode::OK, Some(1)));
    let known_absent = login.token(&SigningKey::create("absent"));
    login.clock.advance(INTERVAL);
    for _ in 0..2 {
        let (status, _) = login.scene.call_api("GET", "/loans", &known_absent, "").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
    }
    login.scene.end().await;
}
