//! Alerts that reach people: each problem that begins or ends is sent to webhooks, signed by the
//! scheme of Standard Webhooks.
//!
//! Each webhook has a queue and a task, which has one delivery in flight. So a receiver that hangs
//! delays its own alerts only. A delivery without a 2xx response is repeated with growing waits, up
//! to a limit; a newer event about the same problem takes its place. Redirects are not followed.
//! The queue is in memory: after a restart, the problems that there are then are reported again.

mod queue;
mod signature;

use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use serde::Serialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::tracker::{Change, Problem};
use crate::clock::Clock;
use crate::http_calls;
use crate::process_handles::ProcessHandles;
use crate::supervise::supervise;
use crate::telemetry::{LogLimit, Task};
use queue::{Event, Queue};
pub(crate) use signature::SigningKey;

/// A receiver of alerts: an entry of `[[alerts.webhooks]]`.
#[derive(Clone, Debug)]
pub(crate) struct Webhook {
    /// Where to send them.
    pub(crate) url: Url,
    /// The key of their signatures.
    pub(crate) key: SigningKey,
}

/// The deadline of a delivery, the first wait after a failed one and the limit of its doubling, and
/// the time after which it is given up.
#[derive(Clone, Copy, Debug)]
struct Timing {
    delivery: Duration,
    first_wait: Duration,
    longest_wait: Duration,
    give_up: Duration,
}

const TIMING: Timing = Timing {
    delivery: Duration::from_secs(10),
    first_wait: Duration::from_secs(5),
    longest_wait: Duration::from_secs(600),
    give_up: Duration::from_secs(86_400),
};

/// The webhooks with their queues.
#[derive(Debug, Default)]
pub(super) struct Alerts(Vec<Arc<Target>>);

#[derive(Debug)]
struct Target {
    webhook: Webhook,
    queue: Queue,
    timing: Timing,
}

/// The body of a message.
#[derive(Debug, Serialize)]
struct Message<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    timestamp: jiff::Timestamp,
    data: &'a Problem,
}

impl Alerts {
    pub(super) fn new(webhooks: Vec<Webhook>) -> Alerts {
        Alerts::with_timing(webhooks, TIMING)
    }

    fn with_timing(webhooks: Vec<Webhook>, timing: Timing) -> Alerts {
        let target = |webhook| Arc::new(Target { webhook, queue: Queue::default(), timing });
        Alerts(webhooks.into_iter().map(target).collect())
    }

    /// Starts the deliveries, until `stopping` is cancelled.
    pub(super) fn start(&self, handles: &ProcessHandles, stopping: &CancellationToken) {
        for target in &self.0 {
            let (target, clock) = (target.clone(), handles.clock.clone());
            let stop = stopping.clone();
            let deliver = move || {
                let (target, clock, stop) = (target.clone(), clock.clone(), stop.clone());
                async move {
                    tokio::select! {
                        () = target.deliver_all(&clock) => {}
                        () = stop.cancelled() => {}
                    }
                }
            };
            let metrics = handles.metrics.clone();
            handles.slow.spawn(supervise(Task::SendAlerts, metrics, stopping.clone(), deliver));
        }
    }

    /// Sends an event to every webhook, in the background.
    pub(super) fn send(&self, change: &Change) {
        self.0.iter().for_each(|target| target.queue.add(change.clone()));
    }
}

impl Target {
    async fn deliver_all(&self, clock: &Clock) {
        let client = http_calls::client().timeout(self.timing.delivery).build();
        let client = match client {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(%error, "alerts cannot be sent: the HTTP client does not start");
                return;
            }
        };
        let mut wait = self.timing.first_wait;
        loop {
            let event = self.queue.next().await;
            match self.attempt(&client, clock, &event).await {
                Ok(()) => {
                    self.queue.remove(&event);
                    wait = self.timing.first_wait;
                }
                Err(why) => {
                    self.note_failure(&event, &why);
                    // Receivers that failed for many gates are not called by all at once.
                    let jittered = wait.mul_f64(0.75 + fastrand::f64() / 2.0);
                    // A new problem is worth an attempt.
                    let _ = timeout(jittered, self.queue.until_added()).await;
                    wait = (wait * 2).min(self.timing.longest_wait);
                }
            }
        }
    }

    fn note_failure(&self, event: &Event, why: &str) {
        static LIMIT: LogLimit = LogLimit::per_minute();
        let problem = event.change.problem.code;
        if event.added.elapsed() >= self.timing.give_up {
            tracing::error!(why, problem, "gave up an alert, which its receiver never accepted");
            return self.queue.remove(event);
        }
        self.queue.record_failure(event);
        if let Some(suppressed) = LIMIT.permit("deliver") {
            tracing::warn!(why, problem, suppressed, "cannot deliver an alert; retrying");
        }
    }

    /// Sends the event once. Any response but 2xx is a failure; its body is not read.
    async fn attempt(&self, client: &Client, clock: &Clock, event: &Event) -> Result<(), String> {
        let Change { problem, resolved, .. } = &event.change;
        let kind = if resolved.is_some() { "problem.resolved" } else { "problem.opened" };
        let timestamp = resolved.unwrap_or(problem.since);
        let body = serde_json::to_string(&Message { kind, timestamp, data: problem });
        let body = body.map_err(|error| error.to_string())?;
        let sent = clock.now().as_second();
        let signature = self.webhook.key.sign(&event.id, sent, &body);
        let request = client
            .post(self.webhook.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &event.id)
            .header("webhook-timestamp", sent.to_string())
            .header("webhook-signature", signature)
            .body(body);
        // The URL may have a secret in its path.
        let response = request.send().await.map_err(|error| error.without_url().to_string())?;
        let status = response.status();
        if status.is_success() { Ok(()) } else { Err(format!("the response is {status}")) }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
