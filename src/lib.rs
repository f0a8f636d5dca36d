//! loangate: a streaming HTTPS reverse proxy that delivers e-books and audiobooks only under a loan
//! that Bokbasen, the Norwegian book trade's lending platform, has accepted.
//!
//! # The path of a request
//!
//! [`server`] accepts the connection and passes each request through four steps: [`reader`]
//! authenticates it, [`catalog`] resolves its path to a title, [`gate`] decides whether the reader
//! has a loan of that title, and [`delivery`] streams the bytes from an [`origin`].
//!
//! The gate looks decisions up in its cache. On a miss it calls [`circulation`], which drives each
//! loan from begin to end on a runtime of its own, records every step in the [`ledger`], and
//! registers loans at Bokbasen through [`lending`]. [`metering`] counts the bytes delivered under
//! each loan.
//!
//! [`acme`] orders the certificate of the listener. [`monitor`] watches the gate for problems.
//! [`admin`] serves operators and support staff, and mounts their [`console`]. [`sandbox`]
//! simulates Bokbasen, and [`samples`] provides files for the demo. [`config`] builds the Settings
//! of every module. [`app`] builds all parts from them, connects them and runs them, and [`cli`] is
//! the command line.
//!
//! # Layers
//!
//! A module calls only the modules in its rows. Every module may also call those that call only
//! each other, and all but those may call [`telemetry`]. The test `it::layering` compares this
//! table with the sources.
//!
//! | module | may call |
//! |---|---|
//! | `accept`, `buffer_budget`, `clock`, `connection_handle`, `crash` | each other |
//! | `lock`, `loopback`, `low_priority`, `near_cache`, `reload`, `service_manager` | each other |
//! | `client_networks`, `durable_file`, `http_calls`, `language`, `loan` | each other |
//! | `path`, `problem`, `public_addresses`, `spreadsheet` | each other |
//! | `telemetry`, `process_handles`, `supervise`, `lending`, `origin` | |
//! | `listeners` | |
//! | `ledger` | `supervise` |
//! | `circulation` | `ledger`, `lending`, `process_handles`, `supervise` |
//! | `reader`, `catalog` | |
//! | `metering` | `ledger`, `supervise` |
//! | `gate` | `circulation`, `process_handles` |
//! | `delivery` | `origin`, `metering`, `gate` (the permit), `catalog` (files) |
//! | `server` | `reader`, `catalog`, `gate`, `delivery`, `ledger` (reads, requests), `supervise` |
//! | `server` | `origin` (its Settings and errors) |
//! | `acme` | `server` (loads and checks certificates) |
//! | `monitor` | `circulation`, `ledger` (counts), `lending`, `process_handles`, `supervise` |
//! | `console` | `catalog`, `circulation`, `gate` (ends loans), `ledger` (reads, accesses) |
//! | `console` | `monitor`, `reader` (links, OpenID providers), `server` (explanations, routes) |
//! | `admin` | `console`, `circulation` (balances), `gate` (ends loans), `monitor` |
//! | `admin` | `ledger` (reads, accesses) |
//! | `admin` | `reader` (mints links), `server` (explanations, routes), `supervise` |
//! | `sandbox`, `samples` | |
//! | `config` | `acme`, `admin`, `catalog`, `circulation`, `console`, `delivery` (their Settings) |
//! | `config` | `gate`, `ledger`, `listeners` (their Settings) |
//! | `config` | `lending`, `metering`, `monitor`, `origin`, `reader`, `server` (their Settings) |
//! | `app` | `acme`, `admin`, `catalog`, `circulation`, `config`, `delivery`, `gate` |
//! | `app` | `ledger`, `lending`, `listeners`, `metering`, `monitor`, `process_handles` |
//! | `app` | `reader`, `server`, `supervise` |
//! | `cli` | everything |
//!
//! # Glossary
//!
//! * **library**: the lender, identified by its ISIL. **borrower**: a person, known only by a
//!   pseudonym. **reader**: the subject of an authenticated request, a borrower of a library.
//!   **title**: what is lent, identified by its ISBN. **licence**: a library's right to lend a
//!   title. **loan**: one borrower's loan of one title, from begin to end.
//! * **begin**, **return**, **cancel**: Bokbasen's operations on a loan. To *register* a loan is to
//!   begin it at Bokbasen. **accepted**, **refused**, **pending**: Bokbasen's answers.
//! * **intent**: a begin that the ledger records before it is sent. **reference**: the id that the
//!   gate gives a begin, by which Bokbasen can be searched for it.
//! * **decision**: the cached result for a reader and a title. **flight**: one lookup of a
//!   decision, shared by all requests that wait for it. **permit**: a positive decision, which
//!   [`delivery`] requires.
//! * **chain**: steps of loans, linked by keyed hashes. **head**: its newest link. **anchor**: what
//!   replaces pruned steps in a chain. **head record**: a step in which a chain names the heads of
//!   the other chains of its library. **seal**: a keyed hash of a row that is no step. **access**:
//!   a step in which the chain names who of the staff looked at loans, and why.
//! * **origin**, **representation**, **range**, **validator**: as in RFC 9110.

// The map above names private modules too. `cargo docs` documents them.
#![allow(rustdoc::private_intra_doc_links)]

mod accept;
pub mod acme;
mod admin;
pub mod app;
mod buffer_budget;
pub mod catalog;
pub mod circulation;
pub mod cli;
mod client_networks;
pub mod clock;
pub mod config;
mod connection_handle;
mod console;
mod crash;
mod delivery;
mod durable_file;
pub mod gate;
mod http_calls;
pub mod language;
pub mod ledger;
pub mod lending;
mod listeners;
pub mod loan;
mod lock;
mod loopback;
mod low_priority;
mod metering;
mod monitor;
pub mod near_cache;
mod origin;
pub mod path;
pub mod problem;
pub mod process_handles;
mod public_addresses;
pub mod reader;
mod reload;
pub mod samples;
pub mod sandbox;
mod server;
mod service_manager;
mod spreadsheet;
mod supervise;
pub mod telemetry;
