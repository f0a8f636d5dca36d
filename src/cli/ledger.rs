//! `loangate ledger`: a backup of the ledger and a check of it, also beside a running gate.

use std::path::PathBuf;

use super::{CliError, say};
use crate::ledger;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Copy the ledger, whole, into a file that is not there yet.
    Backup {
        /// The copy.
        file: PathBuf,
        /// The configuration that names the ledger.
        #[arg(long, default_value = "config.toml")]
        config: PathBuf,
    },
    /// Check everything that is in the ledger; exit with 1 where something is wrong.
    Check {
        /// The configuration that names the ledger.
        #[arg(long, default_value = "config.toml")]
        config: PathBuf,
    },
}

pub(super) async fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Backup { file, config } => {
            let config = super::load(&config)?;
            ledger::backup(&config.ledger.file, &file).await.map_err(CliError::new)?;
            say(&format!("copied {} to {}", config.ledger.file.display(), file.display()))
        }
        Command::Check { config } => {
            let config = super::load(&config)?;
            let found = ledger::check(&config.ledger.file).await.map_err(CliError::new)?;
            if found.is_empty() {
                return say(&format!("{} is good", config.ledger.file.display()));
            }
            Err(CliError::all(found))
        }
    }
}
