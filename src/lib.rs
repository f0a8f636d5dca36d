//! loangate: a streaming HTTPS gate that hands out e-books and audiobooks only under a loan that
//! Bokbasen, the Norwegian book trade's lending platform, has accepted.
//!
//! # A request's way
//!
//! [`server`] accepts the connection and walks the line: [`reader`] (who asks) → [`catalog`] (what
//! is asked) → [`gate`] (may they) → [`delivery`] (the bytes, from an [`origin`]). The gate looks
//! in its cache; on a miss it asks [`circulation`], which leads each loan's life with the
//! [`ledger`] as its memory and [`lending`] as its way to Bokbasen, on a runtime of its own. Beside
//! the line stand [`admin`] for operators, [`sandbox`], Bokbasen's stand-in, and [`samples`],
//! something to lend; [`metering`] notes what was delivered under each loan. [`config`] builds
//! every module's Settings; [`cli`] starts it all.
//!
//! # Who may call whom
//!
//! The vocabulary ([`loan`], [`path`], [`problem`], [`clock`], [`buffer_budget`],
//! [`connection_handle`], and `crash`, where tests let it die) calls nothing else of ours, and
//! everyone may call it and [`telemetry`]. Besides, and nothing upwards; a test reads the sources
//! against this table:
//!
//! | module | may call |
//! |---|---|
//! | `ledger`, `lending`, `origin`, `supervise` | |
//! | `circulation` | `ledger`, `lending`, `supervise` |
//! | `reader`, `catalog` | |
//! | `metering` | `ledger`, `supervise` |
//! | `gate` | `circulation` |
//! | `delivery` | `origin`, `metering`, the permit of `gate`, the files of `catalog` |
//! | `server` | `reader`, `catalog`, `gate`, `delivery`, `ledger` (to read), `supervise` |
//! | `admin` | `ledger` (to read), `gate` (to end), `circulation` (to balance), `reader` (to mint links), `catalog`, `supervise` |
//! | `sandbox`, `samples` | |
//! | `config` | every module's Settings; `check` lets the modules open their files |
//! | `cli` | everything |
//!
//! # Words
//!
//! * **library**: who lends, by its ISIL. **borrower**: the person, known here only by a pseudonym.
//!   **reader**: an authenticated request's subject, a borrower of a library. **title**: what is
//!   lent, by its ISBN. **licence**: what a library has of a title. **loan**: one borrower's of one
//!   title, from its begin to its end.
//! * **begin**, **return**, **cancel**: Bokbasen's verbs. To *register* is to tell Bokbasen;
//!   **accepted**, **refused** and **pending** are its answers.
//! * **intent**: a begin that is written down before it is sent. **reference**: by what a begin is
//!   found again.
//! * **decision**: what the gate knows about a reader and a title. **flight**: finding that out,
//!   once for all who wait. **permit**: the decision's yes, and the only key to delivery.
//! * **origin**, **representation**, **range**, **validator**: as in RFC 9110.

pub mod admin;
pub mod buffer_budget;
pub mod catalog;
pub mod circulation;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connection_handle;
mod crash;
pub mod delivery;
pub mod gate;
pub mod ledger;
pub mod lending;
pub mod loan;
pub mod metering;
pub mod origin;
pub mod path;
pub mod problem;
pub mod reader;
pub mod samples;
pub mod sandbox;
pub mod server;
mod supervise;
pub mod telemetry;
