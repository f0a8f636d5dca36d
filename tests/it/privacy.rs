//! Searches everything that the demo writes during a day of traffic for every secret.
//!
//! Covers the log at its most verbose level, the metrics, the support API, the problem documents,
//! the ledger's bytes and columns, and Bokbasen's books. None may contain a borrower's name, a
//! token, a key or a password.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Response;
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection, Row};

use crate::support::console::Browser;
use crate::support::demo::files_below;
use crate::support::{AUDIO, BOOK, Demo, LIBRARY, raw_client};

/// The title with one licence.
const ONE: &str = "9788299999021";
/// A borrower with a unique id, which is searched in raw bytes too. A name of three letters could
/// occur there by chance, or next to another column's letters.
const DISTINCT_BORROWER: &str = "borrower-4711-of-a-kind";
/// The borrowers of the demo.
const BORROWER_NAMES: [&str; 4] = ["kari", "ola", "liv", "per"];

/// A text that must not be found.
enum Secret {
    /// These bytes at any position.
    Bytes(Vec<u8>),
    /// This name as a whole word: not next to a letter, digit, `-` or `_`, so it is not found
    /// within a pseudonym or an id.
    Word(String),
    /// This prefix before 32 hexadecimal digits: an access token of the sandbox.
    AccessToken(&'static str),
}

impl Secret {
    fn bytes(text: impl AsRef<str>) -> Secret {
        let text = text.as_ref();
        assert!(text.len() >= 10, "a secret of {} bytes could be found by chance", text.len());
        Secret::Bytes(text.as_bytes().to_vec())
    }

    fn is_in(&self, text: &[u8]) -> bool {
        match self {
            Secret::Bytes(bytes) => positions(text, bytes).next().is_some(),
            Secret::Word(word) => positions(text, word.as_bytes()).any(|at| {
                let beside = |byte: Option<&u8>| {
                    byte.is_some_and(|byte| {
                        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
                    })
                };
                let before = at.checked_sub(1).and_then(|at| text.get(at));
                !beside(before) && !beside(text.get(at + word.len()))
            }),
            Secret::AccessToken(prefix) => positions(text, prefix.as_bytes()).any(|at| {
                let digits = text.get(at + prefix.len()..at + prefix.len() + 32);
                digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            }),
        }
    }
}

fn positions<'a>(text: &'a [u8], part: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    text.windows(part.len())
        .enumerate()
        .filter(move |(_, window)| *window == part)
        .map(|(at, _)| at)
}

/// Returns which secrets are in which texts, by their names.
fn leaks(secrets: &BTreeMap<String, Secret>, texts: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let found = |(name, text): (&String, &Vec<u8>)| {
        let found = secrets.iter().filter(|(_, secret)| secret.is_in(text));
        found.map(|(secret, _)| format!("{secret} is in {name}")).collect::<Vec<_>>()
    };
    texts.iter().flat_map(found).collect()
}

/// A demo, and the problem documents that it returned.
struct Day {
    demo: Demo,
    client: reqwest::Client,
    problems: BTreeMap<String, Vec<u8>>,
}

impl Day {
    async fn get(
        &mut self,
        path: &str,
        token: Option<&str>,
        fields: &[(&str, &str)],
        expected: u16,
    ) {
        let mut request = self.client.get(format!("{}{path}", self.demo.base()));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), expected, "{path}");
        self.keep(answer).await;
    }

    /// Stores every refusal with its header fields.
    async fn keep(&mut self, answer: Response) {
        let (status, fields) = (answer.status(), format!("{:?}", answer.headers()));
        let body = answer.bytes().await.unwrap();
        if status.is_client_error() || status.is_server_error() {
            let name = format!("problem document {} ({status})", self.problems.len());
            self.problems.insert(name, [fields.as_bytes(), &body].concat());
        }
    }

    /// Runs every step that the demo suggests.
    async fn run_suggested_steps(&mut self, tokens: &BTreeMap<&str, String>) {
        let (book, audio) =
            (format!("/files/{BOOK}/book.epub"), format!("/files/{AUDIO}/audio.mp3"));
        let one = format!("/files/{ONE}/book.epub");
        let token = |name: &str| Some(tokens[name].as_str());
        self.get(&book, token("kari"), &[], 200).await;
        self.get(&audio, token("kari"), &[("range", "bytes=0-1")], 206).await;
        self.get(&audio, token("kari"), &[("range", "bytes=5000000-5000999")], 206).await;
        self.get(&audio, token("kari"), &[("range", "bytes=99999999-")], 416).await;
        let since = [("if-modified-since", "Sun, 01 Nov 2026 00:00:00 GMT")];
        self.get(&book, token("kari"), &since, 304).await;
        self.get(&book, None, &[], 401).await;
        self.get(&book, token("ola"), &[], 403).await;
        self.get(&book, token("liv"), &[], 403).await;
        self.get(&one, token("kari"), &[], 200).await;
        self.get(&one, token("per"), &[], 403).await;
        self.get("/files/9780306406157/book.epub", token("kari"), &[], 404).await;
        self.get(&format!("/covers/{BOOK}.png"), None, &[], 200).await;
        let faults = format!("{}/sandbox/faults", self.demo.ready_field("sandbox_url"));
        let busy =
            json!({ "call": "begin", "effect": { "status": { "status": 429, "retry_after": 5 } } });
        self.client.post(&faults).json(&busy).send().await.unwrap().error_for_status().unwrap();
        self.get(&audio, token("per"), &[], 503).await;
        self.get(&book, token("kari"), &[], 200).await;
        self.client.delete(&faults).send().await.unwrap().error_for_status().unwrap();
    }

    /// Sends valid, invalid and misplaced credentials in every place.
    async fn misuse_credentials(&mut self, token: &str, distinct: &str, expired: &str, link: &str) {
        let file = format!("files/{BOOK}/book.epub");
        let path = format!("/{file}");
        self.get(&path, Some(distinct), &[], 200).await;
        self.get(&format!("/{file}?token={link}"), None, &[], 200).await;
        self.get(&format!("/~{link}/{file}"), None, &[], 200).await;
        let (start, end) = link.split_at(link.len() - 10);
        let other = if end.starts_with('A') { "B" } else { "A" };
        let forged = format!("{start}{other}{}", &end[1..]);
        self.get(&format!("/~{forged}/{file}"), None, &[], 401).await;
        self.get(&format!("/~{link}/files/{AUDIO}/audio.mp3"), None, &[], 403).await;
        self.get(&path, Some(expired), &[], 401).await;
        self.get(&path, Some(&token[..token.len() - 4]), &[], 401).await;
        self.get(&path, Some("no.token.atall"), &[], 401).await;
        self.get(&path, None, &[("authorization", &format!("Basic {token}"))], 401).await;
        self.get(&path, None, &[("x-token", token), ("cookie", token)], 401).await;
        // In the path and in the query a reader's token is no credential, and the path may be wrong
        // as well.
        self.get(&format!("/{file}?token={token}"), None, &[], 401).await;
        self.get(&format!("/{file}?token={link}&token={token}"), None, &[], 400).await;
        self.get(&format!("/~{token}/{file}"), None, &[], 401).await;
        self.get(&format!("/~{link}/files//{BOOK}/book.epub"), None, &[], 400).await;
        self.get(&format!("/{file}/{token}/"), Some(token), &[], 400).await;
        self.get(&format!("/{token}"), Some(token), &[], 404).await;
        self.get(&format!("/files/{BOOK}/{token}"), Some(token), &[], 404).await;
        self.get(&path, Some(token), &[("range", &format!("{token}=0-1"))], 200).await;
        self.get(&path, Some(token), &[("if-range", token), ("range", "bytes=0-1")], 200).await;
        self.get(&path, Some(token), &[("range", &format!("bytes={token}"))], 200).await;
        // Requests that hyper itself refuses, on raw connections.
        let address: SocketAddr =
            self.demo.ready_field("base_url").strip_prefix("https://").unwrap().parse().unwrap();
        for head in [
            format!("GET /~{link}/{file}\x01 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            format!(
                "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\x01\r\n\
                 \r\n"
            ),
            format!("{token} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
            format!("GET {path} HTTP/1.1\r\nHost: {token}\r\nConnection: close\r\n\r\n"),
        ] {
            let (status, answer) =
                raw_client::exchange(address, &self.demo.ca(), "localhost", head.as_bytes()).await;
            assert!((400..500).contains(&status), "{status}");
            self.problems.insert(format!("answer {} by hand", self.problems.len()), answer);
        }
        // The support API, with a borrower's id by mistake, and without its token.
        for path in
            ["/api/v1/loans?borrower=kari", "/api/v1/loans?since=kari", "/api/v1/loans/kari"]
        {
            let url = format!("{}{path}", self.demo.ready_field("admin_url"));
            let answer = self
                .client
                .get(&url)
                .bearer_auth(self.demo.ready_field("admin_token"))
                .send()
                .await;
            self.keep(answer.unwrap()).await;
            let answer = self.client.get(&url).bearer_auth(token).send().await.unwrap();
            assert_eq!(answer.status(), 401);
            self.keep(answer).await;
        }
    }

    /// Searches for a borrower in the console by the borrower's own id, in the right field and by
    /// mistake in each other one. Returns what was sent back.
    async fn use_console(&self) -> BTreeMap<String, Vec<u8>> {
        let mut browser = Browser::new(self.demo.ready_field("admin_url"));
        browser.enter(self.demo.ready_field("admin_token")).await;
        let file = format!("/files/{BOOK}/book.epub");
        let mut pages = Vec::new();
        for borrower in [DISTINCT_BORROWER, "kari"] {
            let found = browser.find(borrower, LIBRARY).await;
            let path = found.location().to_owned();
            pages.extend([found, browser.get(&path).await]);
            let reader = [
                ("library", LIBRARY),
                ("borrower", borrower),
                ("path", &file),
                ("purpose", "case 4711"),
            ];
            pages.push(browser.post("/why", &reader).await);
            for (query, library) in [(borrower, ""), (borrower, borrower)] {
                pages.push(browser.find(query, library).await);
            }
            for fields in [
                &[("request", borrower), ("purpose", "case 4711")][..],
                &[("library", LIBRARY), ("borrower", borrower), ("path", borrower)],
                &[("library", borrower), ("borrower", borrower), ("path", borrower)],
            ] {
                let fields = [fields, &[("purpose", "case 4711")]].concat();
                pages.push(browser.post("/why", &fields).await);
            }
        }
        let texts = pages.into_iter().map(|page| format!("{:?}{}", page.headers, page.body));
        let numbered = texts.enumerate();
        numbered.map(|(number, text)| (format!("page {number}"), text.into_bytes())).collect()
    }

    /// Returns every text that may contain pseudonyms: the support API, the ledger and the books.
    async fn stored_texts(&self) -> BTreeMap<String, Vec<u8>> {
        let mut texts = BTreeMap::new();
        let loans = self.demo.admin("/api/v1/loans?limit=1000").await;
        let list: Value = serde_json::from_str(&loans).unwrap();
        texts.insert("the list of loans".to_owned(), loans.into_bytes());
        for loan in list["loans"].as_array().unwrap() {
            let id = loan["id"].as_str().unwrap();
            let shown = self.demo.admin(&format!("/api/v1/loans/{id}")).await;
            texts.insert(format!("the loan {id}"), shown.into_bytes());
        }
        let books = format!("{}/sandbox/books", self.demo.ready_field("sandbox_url"));
        let books = self.client.get(books).send().await.unwrap().bytes().await.unwrap();
        texts.insert("the books".to_owned(), books.to_vec());
        for directory in ["data", "sandbox"] {
            for file in files_below(&self.demo.dir().join(directory)) {
                texts.insert(file.display().to_string(), std::fs::read(file).unwrap());
            }
        }
        texts
    }
}

/// Returns every column value of every table of the ledger, one per line.
async fn columns(demo: &Demo) -> Vec<u8> {
    let options =
        SqliteConnectOptions::new().filename(demo.dir().join("data/loangate.db")).read_only(true);
    let mut ledger = SqliteConnection::connect_with(&options).await.unwrap();
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE type = 'table'")
            .fetch_all(&mut ledger)
            .await
            .unwrap();
    assert!(tables.iter().any(|table| table == "history"), "{tables:?}");
    let mut text = Vec::new();
    for table in tables {
        let query = AssertSqlSafe(format!("SELECT * FROM {table}"));
        for row in sqlx::query(query).fetch_all(&mut ledger).await.unwrap() {
            for column in 0..row.len() {
                let value: Option<Vec<u8>> = row.try_get_unchecked(column).unwrap();
                text.extend(value.unwrap_or_default());
                text.push(b'\n');
            }
        }
    }
    ledger.close().await.unwrap();
    text
}

/// Returns an expired token, signed with the demo's key.
fn expired_token(demo: &Demo) -> String {
    let claims = json!({
        "iss": "https://login.example.no", "aud": "loangate", "library": LIBRARY,
        "sub": DISTINCT_BORROWER,
        "iat": 999_996_400, "exp": 1_000_000_000,
    });
    let key = EncodingKey::from_ed_pem(demo.text("certs/jwt.key").as_bytes()).unwrap();
    jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &key).unwrap()
}

#[tokio::test]
async fn no_output_names_a_borrower_or_contains_a_secret() {
    let demo = Demo::start_with_log("trace");
    let tokens: BTreeMap<&str, String> =
        BORROWER_NAMES.iter().map(|name| (*name, demo.token(name))).collect();
    let who = ["--library", LIBRARY, "--borrower", DISTINCT_BORROWER];
    let distinct = demo.mint("reader", &who);
    let link = demo.mint("link", &[&who[..], &["--isbn", BOOK]].concat());
    let expired = expired_token(&demo);

    let mut secrets = BTreeMap::new();
    let jwts = tokens.iter().map(|(name, token)| (*name, token));
    for (name, token) in
        jwts.chain([("the distinct borrower", &distinct), ("the expired one", &expired)])
    {
        secrets.insert(format!("the token of {name}"), Secret::bytes(token));
        for (part, text) in ["header", "payload", "signature"].iter().zip(token.split('.')) {
            secrets.insert(format!("the token's {part} of {name}"), Secret::bytes(text));
        }
    }
    secrets.insert("the link's token".to_owned(), Secret::bytes(&link));
    secrets.insert("the link's signature".to_owned(), Secret::bytes(&link[link.len() - 40..]));
    for name in ["admin.token", "pseudonym.key", "link.key", "lending.secret"] {
        secrets.insert(name.to_owned(), Secret::bytes(demo.text(&format!("certs/{name}"))));
    }
    for name in ["jwt.key", "server.key"] {
        let pem = demo.text(&format!("certs/{name}"));
        let body = pem.lines().filter(|line| !line.starts_with("-----"));
        for (number, line) in body.enumerate() {
            secrets.insert(format!("line {number} of {name}"), Secret::bytes(line));
        }
    }
    secrets.insert("an access token".to_owned(), Secret::AccessToken("sandbox."));
    secrets.insert("the distinct borrower".to_owned(), Secret::bytes(DISTINCT_BORROWER));
    let names = BORROWER_NAMES
        .iter()
        .map(|name| (format!("the name {name}"), Secret::Word((*name).to_owned())));
    let names: BTreeMap<String, Secret> = names.collect();

    let client = demo.client();
    let mut day = Day { demo, client, problems: BTreeMap::new() };
    day.run_suggested_steps(&tokens).await;
    day.misuse_credentials(&tokens["kari"], &distinct, &expired, &link).await;
    day.demo.wait_for_streams().await;
    let pages = day.use_console().await;

    // All bytes are searched for all secrets; names only in texts and in single columns of the
    // ledger.
    let mut stored_texts = day.stored_texts().await;
    stored_texts.extend(pages);
    let pseudonyms: BTreeMap<String, Secret> = {
        let list: Value = serde_json::from_slice(&stored_texts["the list of loans"]).unwrap();
        let loans = list["loans"].as_array().unwrap().iter();
        let pseudonyms = loans.map(|loan| loan["borrower"].as_str().unwrap());
        pseudonyms.map(|text| (format!("the pseudonym {text}"), Secret::bytes(text))).collect()
    };
    assert!(pseudonyms.len() >= 5, "each borrower of the day has one: {}", pseudonyms.len());
    assert!(
        stored_texts.keys().any(|name| name.ends_with("loangate.db-wal")),
        "{:?}",
        stored_texts.keys()
    );
    let columns = BTreeMap::from([("the ledger's columns".to_owned(), columns(&day.demo).await)]);
    let log = day.demo.log();
    assert!(log.contains("DEBUG loangate::sandbox"), "the log is at its most verbose level");
    assert!(log.matches("loangate::request").count() > 30, "the log has the day's requests");
    let mut told = day.problems;
    assert!(told.len() > 25, "{}", told.len());
    told.insert("the log".to_owned(), log.into_bytes());
    told.insert("the metrics".to_owned(), day.demo.admin("/metrics").await.into_bytes());

    let (binary, texts): (BTreeMap<_, _>, BTreeMap<_, _>) =
        stored_texts.into_iter().partition(|(name, _)| name.contains("loangate.db"));
    let mut found = Vec::new();
    for searched in [&told, &texts, &binary, &columns] {
        found.extend(leaks(&secrets, searched));
    }
    for searched in [&told, &texts, &columns] {
        found.extend(leaks(&names, searched));
    }
    // Public outputs contain neither pseudonyms nor the places of files.
    let origin = day.demo.ready_field("origin_url").strip_prefix("http://").unwrap();
    let places = BTreeMap::from([("the origin's address".to_owned(), Secret::bytes(origin))]);
    found.extend(leaks(&places, &told));
    found.extend(leaks(&pseudonyms, &told));
    assert!(found.is_empty(), "{}", found.join("\n"));

    // The search works: it finds each secret and each name planted in each text, and the pseudonyms
    // in the books.
    let carriers = told.iter().chain(&texts).chain(&binary).chain(&columns);
    for (carrier, text) in carriers {
        for (name, secret) in secrets.iter().chain(&names).chain(&places).chain(&pseudonyms) {
            let planted = match secret {
                Secret::Bytes(bytes) => bytes.clone(),
                Secret::Word(word) => format!("\"{word}\"").into_bytes(),
                Secret::AccessToken(prefix) => {
                    format!("{prefix}{}", uuid::Uuid::new_v4().simple()).into_bytes()
                }
            };
            let (before, after) = text.split_at(text.len() / 2);
            assert!(
                secret.is_in(&[before, &planted, after].concat()),
                "{name} planted in {carrier}"
            );
        }
    }
    for name in pseudonyms.values() {
        assert!(name.is_in(&texts["the list of loans"]) && name.is_in(&texts["the books"]));
    }
}

#[test]
fn names_are_found_as_whole_words() {
    let secret = Secret::Word("per".to_owned());
    for text in
        ["per", "a per", "per.", "borrower=per", "\"per\"", "x per y per", "super per", "\0per\0"]
    {
        assert!(secret.is_in(text.as_bytes()), "{text}");
    }
    for text in ["", "pe", "super", "person", "4per", "per_cent", "-per", "mx7per3q"] {
        assert!(!secret.is_in(text.as_bytes()), "{text}");
    }
    let token = Secret::AccessToken("sandbox.");
    assert!(token.is_in(b"Bearer sandbox.0123456789abcdef0123456789abcdef"));
    assert!(!token.is_in(b"sandbox.0123456789abcdef"));
}
