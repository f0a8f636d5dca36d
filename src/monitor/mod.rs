//! Watches the gate for operators: which problems need a person now.
//!
//! One task on the slow runtime takes a reading each five seconds, from the metrics and from
//! memory. The admin listener shows what it found; asking costs no more than a copy.
//!
//! | module | what it does |
//! |---|---|
//! | `codes` | the kinds of problems |
//! | `observe`, `machine` | what is wrong at this moment |
//! | `events` | what a single moment does not show |
//! | `tracker` | which conditions have lasted long enough to be problems |
//! | `status` | how well readers are served, for everybody |
//! | `alerts` | sends problems to webhooks |
//! | `series` | the last hour and the last day |

mod alerts;
mod codes;
mod events;
mod machine;
mod observe;
mod series;
mod status;
mod tracker;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::lock::lock;
use crate::process_handles::ProcessHandles;
use crate::supervise::supervise;
use crate::telemetry::Task;
use alerts::Alerts;
pub(crate) use alerts::{SigningKey, Webhook};
pub(crate) use machine::CertificateDates;
use observe::Observer;
pub(crate) use observe::Probes;
use series::Series;
pub(crate) use series::{Point, Window};
pub(crate) use status::Status;
pub(crate) use tracker::Problem;
use tracker::{Change, Tracker};

/// The time between two readings.
const INTERVAL: Duration = Duration::from_secs(5);

/// The keys of `[alerts]`.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The receivers of alerts.
    pub(crate) webhooks: Vec<Webhook>,
}

/// What the gate's own watch has found. Clones share it.
#[derive(Clone)]
pub(crate) struct Monitor {
    inner: Arc<Inner>,
}

struct Inner {
    handles: ProcessHandles,
    /// The name of this gate.
    node: String,
    seen: Mutex<Seen>,
    alerts: Alerts,
    /// Held by the running task, which a restart continues.
    observer: tokio::sync::Mutex<Observer>,
}

/// What was found.
struct Seen {
    /// When the last reading was taken.
    at: Timestamp,
    tracker: Tracker,
    status: Status,
    series: Series,
}

/// The problems that need a person now.
#[derive(Clone, Debug)]
pub(crate) struct Problems {
    /// When they were last looked for.
    pub(crate) at: Timestamp,
    /// The gate that was looked at.
    pub(crate) node: String,
    /// The problems, the worst first.
    pub(crate) problems: Vec<Problem>,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("node", &self.inner.node).finish_non_exhaustive()
    }
}

impl Monitor {
    /// Creates a monitor that has seen nothing. `node` is the name of this gate.
    pub(crate) fn new(
        settings: &Settings,
        node: String,
        probes: Probes,
        handles: ProcessHandles,
    ) -> Monitor {
        let now = handles.clock.now();
        let (tracker, status) = (Tracker::new(&node), Status::new(now));
        let seen = Mutex::new(Seen { at: now, tracker, status, series: Series::default() });
        let observer = tokio::sync::Mutex::new(Observer::new(probes));
        let alerts = Alerts::new(settings.webhooks.clone());
        Monitor { inner: Arc::new(Inner { handles, node, seen, alerts, observer }) }
    }

    /// Watches until `stopping` is cancelled.
    pub(crate) fn start(&self, stopping: &CancellationToken) {
        let (monitor, stop) = (self.clone(), stopping.clone());
        let watch = move || {
            let (monitor, stop) = (monitor.clone(), stop.clone());
            async move {
                tokio::select! {
                    () = monitor.watch() => {}
                    () = stop.cancelled() => {}
                }
            }
        };
        let ProcessHandles { metrics, slow, .. } = &self.inner.handles;
        slow.spawn(supervise(Task::WatchGate, metrics.clone(), stopping.clone(), watch));
        self.inner.alerts.start(&self.inner.handles, stopping);
    }

    /// Returns the problems that need a person now.
    pub(crate) fn problems(&self) -> Problems {
        let seen = lock(&self.inner.seen);
        let problems = seen.tracker.open().into_iter().map(|(_, problem)| problem).collect();
        Problems { at: seen.at, node: self.inner.node.clone(), problems }
    }

    /// Returns how well readers are served.
    pub(crate) fn status(&self) -> Status {
        lock(&self.inner.seen).status
    }

    /// Returns the name of this gate, and its series: the resolution and the points.
    pub(crate) fn series(&self, window: Window) -> (String, Duration, Vec<Point>) {
        let (resolution, points) = lock(&self.inner.seen).series.points(window);
        (self.inner.node.clone(), resolution, points)
    }

    async fn watch(&self) {
        let mut readings = interval(INTERVAL);
        // After a suspension, one reading is enough.
        readings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            readings.tick().await;
            self.read().await;
        }
    }

    /// Takes one reading.
    async fn read(&self) {
        let Inner { handles, seen, observer, alerts, .. } = &*self.inner;
        let mut observer = observer.lock().await;
        let readings = handles.metrics.readings();
        let now = (Instant::now(), handles.clock.now());
        let observed = Box::pin(observer.observe(now, &readings)).await;
        let mut seen = lock(seen);
        seen.at = now.1;
        let changes = seen.tracker.update(now, observed);
        let open = seen.tracker.open();
        seen.status.update(now.1, &open);
        seen.series.add(now, &readings, observer.oldest_end(now.1));
        drop(seen);
        // A problem of the whole cluster is sent by one gate, any other by the gate that has it.
        let is_ours =
            |change: &&Change| !change.code.is_of_cluster() || observer.speaks_for_cluster();
        changes.iter().filter(is_ours).for_each(|change| alerts.send(change));
    }
}
