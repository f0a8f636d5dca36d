//! Metrics of background tasks.

use metrics::Unit;

use super::Metrics;
use super::family::{Definition, Family};
use super::label::label_enum;

pub(super) const RESTARTS: Family<Task> = Family::counter(
    "loangate_task_restarts_total",
    Unit::Count,
    "Restarts of background tasks that ended early, by task",
);

pub(super) const DEFINITIONS: [Definition; 1] = [RESTARTS.definition];

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
        /// Measures the load of the workers.
        PlaceConnections = "place-connections",
        /// Sends usage reports to Bokbasen.
        ReportUsage = "report-usage",
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
    /// Counts a restart of a background task, or of the driver of a loan, that ended early.
    pub fn task_restarted(&self, task: Task) {
        self.count(&RESTARTS, task);
    }
}
