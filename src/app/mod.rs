//! The composition root: builds every part of the gate from its settings, starts them, reloads
//! them, and stops them in order.
//!
//! The command `serve` calls `start_with`, and `demo` and the tests call [`start`]. Only this
//! module knows all parts.
//!
//! - `build` creates the parts and connects them; `run` starts and stops them.
//! - `open_ledger` waits for a database that does not respond.
//! - `descriptors` divides the file descriptors of the process among connections.
//! - `background` runs the tasks that belong to no part, `export` that of telemetry, and
//!   `readiness` answers `/readyz`.
//! - `request_config` builds what requests need of the configuration.
//! - `reload` validates new versions of all parts that can be reloaded, then applies them.

mod background;
mod build;
mod descriptors;
#[cfg_attr(not(feature = "otlp"), path = "no_export.rs")]
mod export;
mod open_ledger;
mod readiness;
mod reload;
mod request_config;
mod run;

use std::fmt;

pub use run::{Running, start};
pub(crate) use run::{addresses, start_with};

/// The sentences that say why a gate did not start. A list of routes or tables may have several.
#[derive(Debug)]
pub struct StartError(Vec<String>);

impl StartError {
    fn all<E: fmt::Display>(errors: impl IntoIterator<Item = E>) -> StartError {
        StartError(errors.into_iter().map(|error| error.to_string()).collect())
    }

    /// Returns the sentences, one for each mistake.
    pub fn into_sentences(self) -> Vec<String> {
        self.0
    }
}

impl<E: std::error::Error> From<E> for StartError {
    fn from(error: E) -> StartError {
        StartError(vec![error.to_string()])
    }
}
