//! The status of a gate, as far as `loangate top` shows it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::CliError;

/// One answer of `/api/v1/status`.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) node: String,
    pub(super) version: String,
    pub(super) process: u32,
    pub(super) started: Timestamp,
    pub(super) serving: Serving,
    pub(super) problems: u64,
    pub(super) gates: u64,
    #[serde(flatten)]
    pub(super) from_ledger: FromLedger,
    pub(super) last_minute: Option<LastMinute>,
    pub(super) counts: Counts,
    pub(super) current: Current,
}

/// What the gate reads from its ledger, if the request wants it and the ledger answers.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct FromLedger {
    pub(super) loans: Option<u64>,
    pub(super) pauses: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Serving {
    pub(super) components: Components,
}

#[derive(Debug, Deserialize)]
pub(super) struct Components {
    pub(super) reading: Component,
    pub(super) borrowing: Component,
    pub(super) returning: Component,
}

#[derive(Debug, Deserialize)]
pub(super) struct Component {
    pub(super) status: String,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct LastMinute {
    /// The age of the oldest end that waits, in seconds.
    pub(super) oldest_end: u64,
}

/// What the gate has counted since its start.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Counts {
    pub(super) loans: u64,
    pub(super) answered: BTreeMap<String, u64>,
    pub(super) refused: BTreeMap<String, u64>,
    pub(super) bytes: u64,
    pub(super) lending: Calls,
    pub(super) origins: BTreeMap<String, Calls>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Calls {
    pub(super) answered: u64,
    pub(super) failed: u64,
}

/// What the gate has at this moment.
#[derive(Debug, Deserialize)]
pub(super) struct Current {
    pub(super) connections: u64,
    pub(super) connections_limit: u64,
    pub(super) streams: u64,
    pub(super) ends_waiting: u64,
    pub(super) ledger_writable: bool,
}

impl Status {
    pub(super) fn parse(document: Value) -> Result<Status, CliError> {
        serde_json::from_value(document).map_err(|error| {
            CliError::new(format!(
                "the status of the gate cannot be read: {error}. The gate may have another \
                 version than this command"
            ))
        })
    }
}
