//! One request to an origin, and the decision on a retry.
//!
//! No other module retries requests. One reader's request causes at most one retry. All retries
//! stay within the retry budget, so that a failing origin does not get more load because it fails.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{Response, StatusCode};

use super::address::hash;
use super::breaker::{Breaker, Evidence};
use super::exchange::Failure;
use super::object_store::Repeated;
use super::{Body, FileRequest, Origin, OriginError, USEFUL_BYTES, Where, retry_after};
use crate::path::FilePath;
use crate::telemetry::{OriginOutcome, Span};

/// Longest pause before a retry at the same address; jitter shortens it by up to half.
const PAUSE: Duration = Duration::from_millis(100);

/// The one retry that a reader's request may cause, shared by all its requests to the origin.
#[derive(Debug, Default)]
pub(crate) struct Repetition {
    is_used: AtomicBool,
}

impl Repetition {
    fn take(&self) -> bool {
        !self.is_used.swap(true, Ordering::Relaxed)
    }
}

/// What a request for the remaining bytes of a body costs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ResumeCost {
    /// Bytes received by the previous body.
    pub progress: u64,
}

impl ResumeCost {
    /// Returns whether the request uses no retry budget. The failure of such a request is no
    /// evidence against the address.
    pub(crate) fn is_free(self) -> bool {
        self.progress >= USEFUL_BYTES
    }
}

/// Whether to send a request again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    /// No: it is a response to pass on.
    Final,
    /// Yes, on a new connection: the address never saw the request.
    Fresh,
    /// Yes, at any address.
    Anywhere,
    /// Only at another address.
    Elsewhere,
}

type Outcome = Result<Response<Body>, OriginError>;

impl Origin {
    /// Requests a file, and returns the response as soon as its head has arrived, whatever its
    /// status. A request that failed is repeated if `repetition` and the retry budget allow it, at
    /// another address if there is one.
    ///
    /// # Errors
    /// [`OriginError`]; the reason is logged here, since no reader may see it.
    pub(crate) async fn fetch(
        &self,
        path: &FilePath,
        request: &FileRequest,
        repetition: &Repetition,
    ) -> Outcome {
        let first = self.choose(None).map_err(|wait| self.suspended(wait))?;
        self.shared.budget.earn();
        let (outcome, verdict) = self.attempt(first, path, request, true).await;
        if verdict == Verdict::Final {
            return outcome;
        }
        // Boxed, since retries are rare and would enlarge the future of every request.
        Box::pin(self.repeat(first, (outcome, verdict), path, request, repetition)).await
    }

    /// Requests the remaining bytes of a body that broke, once.
    ///
    /// # Errors
    /// Like [`Origin::fetch`], and if the retry budget is used up.
    pub(crate) async fn fetch_rest(
        &self,
        path: &FilePath,
        request: &FileRequest,
        cost: ResumeCost,
    ) -> Outcome {
        if !cost.is_free() && !self.shared.budget.withdraw(Instant::now()) {
            self.counts.not_sent(OriginOutcome::Suspended);
            return Err(OriginError::Failed { retry_after: None });
        }
        let address = self.choose(None).map_err(|wait| self.suspended(wait))?;
        let is_evidence = !cost.is_free();
        match self.attempt(address, path, request, is_evidence).await {
            (_, Verdict::Fresh) => {
                self.attempt(
                    address,
                    path,
                    &FileRequest { fresh: true, ..request.clone() },
                    is_evidence,
                )
                .await
                .0
            }
            (outcome, _) => outcome,
        }
    }

    /// Records that a resume from the retry budget delivered all remaining bytes.
    pub(crate) fn resume_completed(&self) {
        self.shared.budget.refund();
    }

    async fn repeat(
        &self,
        first: usize,
        (outcome, verdict): (Outcome, Verdict),
        path: &FilePath,
        request: &FileRequest,
        repetition: &Repetition,
    ) -> Outcome {
        if verdict == Verdict::Fresh {
            if !repetition.take() {
                return outcome;
            }
            return self
                .attempt(first, path, &FileRequest { fresh: true, ..request.clone() }, true)
                .await
                .0;
        }
        let other = self.choose(Some(first)).ok();
        let is_hopeless = other.is_none()
            && (verdict == Verdict::Elsewhere
                || self.breaker(first).is_none_or(Breaker::is_failing));
        if is_hopeless || !repetition.take() || !self.shared.budget.withdraw(Instant::now()) {
            return outcome;
        }
        let address = match other {
            Some(other) => other,
            None => {
                tokio::time::sleep(PAUSE.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
                match self.admit(first) {
                    Ok(()) => first,
                    Err(_) => return outcome,
                }
            }
        };
        drop(outcome);
        let (repeated, verdict) = self.attempt(address, path, request, true).await;
        // Another request would be a second retry.
        if verdict == Verdict::Fresh {
            Err(OriginError::Failed { retry_after: None })
        } else {
            repeated
        }
    }

    /// Sends one request to one address and records the outcome.
    async fn attempt(
        &self,
        address: usize,
        path: &FilePath,
        request: &FileRequest,
        is_evidence: bool,
    ) -> (Outcome, Verdict) {
        let Some(place) = self.places.get(address) else {
            return (Err(OriginError::Failed { retry_after: None }), Verdict::Final);
        };
        let began = Instant::now();
        let (origin, place_name) = (self.settings.name.as_str(), place.name());
        let mut span = self.settings.traces.then(|| Span::begin("origin")).flatten();
        if let Some(span) = &mut span {
            self.describe(span, address, request);
        }
        let attempted =
            tokio::time::timeout(self.settings.first_byte, place.send(path, request)).await;
        let failed = Err(OriginError::Failed { retry_after: None });
        let (outcome, verdict, label) = match attempted {
            Ok(Ok(mut response)) => {
                response.body_mut().address = address;
                let (verdict, label) = (judge(&response), status_class(response.status()));
                (Ok(response), verdict, label)
            }
            Ok(Err(Failure::Busy)) => {
                if let Some(span) = &mut span {
                    span.fail(OriginOutcome::Busy.name());
                }
                self.counts.not_sent(OriginOutcome::Busy);
                return (Err(OriginError::Busy), Verdict::Elsewhere);
            }
            Ok(Err(Failure::Stale)) => return (failed, Verdict::Fresh),
            Ok(Err(failure)) => {
                let why = failure.to_string();
                tracing::warn!(origin, place = place_name, why, "an origin failed");
                if let Some(span) = &mut span {
                    span.fail(OriginOutcome::Failed.name());
                }
                let is_unreachable = matches!(failure, Failure::Unreachable(_));
                let evidence =
                    if is_unreachable { Evidence::Address } else { Evidence::File(hash(path)) };
                self.record_attempt(address, is_evidence.then_some(evidence));
                self.counts.request(OriginOutcome::Failed, began.elapsed());
                let is_repeated = matches!(failure, Failure::Repeated(_));
                return (failed, if is_repeated { Verdict::Elsewhere } else { Verdict::Anywhere });
            }
            Err(_) => {
                tracing::warn!(origin, place = place_name, "an origin did not answer in time");
                (Err(OriginError::TimedOut), Verdict::Elsewhere, OriginOutcome::TimedOut)
            }
        };
        let ended = Instant::now();
        let is_fault =
            outcome.as_ref().map_or(true, |response| response.status().is_server_error());
        if is_fault {
            self.record_attempt(address, is_evidence.then(|| Evidence::File(hash(path))));
        } else {
            self.record_success(address, ended);
        }
        self.counts.request(label, ended.saturating_duration_since(began));
        if let Some(span) = &mut span {
            end_span(span, &outcome);
        }
        (outcome, verdict)
    }

    /// Sets what a span shows of a request.
    #[cold]
    fn describe(&self, span: &mut Span, address: usize, request: &FileRequest) {
        span.set("http.request.method", if request.head { "HEAD" } else { "GET" });
        span.set("loangate.origin", self.settings.name.clone());
        if let Some(Where::Http(url)) = self.settings.places.get(address) {
            span.set("server.address", url.host_str().unwrap_or_default().to_owned());
        }
    }
}

fn judge(response: &Response<Body>) -> Verdict {
    let status = response.status();
    if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() {
        return Verdict::Final;
    }
    // These statuses are often temporary, unless the origin sends Retry-After.
    let is_brief = matches!(status.as_u16(), 500 | 502 | 503 | 504)
        && retry_after(response.headers()).is_none();
    let is_repeated = response.extensions().get::<Repeated>().is_some();
    if is_brief && !is_repeated { Verdict::Anywhere } else { Verdict::Elsewhere }
}

/// Sets the result of a request.
#[cold]
fn end_span(span: &mut Span, outcome: &Outcome) {
    match outcome {
        Ok(response) => {
            span.set("http.response.status_code", response.status().as_u16());
            if response.status().is_server_error() {
                span.fail(OriginOutcome::ServerError.name());
            }
        }
        Err(_) => span.fail(OriginOutcome::TimedOut.name()),
    }
}

fn status_class(status: StatusCode) -> OriginOutcome {
    match status.as_u16() {
        200..300 => OriginOutcome::Success,
        300..400 => OriginOutcome::Redirection,
        400..500 => OriginOutcome::ClientError,
        _ => OriginOutcome::ServerError,
    }
}
