//! The Bokbasen stand-in: an HTTP server that follows Bokbasen's pages and our assumptions, and
//! misbehaves on request.
//!
//! The command line, the demo, tests and benches start it and call it over HTTP only. It may call
//! the domain, the clock and telemetry, but never `lending`. Its wire types are its own, so that a
//! mistake in one shows against the other. It is strict about authentication, `Date`, bodies and
//! states. It never deduplicates a reference, and stores a loan in its books before it responds.
//!
//! Besides `/v1/…`, `/oauth/token` and `/reporting/loan/v1` it has a control API without
//! authentication: `GET /sandbox/books`; `GET`, `PUT`, `POST` and `DELETE /sandbox/faults` (a list
//! of [`Fault`]); `GET` and `PUT /sandbox/settings` ([`Bounds`]); `POST /sandbox/loans`, `PUT
//! /sandbox/titles/{isbn}` ([`Title`]), `PUT /sandbox/libraries/{isil}` and `PUT
//! /sandbox/borrowers/{pseudonym}` (`{"refuse": CODE}`, or null). Below `/storage/` it relays the
//! files of a storage, if it was given one.

mod api_types;
mod auth;
mod calls;
mod context;
mod control;
mod error_response;
mod faults;
mod journal;
mod licence_pools;
mod loan;
mod loan_store;
mod lookup;
mod paging;
mod serde_text;
mod serve;
mod settings;
mod state;
mod storage;
#[cfg(test)]
mod tests;
mod world;

pub use faults::{Call, Effect, Fault};
pub use serve::{Running, Sandbox, SandboxError};
pub use settings::{AUDIENCE, Bounds, Settings};
pub use world::{BorrowerRule, Library, Licence, LicenceType, Origin, Pseudonym, Title, World};
