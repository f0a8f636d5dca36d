//! Background tasks that belong to no part: the stall monitor of all workers, the folding of
//! metrics, reloads, the watch and the orders of certificates, and the fetching of login services'
//! keys.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::build::ConnectedParts;
use super::reload::Reloader;
use crate::clock::Clock;
use crate::process_handles::ProcessHandles;
use crate::server::{CertificateWatch, Certificates, Seen};
use crate::service_manager::ServiceManager;
use crate::supervise::supervise;
use crate::telemetry::{Metrics, ReloadOutcome, Task};

/// How often certificate dates are checked.
const CERTIFICATE_CHECK_INTERVAL: Duration = Duration::from_secs(86_400);

/// How often the files of the certificates are looked at.
const CERTIFICATE_WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// How often the metrics are folded.
const FOLD_INTERVAL: Duration = Duration::from_secs(5);

/// Starts the tasks on the slow runtime.
pub(super) fn start(parts: &ConnectedParts, stopping: &CancellationToken) {
    let ProcessHandles { clock, metrics, slow, .. } = &parts.handles;
    let requests = parts.requests.clone();
    let monitor = move || requests.run_stall_monitor();
    // It works until the drain ends, so only the end of the process stops it.
    let never = CancellationToken::new();
    slow.spawn(supervise(Task::WatchReaders, metrics.clone(), never, monitor));
    let (folded, stop) = (metrics.clone(), stopping.clone());
    let fold = move || fold(folded.clone(), stop.clone());
    slow.spawn(supervise(Task::FoldMetrics, metrics.clone(), stopping.clone(), fold));
    let (watched, clock, stop) = (parts.certificates.clone(), clock.clone(), stopping.clone());
    let watch = move || {
        let (certificates, clock) = (watched.clone(), clock.clone());
        daily(stop.clone(), move || log_date_problems(&certificates, &clock))
    };
    slow.spawn(supervise(Task::WatchCertificates, metrics.clone(), stopping.clone(), watch));
    let (watched, counted, stop) = (parts.certificates.clone(), metrics.clone(), stopping.clone());
    let reload = move || reload_certificates(watched.clone(), counted.clone(), stop.clone());
    slow.spawn(supervise(Task::ReloadCertificates, metrics.clone(), stopping.clone(), reload));
    let (readers, counted, stop) = (parts.readers.clone(), metrics.clone(), stopping.clone());
    let fetch = move || {
        let (readers, metrics, stop) = (readers.clone(), counted.clone(), stop.clone());
        async move {
            tokio::select! {
                () = readers.keep_keys_fresh(&metrics) => {}
                () = stop.cancelled() => {}
            }
        }
    };
    slow.spawn(supervise(Task::FetchLoginKeys, metrics.clone(), stopping.clone(), fetch));
}

/// Starts the orders of certificates. The authority connects to this gate, so it has the sockets.
pub(super) fn start_orders(parts: &ConnectedParts, stopping: &CancellationToken) {
    let ProcessHandles { metrics, slow, .. } = &parts.handles;
    let (orders, stop) = (parts.orders.clone(), stopping.clone());
    let order = move || orders.clone().run(stop.clone());
    slow.spawn(supervise(Task::OrderCertificates, metrics.clone(), stopping.clone(), order));
}

/// Starts the task that reloads the configuration.
pub(super) fn start_reloads(
    slow: &Handle,
    metrics: &Metrics,
    reloader: &Reloader,
    manager: &ServiceManager,
    stopping: &CancellationToken,
) {
    let (reloader, manager, stop) = (reloader.clone(), manager.clone(), stopping.clone());
    let run = move || reloader.clone().run(manager.clone(), stop.clone());
    slow.spawn(supervise(Task::Reload, metrics.clone(), stopping.clone(), run));
}

/// Looks for renewed certificates until the gate stops, and counts what it finds.
async fn reload_certificates(
    certificates: Arc<Certificates>,
    metrics: Metrics,
    stopping: CancellationToken,
) {
    let mut watch = CertificateWatch::new(certificates.clone());
    loop {
        if let Some(expiry) = certificates.first_expiry() {
            metrics.certificate_expiry(expiry);
        }
        metrics.certificate_unusable(certificates.unusable().is_some());
        let wait = tokio::time::timeout(CERTIFICATE_WATCH_INTERVAL, stopping.cancelled());
        if wait.await.is_ok() {
            return;
        }
        // Off the runtime, since a file system may be slow.
        let look = tokio::task::spawn_blocking(move || (watch.look(), watch));
        let Ok((seen, looked)) = look.await else { return };
        watch = looked;
        match seen {
            Seen::Same => {}
            Seen::Renewed => {
                metrics.certificates_loaded(ReloadOutcome::Applied);
                tracing::info!("renewed certificates are in use");
            }
            Seen::Unusable(why) => {
                metrics.certificates_loaded(ReloadOutcome::Refused);
                tracing::error!(why, "renewed certificates cannot be used; the old ones stay");
            }
        }
    }
}

/// Logs certificate dates that are invalid, or become invalid soon.
fn log_date_problems(certificates: &Certificates, clock: &Clock) {
    for (file, problem) in certificates.date_problems(clock.now()) {
        let (file, kind) = (file.display(), problem.name());
        match problem.is_fatal() {
            true => tracing::error!(%file, kind, "{problem}"),
            false => tracing::warn!(%file, kind, "{problem}"),
        }
    }
}

/// Runs `work` now and once a day.
async fn daily(stopping: CancellationToken, mut work: impl FnMut()) {
    loop {
        work();
        if tokio::time::timeout(CERTIFICATE_CHECK_INTERVAL, stopping.cancelled()).await.is_ok() {
            return;
        }
    }
}

/// Folds the metrics regularly, to bound their memory if no client reads them.
async fn fold(metrics: Metrics, stopping: CancellationToken) {
    while tokio::time::timeout(FOLD_INTERVAL, stopping.cancelled()).await.is_err() {
        metrics.fold();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn daily_work_runs_at_the_start_and_every_day() {
        let stopping = CancellationToken::new();
        let mut runs = 0;
        let three_days = tokio::time::timeout(
            CERTIFICATE_CHECK_INTERVAL * 3 + Duration::from_secs(1),
            daily(stopping.clone(), || runs += 1),
        );
        assert!(three_days.await.is_err());
        assert_eq!(runs, 4);
        stopping.cancel();
        daily(stopping, || runs += 1).await;
        assert_eq!(runs, 5, "it stops with the gate");
    }
}
