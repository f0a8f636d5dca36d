//! Plays every exchange of the conformance table to the sandbox, over a bare socket.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use loangate::clock::Clock;
use loangate::sandbox::{Running, Sandbox, Settings};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::table::{Answer, Exchange, Request, Step};

type Table = BTreeMap<String, Exchange>;

fn table() -> Table {
    let all = crate::table::all();
    let count = all.len();
    let table: Table = all.into_iter().map(|one| (one.name.clone(), one)).collect();
    assert_eq!(table.len(), count, "two exchanges share a name");
    table
}

#[tokio::test]
async fn sandbox_answers_every_exchange_of_the_table() {
    let table = table();
    assert!(table.len() >= 25);
    for name in table.keys() {
        let mut player = Player::start().await;
        player.play(&table, name).await;
        player.sandbox.stop().await;
    }
}

/// A player sends the responses literally, so they must have the values that later requests name.
#[test]
fn table_is_consistent() {
    let literals: BTreeMap<&str, &str> = crate::table::LITERALS.into();
    for (name, exchange) in table() {
        assert!(!exchange.source.is_empty(), "{name} has no source");
        for (kept, place) in &exchange.keep {
            let answer = exchange.answer.as_ref().unwrap();
            let literal = match place.strip_prefix('/') {
                Some(_) => answer.body.as_ref().unwrap().pointer(place).unwrap().as_str(),
                None => answer.headers.get(place).map(String::as_str),
            };
            assert_eq!(literal, literals.get(kept.as_str()).copied(), "{name}: {kept}");
        }
    }
}

/// A sandbox, and a client that plays exchanges to it.
struct Player {
    sandbox: Running,
    clock: Clock,
    kept: BTreeMap<String, String>,
    played: BTreeSet<String>,
}

/// Status, headers and body of a response; `None` if the connection closed without one.
type Received = Option<(u16, BTreeMap<String, String>, String)>;

impl Player {
    async fn start() -> Player {
        let clock = Clock::movable(crate::table::START.parse().unwrap());
        let settings = Settings {
            world: serde_json::from_str(include_str!("../conformance/world.json")).unwrap(),
            ..Settings::default()
        };
        Player {
            sandbox: Sandbox::start(settings, clock.clone()).await.unwrap(),
            clock,
            kept: BTreeMap::new(),
            played: BTreeSet::new(),
        }
    }

    async fn play(&mut self, table: &Table, name: &str) {
        if !self.played.insert(name.to_owned()) {
            return;
        }
        let exchange = table.get(name).unwrap_or_else(|| panic!("there is no exchange {name}"));
        for step in &exchange.given {
            match step {
                Step::Play(other) => Box::pin(self.play(table, other)).await,
                Step::AdvanceSeconds(seconds) => self.clock.advance(Duration::from_secs(*seconds)),
                Step::Control { line, body } => self.control(name, line, body).await,
            }
        }
        let received = send(self.sandbox.address(), &exchange.request, &self.kept).await;
        match (&exchange.answer, received) {
            (None, None) => {}
            (Some(answer), Some(received)) => self.compare(exchange, answer, received),
            (expected, received) => panic!("{name}: expected {expected:?}, received {received:?}"),
        }
    }

    async fn control(&self, name: &str, line: &str, body: &Value) {
        let request =
            Request { line: line.to_owned(), headers: BTreeMap::new(), body: Some(body.clone()) };
        let received = send(self.sandbox.address(), &request, &self.kept).await.unwrap();
        assert_eq!(received.0, 204, "{name}: {line}: {received:?}");
    }

    fn compare(
        &mut self,
        exchange: &Exchange,
        answer: &Answer,
        received: (u16, BTreeMap<String, String>, String),
    ) {
        let (status, headers, body) = received;
        let name = &exchange.name;
        assert_eq!(status, answer.status, "{name}: {body}");
        let varies = |place: &str| exchange.varies.iter().any(|one| one == place);
        let json = serde_json::from_str::<Value>(&body).unwrap_or_default();
        for (kept, place) in &exchange.keep {
            let value = match place.strip_prefix('/') {
                Some(_) => json.pointer(place).and_then(Value::as_str),
                None => headers.get(place).map(String::as_str),
            };
            self.kept.insert(kept.clone(), value.unwrap().to_owned());
        }
        for (header, value) in &answer.headers {
            let received = headers.get(header).unwrap_or_else(|| panic!("{name}: no {header}"));
            if !varies(header) {
                assert_eq!(*received, crate::table::filled(value, &self.kept), "{name}: {header}");
            }
        }
        match &answer.body {
            None => assert_eq!(body, "", "{name}"),
            Some(_) if varies("body") => assert!(!body.is_empty(), "{name}"),
            Some(Value::String(text)) => assert_eq!(body, *text, "{name}"),
            Some(expected) => assert_eq!(normalized(exchange, expected, json), *expected, "{name}"),
        }
    }
}

/// Returns the received body, with the expected value wherever it may vary and has the right type.
fn normalized(exchange: &Exchange, expected: &Value, mut received: Value) -> Value {
    for place in exchange.varies.iter().filter(|place| place.starts_with('/')) {
        let model = expected
            .pointer(place)
            .unwrap_or_else(|| panic!("{}: the table has no {place}", exchange.name));
        let found = received
            .pointer_mut(place)
            .unwrap_or_else(|| panic!("{}: the answer has no {place}", exchange.name));
        if std::mem::discriminant(found) == std::mem::discriminant(model) {
            *found = model.clone();
        }
    }
    received
}

async fn send(address: SocketAddr, request: &Request, kept: &BTreeMap<String, String>) -> Received {
    let body = crate::table::bytes(request.body.as_ref());
    let mut head = format!("{} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n", request.line);
    for (name, value) in &request.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if request.body.is_some() {
        head += &format!("content-length: {}\r\n", body.len());
    }
    let sent = format!("{}\r\n{body}", crate::table::filled(&head, kept));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut received = String::new();
    stream.read_to_string(&mut received).await.unwrap();
    if received.is_empty() {
        return None;
    }
    let (head, body) = received.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| line.split_once(": ").unwrap());
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    Some((status, headers.collect(), body.to_owned()))
}
