//! `loangate ledger` and `loangate audit`: a backup of the ledger, a check of it, and a walk through its audit trail; also
//! beside a running gate.

use std::path::PathBuf;

use super::{CliError, say};
use crate::clock::Clock;
use crate::ledger::{self, AuditKey};
use crate::reader::Readers;

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

#[derive(Debug, clap::Subcommand)]
pub(super) enum Audit {
    /// Walk the chain of all steps of all loans; exit with 1 where one was changed, taken out or put elsewhere.
    Verify {
        /// The configuration that names the ledger and the pseudonym key.
        #[arg(long, default_value = "config.toml")]
        config: PathBuf,
    },
}

pub(super) async fn audit(command: Audit) -> Result<(), CliError> {
    let Audit::Verify { config } = command;
    let config = super::load(&config)?;
    let readers = Readers::new(&config.readers, Clock::system()).map_err(CliError::new)?;
    let key = AuditKey::new(&readers.audit_key());
    let verified = ledger::verify(&config.ledger.file, &key).await.map_err(CliError::new)?;
    if verified.findings.is_empty() {
        return say(&format!("{} steps, each as it was written", verified.head.number));
    }
    Err(CliError::all(verified.findings))
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
