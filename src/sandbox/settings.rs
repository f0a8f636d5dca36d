//! The settings of a sandbox, and the bounds that its control API can change while it runs.
//!
//! The command line, the demo and tests build [`Settings`]. The defaults are the documented values
//! of Bokbasen's pages, or else the assumed worst case.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use url::Url;

use super::{Fault, World};

/// The default audience of OAuth tokens (assumed).
pub const AUDIENCE: &str = "https://api.bokbasen.io/loan/";

/// The settings of a sandbox.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The directory of the books; none keeps them in memory only.
    pub dir: Option<PathBuf>,
    /// The libraries, titles and borrowers that exist.
    pub world: World,
    /// The faults that are active at the start.
    pub faults: Vec<Fault>,
    /// The id of the OAuth client.
    pub client_id: String,
    /// The secret of the OAuth client.
    pub client_secret: SecretString,
    /// The audience of OAuth tokens.
    pub audience: String,
    /// The username for legacy tickets.
    pub username: String,
    /// The password for legacy tickets.
    pub password: SecretString,
    /// The storage whose files are below `/storage/`.
    pub storage: Option<Url>,
    /// The initial times and limits.
    pub bounds: Bounds,
}

impl Default for Settings {
    /// Returns a free port on loopback, an empty world, books in memory, and public credentials.
    fn default() -> Settings {
        Settings {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            dir: None,
            world: World::default(),
            faults: Vec::new(),
            client_id: "sandbox-client".to_owned(),
            client_secret: "sandbox-client-secret".into(),
            audience: AUDIENCE.to_owned(),
            username: "sandbox-name".to_owned(),
            password: "sandbox-password".into(),
            storage: None,
            bounds: Bounds::default(),
        }
    }
}

/// Times and limits. `PUT /sandbox/settings` changes any of them and keeps the others.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// The time until a new loan appears in listings, in milliseconds (assumed: up to 2 s).
    pub list_lag_ms: u64,
    /// The time until a GET by id finds a new loan, in milliseconds (assumed: up to 2 s). The
    /// default of 0 keeps a first trial of the sandbox fast.
    pub get_lag_ms: u64,
    /// The longest time until a received begin takes effect, in milliseconds, however late its
    /// response (assumed: 10 s).
    pub post_bound_ms: u64,
    /// The number of polls that show a new loan as PENDING.
    pub pending_polls: u32,
    /// The shortest time that a loan stays PENDING, in milliseconds.
    pub pending_ms: u64,
    /// Longest time that a loan stays PENDING, even without polls, in milliseconds (assumed: 1
    /// min).
    pub pending_limit_ms: u64,
    /// The `Retry-After` of a PENDING loan, in seconds.
    pub poll_after_seconds: u64,
    /// Maximum `retryAfter` of NO_FREE_LICENSE, in seconds: short, since many loans return early.
    pub no_free_retry_after_seconds: u64,
    /// Time after acceptance in which a loan can be cancelled, in milliseconds (assumed: 15 min).
    pub cancel_window_ms: u64,
    /// How far the sandbox's clock is ahead of the machine's, in seconds. Negative is behind.
    pub clock_skew_seconds: i64,
    /// Whether responses have a `Date` in 1970, which tells callers nothing.
    pub useless_date: bool,
    /// The lifetime of a legacy ticket, in seconds (documented: 2 hours).
    pub ticket_lifetime_seconds: u64,
    /// The lifetime of an OAuth token, in seconds.
    pub token_lifetime_seconds: u64,
    /// The number of entries on a page of a listing.
    pub page_size: usize,
    /// Whether every call below `/v1` responds with 503.
    pub down: bool,
    /// How late each answer of the storage is, in milliseconds.
    pub storage_delay_ms: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            list_lag_ms: 2_000,
            get_lag_ms: 0,
            post_bound_ms: 10_000,
            pending_polls: 1,
            pending_ms: 0,
            pending_limit_ms: 60_000,
            poll_after_seconds: 1,
            no_free_retry_after_seconds: 60,
            cancel_window_ms: 15 * 60 * 1_000,
            clock_skew_seconds: 0,
            useless_date: false,
            ticket_lifetime_seconds: 2 * 60 * 60,
            token_lifetime_seconds: 60 * 60,
            page_size: 100,
            down: false,
            storage_delay_ms: 0,
        }
    }
}

impl Bounds {
    /// Returns the shortest bounds, for tests and benches: no lags, no pending loans, no waits.
    pub fn quick() -> Bounds {
        Bounds {
            list_lag_ms: 0,
            post_bound_ms: 0,
            pending_polls: 0,
            poll_after_seconds: 0,
            ..Bounds::default()
        }
    }

    /// Returns these bounds with some values changed.
    ///
    /// # Errors
    /// Returns a sentence about the unknown key or the wrong type.
    pub(super) fn patched(
        &self,
        changes: serde_json::Map<String, serde_json::Value>,
    ) -> Result<Bounds, String> {
        let mut all = match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(all)) => all,
            Ok(_) | Err(_) => serde_json::Map::new(),
        };
        all.extend(changes);
        serde_json::from_value(serde_json::Value::Object(all)).map_err(|error| error.to_string())
    }
}
