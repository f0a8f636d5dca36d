//! Exports nothing: the program is built without the feature `otlp`, and the configuration refuses
//! the table.

use super::StartError;
use super::build::ConnectedParts;
use crate::clock::Clock;
use crate::config::Config;
use crate::public_addresses::PublicAddresses;
use crate::telemetry::{Metrics, Tracer};

#[derive(Debug)]
pub(super) struct PendingExport;

/// No export.
#[derive(Debug, Default)]
pub(super) struct Export(());

impl PendingExport {
    pub(super) fn new(_: &Config, _: &Clock, _: &Metrics) -> (Self, Tracer) {
        (PendingExport, Tracer::default())
    }

    pub(super) fn start(
        self,
        _: &ConnectedParts,
        _: &PublicAddresses,
    ) -> Result<Export, StartError> {
        Ok(Export::default())
    }
}

impl Export {
    pub(super) async fn stop(self) {}
}
