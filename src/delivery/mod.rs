//! The only door to the origins: it takes a permit or an open file, and nothing else.
//!
//! The dispatcher calls it. It asks the origin for the file, or the part of it, that the reader's
//! fields mean (RFC 9110 §13 and §14), and passes the body on without holding it: `request` decides
//! what is answered, `range` reads Range, `conditions` judges preconditions, `origin_fetch` is the
//! way to the origin, `fields` is the allow-list, `body` never lets a short body look whole,
//! `outgoing` binds its bytes until they are with the kernel, `resume` goes on where an origin
//! broke off, `stall_monitor` and `borrower_limits` bound what one reader costs.

mod body;
mod body_source;
mod borrower_limits;
mod chunk;
mod conditions;
mod content_type;
mod disposition;
mod fields;
mod multipart;
mod origin_fetch;
mod outgoing;
mod range;
mod request;
mod resume;
mod stall_monitor;

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_DISPOSITION;
use http::{HeaderMap, Method, Response};

use crate::buffer_budget::Buffers;
use crate::catalog::{File, OpenFile};
use crate::connection_handle::Connection;
use crate::gate::Permit;
use crate::metering::Meter;
use crate::origin::{self, Origin, Repetition};
use crate::problem::Problem;
use crate::telemetry::Metrics;

pub use body::{Body, BodyError, Delivered, End, OnEnd, Suspended};
use borrower_limits::BorrowerLimits;
pub use chunk::Chunk;
use fields::Kind;
use origin_fetch::Known;
pub use outgoing::Suspension;
use request::{Destination, Request};
use stall_monitor::StallMonitor;

/// The keys of `[delivery]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// How many ranges one answer may have.
    pub max_ranges: usize,
    /// How long a reader may take nothing of what it has asked for.
    pub idle: Duration,
    /// How long a reader may take nothing before its body releases the origin's connection and its
    /// buffers.
    pub suspend_after: Duration,
    /// How many bytes a second a reader must take; 0 is any.
    pub min_rate: u64,
    /// Over how long that is measured.
    pub min_rate_grace: Duration,
    /// How many streams a borrower may have at once; 0 is any.
    pub streams_per_borrower: usize,
    /// How many bytes a second a borrower may take, over all streams together; 0 is any.
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

/// What opens a file.
#[derive(Debug)]
pub enum Pass {
    /// A title's file, under a loan.
    Loan(Permit, File),
    /// A title's file, under a loan, of which no more may leave than one part that does not start
    /// with its first byte, and that only where the request's validators say that the reader has
    /// begun this very file.
    Rest(Permit, File),
    /// A file of an open route.
    Open(OpenFile),
}

/// The way from the origins to the readers; one worker's.
#[derive(Clone, Debug)]
pub struct Delivery {
    origins: Vec<Arc<Origin>>,
    known: Vec<Known>,
    settings: Settings,
    monitor: StallMonitor,
    limits: BorrowerLimits,
    meter: Meter,
    metrics: Metrics,
}

impl Delivery {
    /// The way to these origins, whose bodies hold what these buffers allow; what is delivered
    /// under loans is counted by this meter.
    ///
    /// # Errors
    /// For the first that cannot be used.
    pub fn new(
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
        let known =
            origins.iter().map(|settings| origin_fetch::known(settings.metadata_ttl)).collect();
        let (monitor, limits) = (StallMonitor::new(settings), BorrowerLimits::new(&settings));
        Ok(Delivery { origins: built?, known, settings, monitor, limits, meter, metrics })
    }

    /// The same, with connections of its own; what is known of files is shared.
    ///
    /// # Errors
    /// As [`Delivery::new`].
    pub fn for_worker(&self) -> Result<Delivery, origin::SetUpError> {
        let origins: Result<Vec<Arc<Origin>>, _> =
            self.origins.iter().map(|origin| origin.for_worker().map(Arc::new)).collect();
        let (meter, monitor) = (self.meter.for_worker(), self.monitor.for_worker());
        Ok(Delivery { origins: origins?, meter, monitor, ..self.clone() })
    }

    /// Aborts bodies whose reader is too slow or whose loan is due, for as long as there is a
    /// worker; a task of its own.
    pub fn watch_readers(&self) -> impl Future<Output = ()> + Send + use<> {
        let origins = self.origins.clone();
        self.monitor.clone().run(move || origins.iter().any(|origin| origin.has_waiters()))
    }

    /// The response to a GET or HEAD. `connection` is what is cut where the loan ends and the
    /// reader takes nothing, so that the body cannot notice it. `on_end` is told how the body
    /// ended, and is not called where there is a problem in place of a response.
    ///
    /// # Errors
    /// [`Problem`]: `title-not-found`, `precondition-failed`, `range-not-satisfiable`,
    /// `origin-failed`, `origin-timeout`, `too-many-requests`.
    pub async fn deliver(
        &self,
        pass: Pass,
        method: &Method,
        headers: &HeaderMap,
        connection: &Connection,
        on_end: OnEnd,
    ) -> Result<Response<Body>, Problem> {
        let only_rest = matches!(pass, Pass::Rest(..));
        let (permit, file) = match pass {
            Pass::Loan(permit, file) | Pass::Rest(permit, file) => (Some(permit), file),
            Pass::Open(open) => (None, open.into_file()),
        };
        let kind = if permit.is_some() { Kind::Gated } else { Kind::Open };
        let (Some(origin), Some(known)) =
            (self.origins.get(file.origin), self.known.get(file.origin))
        else {
            return Err(Problem::TitleNotFound);
        };
        let max_ranges = self.settings.max_ranges;
        let (path, repetition) = (&file.path, Repetition::default());
        let request =
            Request { origin, known, path, kind, headers, max_ranges, only_rest, repetition };
        let mut response = if method == Method::HEAD {
            request.head(on_end).await?
        } else {
            let allowance =
                permit.as_ref().map(|permit| self.limits.take(permit.key())).transpose()?.flatten();
            let metered =
                permit.as_ref().map(|permit| self.meter.of(permit.loan(), file.name.clone()));
            let (metrics, monitor) = (&self.metrics, &self.monitor);
            let to =
                Destination { permit, metered, connection, on_end, metrics, monitor, allowance };
            request.get(to).await?
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
