//! The one way out to Bokbasen: login, deadline, limits, and what an answer or a failure means.
//!
//! HTTP/1.1 without redirects and without a proxy of the environment. A call that must not be
//! repeated gets a connection of its own, so that a kept one which Bokbasen just closed cannot
//! leave its outcome unknown.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use backon::{ExponentialBuilder, Retryable};
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, DATE, RETRY_AFTER};
use http::{HeaderMap, Method, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use url::Url;

use super::auth::Login;
use super::breaker::{Ended, Passage, Subject};
use super::clock_skew::Skew;
use super::guard::Guard;
use super::kind::CallKind;
use super::outage_reason::{Health, Trouble};
use super::protocol_breaches::Breaches;
use super::wire::{ErrorBody, Path, Query};
use super::{CallError, SetUpError, Settings};
use crate::clock::{self, Clock};
use crate::crash::{self, Edge};
use crate::telemetry::Metrics;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the kernel may go on sending what nobody acknowledges: it bounds when a call can still
/// arrive.
const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call waits for its turn at least: when many readers come at once, the last of them is
/// served within `gate.patience`, however short the time of one call is.
const QUEUE_PATIENCE: Duration = Duration::from_secs(12);
/// The longest wait that an error may name: longer ones would block for good by one bad answer.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// The largest answer that is read.
const LARGEST: usize = 4 * 1024 * 1024;
/// How often a repeatable call is repeated, and how long it waits first; the caller tries again
/// later.
const REPEATS: usize = 2;
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// One call.
#[derive(Debug)]
pub(super) struct Call {
    kind: CallKind,
    subject: Subject,
    name: &'static str,
    method: Method,
    path: Path,
    query: Query,
    body: Option<Vec<u8>>,
    repeatable: bool,
}

/// Which limits and which breaker a call belongs to, and what it is about.
pub(super) type Concern = (CallKind, Subject);

impl Call {
    /// A call that goes out once.
    pub(super) fn once(concern: Concern, name: &'static str, method: Method, path: Path) -> Call {
        let (kind, subject) = concern;
        Call { kind, subject, name, method, path, query: Vec::new(), body: None, repeatable: false }
    }

    /// A call that may be repeated.
    pub(super) fn repeatable(
        concern: Concern,
        name: &'static str,
        method: Method,
        path: Path,
    ) -> Call {
        Call { repeatable: true, ..Call::once(concern, name, method, path) }
    }

    pub(super) fn query(self, query: Query) -> Call {
        Call { query, ..self }
    }

    pub(super) fn body(self, body: &impl Serialize) -> Call {
        Call { body: serde_json::to_vec(body).ok(), ..self }
    }
}

/// A good answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) body: Vec<u8>,
    pub(super) retry_after: Option<Duration>,
    /// The cursor of the next page.
    pub(super) next: Option<String>,
}

/// The way out.
#[derive(Debug)]
pub(super) struct Transport {
    base: Url,
    kept: reqwest::Client,
    fresh: reqwest::Client,
    login: Login,
    pub(super) guard: Guard,
    health: Arc<Health>,
    clock: Clock,
    metrics: Metrics,
    timeout: Duration,
    pub(super) skew: Skew,
    pub(super) breaches: Breaches,
}

impl Transport {
    pub(super) fn new(
        settings: &Settings,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Transport, SetUpError> {
        if settings.url.cannot_be_a_base() {
            return Err(SetUpError(
                "lending.url is not an address that paths can be added to".to_owned(),
            ));
        }
        let client = |kept: usize| {
            reqwest::Client::builder()
                .http1_only()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .connect_timeout(CONNECT)
                .timeout(settings.timeout)
                .tcp_user_timeout(USER_TIMEOUT)
                .pool_idle_timeout(Duration::from_secs(15))
                .pool_max_idle_per_host(kept)
                .user_agent(concat!("loangate/", env!("CARGO_PKG_VERSION")))
                .build()
                .map_err(|error| SetUpError(cause(error)))
        };
        let health = Arc::new(Health::new());
        Ok(Transport {
            base: settings.url.clone(),
            kept: client(settings.concurrency)?,
            fresh: client(0)?,
            skew: Skew::new(clock.clone(), metrics.clone()),
            breaches: Breaches::new(metrics.clone()),
            login: Login::new(settings.auth.clone(), health.clone()),
            guard: Guard::new(settings.concurrency),
            health,
            clock,
            metrics,
            timeout: settings.timeout,
        })
    }

    /// The time by Bokbasen's clock: what times in answers are relative to.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.lending_now()
    }

    /// Whether Bokbasen failed to answer the last calls that a new loan needs.
    pub(super) fn is_failing(&self) -> bool {
        [CallKind::Begin, CallKind::Poll].into_iter().any(|kind| self.guard.is_open(kind))
    }

    /// Why calls fail, if they do.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.health.trouble(self.is_failing())
    }

    /// Why the last call failed, if it did.
    pub(super) fn last_trouble(&self) -> Option<Trouble> {
        self.health.last()
    }

    pub(super) async fn login(&self) -> Result<(), CallError> {
        self.credential().await.map(drop)
    }

    pub(super) async fn log_out(&self) {
        self.login.log_out(&self.kept).await;
    }

    /// Requests the API's address, without a login, for the `Date` of whatever answer.
    pub(super) async fn ask_time(&self) {
        let sent = self.skew.sending();
        let request = self.kept.get(self.base.clone()).header(CACHE_CONTROL, "no-cache");
        match request.send().await {
            Ok(response) => self.skew.note(sent, response.headers()),
            Err(error) => {
                tracing::debug!(error = cause(error), "could not compare the clock with Bokbasen's")
            }
        }
    }

    /// Sends a call, repeatedly where that is allowed.
    pub(super) async fn send(&self, call: &Call) -> Result<Answer, CallError> {
        // What failed last is likely to fail again, and its caller tries again by itself.
        let repeated = call.repeatable && !self.guard.is_suspect(call.kind, call.subject);
        let repeats = if repeated { REPEATS } else { 0 };
        let waits = ExponentialBuilder::default()
            .with_min_delay(FIRST_WAIT)
            .with_max_times(repeats)
            .with_jitter();
        let began = Instant::now();
        // A call that hung must not hold a slot three times as long.
        let worth_it = |error: &CallError| {
            !matches!(error, CallError::Rejected { .. })
                && began.elapsed() < self.timeout / 2
                && self.guard.passage(call.kind, false) == Passage::Open
        };
        (|| self.counted(call)).retry(waits).when(worth_it).await
    }

    async fn counted(&self, call: &Call) -> Result<Answer, CallError> {
        let patience = self.timeout.max(QUEUE_PATIENCE);
        let pass = self.guard.enter(call.kind, call.subject, patience).await?;
        let began = Instant::now();
        let result = self.attempt(call).await;
        if let Some(open) = self.guard.note(call.kind, call.subject, pass, ended(&result)) {
            tracing::warn!(
                open,
                kind = call.kind.name(),
                "the breaker of calls to Bokbasen changed"
            );
            self.metrics.lending_breaker(call.kind.name(), open);
        }
        let outcome = result.as_ref().map_or_else(CallError::name, |_| "ok");
        self.metrics.lending_call(call.name, outcome, began.elapsed());
        result
    }

    /// One sending; a second one where the first is answered that its credential is no longer good.
    async fn attempt(&self, call: &Call) -> Result<Answer, CallError> {
        let credential = self.credential().await?;
        let response = self.go(call, credential.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.read(call, response).await;
        }
        self.login.discard(&credential).await;
        let credential = self.credential().await?;
        let response = self.go(call, credential).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.health.failed(
                call.name,
                Trouble::TokenRefused,
                "it was answered 401 with a new token",
            );
            return self.read(call, response).await;
        }
        self.read(call, response).await
    }

    /// What calls are sent with. Many may wait for one login, but none for longer than for a call.
    async fn credential(&self) -> Result<http::HeaderValue, CallError> {
        let held = self.login.authorization(&self.kept, &self.clock, &self.skew);
        match tokio::time::timeout(self.timeout, held).await {
            Ok(credential) => credential,
            // This deadline and the HTTP client's own are equal, so either may be first.
            Err(_) => {
                self.health.failed(
                    "login",
                    Trouble::Timeout,
                    "no answer to the login arrived in time",
                );
                Err(CallError::NotSent("the login took too long".to_owned()))
            }
        }
    }

    async fn go(
        &self,
        call: &Call,
        credential: http::HeaderValue,
    ) -> Result<reqwest::Response, CallError> {
        let client = if call.repeatable { &self.kept } else { &self.fresh };
        let mut request =
            client.request(call.method.clone(), self.url(call)).header(AUTHORIZATION, credential);
        if self.login.wants_date() {
            request = request.header(DATE, http_date(self.clock.now()));
        }
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        crash::point("send", call.name, Edge::Before);
        let sent = self.skew.sending();
        let answered = request.send().await;
        crash::point("send", call.name, Edge::After);
        let response = answered.map_err(|error| {
            let trouble = Trouble::of(&error);
            let is_connect = error.is_connect();
            let why = cause(error);
            self.health.failed(call.name, trouble, &why);
            // Without a connection nothing can have left; anything else may have.
            if is_connect { CallError::NotSent(why) } else { CallError::Unknown(why) }
        })?;
        self.skew.note(sent, response.headers());
        Ok(response)
    }

    fn url(&self, call: &Call) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(&call.path);
        }
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        url
    }

    async fn read(&self, call: &Call, response: reqwest::Response) -> Result<Answer, CallError> {
        let status = response.status();
        let headers = response.headers();
        let retry_after = retry_after(headers, self.now());
        let next = headers.get("next").and_then(|next| next.to_str().ok()).map(str::to_owned);
        let body = read_body(response).await;
        if status.is_success() {
            let body = body.map_err(|why| {
                self.health.failed(call.name, Trouble::Network, &why);
                CallError::Unknown(why)
            })?;
            self.health.answered();
            return Ok(Answer { body, retry_after, next });
        }
        // A 408 comes from whoever waited for the rest of a request, and may not be Bokbasen's last
        // word.
        if !status.is_client_error() || status == StatusCode::REQUEST_TIMEOUT {
            let why = format!("it was answered {status}");
            self.health.failed(call.name, Trouble::ServerError, &why);
            return Err(CallError::Unknown(why));
        }
        if status != StatusCode::UNAUTHORIZED {
            self.health.answered();
        }
        let error: ErrorBody =
            body.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
        Err(CallError::Rejected {
            status: status.as_u16(),
            code: error.code,
            message: error.message,
            retry_after,
        })
    }
}

/// What a result says about Bokbasen. A no is an answer: only what fails to answer is a reason to
/// hold back.
fn ended(result: &Result<Answer, CallError>) -> Ended {
    match result {
        Ok(_) | Err(CallError::Rejected { .. }) => Ended::Answered,
        Err(CallError::NotSent(_)) => Ended::Unreachable,
        Err(CallError::Unknown(_)) => Ended::Failed,
    }
}

/// A moment as HTTP writes it, to the second.
fn http_date(at: Timestamp) -> String {
    let since = Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0));
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + since)
}

/// The field Retry-After, which is in seconds or a date (RFC 9110 §10.2.3), limited from above.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let named = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = httpdate::parse_http_date(text).ok()?;
            clock::until(now, Timestamp::try_from(at).ok()?)
        }
    };
    Some(named.min(LONGEST_RETRY_AFTER))
}

/// A body up to the largest that is read.
pub(super) async fn read_body(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(cause)? {
        if body.len() + chunk.len() > LARGEST {
            return Err("the answer is too large".to_owned());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What went wrong, in the words of the innermost error and without the address.
pub(super) fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut innermost: &dyn std::error::Error = &error;
    let mut words = error.to_string();
    while let Some(source) = innermost.source() {
        words = source.to_string();
        innermost = source;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lending::Auth;

    #[tokio::test]
    async fn login_without_answer_is_reported_as_timeout() {
        // It accepts, by the backlog, and never answers.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/", silent.local_addr().unwrap())).unwrap();
        let settings = Settings {
            url: url.clone(),
            auth: Auth::OAuth {
                token_url: url,
                audience: "a".to_owned(),
                client_id: "c".to_owned(),
                client_secret: "s".into(),
            },
            concurrency: 8,
            timeout: Duration::from_millis(50),
        };
        let mut transport =
            Transport::new(&settings, Clock::system(), Metrics::new().unwrap()).unwrap();
        // The client's own deadline must not be the first.
        transport.kept = reqwest::Client::builder().no_proxy().build().unwrap();
        assert!(matches!(transport.credential().await, Err(CallError::NotSent(_))));
        assert_eq!(transport.last_trouble(), Some(Trouble::Timeout));
    }
}
