//! The context of every call: the locked state, the clock, and the execution of faults.
//!
//! A delayed call runs in its own task, so that a caller who disconnects does not cancel it.

use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};
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
use crate::lock::lock;

/// A response extension: the server closes the connection instead of sending the response.
#[derive(Clone, Copy, Debug)]
pub(super) struct CloseConnection;

/// The context that all calls share. Cheap to clone.
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

    /// Locks the state. Callers must not hold the guard across an await.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Returns the sandbox's time in whole milliseconds: the clock's time plus the configured skew.
    pub(super) fn now(&self, state: &State) -> Timestamp {
        let ahead = SignedDuration::from_secs(state.bounds.clock_skew_seconds);
        let now = self.clock.now().checked_add(ahead).unwrap_or(Timestamp::MAX);
        Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
    }

    /// Checks the credentials of a call.
    pub(super) fn authenticate(&self, headers: &HeaderMap) -> Result<(), Rejected> {
        let state = self.state();
        let now = self.now(&state);
        state.tokens.check(headers, now)
    }

    /// Answers a call: finds the faults that apply to its subject, and executes it with them. `act`
    /// is the call itself.
    pub(super) async fn answer<A>(
        &self,
        call: Call,
        headers: &HeaderMap,
        subject: Subject,
        act: A,
    ) -> Result<Response, Rejected>
    where
        A: FnOnce(&App, &Plan) -> Result<Response, Rejected> + Send + 'static,
    {
        let plan = self.plan(call, headers, &subject)?;
        Ok(self.perform(plan, act).await)
    }

    /// Returns the faults that apply to a call.
    fn plan(&self, call: Call, headers: &HeaderMap, subject: &Subject) -> Result<Plan, Rejected> {
        let mut state = self.state();
        let plan = state.faults.plan(call, subject);
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

    /// Executes a call with its faults.
    async fn perform<A>(&self, plan: Plan, act: A) -> Response
    where
        A: FnOnce(&App, &Plan) -> Result<Response, Rejected> + Send + 'static,
    {
        match plan.end.clone() {
            End::Status { status, retry_after, made } => {
                self.execute_if(made, plan, act).await;
                Rejected::by_fault(status, retry_after).into_response()
            }
            End::Hang { made } => {
                self.execute_if(made, plan, act).await;
                pending().await
            }
            End::CutBefore { late: None } => {
                tokio::time::sleep(plan.delay).await;
                no_response()
            }
            End::CutBefore { late: Some(late) } => {
                let (app, late) = (self.clone(), late.min(self.post_bound()));
                self.spawn(async move {
                    tokio::time::sleep(late).await;
                    let _ = act(&app, &plan);
                });
                no_response()
            }
            End::CutAfter => {
                self.execute(plan, act).await;
                no_response()
            }
            End::Garbage => garbled(self.execute(plan, act).await),
            End::Answer => self.execute(plan, act).await,
        }
    }

    async fn execute_if<A>(&self, made: bool, plan: Plan, act: A)
    where
        A: FnOnce(&App, &Plan) -> Result<Response, Rejected> + Send + 'static,
    {
        if made {
            self.execute(plan, act).await;
        } else {
            tokio::time::sleep(plan.delay).await;
        }
    }

    /// Acts after the delay, but within the bound, and responds after the whole delay.
    async fn execute<A>(&self, plan: Plan, act: A) -> Response
    where
        A: FnOnce(&App, &Plan) -> Result<Response, Rejected> + Send + 'static,
    {
        if plan.delay.is_zero() {
            return act(self, &plan).into_response();
        }
        let before = plan.delay.min(self.post_bound());
        let after = plan.delay - before;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let app = self.clone();
        self.spawn(async move {
            tokio::time::sleep(before).await;
            // The call counts even if the caller no longer waits for the response.
            let _ = sender.send(act(&app, &plan).into_response());
        });
        let response = receiver.await.unwrap_or_else(|_| no_response());
        tokio::time::sleep(after).await;
        response
    }

    fn post_bound(&self) -> Duration {
        Duration::from_millis(self.state().bounds.post_bound_ms)
    }
}

/// Returns a placeholder response, for which the server closes the connection.
fn no_response() -> Response {
    let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
    response.extensions_mut().insert(CloseConnection);
    response
}

/// Replaces the body of a response with truncated JSON. A 204, which has no body, becomes a 200.
fn garbled(response: Response) -> Response {
    let (mut parts, _) = response.into_parts();
    if parts.status == StatusCode::NO_CONTENT {
        parts.status = StatusCode::OK;
    }
    parts.headers.remove(http::header::CONTENT_LENGTH);
    Response::from_parts(parts, axum::body::Body::from("{\"loanId\": \"BL00\", \"sta"))
}
