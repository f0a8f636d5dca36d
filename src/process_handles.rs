//! The handles of the process that circulation and the gate share.
//!
//! `app` creates them once and passes clones to the constructors. The ledger is not among them: a
//! module that holds it may call it, and the table of layers allows that to few. Parts that need
//! only the clock or the metrics take these alone.

use tokio::runtime::Handle;

use crate::clock::Clock;
use crate::telemetry::{Metrics, Tracer};

/// The clock, the metrics, the tracer and the slow runtime of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ProcessHandles {
    /// The clock of the gate, which tests can move.
    pub clock: Clock,
    /// The metrics, which the admin listener exports.
    pub metrics: Metrics,
    /// Begins traces, of requests and of work in the background.
    pub tracer: Tracer,
    /// The runtime for everything except the requests of readers, which have their own threads.
    pub slow: Handle,
}
