//! Several gates on one ledger, as processes: loans are begun once, an end reaches every gate, and
//! faults of gates, database and Bokbasen break no invariant.
//!
//! Each scenario of both stores is a function of its [`Store`]. Those of PostgreSQL are skipped
//! where it is not installed.

mod ends;
mod example;
mod expiries;
mod failover;
mod faults;
mod judge;
mod moved;
mod outage;
mod registrations;
mod rounds;
mod upgrade;
mod watch;
