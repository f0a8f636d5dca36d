//! What a sandbox is started with, and the bounds that its control API can change while it runs.
//!
//! The command line, the demo and tests build [`Settings`]; the sandbox reads them. It calls
//! nothing of ours but the sandbox's world and faults. The defaults are those of Bokbasen's pages
//! where one is documented, and otherwise the assumed worst case.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{Fault, World};

/// The audience that an OAuth token is asked for, unless the settings say otherwise (assumed).
pub const AUDIENCE: &str = "https://api.bokbasen.io/loan/";

/// What a sandbox is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where its books are kept, so that they survive a restart; none keeps them in memory.
    pub dir: Option<PathBuf>,
    /// What it knows of libraries, titles and borrowers.
    pub world: World,
    /// The faults that it starts with.
    pub faults: Vec<Fault>,
    /// The OAuth client that it knows.
    pub client_id: String,
    /// That client's secret.
    pub client_secret: SecretString,
    /// The audience that its OAuth tokens are for.
    pub audience: String,
    /// The name that it knows for legacy tickets.
    pub username: String,
    /// The password that goes with it.
    pub password: SecretString,
    /// Times and limits.
    pub bounds: Bounds,
}

impl Default for Settings {
    /// A free port on loopback, an empty world, books in memory, and credentials that are no
    /// secret.
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
            bounds: Bounds::default(),
        }
    }
}

/// Times and limits, as `PUT /sandbox/settings` changes them (any of them, the others stay).
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// How long after its begin a loan shows in listings, in milliseconds (assumed: up to 2 s).
    pub list_lag_ms: u64,
    /// How long after its begin a GET by id answers 404 for a loan, in milliseconds. Assumed: up to
    /// 2 s. The default of 0 keeps a first try of the sandbox quick.
    pub get_lag_ms: u64,
    /// Within what time of its arrival a begin takes effect, in milliseconds, however long its
    /// answer is delayed (assumed: 10 s).
    pub post_bound_ms: u64,
    /// How many times a loan is shown PENDING to who asks for it.
    pub pending_polls: u32,
    /// How long a loan stays PENDING at least, in milliseconds.
    pub pending_ms: u64,
    /// After how long a loan is decided although nobody asked for it, in milliseconds (assumed: a
    /// minute).
    pub pending_limit_ms: u64,
    /// The Retry-After of a PENDING loan, in seconds.
    pub poll_after_seconds: u64,
    /// The largest `retryAfter` of NO_FREE_LICENSE, in seconds: loans come back before they are
    /// due.
    pub no_free_retry_after_seconds: u64,
    /// How long after its acceptance a loan can be cancelled, in milliseconds (assumed: 15
    /// minutes).
    pub cancel_window_ms: u64,
    /// How far the sandbox's clock is ahead of ours, in seconds; negative is behind.
    pub clock_skew_seconds: i64,
    /// Whether answers bear a `Date` of 1970, which says nothing.
    pub useless_date: bool,
    /// How long a legacy ticket lives, in seconds (documented: 2 hours).
    pub ticket_lifetime_seconds: u64,
    /// How long an OAuth token lives, in seconds.
    pub token_lifetime_seconds: u64,
    /// How many entries a page of a listing has.
    pub page_size: usize,
    /// Whether every call below `/v1` answers 503.
    pub down: bool,
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
        }
    }
}

impl Bounds {
    /// The shortest bounds: nothing lags, nothing pends, nobody is told to wait. For tests and
    /// benches.
    pub fn quick() -> Bounds {
        Bounds {
            list_lag_ms: 0,
            post_bound_ms: 0,
            pending_polls: 0,
            poll_after_seconds: 0,
            ..Bounds::default()
        }
    }

    /// These bounds with some of them changed.
    ///
    /// # Errors
    /// A sentence that names the key that is unknown or of the wrong type.
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
