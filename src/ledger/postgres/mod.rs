//! PostgreSQL as the store of the ledger: the settings, and connections to the database.
//!
//! Only the rest of `ledger` calls this module. `config` builds its [`PostgresSettings`].
//!
//! | module | what it does |
//! |---|---|
//! | `settings` | the keys of `[ledger]` |
//! | `endpoint`, `connection_url`, `password_file` | where the database is, and the password |
//! | `connect`, `system_roots` | connections to the host that accepts writes |
//! | `pool`, `server_error` | a bounded pool for short transactions |
//! | `open_check` | whether a database suits a ledger |

mod connect;
mod connection_url;
mod endpoint;
mod open_check;
mod password_file;
#[allow(dead_code, reason = "the PostgreSQL store will use it")]
mod pool;
mod server_error;
mod settings;
mod system_roots;

pub use endpoint::{Endpoint, ReadEndpoint, Sources};
pub use open_check::{DatabaseFinding, DatabaseFindings, check_database};
pub use settings::{ConnectionShares, Listen, PostgresSettings, longest_call};

#[cfg(test)]
mod test_support;
