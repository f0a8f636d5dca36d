//! Loans that a listing of a reference shows and that are ended, against a server.

use std::collections::BTreeMap;

use axum::{Json, Router};
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;
use url::Url;

use super::*;
use crate::circulation::late_begin::tests::until;
use crate::circulation::schedule::tests::circulation;
use crate::circulation::settle;
use crate::lending::CallError;
use crate::loan::{Borrower, Loan, LoanKey, Reference};

/// The id of a loan that the server cannot end.
const STUCK: &str = "STUCK";

/// Bokbasen: pending loans by reference, and the ids of those that were cancelled.
#[derive(Debug, Default)]
struct Server {
    listed: Mutex<BTreeMap<String, Vec<&'static str>>>,
    cancelled: Mutex<Vec<String>>,
}

fn answer(server: &Server, uri: &http::Uri) -> (StatusCode, Json<Value>) {
    if uri.path() == "/token" {
        return (StatusCode::OK, Json(json!({ "access_token": "t", "expires_in": 3600 })));
    }
    if let Some(reference) = uri.query().and_then(|query| query.strip_prefix("reference=")) {
        let listed = lock(&server.listed).get(reference).cloned().unwrap_or_default();
        let loan = |id| json!({ "loanId": id, "reference": reference, "status": "PENDING" });
        return (StatusCode::OK, Json(listed.into_iter().map(loan).collect()));
    }
    let id = uri.path().split('/').nth(3).unwrap().to_owned();
    if id == STUCK {
        let error = json!({ "code": "LOAN_NOT_FOUND", "message": "" });
        return (StatusCode::NOT_FOUND, Json(error));
    }
    lock(&server.cancelled).push(id);
    (StatusCode::OK, Json(json!({})))
}

struct Scene {
    server: Arc<Server>,
    circulation: Circulation,
    is_held: Arc<AtomicBool>,
    _directory: TempDir,
}

impl Scene {
    async fn new(settle: Duration) -> Scene {
        let server = Arc::new(Server::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bokbasen = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        let answering = server.clone();
        let router = Router::new().fallback(async move |uri| answer(&answering, &uri));
        tokio::spawn(async { axum::serve(listener, router).await });
        let directory = tempfile::tempdir().unwrap();
        let mut circulation = circulation(directory.path(), &bokbasen).await;
        let is_held = Arc::new(AtomicBool::new(true));
        let inner = Arc::get_mut(&mut circulation.inner).unwrap();
        inner.settings.settle = settle;
        inner.ledger = inner.ledger.with_lease_switch(is_held.clone());
        Scene { server, circulation, is_held, _directory: directory }
    }

    fn list(&self, reference: &Reference, ids: &[&'static str]) {
        lock(&self.server.listed).insert(reference.as_str().to_owned(), ids.to_vec());
    }

    /// A begin that was not found, of which Bokbasen has these loans now.
    fn unfound(&self, ids: &[&'static str]) -> UnfoundBegin {
        let (loan, reference) = (LoanId::random(), Reference::generate());
        self.list(&reference, ids);
        UnfoundBegin { loan, reference, ended: self.circulation.inner.clock.now() }
    }

    fn cancelled(&self) -> Vec<String> {
        lock(&self.server.cancelled).clone()
    }
}

#[tokio::test]
async fn loan_that_cannot_be_ended_stops_no_other_search() {
    let scene = Scene::new(Duration::from_secs(3600)).await;
    let (stuck, other) = (scene.unfound(&[STUCK]), scene.unfound(&["BL2"]));
    let mut searches = Searches::default();
    let running = searches.run(&scene.circulation, vec![stuck.clone(), other]);
    tokio::time::timeout(Duration::from_secs(20), running).await.unwrap();
    until("the other loan is cancelled", || scene.cancelled() == ["BL2"]).await;
    // Its interval is over, but it is being ended already.
    searches.searched.clear();
    searches.run(&scene.circulation, vec![stuck.clone()]).await;
    assert!(searches.searched.is_empty());
    assert_eq!(*lock(&searches.ending), HashSet::from([stuck.loan]));
}

#[tokio::test]
async fn loan_that_is_missing_for_long_counts_as_ended() {
    let settle = Duration::from_millis(300);
    let scene = Scene::new(settle).await;
    let mut searches = Searches::default();
    let found = Instant::now();
    searches.run(&scene.circulation, vec![scene.unfound(&[STUCK, "BL1"])]).await;
    until("nothing is left to end", || lock(&searches.ending).is_empty()).await;
    assert!(found.elapsed() >= settle, "until then it may be a lagging read");
    assert_eq!(scene.cancelled(), ["BL1"]);
}

#[tokio::test]
async fn duplicate_is_ended_only_under_the_lease() {
    let scene = Scene::new(Duration::ZERO).await;
    let key = LoanKey {
        library: "NO-0301000".parse().unwrap(),
        borrower: Borrower::from_bytes([1; 16]),
        isbn: "9780306406157".parse().unwrap(),
    };
    let loan = Loan::intend(key, scene.circulation.inner.clock.now());
    scene.list(&loan.reference, &["BL1", "BL2"]);
    let check = async || settle::Search::default().check(&scene.circulation, &loan).await;
    scene.is_held.store(false, Ordering::SeqCst);
    assert!(matches!(check().await, Err(CallError::NotSent(_))));
    assert_eq!(scene.cancelled().len(), 0);
    scene.is_held.store(true, Ordering::SeqCst);
    assert!(check().await.unwrap().is_some());
    assert_eq!(scene.cancelled(), ["BL2"]);
}
