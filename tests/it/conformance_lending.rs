//! Plays the server's side of the conformance table to the lending client, over a bare socket. Each
//! request must equal the table's, and each response is sent literally.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use loangate::clock::Clock;
use loangate::lending::{
    Auth, Begin, Bokbasen, CallError, EndAck, MaySend, RemoteLoan, ReportOutcome, Reporting,
    ReportingSettings, Settings, Standing, UsageReport,
};
use loangate::loan::{EndReason, Reference, Refusal, Terms};
use loangate::telemetry::Metrics;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::table::{Exchange, Request};

const LOAN: &str = "BL00000001";

/// Permits every call.
fn always() -> MaySend {
    Arc::new(|| true)
}

/// A server that plays these exchanges in order, and a client connected to it.
struct Stage {
    client: Bokbasen,
    reporting: Reporting,
    played: JoinHandle<()>,
}

impl Stage {
    /// Starts a stage with an OAuth login.
    async fn with(exchanges: &[&str]) -> Stage {
        Stage::start(exchanges, |base| Auth::OAuth {
            token_url: format!("{base}/oauth/token").parse().unwrap(),
            audience: "https://api.bokbasen.io/loan/".into(),
            client_id: "sandbox-client".into(),
            client_secret: "sandbox-client-secret".into(),
        })
        .await
    }

    async fn by_ticket(exchanges: &[&str]) -> Stage {
        Stage::start(exchanges, |base| Auth::Ticket {
            login_url: format!("{base}/v1/tickets").parse().unwrap(),
            username: "sandbox-name".into(),
            password: "sandbox-password".into(),
        })
        .await
    }

    async fn start(exchanges: &[&str], auth: impl FnOnce(String) -> Auth) -> Stage {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let settings = Settings {
            url: base.parse().unwrap(),
            auth: auth(base.clone()),
            concurrency: 4,
            timeout: Duration::from_secs(10),
        };
        let clock = Clock::movable(start());
        let metrics = || Metrics::new().unwrap();
        let endpoint = ReportingSettings { url: settings.url.clone(), audience: None };
        let reporting = Reporting::new(&endpoint, &settings, &clock, metrics()).unwrap();
        let client = Bokbasen::new(&settings, clock, metrics()).unwrap();
        let all: BTreeMap<String, Exchange> =
            crate::table::all().into_iter().map(|one| (one.name.clone(), one)).collect();
        let script: Vec<Exchange> = exchanges.iter().map(|name| all[*name].clone()).collect();
        let played = tokio::spawn(async move {
            for exchange in script {
                let (socket, _) = listener.accept().await.unwrap();
                play(socket, &exchange).await;
            }
        });
        Stage { client, reporting, played }
    }

    /// Checks that every exchange was played.
    async fn over(self) {
        tokio::time::timeout(Duration::from_secs(20), self.played)
            .await
            .expect("an exchange was not played")
            .unwrap();
    }
}

async fn play(socket: TcpStream, exchange: &Exchange) {
    let kept: BTreeMap<String, String> =
        crate::table::LITERALS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let mut stream = BufReader::new(socket);
    let (line, headers) = read_head(&mut stream).await;
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    compare(exchange, &exchange.request, &kept, &line, &headers, &String::from_utf8(body).unwrap());
    let Some(answer) = &exchange.answer else {
        return; // closes the connection
    };
    let body = crate::table::bytes(answer.body.as_ref());
    let mut head = format!("HTTP/1.1 {} As-The-Table-Says\r\nconnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {}\r\n", crate::table::filled(value, &kept));
    }
    let response = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(response.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
}

async fn read_head(stream: &mut BufReader<TcpStream>) -> (String, BTreeMap<String, String>) {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let line = lines.remove(0).strip_suffix(" HTTP/1.1").unwrap().to_owned();
    let headers = lines.iter().map(|line| line.split_once(": ").unwrap());
    (line, headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect())
}

fn compare(
    exchange: &Exchange,
    expected: &Request,
    kept: &BTreeMap<String, String>,
    line: &str,
    headers: &BTreeMap<String, String>,
    body: &str,
) {
    let name = &exchange.name;
    assert_eq!(line, crate::table::filled(&expected.line, kept), "{name}");
    for (header, value) in &expected.headers {
        assert_eq!(
            headers.get(header),
            Some(&crate::table::filled(value, kept)),
            "{name}: {header}"
        );
    }
    match &expected.body {
        None => assert_eq!(body, "", "{name}"),
        Some(Value::String(text)) => assert_eq!(body, text, "{name}"),
        Some(json) => assert_eq!(serde_json::from_str::<Value>(body).unwrap(), *json, "{name}"),
    }
}

fn start() -> Timestamp {
    crate::table::START.parse().unwrap()
}

fn begin() -> Begin {
    Begin {
        library: "NO-0301000".parse().unwrap(),
        isbn: "9780306406157".parse().unwrap(),
        borrower: "mfrggzdfmztwq2lknnwg23tpoa".parse().unwrap(),
        licence_id: None,
        reference: Reference::from_text("ref-1"),
        begin: start(),
    }
}

fn refused(code: &str) -> impl Fn(&Standing) -> bool {
    move |standing| match standing {
        Standing::Refused(Refusal { code: received, .. }) => received == code,
        _ => false,
    }
}

#[tokio::test]
async fn begin_request_matches_the_table_and_is_pending() {
    for name in ["begin-accepted-202", "begin-with-licence-202"] {
        let stage = Stage::with(&["oauth-200", name]).await;
        let licence_id = (name == "begin-with-licence-202").then(|| "L-1".to_owned());
        let begun = stage.client.begin(&Begin { licence_id, ..begin() }, always()).await.unwrap();
        assert_eq!(
            (begun.lending_id.as_str(), begun.standing),
            (LOAN, Standing::Pending { retry_after: None })
        );
        stage.over().await;
    }
}

#[tokio::test]
async fn begin_is_sent_once_and_separates_refused_from_unknown() {
    for (name, status) in
        [("begin-no-contract-403", 403), ("begin-unknown-title-404", 404), ("429-retry-after", 429)]
    {
        let stage = Stage::with(&["oauth-200", name]).await;
        let all = crate::table::all();
        let body = all.iter().find(|one| one.name == name).unwrap().request.body.clone().unwrap();
        let begin = Begin {
            library: body["library"].as_str().unwrap().parse().unwrap(),
            isbn: body["isbn"].as_str().unwrap().parse().unwrap(),
            ..begin()
        };
        let error = stage.client.begin(&begin, always()).await.unwrap_err();
        assert!(
            matches!(
                &error,
                CallError::Rejected { status: received, code, .. }
                    if *received == status && !code.is_empty()
            ),
            "{name}: {error:?}"
        );
        stage.over().await;
    }
    for name in ["500", "begin-garbage", "begin-cut-before", "begin-cut-after"] {
        let stage = Stage::with(&["oauth-200", name]).await;
        let error = stage.client.begin(&begin(), always()).await.unwrap_err();
        assert!(matches!(error, CallError::Unknown(_)), "{name}: {error:?}");
        stage.over().await;
    }
}

#[tokio::test]
async fn loan_is_read_in_each_status() {
    type Expected = Box<dyn Fn(&Standing) -> bool>;
    let cases: [(&str, Expected); 8] = [
        (
            "get-pending-retry-after",
            Box::new(|standing| matches!(standing, Standing::Pending { retry_after: Some(_) })),
        ),
        (
            "get-accepted",
            Box::new(|standing| match standing {
                Standing::Accepted(Terms { due, licence_id, licence_type }) => {
                    *due > start() && licence_id.is_some() && licence_type.is_some()
                }
                _ => false,
            }),
        ),
        ("get-accepted-at-once", Box::new(|standing| matches!(standing, Standing::Accepted(_)))),
        ("get-refused-borrower-limit", Box::new(refused("BORROWER_LIMIT"))),
        ("get-refused-license-not-found", Box::new(refused("LICENSE_NOT_FOUND"))),
        (
            "get-refused-no-free-license",
            Box::new(|standing| match standing {
                Standing::Refused(refusal) => refusal.retry_at.is_some_and(|at| at > start()),
                _ => false,
            }),
        ),
        (
            "get-refused-unknown-code",
            Box::new(|standing| match standing {
                Standing::Refused(refusal) => !refusal.code.is_empty(),
                _ => false,
            }),
        ),
        ("get-unknown-status", Box::new(|standing| matches!(standing, Standing::Unrecognised(_)))),
    ];
    for (name, expected) in cases {
        let stage = Stage::with(&["oauth-200", name]).await;
        let loan = stage.client.loan(LOAN).await.unwrap().unwrap();
        assert!(expected(&loan.standing), "{name}: {:?}", loan.standing);
        stage.over().await;
    }
    let stage = Stage::with(&["oauth-200", "loan-not-found-404"]).await;
    assert_eq!(stage.client.loan("BL99999999").await.unwrap(), None);
    stage.over().await;
}

#[tokio::test]
async fn loan_named_by_its_begin_may_show_later() {
    let exchanges =
        ["oauth-200", "begin-accepted-202", "get-within-its-lag-404", "get-after-its-lag"];
    let stage = Stage::with(&exchanges).await;
    let named = stage.client.begin(&begin(), always()).await.unwrap().lending_id;
    assert_eq!(
        stage.client.loan(&named).await.unwrap(),
        None,
        "absence is a result and not an error"
    );
    let shown = stage.client.loan(&named).await.unwrap().unwrap();
    assert!(matches!(shown.standing, Standing::Pending { .. }));
    stage.over().await;
}

#[tokio::test]
async fn reference_is_searched_on_all_pages() {
    let cases: [(&[&str], usize); 3] = [
        (&["list-by-reference-nothing"], 0),
        (&["list-by-reference", "list-empty-page-with-next"], 1),
        (&["list-by-reference-page-with-next", "list-next-page", "list-empty-page-with-next"], 2),
    ];
    for (pages, count) in cases {
        let stage = Stage::with(&[&["oauth-200"], pages].concat()).await;
        let found: Vec<RemoteLoan> =
            stage.client.find(&Reference::from_text("ref-1")).await.unwrap();
        assert_eq!(found.len(), count, "{pages:?}");
        assert!(found.iter().all(|loan| loan.reference == Some(Reference::from_text("ref-1"))));
        stage.over().await;
    }
}

#[tokio::test]
async fn end_is_sent_and_completed_ends_are_recognized() {
    let at = |exchange: &str| {
        let all = crate::table::all();
        let body =
            all.iter().find(|one| one.name == exchange).unwrap().request.body.clone().unwrap();
        (
            body["ended"].as_str().map(|at| at.parse::<Timestamp>().unwrap()),
            body["reason"].as_str().unwrap().to_owned(),
        )
    };
    for (name, expected) in [
        ("return-200", Ok(EndAck::Done)),
        ("return-expired-200", Ok(EndAck::Done)),
        ("return-again", Ok(EndAck::Done)),
        ("return-409-loan-pending", Ok(EndAck::StillPending)),
        ("already-ended-409", Ok(EndAck::Done)),
        ("return-loan-not-found-404", Ok(EndAck::NoSuchLoan)),
    ] {
        let (ended, reason) = at(name);
        let reason = if reason == "EXPIRED" { EndReason::Expired } else { EndReason::Returned };
        let loan = if name.contains("not-found") { "BL99999999" } else { LOAN };
        let stage = Stage::with(&["oauth-200", name]).await;
        assert_eq!(
            stage.client.return_loan(loan, ended.unwrap(), reason).await,
            expected,
            "{name}"
        );
        stage.over().await;
    }
    for (name, expected) in [
        ("cancel-200", Ok(EndAck::Done)),
        ("cancel-again-200", Ok(EndAck::Done)),
        ("cancel-window-closed-409", Ok(EndAck::CancelWindowClosed)),
        ("cancel-loan-not-found-404", Ok(EndAck::NoSuchLoan)),
    ] {
        let loan = if name.contains("not-found") { "BL99999999" } else { LOAN };
        let stage = Stage::with(&["oauth-200", name]).await;
        assert_eq!(stage.client.cancel(loan, &at(name).1).await, expected, "{name}");
        stage.over().await;
    }
}

#[tokio::test]
async fn both_logins_work_and_credentials_are_reused() {
    let stage = Stage::by_ticket(&[
        "ticket-201",
        "call-with-ticket-200",
        "call-with-ticket-200",
        "ticket-log-out-200",
    ])
    .await;
    for _ in 0..2 {
        stage.client.find(&Reference::from_text("ref-1")).await.unwrap();
    }
    stage.client.close().await;
    stage.over().await;
    for refusal in ["oauth-bad-secret-401", "oauth-wrong-audience-403"] {
        let all = crate::table::all();
        let body =
            all.iter().find(|one| one.name == refusal).unwrap().request.body.clone().unwrap();
        let stage = Stage::start(&[refusal], |base| Auth::OAuth {
            token_url: format!("{base}/oauth/token").parse().unwrap(),
            audience: body["audience"].as_str().unwrap().into(),
            client_id: body["client_id"].as_str().unwrap().into(),
            client_secret: body["client_secret"].as_str().unwrap().into(),
        })
        .await;
        let error = stage.client.begin(&begin(), always()).await.unwrap_err();
        assert!(matches!(error, CallError::NotSent(_)), "{refusal}: {error:?}");
        stage.over().await;
    }
}

#[tokio::test]
async fn expired_credential_is_renewed_and_the_call_repeated_once() {
    let stage =
        Stage::with(&["oauth-200", "401-expired-token", "oauth-200", "list-by-reference-nothing"])
            .await;
    assert_eq!(stage.client.find(&Reference::from_text("ref-1")).await.unwrap(), []);
    stage.over().await;
    let stage =
        Stage::with(&["oauth-200", "401-expired-token", "oauth-200", "401-expired-token"]).await;
    let error = stage.client.find(&Reference::from_text("ref-1")).await.unwrap_err();
    assert!(matches!(error, CallError::Rejected { status: 401, .. }), "{error:?}");
    stage.over().await;
}

#[tokio::test]
async fn query_is_repeated_after_a_failure() {
    let stage = Stage::with(&["oauth-200", "503-unavailable", "list-by-reference-nothing"]).await;
    assert_eq!(stage.client.find(&Reference::from_text("ref-1")).await.unwrap(), []);
    stage.over().await;
}

#[tokio::test]
async fn refused_connection_counts_as_not_sent() {
    let closed_address: SocketAddr = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let settings = Settings {
        url: format!("http://{closed_address}").parse().unwrap(),
        auth: Auth::Ticket {
            login_url: format!("http://{closed_address}/v1/tickets").parse().unwrap(),
            username: "user".into(),
            password: "secret".into(),
        },
        concurrency: 4,
        timeout: Duration::from_secs(10),
    };
    let client =
        Bokbasen::new(&settings, Clock::movable(start()), Metrics::new().unwrap()).unwrap();
    for _ in 0..5 {
        assert!(matches!(client.begin(&begin(), always()).await, Err(CallError::NotSent(_))));
    }
    assert!(client.closed_for().is_some(), "no loan could have reached the server");
    assert!(!format!("{settings:?}").contains("secret"));
}

#[tokio::test]
async fn report_matches_the_table_and_each_answer_has_its_meaning() {
    let mut report = UsageReport {
        isbn: "9780306406157".parse().unwrap(),
        model: "PAY_PER_LOAN",
        price: 2350,
        date: "2026-01-15".parse().unwrap(),
    };
    let stage = Stage::with(&["oauth-200", "report-204", "report-package-204"]).await;
    for model in ["PAY_PER_LOAN", "PACKAGE"] {
        report.model = model;
        let outcome = stage.reporting.send(&report, always()).await;
        assert_eq!(outcome, ReportOutcome::Recorded, "{model}");
    }
    stage.over().await;

    let stage = Stage::with(&["oauth-200", "report-unknown-model-400"]).await;
    report.model = "FREE";
    let outcome = stage.reporting.send(&report, always()).await;
    assert!(matches!(outcome, ReportOutcome::Refused(_)), "{outcome:?}");
    stage.over().await;

    // A report that may not be sent any more is not sent.
    let stage = Stage::with(&["oauth-200"]).await;
    let outcome = stage.reporting.send(&report, Arc::new(|| false)).await;
    assert!(matches!(outcome, ReportOutcome::NotRecorded(..)), "{outcome:?}");
    stage.over().await;
}
