//! The only access to the origins. It requires a permit or an open file.
//!
//! The dispatcher calls it. It requests the file, or the part that the reader's fields select (RFC
//! 9110 §13 and §14), and streams the body without buffering it.
//!
//! - `plan` decides what to answer, without I/O; `range` parses Range, and `conditions` judges
//!   preconditions.
//! - `preview` says what `plan` decides for a request that is only explained.
//! - `transfer` performs the plan and builds the response; `origin_fetch` queries the origin, and
//!   `fields` is the allow-list for header fields.
//! - `body` never ends a short body without an error, and `resume` resumes a broken one.
//! - `outgoing` keeps permit and limits in force until the kernel has the bytes.
//! - `stall_monitor` and `borrower_limits` bound what one reader costs.

mod body;
mod body_end;
mod body_source;
mod borrower_limits;
mod byte_counters;
mod chunk;
mod conditions;
mod content_type;
mod disposition;
mod fields;
mod file_body;
mod multipart;
mod origin_fetch;
mod outgoing;
mod plan;
mod preview;
mod range;
mod resume;
mod stall_monitor;
mod transfer;

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_DISPOSITION;
use http::{HeaderMap, Method, Response};

use crate::buffer_budget::Buffers;
use crate::catalog::{File, OpenFile};
use crate::connection_handle::Connection;
use crate::gate::Permit;
use crate::metering::Meter;
use crate::origin::{self, Origin};
use crate::problem::Problem;
use crate::reload::Current;
use crate::telemetry::Metrics;

pub(crate) use body::Body;
pub(crate) use body_end::{BodyError, Delivered, OnEnd};
use borrower_limits::BorrowerLimits;
pub(crate) use chunk::Chunk;
use fields::Kind;
pub(crate) use file_body::Suspended;
use origin_fetch::{MetadataCache, OriginFile};
use plan::Planner;
pub(crate) use preview::Foreseen;
use stall_monitor::StallMonitor;
use transfer::{Destination, Transfer};

/// The keys of `[delivery]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// Most ranges in one response.
    pub max_ranges: usize,
    /// How long a reader may stall before its body is aborted.
    pub idle: Duration,
    /// How long a reader may stall before its body releases the origin's connection and its
    /// buffers.
    pub suspend_after: Duration,
    /// Lowest rate of a reader, in bytes a second; 0 disables the check.
    pub min_rate: u64,
    /// Interval over which the rate is measured.
    pub min_rate_grace: Duration,
    /// Most concurrent streams of a borrower; 0 is unlimited.
    pub streams_per_borrower: usize,
    /// Highest rate of a borrower over all streams, in bytes a second; 0 is unlimited.
    pub rate_per_borrower: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            max_ranges: 16,
            idle: Duration::from_secs(600),
            suspend_after: Duration::from_secs(60),
            min_rate: 0,
            min_rate_grace: Duration::from_secs(60),
            streams_per_borrower: 0,
            rate_per_borrower: 0,
        }
    }
}

/// The right to a file.
#[derive(Debug)]
pub(crate) enum Pass {
    /// A title's file, under a loan.
    Loan(Permit, File),
    /// A title's file, under a loan, for a reader that may only continue a download. One part is
    /// sent, not from the first byte, and only if the request's validators match the file.
    Continuation {
        /// Proof of the loan.
        permit: Permit,
        /// The file that the reader has begun to download.
        file: File,
        /// The answer to a request that does not continue its download.
        otherwise: Problem,
    },
    /// A file of an open route.
    Open(OpenFile),
}

/// Delivers files from the origins to readers. Each worker has its own.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    origins: Vec<Arc<Origin>>,
    metadata: Vec<MetadataCache>,
    settings: Settings,
    monitor: StallMonitor,
    watched: Current<Watched>,
    limits: BorrowerLimits,
    buffers: Buffers,
    meter: Meter,
    metrics: Metrics,
}

/// What the stall monitor watches besides the bodies.
#[derive(Debug)]
struct Watched {
    origins: Vec<Arc<Origin>>,
    interval: Duration,
}

impl Delivery {
    /// Creates the delivery for these origins. `buffers` bounds what bodies buffer. `meter` counts
    /// what is delivered under loans.
    ///
    /// # Errors
    /// Returns the error of the first origin that cannot be used.
    pub(crate) fn new(
        settings: Settings,
        origins: &[origin::Settings],
        buffers: Buffers,
        meter: Meter,
        metrics: Metrics,
    ) -> Result<Delivery, origin::SetUpError> {
        let built: Result<Vec<Arc<Origin>>, _> = origins
            .iter()
            .map(|settings| Origin::new(settings, &buffers, metrics.clone()).map(Arc::new))
            .collect();
        let origins = built?;
        let metadata = origins.iter().map(|origin| cache_of(origin)).collect();
        let (monitor, limits) = (StallMonitor::new(settings), BorrowerLimits::new(&settings));
        let interval = stall_monitor::interval(&settings);
        let watched = Current::new(Watched { origins: origins.clone(), interval });
        Ok(Delivery {
            origins,
            metadata,
            settings,
            monitor,
            watched,
            limits,
            buffers,
            meter,
            metrics,
        })
    }

    /// Returns a delivery with its own connections. The metadata cache is shared.
    ///
    /// # Errors
    /// As [`Delivery::new`].
    pub(crate) fn for_worker(&self) -> Result<Delivery, origin::SetUpError> {
        let origins: Result<Vec<Arc<Origin>>, _> =
            self.origins.iter().map(|origin| origin.for_worker().map(Arc::new)).collect();
        let (meter, monitor) = (self.meter.for_worker(), self.monitor.for_worker());
        Ok(Delivery { origins: origins?, meter, monitor, ..self.clone() })
    }

    /// Returns a delivery for other settings and origins. An origin whose settings are the same
    /// keeps its connections, its breakers and what is known of its files.
    ///
    /// # Errors
    /// As [`Delivery::new`].
    pub(crate) fn with_settings(
        &self,
        settings: Settings,
        origins: &[origin::Settings],
    ) -> Result<Delivery, origin::SetUpError> {
        let (mut built, mut metadata) = (Vec::new(), Vec::new());
        for settings in origins {
            let mut old = self.origins.iter().zip(&self.metadata);
            let (origin, cache) = match old.find(|(origin, _)| origin.settings() == settings) {
                Some((origin, cache)) => (origin.clone(), cache.clone()),
                None => {
                    let origin = Origin::new(settings, &self.buffers, self.metrics.clone())?;
                    let cache = cache_of(&origin);
                    (Arc::new(origin), cache)
                }
            };
            built.push(origin);
            metadata.push(cache);
        }
        Ok(Delivery {
            origins: built,
            metadata,
            settings,
            monitor: self.monitor.with_settings(settings),
            limits: self.limits.with_settings(&settings),
            ..self.clone()
        })
    }

    /// Returns this delivery for the worker that has the other one. It keeps that worker's
    /// connections to the origins that stay.
    ///
    /// # Errors
    /// As [`Delivery::new`].
    pub(crate) fn in_place_of(&self, worker: &Delivery) -> Result<Delivery, origin::SetUpError> {
        let own = |origin: &Arc<Origin>| match worker.origins.iter().find(|own| own.is_of(origin)) {
            Some(own) => Ok(own.clone()),
            None => origin.for_worker().map(Arc::new),
        };
        let origins: Result<Vec<Arc<Origin>>, _> = self.origins.iter().map(own).collect();
        let (meter, monitor) = (worker.meter.clone(), worker.monitor.with_settings(self.settings));
        Ok(Delivery { origins: origins?, meter, monitor, ..self.clone() })
    }

    /// Lets the stall monitor watch the origins of this delivery, in place of those before.
    pub(crate) fn watch_origins(&self) {
        let interval = stall_monitor::interval(&self.settings);
        self.watched.replace(Watched { origins: self.origins.clone(), interval });
    }

    /// Runs the stall monitor: aborts bodies whose reader is too slow or whose loan is due. Spawn
    /// it as one task; it ends with the last worker.
    pub(crate) fn run_stall_monitor(&self) -> impl Future<Output = ()> + Send + use<> {
        let (watched, origins) = (self.watched.clone(), self.watched.clone());
        self.monitor.clone().run(
            move || watched.get().interval,
            move || origins.get().origins.iter().any(|origin| origin.has_waiters()),
        )
    }

    /// Answers a GET or HEAD. `connection` is closed if the loan ends while the reader stalls,
    /// since the body is then not polled. `on_end` receives the result of the body. It is not
    /// called if this returns a problem.
    ///
    /// # Errors
    /// [`Problem`]: `title-not-found`, `precondition-failed`, `range-not-satisfiable`,
    /// `origin-failed`, `origin-timeout`, `too-many-requests`, `loan-ended`, or the problem of
    /// [`Pass::Continuation`].
    pub(crate) async fn deliver(
        &self,
        pass: Pass,
        method: &Method,
        headers: &HeaderMap,
        connection: &Connection,
        on_end: OnEnd,
    ) -> Result<Response<Body>, Problem> {
        let (permit, file, continuation) = match pass {
            Pass::Loan(permit, file) => (Some(permit), file, None),
            Pass::Continuation { permit, file, otherwise } => (Some(permit), file, Some(otherwise)),
            Pass::Open(open) => (None, open.into_file(), None),
        };
        let kind = if permit.is_some() { Kind::Gated } else { Kind::Open };
        let (Some(origin), Some(metadata)) =
            (self.origins.get(file.origin), self.metadata.get(file.origin))
        else {
            return Err(Problem::TitleNotFound);
        };
        let planner = Planner::new(headers, self.settings.max_ranges, continuation);
        let origin_file = OriginFile::new(origin, metadata, &file.path);
        let transfer = Transfer { file: origin_file, kind, planner };
        let mut response = if method == Method::HEAD {
            transfer.head(on_end).await?
        } else {
            let allowance =
                permit.as_ref().map(|permit| self.limits.take(permit.key())).transpose()?.flatten();
            let metered =
                permit.as_ref().map(|permit| self.meter.of(permit.loan(), file.name.clone()));
            let (metrics, monitor) = (&self.metrics, &self.monitor);
            let to =
                Destination { permit, metered, connection, on_end, metrics, monitor, allowance };
            transfer.get(to).await?
        };
        fields::restrict(kind, file.content_security_policy.as_ref(), response.headers_mut());
        let named =
            file.disposition.and_then(|disposition| disposition::field(disposition, &file.path));
        if let Some(named) = named {
            response.headers_mut().insert(CONTENT_DISPOSITION, named);
        }
        Ok(response)
    }
}

fn cache_of(origin: &Origin) -> MetadataCache {
    origin_fetch::metadata(origin.settings().metadata_ttl)
}
