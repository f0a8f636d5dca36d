//! The command line, which `main` calls. It may call all other modules; `app` builds and runs the
//! gate.
//!
//! Each command has a file. It returns success or a [`CliError`], whose sentences go to standard
//! error. `output` prints results and errors, `progress` shows long work.

mod accesses;
mod admin_client;
mod admin_route;
mod audit_verify;
mod balance;
mod check;
mod client_tls;
mod completions;
mod demo;
mod drill;
mod explain;
mod healthcheck;
mod init;
mod ledger;
mod ledger_contract;
mod ledger_copy;
mod lending;
mod loans;
mod man_pages;
mod output;
mod privacy;
mod problems;
mod progress;
mod reconcile;
mod reload;
mod report;
mod sandbox;
mod serve;
mod signals;
mod status;
mod token;
mod top;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::listeners::Activated;
pub use output::CliError;
use output::{json_text, load, printable, say, show, show_lines};

/// Shown below the help, and in the manual page.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed, or a person must do something
  2  the arguments are wrong";

/// A streaming HTTPS gate that delivers e-books and audiobooks only under a loan that Bokbasen has
/// accepted.
#[derive(Debug, Parser)]
#[command(name = "loangate", version, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve files, as the configuration says.
    Serve(serve::Args),
    /// Start a complete demo: a Bokbasen stand-in, a small storage, and the gate.
    Demo(demo::Args),
    /// List every mistake in a configuration; exit with 1 if there is one.
    Check(check::Args),
    /// Write a development configuration, with its own keys and certificates; never overwrite a
    /// file.
    Init {
        /// Directory to write to; created if it is missing.
        #[arg(long, default_value = ".")]
        dir: PathBuf,
    },
    /// Start only the Bokbasen stand-in.
    Sandbox(sandbox::Args),
    /// Create a reader's token or a signed link, with the keys of a configuration.
    #[command(subcommand)]
    Token(token::Kind),
    /// Back up, check, prune, copy, reconcile and contract the ledger.
    #[command(subcommand)]
    Ledger(ledger::Command),
    /// Verify the ledger's audit trail, or list who looked at loans.
    #[command(subcommand)]
    Audit(ledger::Audit),
    /// Show and end the loans of a running gate.
    #[command(subcommand)]
    Loans(loans::Command),
    /// Pause and resume lending at a running gate, or list the pauses.
    #[command(subcommand)]
    Lending(lending::Command),
    /// Export or erase what the ledger has about one person.
    #[command(subcommand)]
    Privacy(privacy::Command),
    /// Show what a running gate is and does; exit with 1 if it serves no reader.
    Status(admin_client::GateArgs),
    /// Show what a running gate does, again each second, until Ctrl-C.
    Top(top::Args),
    /// List what needs a person now, as a running gate sees it; exit with 1 if it is critical.
    Problems(admin_client::GateArgs),
    /// Check that the gate of this machine serves readers; exit with 1 if it does not.
    Healthcheck(healthcheck::Args),
    /// Let a running gate reload its configuration, and print what changed.
    Reload(admin_client::GateArgs),
    /// Say what a request for a file would get from a running gate, and why; begin no loan.
    Explain(explain::Args),
    /// Run faults against a staging gate and its sandbox, and check the books; exit with 1 if a
    /// check fails.
    Drill(drill::Args),
    /// Show the usage reports of a month, or settle one that a person must look at.
    Report(report::Args),
    /// Print the completions of a shell.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: completions::Shell,
    },
    /// Write the manual pages, one for each command.
    #[command(hide = true)]
    Man {
        /// Directory to write to; created if it is missing.
        dir: PathBuf,
    },
}

/// Parses the command line, runs the command, and returns its exit code.
pub fn run() -> ExitCode {
    let matches = Cli::command().get_matches();
    let is_json = has_json(&matches);
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.format(&mut Cli::command()).exit(),
    };
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.print(is_json),
    }
}

/// Returns whether the result, and so the errors, are wanted as JSON.
fn has_json(matches: &ArgMatches) -> bool {
    match matches.subcommand() {
        // Their `--json` is the form of the line that says they are ready.
        Some(("serve" | "sandbox", _)) => false,
        Some((_, below)) => has_json(below),
        None => matches!(matches.try_get_one("json"), Ok(Some(true))),
    }
}

fn execute(command: Command) -> Result<(), CliError> {
    match command {
        Command::Serve(args) => {
            // Before there are threads: it removes variables from the environment.
            let activated = Activated::take().map_err(CliError::new)?;
            block_on(serve::run(args, activated))
        }
        Command::Demo(args) => block_on(demo::run(args)),
        Command::Check(args) => block_on(check::run(args)),
        Command::Init { dir } => init::run(&dir).and_then(|lines| say(&lines.join("\n"))),
        Command::Sandbox(args) => block_on(sandbox::run(args)),
        Command::Token(kind) => token::run(kind),
        Command::Ledger(command) => block_on(ledger::run(command)),
        Command::Audit(command) => block_on(ledger::audit(command)),
        Command::Loans(command) => block_on(loans::run(command)),
        Command::Lending(command) => block_on(lending::run(command)),
        Command::Privacy(command) => block_on(privacy::run(command)),
        Command::Status(gate) => block_on(status::run(gate)),
        Command::Top(args) => block_on(top::run(args)),
        Command::Problems(gate) => block_on(problems::run(gate)),
        Command::Healthcheck(args) => block_on(healthcheck::run(args)),
        Command::Reload(gate) => block_on(reload::run(gate)),
        Command::Explain(args) => block_on(explain::run(args)),
        Command::Drill(args) => block_on(drill::run(args)),
        Command::Report(args) => block_on(report::run(args)),
        Command::Completions { shell } => completions::run(shell),
        Command::Man { dir } => man_pages::run(&dir),
    }
}

/// Runs a command on the runtime for slow work. Readers have their own threads.
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
