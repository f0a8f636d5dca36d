//! loangate: a streaming HTTPS gate that hands out e-books and audiobooks only under a loan that Bokbasen, the
//! Norwegian book trade's lending platform, has accepted.
//!
//! A request walks one line: [`reader`] (who asks) → [`catalog`] (what is asked) → `gate` (may they) → `delivery`
//! (the file, from an origin). Beside the line, `circulation` leads each loan's life, with the [`ledger`] as
//! its memory and `lending` as its way to Bokbasen.
//!
//! Built so far, and documented here: the vocabulary ([`loan`], [`path`], [`problem`], [`clock`]),
//! [`telemetry`], [`reader`], [`catalog`] and [`ledger`], and Bokbasen's stand-in, [`sandbox`]. The README says what stands beside them.

pub mod admin;
pub mod catalog;
pub mod circulation;
pub mod cli;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod gate;
pub mod ledger;
pub mod lending;
pub mod loan;
pub mod origin;
pub mod path;
pub mod problem;
pub mod reader;
pub mod samples;
pub mod sandbox;
pub mod server;
pub mod telemetry;
