//! Metrics of background tasks, and of reloads of the configuration and of certificates.

use jiff::Timestamp;
use metrics::Unit;

use super::Metrics;
use super::family::{Definition, Family};
use super::label::label_enum;

pub(super) const RESTARTS: Family<Task> = Family::counter(
    "loangate_task_restarts_total",
    Unit::Count,
    "Restarts of background tasks that ended early, by task",
);

pub(super) const RELOADS: Family<ReloadOutcome> = Family::counter(
    "loangate_reloads_total",
    Unit::Count,
    "Reloads of the configuration, by whether it is in use or has a mistake",
);

const RELOAD_SUCCESSFUL: Family<()> = Family::gauge(
    "loangate_last_reload_successful",
    Unit::Count,
    "0 if the last reload of the configuration found a mistake: an alarm",
);
pub(super) const CERTIFICATES: Family<ReloadOutcome> = Family::counter(
    "loangate_certificate_renewals_total",
    Unit::Count,
    "Renewed certificates that were noticed, by whether they are in use or cannot be used",
);
const CERTIFICATE_UNUSABLE: Family<()> = Family::gauge(
    "loangate_certificate_unusable",
    Unit::Count,
    "1 while a renewed certificate cannot be used, and the old one stays: an alarm",
);
const CERTIFICATE_EXPIRY: Family<()> = Family::gauge(
    "loangate_certificate_expiry_timestamp_seconds",
    Unit::Seconds,
    "When the first of the certificates in use expires, in seconds since 1970",
);
pub(super) const CERTIFICATE_ORDERS: Family<OrderOutcome> = Family::counter(
    "loangate_certificate_orders_total",
    Unit::Count,
    "Orders of a certificate by ACME, by outcome",
);

pub(super) const DEFINITIONS: [Definition; 7] = [
    RESTARTS.definition,
    RELOADS.definition,
    RELOAD_SUCCESSFUL.definition,
    CERTIFICATES.definition,
    CERTIFICATE_UNUSABLE.definition,
    CERTIFICATE_EXPIRY.definition,
    CERTIFICATE_ORDERS.definition,
];

label_enum! {
    /// The result of a reload of the configuration.
    pub enum ReloadOutcome: "outcome" {
        /// The configuration is in use.
        Applied = "applied",
        /// It has a mistake, and the one before stays in use.
        Refused = "refused",
    }
}

label_enum! {
    /// The result of an order of a certificate.
    pub enum OrderOutcome: "outcome" {
        /// The certificate was issued and stored.
        Issued = "issued",
        /// There is no new certificate.
        Failed = "failed",
    }
}

label_enum! {
    /// A background task that is restarted if it ends early.
    pub enum Task: "task" {
        /// Accepts connections of the admin listener.
        AcceptAdmin = "accept-admin",
        /// Adopts loans whose process has ended.
        AdoptOrphans = "adopt-orphans",
        /// Compares the ledger with Bokbasen at night.
        Balance = "balance",
        /// Builds large indexes of a PostgreSQL ledger.
        BuildIndexes = "build-indexes",
        /// Compares this machine's clock with Bokbasen's.
        CompareClocks = "compare-clocks",
        /// Drives the loans that are due for a step.
        DriveLoans = "drive-loans",
        /// Drives one loan.
        Driver = "driver",
        /// Ends loans whose time is over.
        Expire = "expire",
        /// Exports traces, metrics and logs over OTLP.
        ExportTelemetry = "export-telemetry",
        /// Fetches the keys of login services.
        FetchLoginKeys = "fetch-login-keys",
        /// Writes the counts of delivered bytes.
        FlushMetering = "flush-metering",
        /// Aggregates the histograms.
        FoldMetrics = "fold-metrics",
        /// Follows the changes that other processes make in the ledger.
        FollowFeed = "follow-feed",
        /// Forgets the borrowers of old loans.
        Forget = "forget",
        /// Renews the lease of this process on a PostgreSQL ledger.
        KeepLease = "keep-lease",
        /// Orders certificates.
        OrderCertificates = "order-certificates",
        /// Measures the load of the workers.
        PlaceConnections = "place-connections",
        /// Sends usage reports to Bokbasen.
        ReportUsage = "report-usage",
        /// Reloads the configuration.
        Reload = "reload",
        /// Loads certificates whose files have changed.
        ReloadCertificates = "reload-certificates",
        /// Searches Bokbasen for loans that were begun too late.
        SearchLateBegins = "search-late-begins",
        /// Sends alerts to a webhook.
        SendAlerts = "send-alerts",
        /// Sends ends to Bokbasen.
        SendEnds = "send-ends",
        /// Divides the limits of calls to Bokbasen among the processes.
        ShareLimits = "share-limits",
        /// Stores requests in the ledger, and removes old ones.
        StoreRequests = "store-requests",
        /// Checks the dates of certificates.
        WatchCertificates = "watch-certificates",
        /// Looks for problems of the gate.
        WatchGate = "watch-gate",
        /// Aborts bodies whose readers are idle or too slow.
        WatchReaders = "watch-readers",
    }
}

impl Metrics {
    /// Counts a reload of the configuration.
    pub(crate) fn reload(&self, outcome: ReloadOutcome) {
        self.count(&RELOADS, outcome);
        let is_applied = outcome == ReloadOutcome::Applied;
        self.set(&RELOAD_SUCCESSFUL, (), if is_applied { 1.0 } else { 0.0 });
    }

    /// Counts renewed certificates that were noticed.
    pub(crate) fn certificates_loaded(&self, outcome: ReloadOutcome) {
        self.count(&CERTIFICATES, outcome);
    }

    /// Records whether a renewed certificate cannot be used.
    pub(crate) fn certificate_unusable(&self, is_unusable: bool) {
        self.set(&CERTIFICATE_UNUSABLE, (), if is_unusable { 1.0 } else { 0.0 });
    }

    /// Counts an order of a certificate.
    pub(crate) fn certificate_ordered(&self, outcome: OrderOutcome) {
        self.count(&CERTIFICATE_ORDERS, outcome);
    }

    /// Sets when the first certificate expires.
    pub(crate) fn certificate_expiry(&self, at: Timestamp) {
        self.set(&CERTIFICATE_EXPIRY, (), at.as_second() as f64);
    }

    /// Counts a restart of a background task, or of the driver of a loan, that ended early.
    pub fn task_restarted(&self, task: Task) {
        self.count(&RESTARTS, task);
    }
}
