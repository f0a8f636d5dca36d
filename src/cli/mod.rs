//! The command line: the one place that may call everything.
//!
//! Each command is a file; each ends in success or in a [`CliError`], whose sentences go to
//! standard error.

mod admin_client;
mod check;
mod demo;
mod init;
mod ledger;
mod loans;
mod sandbox;
pub mod serve;
mod signals;
mod token;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// A streaming HTTPS gate that hands out e-books and audiobooks only under a loan that Bokbasen has
/// accepted.
#[derive(Debug, Parser)]
#[command(name = "loangate", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve files, as the configuration says.
    Serve(serve::Args),
    /// Start everything at once to try it out: Bokbasen's stand-in, a small storage, and the gate
    /// before it.
    Demo(demo::Args),
    /// List every mistake in a configuration; exit with 1 where there is one.
    Check(check::Args),
    /// Write a configuration for development, with keys and certificates of its own; overwrite
    /// nothing.
    Init {
        /// Where to.
        #[arg(long, default_value = ".")]
        dir: PathBuf,
    },
    /// Start Bokbasen's stand-in alone.
    Sandbox(sandbox::Args),
    /// Make a reader's token or a signed link, with the keys of a configuration.
    #[command(subcommand)]
    Token(token::Kind),
    /// Copy and check the ledger, also of a running gate.
    #[command(subcommand)]
    Ledger(ledger::Command),
    /// Walk through the audit trail of the ledger.
    #[command(subcommand)]
    Audit(ledger::Audit),
    /// See and end the loans of a running gate.
    #[command(subcommand)]
    Loans(loans::Command),
}

/// Why a command failed: one sentence or several.
#[derive(Debug)]
pub struct CliError(Vec<String>);

impl CliError {
    fn new(error: impl fmt::Display) -> CliError {
        CliError(vec![error.to_string()])
    }

    /// Logs each sentence, so that it has the form of the log, and leaves none to print.
    fn log(self, what: &'static str) -> CliError {
        for error in &self.0 {
            tracing::error!(error, "{what}");
        }
        CliError(Vec::new())
    }

    fn all<E: fmt::Display>(errors: impl IntoIterator<Item = E>) -> CliError {
        CliError(errors.into_iter().map(|error| error.to_string()).collect())
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// Runs a command to its end.
pub fn run(cli: Cli) -> ExitCode {
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.0.is_empty() {
                let _ = writeln!(std::io::stderr(), "{error}");
            }
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<(), CliError> {
    match command {
        Command::Serve(args) => block_on(serve::run(args)),
        Command::Demo(args) => block_on(demo::run(args)),
        Command::Check(args) => block_on(check::run(args)),
        Command::Init { dir } => init::run(&dir).and_then(|lines| say(&lines.join("\n"))),
        Command::Sandbox(args) => block_on(sandbox::run(args)),
        Command::Token(kind) => token::run(kind),
        Command::Ledger(command) => block_on(ledger::run(command)),
        Command::Audit(command) => block_on(ledger::audit(command)),
        Command::Loans(command) => block_on(loans::run(command)),
    }
}

/// Runs on the runtime of the slow work: ledger, Bokbasen, admin. Readers have threads of their
/// own.
fn block_on(command: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("slow")
        .enable_all()
        .build()
        .map_err(CliError::new)?;
    let result = runtime.block_on(command);
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// Writes to standard output. A reader of it that has gone is no failure.
fn say(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    Ok(())
}

/// Loads a configuration, with its warnings to standard error.
fn load(config: &std::path::Path) -> Result<crate::config::Config, CliError> {
    let loaded = crate::config::load(config).map_err(CliError::all)?;
    for warning in &loaded.warnings {
        let _ = writeln!(std::io::stderr(), "warning: {warning}");
    }
    Ok(loaded.config)
}
