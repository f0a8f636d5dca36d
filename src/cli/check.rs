//! `loangate check`: reports every mistake in a configuration, with its line.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::{CliError, say};
use crate::config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration to check.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    /// Test the network too: Bokbasen's login, API and clock, every address of every origin, the
    /// ledger's database, and the keys of every login service.
    #[arg(long)]
    online: bool,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let checked = config::check(&args.config, args.online).await;
    let mut text = String::new();
    for found in checked.found.iter().filter(|_| args.online) {
        let _ = writeln!(text, "ok: {found}");
    }
    for warning in &checked.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    if checked.mistakes.is_empty() {
        let _ = write!(text, "{} is good", args.config.display());
        return say(&text);
    }
    if !text.is_empty() {
        say(text.trim_end())?;
    }
    Err(CliError::all(checked.mistakes))
}
