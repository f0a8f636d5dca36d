//! Real PostgreSQL servers and PgBouncer, from Debian's packages, on loopback ports.
//!
//! Most tests share one server and have a database each:
//!
//! ```rust,ignore
//! let Some(server) = Postgres::shared().await else { return };
//! let database = server.database().await;
//! open(&database.url()).await;
//! ```
//!
//! A test that kills, pauses or configures a server starts its own. Where a program is missing, the
//! functions return `None`, and the test is skipped (see `external_program`). No server survives
//! the test process, even if that is killed.
//!
//! Unit tests of `src` may include this folder by `#[path]`, with `allow(dead_code,
//! unused_imports)`. So it uses nothing of the product, and of the other support only
//! `external_program`, which must be its sibling module.

mod account;
mod authority;
mod database;
mod folder;
mod pgbouncer;
mod server;
mod watched_process;

use std::time::Duration;

pub(crate) use authority::Authority;
pub(crate) use database::Database;
pub(crate) use pgbouncer::PgBouncer;
pub(crate) use server::Postgres;

/// The superuser.
const ADMIN: &str = "postgres";
/// The owner of the tests' databases, with no other right.
const ROLE: &str = "gate";
/// Timeout for a start, also on a machine that is busy with other tests.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Starts on another port, if another program took the first.
const MAX_START_ATTEMPTS: usize = 5;
