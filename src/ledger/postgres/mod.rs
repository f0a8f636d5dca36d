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
//! | `open`, `migrations` | opening, and the schema |
//! | `index_builds` | builds large indexes beside running gates |
//! | `contraction` | removes what no gate uses any more |
//! | `store`, `lane`, `transaction` | write connections and transactions |
//! | `loans`, `delivered`, `doubts`, `retention`, `chain` | the statements of a transaction |
//! | `whole_ledger` | pages of a whole ledger, for support commands |
//! | `chain_seals`, `ended_chains` | closes the chains of processes that have ended |
//! | `head_records`, `other_chains` | records the heads of other chains in the own chains |
//! | `own_chains` | compares the own chains with what this process has committed |
//! | `library_failures` | failures of this work on a library |
//! | `verify`, `chain_walk`, `last_steps` | the verification of the audit trail |
//! | `head_files`, `recorded_heads` | what the chains are compared with |
//! | `check` | the check of every row |
//! | `prune`, `prunable`, `anchors` | the removal of old loans with their steps |
//! | `exclusive`, `copy_marks` | a ledger while no gate runs, and the marks of a copy |
//! | `earlier_processes` | compares the files of earlier processes with the database |
//! | `membership` | joins the members, renews the lease and fences silent members |
//! | `loss_detector`, `seen_renewals`, `renewals_file` | whether the database lost writes |
//! | `closed_begins` | closes the begins of all gates when the database lost steps |
//! | `epoch` | the sealed number of the times when an operator opened them |
//! | `reconcile` | opens them after a comparison with Bokbasen |
//! | `standing` | the result in memory: the name, the lease and the work of this process |
//! | `clock_difference` | how far the clocks are apart |
//! | `observer` | decides which leases have expired |
//! | `members_table` | the statements on the table `members` |
//! | `queries`, `worklist`, `listing`, `details`, `sql`, `row` | queries and their rows |
//! | `bulletins` | what the gates share for their operators |
//! | `late_begins` | the query for begins that may still be sent |
//! | `closed`, `barrier` | the change feed, and how far all processes have read it |

mod accesses;
mod anchors;
mod barrier;
mod bulletins;
mod chain;
mod chain_seals;
mod chain_walk;
mod check;
mod clock_difference;
mod closed;
mod closed_begins;
mod connect;
mod connection_url;
mod contraction;
mod copy_marks;
mod delivered;
mod details;
mod doubts;
mod earlier_processes;
mod ended_chains;
mod endpoint;
mod epoch;
mod examinations;
mod exclusive;
mod head_files;
mod head_records;
mod index_builds;
mod lane;
mod last_steps;
mod late_begins;
mod library_failures;
mod listing;
mod loans;
mod loss_detector;
mod members_table;
mod membership;
mod migrations;
mod observer;
mod open;
mod open_check;
mod other_chains;
mod own_chains;
mod password_file;
mod pool;
mod prunable;
mod prune;
mod queries;
mod reconcile;
mod recorded_heads;
mod renewals_file;
mod reports;
mod requests;
mod retention;
mod row;
mod seen_renewals;
mod server_error;
mod session;
mod settings;
mod sql;
mod standing;
mod store;
mod system_roots;
mod transaction;
mod usage;
mod verify;
mod whole_ledger;
mod worklist;

pub(super) use barrier::Barrier;
pub(super) use chain_seals::seal_copied;
pub(super) use check::check;
pub(super) use closed::{ClosedFeed, DEADLINE as FEED_DEADLINE};
pub(super) use connect::{Connector, Purpose, within};
pub use contraction::{ContractError, ContractionPlan, Obstacle, contract, plan_contraction};
pub(super) use copy_marks::lock_to_mark;
pub use endpoint::{Endpoint, ReadEndpoint, Sources};
pub(super) use exclusive::{ATTEMPTS, Deadlines, ExclusiveDatabase, RETRY_PAUSE};
pub use migrations::{MIGRATIONS, Migration};
pub(super) use open::{Opened, open};
pub use open_check::{DatabaseFinding, DatabaseFindings, check_database};
pub(super) use prune::prune;
pub(super) use queries::Queries;
pub(super) use reconcile::assume_lost_steps;
pub use reconcile::{ReconcileError, close_restored, reconcile};
pub(super) use server_error::{is_of_connection, is_of_server};
pub use settings::{ConnectionShares, PostgresSettings, longest_call};
pub(super) use sql::column;
pub(super) use verify::verify;

#[cfg(test)]
mod ended_chains_tests;
#[cfg(test)]
mod head_records_tests;
#[cfg(test)]
mod nodes_tests;
mod pauses;
#[cfg(test)]
mod plans_tests;
#[cfg(test)]
mod prune_tests;
#[cfg(test)]
mod queries_tests;
#[cfg(test)]
mod restore_tests;
#[cfg(test)]
pub(super) mod test_support;
#[cfg(test)]
mod verify_tests;
