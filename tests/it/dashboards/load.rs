//! Requests of each kind against a gate.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use http::StatusCode;
use serde_json::json;
use tokio::time::Instant;

use crate::support::{AUDIO, BOOK, File, Scene};

/// Requests at the same time.
const CONCURRENCY: usize = 20;
/// Requests on one connection, fewer than `limits.requests_per_connection`.
const MAX_ON_CONNECTION: usize = 4000;
/// The title that Bokbasen refuses.
const REFUSED: &str = "9788299999021";
/// The title whose storage fails.
const BROKEN: &str = "9788299999045";

/// Starts a gate with two books, of which one is large.
pub(super) async fn scene() -> Scene {
    let scene = Scene::start().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(50_000));
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::of(2_000_000));
    let status = Some(StatusCode::BAD_GATEWAY);
    scene.origin.put(&format!("{BROKEN}/book.epub"), File { status, ..File::of(10) });
    let refuse = json!({ "refuse": { "code": "NO_FREE_LICENSE" } });
    let fault = json!({ "call": "begin", "isbn": REFUSED, "effect": refuse });
    scene.fault(&fault).await;
    scene
}

/// The readers of a gate.
pub(super) struct Load<'a> {
    scene: &'a Scene,
    client: reqwest::Client,
    /// The number of readers so far.
    readers: AtomicU32,
}

impl Load<'_> {
    pub(super) fn new(scene: &Scene) -> Load<'_> {
        Load { scene, client: scene.http2(), readers: AtomicU32::new(0) }
    }

    async fn read(&self, path: &str, borrower: &str) -> StatusCode {
        let path = format!("/files/{path}");
        let request = self.scene.get(&self.client, &path, &self.scene.token(borrower));
        let answer = request.send().await.unwrap();
        let status = answer.status();
        answer.bytes().await.unwrap();
        status
    }

    /// Sends this number of requests that the cache decides.
    pub(super) async fn reads(&self, number: usize) {
        for _ in 0..number {
            let status = self.read(&format!("{BOOK}/book.epub"), "kari").await;
            assert_eq!(status, StatusCode::OK);
        }
    }

    /// Begins a loan of a reader without one, and reads on as another reader.
    pub(super) async fn next_reader(&self) {
        let number = self.readers.fetch_add(1, Ordering::Relaxed);
        let path = format!("{AUDIO}/audio.mp3");
        assert_eq!(self.read(&path, &format!("next-{number}")).await, StatusCode::OK);
        self.reads(5).await;
    }

    /// Sends requests of each kind: hits, misses, refusals, failures, an end, a reload, a balance.
    pub(super) async fn every_kind(&self) {
        self.reads(3).await;
        let ok = self.read(&format!("{AUDIO}/audio.mp3"), "ola").await;
        let refused = self.read(&format!("{REFUSED}/book.epub"), "ola").await;
        let missing = self.read(&format!("{BOOK}/none.epub"), "kari").await;
        let broken = self.read(&format!("{BROKEN}/book.epub"), "kari").await;
        assert_eq!(
            (ok, refused, missing, broken),
            (StatusCode::OK, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND, StatusCode::BAD_GATEWAY)
        );
        self.end_loan_of("ola").await;
        let reload = self.scene.admin_post("/api/v1/reload", &json!({})).await;
        assert_eq!(reload.status(), StatusCode::OK);
        let balance = self.scene.admin_post("/api/v1/balance", &json!({})).await;
        assert_eq!(balance.status(), StatusCode::OK);
    }

    /// Returns a title, and waits until Bokbasen has acknowledged it.
    async fn end_loan_of(&self, borrower: &str) {
        let path = format!("/loans/{AUDIO}");
        let token = self.scene.token(borrower);
        let (status, _) = self.scene.call_api("DELETE", &path, &token, "").await;
        assert!(status.is_success(), "{status}");
        let is_sent = async || {
            let loans = self.scene.ledger().await;
            loans.iter().any(|loan| loan["isbn"] == AUDIO && loan["state"] == "ended")
        };
        self.scene.until("Bokbasen has the return", is_sent).await;
    }

    /// Requests these titles without credentials, and those of `borrowed` by a reader each.
    pub(super) async fn many_titles(&self, titles: Range<u32>, borrowed: Range<u32>) {
        for titles in titles.collect::<Vec<_>>().chunks(MAX_ON_CONNECTION) {
            let client = &self.scene.http2();
            let all = stream::iter(titles).map(|number| async move {
                let path = format!("{}/files/{}/book.epub", self.scene.base, isbn(*number));
                let answer = client.get(path).send().await.unwrap();
                assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
            });
            all.buffer_unordered(CONCURRENCY).collect::<()>().await;
        }
        let all = stream::iter(borrowed).map(|number| async move {
            let path = format!("{}/book.epub", isbn(number));
            let status = self.read(&path, &format!("reader-{number}")).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "borrowed, and not in the storage");
        });
        all.buffer_unordered(CONCURRENCY).collect::<()>().await;
    }

    /// Sends requests for this time, with waves and a short outage of Bokbasen.
    pub(super) async fn vary(&self, seconds: u64) {
        let began = Instant::now();
        let mut number = 20_000_u32;
        let mut is_out = false;
        while began.elapsed() < Duration::from_secs(seconds) {
            let share = began.elapsed().as_secs_f64() / seconds as f64;
            let wave = (1.0 - (share * 4.0 * std::f64::consts::PI).cos()) * 12.0;
            let outage = (0.55..0.65).contains(&share);
            if outage != is_out {
                is_out = outage;
                if outage {
                    let status = json!({ "status": { "status": 503 } });
                    self.scene.fault(&json!({ "call": "begin", "effect": status })).await;
                } else {
                    self.scene.no_faults().await;
                }
            }
            self.reads(4 + wave as usize).await;
            let reader = format!("reader-{number}");
            self.read(&format!("{AUDIO}/audio.mp3"), &reader).await;
            if number.is_multiple_of(3) {
                self.read(&format!("{BOOK}/none.epub"), "kari").await;
            }
            if number.is_multiple_of(7) {
                self.read(&format!("{BROKEN}/book.epub"), "kari").await;
            }
            if number.is_multiple_of(4) {
                let path = format!("/loans/{AUDIO}");
                let token = self.scene.token(&reader);
                self.scene.call_api("DELETE", &path, &token, "").await;
            }
            number += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Returns the ISBN of a numbered title.
fn isbn(number: u32) -> String {
    let digits = format!("97882{:07}", 1_000_000 + number);
    let weights = [1, 3].into_iter().cycle();
    let sum: u32 = digits
        .chars()
        .map(|digit| digit.to_digit(10).unwrap())
        .zip(weights)
        .map(|(digit, weight)| digit * weight)
        .sum();
    format!("{digits}{}", (10 - sum % 10) % 10)
}
