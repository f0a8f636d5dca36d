//! What every call shares: the state behind its lock, the clock, and the carrying out of faults.
//!
//! The calls use it; it calls the state. A call that has been taken is carried out in a task of its
//! own where it is delayed, so that a caller who hangs up undoes nothing.

use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Settings;
use super::error_response::Rejected;
use super::faults::{Call, End, Plan, Subject};
use super::state::State;
use crate::clock::Clock;

/// In a response: the connection is to be cut in its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut;

/// What every call shares. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct App {
    state: Arc<Mutex<State>>,
    clock: Clock,
    pub(super) settings: Arc<Settings>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl App {
    pub(super) fn new(state: State, settings: Settings, clock: Clock) -> App {
        App {
            state: Arc::new(Mutex::new(state)),
            clock,
            settings: Arc::new(settings),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// The state. Nothing that waits may hold it.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sandbox's time to the millisecond: the clock's, and as far off as the bounds say.
    pub(super) fn now(&self, state: &State) -> Timestamp {
        let ahead = SignedDuration::from_secs(state.bounds.clock_skew_seconds);
        let now = self.clock.now().checked_add(ahead).unwrap_or(Timestamp::MAX);
        Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
    }

    /// Checks who calls.
    pub(super) fn authenticate(&self, headers: &HeaderMap) -> Result<(), Rejected> {
        let state = self.state();
        let now = self.now(&state);
        state.tokens.check(headers, now)
    }

    /// What is to become of a call.
    pub(super) fn plan(
        &self,
        call: Call,
        headers: &HeaderMap,
        subject: impl FnOnce(&State) -> Subject,
    ) -> Result<Plan, Rejected> {
        let mut state = self.state();
        let subject = subject(&state);
        let plan = state.faults.plan(call, &subject);
        if plan.expire_token {
            return Err(state.tokens.expire(headers));
        }
        Ok(plan)
    }

    /// Runs work that outlives its caller, until the sandbox stops.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Carries a call out as planned. `act` is the call itself.
    pub(super) async fn perform<A>(&self, plan: Plan, act: A) -> Response
    where
        A: FnOnce(&App, &Plan) -> Result<Response, Rejected> + Send + 'static,
    {
        match plan.end.clone() {
            End::Status { status, retry_after, made } => {
                self.carry_out_if(made, plan, act).await;
                Rejected::by_fault(status, retry_after).into_response()
            }
            End::Hang { made } => {
                self.carry_out_if(made, plan, act).await;
                pending().await
            }
            End::CutBefore { late: None } => {
                tokio::time::sleep(plan.delay).await;
                cut()
            }
            End::CutBefore { late: Some(late) } => {
                let (app, late) = (self.clone(), late.min(self.post_bound()));
                self.spawn(async move {
                    tokio::time::sleep(late).await;
                    let _ = act(&app, &plan);
                });
                cut()
            }
            End::CutAfter => {
                self.carry_out(plan, act).await;
                cut()
            }
            End::Garbage => garbled(self.carry_out(plan, act).await),
            End::Answer => self.carry_out(plan, act).await,
        }
    }

    async fn carry_out_if<A>(&self, made: bool, plan: Plan, act: A)
    where
        A: FnOnce(&App, &Plan) -> Result<Response, Rejected> + Send + 'static,
    {
        if made {
            self.carry_out(plan, act).await;
        } else {
            tokio::time::sleep(plan.delay).await;
        }
    }

    /// Acts after the delay, and no later than the bound; answers after the whole delay.
    async fn carry_out<A>(&self, plan: Plan, act: A) -> Response
    where
        A: FnOnce(&App, &Plan) -> Result<Response, Rejected> + Send + 'static,
    {
        if plan.delay.is_zero() {
            return act(self, &plan).into_response();
        }
        let before = plan.delay.min(self.post_bound());
        let after = plan.delay - before;
        let (answer, answered) = tokio::sync::oneshot::channel();
        let app = self.clone();
        self.spawn(async move {
            tokio::time::sleep(before).await;
            // Whether anyone still waits for the answer makes no difference to the call.
            let _ = answer.send(act(&app, &plan).into_response());
        });
        let response = answered.await.unwrap_or_else(|_| cut());
        tokio::time::sleep(after).await;
        response
    }

    fn post_bound(&self) -> Duration {
        Duration::from_millis(self.state().bounds.post_bound_ms)
    }
}

/// A response that is never sent: the server cuts the connection instead.
fn cut() -> Response {
    let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
    response.extensions_mut().insert(Cut);
    response
}

/// The response with JSON that breaks off in its place.
fn garbled(response: Response) -> Response {
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(http::header::CONTENT_LENGTH);
    Response::from_parts(parts, axum::body::Body::from("{\"loanId\": \"BL00\", \"sta"))
}
