//! HTTP transport of all calls to Bokbasen: login, timeout, limits, and the meaning of a response
//! or a failure.
//!
//! It speaks HTTP/1.1, follows no redirects and ignores proxies of the environment. A call that
//! must not be retried uses a new connection. On a pooled connection that Bokbasen has just
//! closed, its outcome would be unknown.

mod exchange;

use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use http::StatusCode;
use http::header::CACHE_CONTROL;
use jiff::Timestamp;
use url::Url;

use super::auth::Login;
use super::breaker::{Outcome, Passage};
use super::call::Call;
use super::clock_skew::Skew;
use super::guard::Guard;
use super::kind::CallKind;
use super::outage_reason::{Health, OutageReason};
use super::protocol_breaches::Breaches;
use super::response::{ApiResponse, cause};
use super::send_guard::SendGuard;
use super::{Auth, CallError, MaySend, SetUpError, Settings, http_client};
use crate::clock::Clock;
use crate::telemetry::{CallOutcome, Metrics};

/// The shortest patience for a slot. If many readers arrive at once, the last one is still served
/// within `gate.patience`, even with a short `lending.timeout`.
const MIN_QUEUE_PATIENCE: Duration = Duration::from_secs(12);
/// The most retries of a repeatable call, and the first delay. After that, the caller retries
/// later.
const MAX_RETRIES: usize = 2;
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The transport of all calls.
#[derive(Debug)]
pub(super) struct Transport {
    base: Url,
    pooled: reqwest::Client,
    unpooled: reqwest::Client,
    login: Login,
    pub(super) guard: Guard,
    health: Arc<Health>,
    clock: Clock,
    metrics: Metrics,
    timeout: Duration,
    pub(super) skew: Skew,
    pub(super) breaches: Breaches,
    /// Whether the gauges of the breakers show those of this transport.
    has_gauges: bool,
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
        let skew = Skew::new(clock.clone(), metrics.clone());
        for kind in CallKind::ALL {
            metrics.lending_breaker(kind, false);
        }
        Transport::with(settings, clock, metrics, skew)
    }

    /// Creates the transport of another API than that of the loans. The clock of its host does not
    /// count, and the gauges do not show its breakers.
    pub(super) fn apart(
        settings: &Settings,
        clock: &Clock,
        metrics: Metrics,
    ) -> Result<Transport, SetUpError> {
        let clock = clock.with_own_offset();
        let unseen = Metrics::new().map_err(|error| SetUpError(error.to_string()))?;
        let skew = Skew::new(clock.clone(), unseen);
        let transport = Transport::with(settings, clock, metrics, skew)?;
        Ok(Transport { has_gauges: false, ..transport })
    }

    fn with(
        settings: &Settings,
        clock: Clock,
        metrics: Metrics,
        skew: Skew,
    ) -> Result<Transport, SetUpError> {
        let health = Arc::new(Health::new());
        Ok(Transport {
            base: settings.url.clone(),
            pooled: http_client::build(settings.timeout, settings.concurrency)?,
            unpooled: http_client::build(settings.timeout, 0)?,
            skew,
            breaches: Breaches::new(metrics.clone()),
            login: Login::new(settings.auth.clone(), health.clone()),
            guard: Guard::new(settings.concurrency),
            health,
            clock,
            metrics,
            timeout: settings.timeout,
            has_gauges: true,
        })
    }

    pub(super) fn set_credentials(&self, auth: &Auth) {
        self.login.set_credentials(auth);
    }

    /// Returns the time by Bokbasen's clock, to which times in responses are relative.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.lending_now()
    }

    /// Whether a breaker is open for begins or polls, the calls that a new loan needs.
    pub(super) fn is_failing(&self) -> bool {
        [CallKind::Begin, CallKind::Poll].into_iter().any(|kind| self.guard.is_open(kind))
    }

    /// Returns why calls fail; none while Bokbasen answers.
    pub(super) fn trouble(&self) -> Option<OutageReason> {
        self.health.trouble(self.is_failing())
    }

    /// Returns why a call failed, if none was answered since.
    pub(super) fn last_trouble(&self) -> Option<OutageReason> {
        self.health.last()
    }

    pub(super) async fn login(&self) -> Result<(), CallError> {
        self.credential().await.map(drop)
    }

    pub(super) async fn log_out(&self) {
        self.login.log_out(&self.pooled).await;
    }

    /// Requests the API's base URL without a login; any response carries a `Date`.
    pub(super) async fn request_time(&self) {
        let sent = self.skew.sending();
        let request = self.pooled.get(self.base.clone()).header(CACHE_CONTROL, "no-cache");
        match request.send().await {
            Ok(response) => self.skew.note(sent, response.headers()),
            Err(error) => {
                tracing::debug!(error = cause(error), "could not compare the clock with Bokbasen's")
            }
        }
    }

    /// Sends a call, with retries if it may be retried.
    pub(super) async fn send(&self, call: &Call) -> Result<ApiResponse, CallError> {
        // A suspect is likely to fail again, and its caller retries later anyway.
        let retried = call.repeatable && !self.guard.is_suspect(call.kind, call.subject);
        let retries = if retried { MAX_RETRIES } else { 0 };
        let delays = ExponentialBuilder::default()
            .with_min_delay(FIRST_RETRY_DELAY)
            .with_max_times(retries)
            .with_jitter();
        let began = Instant::now();
        // A call that hung is not retried: it would hold a slot three times as long.
        let should_retry = |error: &CallError| {
            !matches!(error, CallError::Rejected { .. })
                && began.elapsed() < self.timeout / 2
                && self.guard.passage(call.kind, false) == Passage::Open
        };
        (|| self.send_guarded(call)).retry(delays).when(should_retry).await
    }

    async fn send_guarded(&self, call: &Call) -> Result<ApiResponse, CallError> {
        let permit = self.guard.enter(call.kind, call.subject, self.patience()).await?;
        let began = Instant::now();
        let result = self.attempt(call).await;
        if call.is_withheld() {
            // Bokbasen is not the cause, so the breaker does not count it.
            self.metrics.lending_call(call.operation, CallOutcome::NotSent, began.elapsed());
            let why = "this process lost its right to send the call, or waited too long for it";
            return Err(CallError::NotSent(why.to_owned()));
        }
        if let Some(open) = self.guard.note(call.kind, call.subject, permit, outcome_of(&result)) {
            tracing::warn!(
                open,
                kind = call.kind.name(),
                "the breaker of calls to Bokbasen changed"
            );
            if self.has_gauges {
                self.metrics.lending_breaker(call.kind, open);
            }
        }
        let outcome = result.as_ref().map_or_else(CallError::outcome, |_| CallOutcome::Ok);
        self.metrics.lending_call(call.operation, outcome, began.elapsed());
        result
    }

    /// Returns how long a call waits for a slot.
    fn patience(&self) -> Duration {
        self.timeout.max(MIN_QUEUE_PATIENCE)
    }

    /// Returns the check of a call that waits from now on. Its first byte is sent within the time
    /// that a call may wait for a slot.
    pub(super) fn send_guard(&self, may_send: MaySend) -> SendGuard {
        SendGuard::new(may_send, tokio::time::Instant::now() + self.patience())
    }

    /// Sends a call; once more with a new credential if Bokbasen answers 401.
    async fn attempt(&self, call: &Call) -> Result<ApiResponse, CallError> {
        let credential = self.credential().await?;
        let response = self.send_once(call, credential.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.read(call, response).await;
        }
        self.login.discard(&credential).await;
        let credential = self.credential().await?;
        let response = self.send_once(call, credential).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.health.failed(
                call.operation.name(),
                OutageReason::TokenRefused,
                "Bokbasen answered 401 to a new token",
            );
            return self.read(call, response).await;
        }
        self.read(call, response).await
    }

    /// Returns the credential for calls. Many callers may wait for one login, but none longer than
    /// the timeout of a call.
    async fn credential(&self) -> Result<http::HeaderValue, CallError> {
        let login = self.login.authorization(&self.pooled, &self.clock, &self.skew);
        match tokio::time::timeout(self.timeout, login).await {
            Ok(credential) => credential,
            // This timeout equals the HTTP client's own, so either may expire first.
            Err(_) => {
                self.health.failed(
                    "login",
                    OutageReason::Timeout,
                    "the login service did not respond in time",
                );
                Err(CallError::NotSent("the login took too long".to_owned()))
            }
        }
    }
}

/// Maps a result to a breaker outcome. A rejection counts as answered: only missing answers open a
/// breaker.
fn outcome_of(result: &Result<ApiResponse, CallError>) -> Outcome {
    match result {
        Ok(_) | Err(CallError::Rejected { .. }) => Outcome::Answered,
        Err(CallError::NotSent(_)) => Outcome::Unreachable,
        Err(CallError::Unknown(_)) => Outcome::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lending::Auth;

    #[tokio::test]
    async fn login_without_response_is_reported_as_timeout() {
        // The kernel accepts connections into the backlog; nothing responds.
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
        // The HTTP client's own timeout must not expire first.
        transport.pooled = reqwest::Client::builder().no_proxy().build().unwrap();
        assert!(matches!(transport.credential().await, Err(CallError::NotSent(_))));
        assert_eq!(transport.last_trouble(), Some(OutageReason::Timeout));
    }
}
