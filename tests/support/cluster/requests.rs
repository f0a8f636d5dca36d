//! Readers of a cluster, their requests to any gate, and a record of each for the judge.

use std::sync::Arc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use loangate::clock::Clock;
use tokio::time::{Instant, sleep};

use super::{Cluster, ClusterGate};
use crate::support::{File, Scene};

/// Timeout of a request, which a paused gate does not answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// The shortest and the longest wait of a reader before the next attempt, without what chance adds.
const BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// The time in which a reader that waits between attempts is served.
const SERVED_WITHIN: Duration = Duration::from_secs(180);
/// Size of each file, in bytes.
const FILE_SIZE: u64 = 20_000;

/// A reader and one title.
#[derive(Clone, Debug)]
pub(crate) struct ClusterReader {
    pub(crate) isbn: String,
    pub(crate) token: String,
    /// Pseudonym in the books.
    pub(crate) pseudonym: String,
    /// Path of the reader's own file at the origin, without a leading slash.
    pub(crate) file: String,
}

impl ClusterReader {
    /// Returns the library's key of the loan, as the judge uses it: borrower and title.
    pub(crate) fn key(&self) -> (String, String) {
        (self.pseudonym.clone(), self.isbn.clone())
    }
}

/// The kind of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// A download of the whole file.
    Read,
    /// `PUT /loans/{isbn}`.
    Begin,
    /// `DELETE /loans/{isbn}`.
    Return,
}

/// A request and its response.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) key: (String, String),
    pub(crate) file: String,
    pub(crate) gate: usize,
    pub(crate) kind: Kind,
    pub(crate) sent: Timestamp,
    /// When the whole response had arrived or the request had failed.
    pub(crate) answered: Timestamp,
    /// `None` if there was no response.
    pub(crate) status: Option<StatusCode>,
    /// Slug of the problem, or empty.
    pub(crate) problem: String,
    /// `Retry-After` of the response.
    pub(crate) retry_after: Option<Duration>,
    /// Whether a complete body has other bytes than the file.
    pub(crate) is_corrupt: bool,
}

impl Exchange {
    pub(crate) fn is_ok(&self) -> bool {
        self.status.is_some_and(|status| status.is_success())
    }
}

/// HTTP clients that all readers share.
#[derive(Debug)]
pub(super) struct Clients {
    http1: reqwest::Client,
    http2: reqwest::Client,
}

impl Clients {
    pub(super) fn new(scene: &Scene) -> Clients {
        let builder = || scene.client().timeout(REQUEST_TIMEOUT);
        Clients {
            http1: builder().http1_only().build().unwrap(),
            http2: builder().http2_prior_knowledge().build().unwrap(),
        }
    }
}

impl Cluster {
    /// Creates a reader of a title, with a file of its own at the origin.
    ///
    /// The borrower's name must be valid in a path.
    pub(crate) fn reader(&self, borrower: &str, isbn: &str) -> Arc<ClusterReader> {
        let file = format!("{isbn}/{borrower}.epub");
        self.scene.origin.put(&file, File::of(FILE_SIZE));
        Arc::new(ClusterReader {
            isbn: isbn.to_owned(),
            token: self.scene.token(borrower),
            pseudonym: self.pseudonym(borrower),
            file,
        })
    }

    /// Downloads the reader's file from a gate.
    pub(crate) async fn read(&self, gate: &ClusterGate, reader: &ClusterReader) -> Exchange {
        self.send(gate, reader, Kind::Read).await
    }

    /// Begins the loan at a gate.
    pub(crate) async fn begin(&self, gate: &ClusterGate, reader: &ClusterReader) -> Exchange {
        self.send(gate, reader, Kind::Begin).await
    }

    /// Returns the loan at a gate.
    pub(crate) async fn return_loan(&self, gate: &ClusterGate, reader: &ClusterReader) -> Exchange {
        self.send(gate, reader, Kind::Return).await
    }

    async fn send(&self, gate: &ClusterGate, reader: &ClusterReader, kind: Kind) -> Exchange {
        let (method, path) = match kind {
            Kind::Read => (Method::GET, format!("files/{}", reader.file)),
            Kind::Begin => (Method::PUT, format!("loans/{}", reader.isbn)),
            Kind::Return => (Method::DELETE, format!("loans/{}", reader.isbn)),
        };
        let url = format!("{}/{path}", gate.base());
        let client = if fastrand::bool() { &self.clients.http1 } else { &self.clients.http2 };
        let sent = Clock::system().now();
        let response = client.request(method, url).bearer_auth(&reader.token).send().await;
        let mut exchange = Exchange {
            key: reader.key(),
            file: reader.file.clone(),
            gate: gate.number,
            kind,
            sent,
            answered: sent,
            status: None,
            problem: String::new(),
            retry_after: None,
            is_corrupt: false,
        };
        if let Ok(response) = response {
            exchange.status = Some(response.status());
            exchange.retry_after = seconds(response.headers().get(RETRY_AFTER));
            if let Ok(body) = response.bytes().await {
                exchange.note_body(&body);
            }
        }
        exchange.answered = Clock::system().now();
        self.record(exchange)
    }

    /// Requests the file at random gates until one serves it. Returns the response to the request
    /// of the first gate, `gate`.
    ///
    /// Waits between two requests as an app does that obeys `Retry-After`. Readers that do not
    /// could keep gates of a small machine too busy for the loan that all of them wait for.
    pub(crate) async fn read_until_served(
        &self,
        gate: &ClusterGate,
        reader: &ClusterReader,
        chance: &mut fastrand::Rng,
    ) -> Exchange {
        let deadline = Instant::now() + SERVED_WITHIN;
        let first = self.read(gate, reader).await;
        let mut last = first.clone();
        while !last.is_ok() {
            assert!(Instant::now() < deadline, "not served in time: {last:?}");
            let told = last.retry_after.unwrap_or(BACKOFF).clamp(BACKOFF, LONGEST_BACKOFF);
            sleep(told.mul_f64(1.0 + chance.f64())).await;
            last = self.read(self.any_gate(chance), reader).await;
        }
        first
    }
}

/// Returns the value of a `Retry-After` in seconds.
fn seconds(value: Option<&HeaderValue>) -> Option<Duration> {
    value?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

impl Exchange {
    fn note_body(&mut self, body: &[u8]) {
        if self.kind == Kind::Read && self.is_ok() {
            self.is_corrupt = body != File::of(FILE_SIZE).part(0..FILE_SIZE);
        } else if !self.is_ok() {
            let problem: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
            self.problem = problem["type"].as_str().unwrap_or_default().to_owned();
        }
    }
}
