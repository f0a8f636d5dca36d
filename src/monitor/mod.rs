//! Watches the gate for operators: which problems need a person now.
//!
//! One task on the slow runtime takes a reading each five seconds, from the metrics and from
//! memory. The admin listener shows what it found; asking costs no more than a copy.
//!
//! | module | what it does |
//! |---|---|
//! | `codes` | the kinds of problems |
//! | `observe`, `machine`, `report_books` | what is wrong at this moment |
//! | `events` | what a single moment does not show |
//! | `tracker` | which conditions have lasted long enough to be problems |
//! | `status` | how well readers are served, for everybody |
//! | `export` | the problems and the status as metrics |
//! | `alerts`, `cluster_alerts` | sends problems to webhooks |
//! | `figures`, `series` | the last hour and the last day of this gate |
//! | `bulletin`, `peers` | what the gates of a cluster report to each other |
//! | `history`, `overview` | the figures of all gates together |

mod alerts;
mod bulletin;
mod cluster_alerts;
mod codes;
mod events;
mod export;
mod figures;
mod history;
mod machine;
mod observe;
mod overview;
mod peers;
mod report_books;
mod series;
mod status;
mod tracker;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::lock::lock;
use crate::process_handles::ProcessHandles;
use crate::supervise::supervise;
use crate::telemetry::{LogLimit, Task};
use alerts::Alerts;
pub(crate) use alerts::{SigningKey, Webhook};
use bulletin::MAX_FIGURES;
use cluster_alerts::ClusterSpeaker;
pub(crate) use codes::{Code, Level, Severity};
pub(crate) use figures::{Activity, CallRates};
use history::History;
pub(crate) use machine::{CertificateDates, LoginKeys, OrderFailure};
use observe::Observer;
pub(crate) use observe::Probes;
pub(crate) use overview::{Gate, Overview, Problems};
use peers::Peers;
use series::Series;
pub(crate) use series::{Point, Window};
pub(crate) use status::Status;
pub(crate) use tracker::Problem;
use tracker::Tracker;

/// The time between two readings.
const INTERVAL: Duration = Duration::from_secs(5);
/// The time between two exchanges of bulletins, and how long one may take.
const EXCHANGE_INTERVAL: Duration = Duration::from_secs(10);
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(8);

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
    /// A random id of this process, which tells gates of the same name apart.
    id: String,
    /// Where bulletins are exchanged.
    ledger: Ledger,
    seen: Mutex<Seen>,
    alerts: Alerts,
    /// Held by the running task, which a restart continues.
    observer: tokio::sync::Mutex<(Observer, ClusterSpeaker)>,
}

/// What was found.
struct Seen {
    /// When the last reading was taken, and the number of readings.
    at: Timestamp,
    readings: u64,
    tracker: Tracker,
    status: Status,
    series: Series,
    history: History,
    peers: Peers,
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
        let seen = Mutex::new(Seen {
            at: now,
            readings: 0,
            tracker,
            status,
            series: Series::default(),
            history: History::default(),
            peers: Peers::default(),
        });
        let id = format!("{:08x}", Uuid::new_v4().as_fields().0);
        let ledger = probes.ledger.clone();
        let observer = tokio::sync::Mutex::new((Observer::new(probes), ClusterSpeaker::default()));
        let alerts = Alerts::new(settings.webhooks.clone());
        Monitor { inner: Arc::new(Inner { handles, node, id, ledger, seen, alerts, observer }) }
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

    /// Returns a number that changes with each reading.
    pub(crate) fn readings(&self) -> u64 {
        lock(&self.inner.seen).readings
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
        tokio::join!(self.take_readings(), self.exchange_bulletins());
    }

    async fn take_readings(&self) {
        let mut readings = regularly(INTERVAL);
        loop {
            readings.tick().await;
            self.read().await;
        }
    }

    /// Takes one reading.
    async fn read(&self) {
        let Inner { handles, seen, observer, alerts, .. } = &*self.inner;
        let mut observer = observer.lock().await;
        let (observer, speaker) = &mut *observer;
        let readings = handles.metrics.readings();
        let now = (Instant::now(), handles.clock.now());
        let observed = Box::pin(observer.observe(now, &readings)).await;
        let mut seen = lock(seen);
        (seen.at, seen.readings) = (now.1, seen.readings.wrapping_add(1));
        let changes = seen.tracker.update(now, observed);
        let open = seen.tracker.open();
        let Seen { status, series, history, peers, .. } = &mut *seen;
        let others = peers.live(now.0).map(|(_, peer)| peer.problems.as_slice());
        let gates: Vec<_> = std::iter::once(open.as_slice()).chain(others).collect();
        status.update(now.1, &gates);
        let oldest_end = observer.oldest_end(now.1);
        if let Some(figures) = series.add(now, &readings, oldest_end) {
            history.add(figures);
        }
        drop(seen);
        export::problems(&handles.metrics, &open);
        export::observed(&handles.metrics, oldest_end, observer.disk());
        // A problem of the whole cluster is sent by one gate, any other by the gate that has it.
        let sent = speaker.choose(now.0, observer.speaks_for_cluster(), changes, &open);
        sent.iter().for_each(|change| alerts.send(change));
    }

    async fn exchange_bulletins(&self) {
        let mut exchanges = regularly(EXCHANGE_INTERVAL);
        loop {
            exchanges.tick().await;
            self.exchange().await;
        }
    }

    /// Reports this gate to the other gates of the cluster, and reads their reports.
    async fn exchange(&self) {
        static LIMIT: LogLimit = LogLimit::per_minute();
        let Inner { handles, node, id, ledger, seen, .. } = &*self.inner;
        let own = {
            let seen = lock(seen);
            bulletin::write((id, node), &seen.tracker.open(), seen.series.newest(MAX_FIGURES))
        };
        let exchanged = timeout(EXCHANGE_DEADLINE, ledger.exchange_bulletins(&own)).await;
        let now = (Instant::now(), handles.clock.now());
        match exchanged {
            Ok(Ok(bulletins)) => lock(seen).peers.update(now, id, bulletins),
            Ok(Err(_)) if ledger.moved().is_some() => {}
            failed => {
                let error = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "no response in time".to_owned(),
                };
                if let Some(suppressed) = LIMIT.permit("exchange") {
                    tracing::warn!(error, suppressed, "cannot exchange figures with other gates");
                }
            }
        }
    }
}

/// Returns ticks of which one is enough after a suspension.
fn regularly(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
