//! Decides when the certificate is ordered, and by which gate.
//!
//! Several gates may share the data directory. The one that has its lock orders. The others see the
//! new certificate, or why there is none, in the directory.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::attempts::Attempts;
use super::client::Client;
use super::data_directory::DataDirectory;
use super::order::{OrderFailure, obtain};
use super::renewal_info::RenewalInfo;
use super::stored::{self, Reason};
use super::turn::{Found, look};
use crate::clock::Clock;
use crate::lock::lock;
use crate::reload::{Current, Reload};
use crate::server::Candidate;
use crate::telemetry::{LogLimit, Metrics, OrderOutcome};

/// How often the stored certificate is looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// How long another gate may order without a report. An order takes ten minutes at most.
const MAX_ELSEWHERE: Duration = Duration::from_secs(900);

/// Limits the log of a data directory that cannot be used to one line a minute.
static DATA_LOG: LogLimit = LogLimit::per_minute();

/// Keeps the certificate of `[tls.acme]` up to date, if there is one. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Orders(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Current<Option<Settings>>,
    /// Signals other settings.
    changed: Notify,
    /// Why there is no certificate, or no new one, as a sentence.
    failure: Mutex<Option<String>>,
    /// When the authority wants the stored certificate to be renewed.
    info: Mutex<Option<RenewalInfo>>,
    /// Since when another gate orders.
    elsewhere: Mutex<Option<Instant>>,
    clock: Clock,
    metrics: Metrics,
}

impl Orders {
    /// Creates the data directory, and orders nothing yet.
    ///
    /// # Errors
    /// A sentence, if the directory or the roots of the authority cannot be used.
    pub(crate) fn new(
        settings: Option<Settings>,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Orders, OrdersError> {
        let settings = prepare(settings, &clock)?;
        let (settings, changed) = (Current::new(settings), Notify::new());
        let (failure, info, elsewhere) = (Mutex::default(), Mutex::default(), Mutex::default());
        let inner = Inner { settings, changed, failure, info, elsewhere, clock, metrics };
        Ok(Orders(Arc::new(inner)))
    }

    /// Returns why the last order has failed, as a sentence; none if none has.
    pub(crate) fn failure(&self) -> Option<String> {
        lock(&self.0.failure).clone()
    }

    /// Orders certificates when they are due, until the gate stops.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let work = async {
            loop {
                // Other settings end an order in flight, too.
                let changed = self.0.changed.notified();
                let settings = self.0.settings.get();
                let Some(settings) = &*settings else {
                    self.0.report(None);
                    changed.await;
                    continue;
                };
                let work = async {
                    self.0.check(settings).await;
                    sleep(CHECK_INTERVAL).await;
                };
                tokio::select! {
                    () = changed => {}
                    () = work => {}
                }
            }
        };
        let _: Option<()> = stopping.run_until_cancelled(work).await;
    }
}

/// Why certificates cannot be ordered, as a sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct OrdersError(String);

/// Other settings. The certificate in use stays until a new one is issued.
impl Reload for Orders {
    type Settings = Option<Settings>;
    type Version = Option<Settings>;
    type Error = OrdersError;

    fn validate(&self, settings: &Option<Settings>) -> Result<Option<Settings>, Vec<OrdersError>> {
        prepare(settings.clone(), &self.0.clock).map_err(|error| vec![error])
    }

    fn apply(&self, settings: Option<Settings>) {
        let is_same = *self.0.settings.get() == settings;
        self.0.settings.replace(settings);
        if !is_same {
            self.0.report(None);
            self.0.changed.notify_one();
        }
    }
}

fn prepare(settings: Option<Settings>, clock: &Clock) -> Result<Option<Settings>, OrdersError> {
    if let Some(settings) = &settings {
        DataDirectory::open(&settings.data).map_err(|error| OrdersError(error.to_string()))?;
        Client::new(settings, clock.clone()).map_err(|error| OrdersError(error.into_why()))?;
    }
    Ok(settings)
}

impl Inner {
    /// Looks at the stored certificate, and orders one if it is due and this gate's turn.
    async fn check(&self, settings: &Settings) {
        let (of, now, info) = (settings.clone(), self.clock.now(), lock(&self.info).clone());
        // Off the runtime, since a file system may be slow.
        let looking = tokio::task::spawn_blocking(move || {
            let data = DataDirectory::open(&of.data)?;
            let found = look(&data, &of, info.as_ref(), now)?;
            Ok::<_, OrderFailure>((data, found))
        });
        let looked =
            looking.await.unwrap_or_else(|error| Err(OrderFailure::new(error.to_string())));
        let (data, found) = match looked {
            Ok(found) => found,
            Err(failure) => {
                let why = failure.into_why();
                if let Some(left_out) = DATA_LOG.permit("data") {
                    tracing::error!(why, left_out, "cannot look at the ordered certificate");
                }
                return self.report(Some(format!("No certificate can be ordered: {why}.")));
            }
        };
        if !matches!(found, Found::Elsewhere) {
            *lock(&self.elsewhere) = None;
        }
        match found {
            Found::Good(certificate) => {
                self.report(None);
                self.ask_when_to_renew(settings, &certificate, now).await;
            }
            Found::Elsewhere => self.report_elsewhere(settings),
            Found::Later(next, why) => {
                self.report(why.map(|why| sentence(settings, &why, next)));
            }
            Found::Turn(reason, right, attempts) => {
                self.order(settings, &data, reason, attempts).await;
                drop(right);
            }
        }
    }

    async fn ask_when_to_renew(
        &self,
        settings: &Settings,
        certificate: &Candidate,
        now: Timestamp,
    ) {
        let known = lock(&self.info).clone();
        if !RenewalInfo::is_due(known.as_ref(), certificate, now) {
            return;
        }
        let Ok(client) = Client::new(settings, self.clock.clone()) else { return };
        let info = RenewalInfo::ask(known, certificate, &client, now).await;
        *lock(&self.info) = info;
    }

    /// Reports that another gate orders, if that takes longer than an order can take.
    fn report_elsewhere(&self, settings: &Settings) {
        let since = *lock(&self.elsewhere).get_or_insert_with(Instant::now);
        if since.elapsed() > MAX_ELSEWHERE {
            let data = settings.data.display();
            self.report(Some(format!(
                "No certificate can be ordered: another process has locked {data} for more than \
                 15 minutes. End it if it hangs."
            )));
        }
    }

    fn report(&self, failure: Option<String>) {
        *lock(&self.failure) = failure;
    }

    /// Orders a certificate, and records how it ends.
    async fn order(
        &self,
        settings: &Settings,
        data: &DataDirectory,
        reason: Reason,
        mut attempts: Attempts,
    ) {
        let (names, authority) = (settings.names.join(", "), settings.authority());
        tracing::info!(names, authority, reason = reason.phrase(), "ordering a certificate");
        let ordering = settings.ordered();
        let client = Client::new(settings, self.clock.clone());
        let retry_after = client.as_ref().ok().cloned();
        let ordered = async {
            let issued = obtain(settings, data, &client?).await?;
            let (settings, now) = (settings.clone(), self.clock.now());
            attempts.issued(&ordering, now);
            let recorded = attempts.clone();
            let store = move |data: &DataDirectory| {
                // If it cannot be recorded, the certificate may still be stored.
                let recorded = recorded.write(data);
                let stored = stored::store(data, &settings, &issued, now);
                stored.inspect_err(|_| {
                    if let Err(error) = recorded {
                        tracing::error!(%error, "cannot record that a certificate was issued");
                    }
                })
            };
            data.off_runtime(store).await
        };
        let (ordered, now) = (ordered.await, self.clock.now());
        match &ordered {
            Ok(_) => attempts.succeeded(&ordering),
            Err(failure) => {
                let asked = retry_after.and_then(|client| client.retry_after());
                attempts.failed(&ordering, failure.why().to_owned(), asked, now);
            }
        }
        let next = attempts.next(&ordering, now);
        let recorded = data.off_runtime(move |data| attempts.write(data)).await;
        if let Err(error) = recorded {
            tracing::error!(%error, "cannot record how an order ended");
        }
        match ordered {
            Ok(until) => {
                self.metrics.certificate_ordered(OrderOutcome::Issued);
                self.report(None);
                tracing::info!(names, authority, %until, "a certificate was issued");
            }
            Err(failure) => {
                let why = failure.into_why();
                self.metrics.certificate_ordered(OrderOutcome::Failed);
                self.report(Some(sentence(settings, &why, next)));
                tracing::error!(names, authority, why, %next, "no certificate was issued");
            }
        }
    }
}

/// Returns the sentence about a failed order.
fn sentence(settings: &Settings, why: &str, next: Timestamp) -> String {
    let authority = settings.authority();
    let why = why.trim_end_matches('.');
    format!(
        "The last order of a certificate from {authority} has failed: {why}. The next is at {next}."
    )
}
