//! Integration tests in one binary, so that the gate is linked once.
//!
//! Most tests start a gate in this process, between the sandbox and a scripted origin, and call it
//! over TLS. Tests of memory and of commands start the built program. Crash tests are a binary of
//! their own. `support` holds the shared code.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

// Shared with `tests/crash`, which uses other parts of it.
#[allow(dead_code)]
#[path = "../support/mod.rs"]
mod support;
#[path = "../conformance/table.rs"]
mod table;

mod access_log;
mod accesses;
mod acme;
mod admin;
mod admin_socket;
mod admin_tls;
mod balance;
mod brake;
mod browser;
mod bulkheads;
mod clock_skew;
mod closed_windows;
mod cluster;
mod command_manners;
mod command_pages;
mod config;
mod config_variables;
mod conformance_lending;
mod conformance_sandbox;
mod console;
mod console_browser;
mod console_library;
mod console_live;
mod console_oidc;
mod cors;
mod damaged_rows;
mod dashboards;
mod demo_page;
mod diagnostics;
mod directories;
mod dispositions;
mod documents;
mod download_clients;
mod drain;
mod drill;
mod erasure;
mod examples;
mod explain;
mod full_disk;
mod healthcheck;
mod hls;
mod i1_no_byte;
mod i2_one_loan;
mod i3_every_loan_ends;
mod i7_an_end_is_final;
mod installed_package;
mod interleavings;
mod kubernetes;
mod lagging_reads;
mod layering;
mod ledger_copy;
mod lending_pause;
mod licences;
mod limits;
mod links;
mod loans_api;
mod login_services;
mod long_outage;
mod main_job;
mod media_players;
mod memory;
mod metering;
mod open_routes;
mod openapi;
mod origin_amplification;
mod origin_faults;
mod origin_framing;
mod origin_resume;
#[cfg(feature = "otlp")]
mod otlp;
mod outage;
mod packages;
mod path_tricks;
mod polls;
mod postgres_support;
mod privacy;
mod proxy_protocol;
mod prune;
mod public_addresses;
mod readme;
mod reference;
mod refusals;
mod reload;
mod renewed_certificates;
mod reports;
mod restore;
mod retention;
mod rfc9110;
mod runtime_diagnostics;
mod sandbox_command;
mod security_document;
mod security_headers;
mod service_manager;
mod service_unit;
mod session_tickets;
mod several_ranges;
mod silence;
mod slow_readers;
mod status;
mod storages;
mod stored_requests;
mod supervision;
mod support_commands;
mod thread_priority;
mod title_table;
mod tls_choice;
mod top;
mod two_processes;
mod upgrade;
mod watch;
mod worker_placement;
