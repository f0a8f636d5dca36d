//! Tests of the sandbox over real sockets: states, faults and books.

mod faults;
mod loan_store;
mod states;

use http::{HeaderMap, Method};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::clock::Clock;

pub(super) const LIBRARY: &str = "NO-0301000";
pub(super) const TITLE: &str = "9780306406157";

/// A response with its whole body.
#[derive(Debug)]
pub(super) struct TestResponse {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
}

impl TestResponse {
    pub(super) fn code(&self) -> (u16, &str) {
        (self.status, self.body["code"].as_str().unwrap_or(""))
    }

    pub(super) fn id(&self) -> String {
        assert_eq!(self.status, 202, "{self:?}");
        self.body["loanId"].as_str().unwrap().to_owned()
    }
}

/// A sandbox, and a client with a token.
pub(super) struct Caller {
    pub(super) sandbox: Running,
    pub(super) clock: Clock,
    pub(super) token: String,
    pub(super) http: reqwest::Client,
}

/// Returns settings without waits, where every library and title exists.
pub(super) fn permissive() -> Settings {
    Settings {
        world: World { any_library_any_title: true, ..World::default() },
        bounds: Bounds::quick(),
        ..Settings::default()
    }
}

impl Caller {
    pub(super) async fn of(settings: Settings) -> Caller {
        let clock = Clock::movable("2026-01-15T12:00:00Z".parse::<Timestamp>().unwrap());
        let sandbox = Sandbox::start(settings, clock.clone()).await.unwrap();
        let mut caller =
            Caller { sandbox, clock, token: String::new(), http: reqwest::Client::new() };
        caller.log_in().await;
        caller
    }

    pub(super) async fn log_in(&mut self) {
        let known = self.sandbox.settings();
        let body = json!({
            "client_id": known.client_id, "client_secret": "sandbox-client-secret",
            "audience": AUDIENCE, "grant_type": "client_credentials",
        });
        let response = self.http.post(self.sandbox.token_url()).json(&body).send().await;
        let body: Value = response.unwrap().json().await.unwrap();
        self.token = body["access_token"].as_str().unwrap().to_owned();
    }

    /// Sends a call with the token. Returns an error if the response is incomplete.
    pub(super) async fn try_call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<TestResponse, reqwest::Error> {
        let url = format!("{}{path}", self.sandbox.url());
        let mut request = self.http.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        Ok(TestResponse {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: serde_json::from_str(&response.text().await?).unwrap_or_default(),
        })
    }

    pub(super) async fn get(&self, path: &str) -> TestResponse {
        self.try_call(Method::GET, path, None).await.unwrap()
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> TestResponse {
        self.try_call(Method::POST, path, Some(body)).await.unwrap()
    }

    pub(super) async fn put(&self, path: &str, body: Value) {
        let response = self.try_call(Method::PUT, path, Some(body)).await.unwrap();
        assert_eq!(response.status, 204, "{response:?}");
    }

    /// Returns the body of a begin with this reference.
    pub(super) fn begin_body(&self, reference: &str) -> Value {
        json!({
            "library": LIBRARY, "isbn": TITLE, "borrower": "somebody", "reference": reference,
            "begin": self.clock.now(),
        })
    }

    pub(super) async fn begin(&self, reference: &str) -> TestResponse {
        self.post("/v1/loans", self.begin_body(reference)).await
    }

    pub(super) async fn status(&self, id: &str) -> Value {
        self.get(&format!("/v1/loans/{id}")).await.body["status"].clone()
    }

    pub(super) async fn end(&self, id: &str) -> TestResponse {
        let body = json!({ "ended": self.clock.now(), "reason": "RETURNED" });
        self.post(&format!("/v1/loans/{id}/return"), body).await
    }

    pub(super) async fn cancel(&self, id: &str) -> TestResponse {
        self.post(&format!("/v1/loans/{id}/cancel"), json!({ "reason": "duplicate" })).await
    }

    pub(super) async fn loans(&self) -> Vec<Value> {
        let books = self.get("/sandbox/books").await.body;
        books["loans"].as_array().unwrap().clone()
    }
}
