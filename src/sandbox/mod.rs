//! Bokbasen's stand-in: an HTTP server that keeps to what Bokbasen's pages and our assumptions say,
//! and that misbehaves on request.
//!
//! The command line, the demo, tests and benches start it, and speak to it over HTTP only. It may
//! call the domain, the clock and telemetry, and never `lending`: its wire types are its own, so
//! that a mistake in one shows against the other. It promises to be strict (authentication, `Date`,
//! bodies, states), never to deduplicate a reference, and to have written a loan into its books
//! before it answers.
//!
//! Besides `/v1/…`, `/oauth/token` and `/reporting/loan/v1` it has its own control API, without
//! authentication: `GET /sandbox/books`; `GET`, `PUT`, `POST` and `DELETE /sandbox/faults` (a list
//! of [`Fault`]); `GET` and `PUT /sandbox/settings` ([`Bounds`]); `POST /sandbox/loans`, `PUT
//! /sandbox/titles/{isbn}` ([`Title`]), `PUT /sandbox/libraries/{isil}` and `PUT
//! /sandbox/borrowers/{pseudonym}` (`{"refuse": CODE}`, or null).

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
#[cfg(test)]
mod tests;
mod world;

pub use faults::{Call, Effect, Fault};
pub use serve::{Running, Sandbox, SandboxError};
pub use settings::{AUDIENCE, Bounds, Settings};
pub use world::{BorrowerRule, Library, Licence, LicenceType, Origin, Pseudonym, Title, World};
