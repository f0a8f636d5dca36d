//! `loangate ledger` and `loangate audit`: a backup of the ledger, a check of it, pruning of it,
//! and a walk through its audit trail; also beside a running gate.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::{CliError, say};
use crate::clock::{self, Clock};
use crate::config::Config;
use crate::ledger::{self, AuditKey, Prunable};
use crate::reader::Readers;

/// The age of the youngest loan that may be pruned.
const YOUNGEST_PRUNED: Duration = Duration::from_secs(86_400);

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
    /// Remove loans that ended before a date, were reported, and whose borrower is forgotten; also
    /// beside a running gate.
    ///
    /// The audit trail still verifies: an anchor takes the place of their steps. Make a backup
    /// first if you want them archived.
    Prune {
        /// A date (2026-01-31, at midnight UTC) or a time, at least a day ago.
        #[arg(long, value_parser = date)]
        before: Timestamp,
        /// The configuration that names the ledger and the pseudonym key.
        #[arg(long, default_value = "config.toml")]
        config: PathBuf,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Audit {
    /// Walk the chain of all steps of all loans; exit with 1 where one was changed, taken out or
    /// put elsewhere.
    Verify {
        /// The configuration that names the ledger and the pseudonym key.
        #[arg(long, default_value = "config.toml")]
        config: PathBuf,
    },
}

pub(super) async fn audit(command: Audit) -> Result<(), CliError> {
    let Audit::Verify { config } = command;
    let config = super::load(&config)?;
    let key = audit_key(&config)?;
    let verified = ledger::verify(&config.ledger.file, &key).await.map_err(CliError::new)?;
    if !verified.findings.is_empty() {
        return Err(CliError::all(verified.findings));
    }
    let ledger::Verified { head, pruned, uncovered, .. } = verified;
    say(&format!("{} steps, each as it was written", head.number - pruned))?;
    if pruned > 0 {
        say(&format!("{pruned} more were pruned; anchors stand for them"))?;
    }
    if uncovered > 0 {
        say(&format!(
            "{uncovered} loans have no hash of their row: they last changed under an older version"
        ))?;
    }
    Ok(())
}

fn audit_key(config: &Config) -> Result<AuditKey, CliError> {
    let readers = Readers::new(&config.readers, Clock::system()).map_err(CliError::new)?;
    Ok(AuditKey::new(&readers.audit_key()))
}

/// A date, at midnight UTC, or a time.
fn date(text: &str) -> Result<Timestamp, String> {
    text.parse().or_else(|_| format!("{text}T00:00:00Z").parse()).map_err(|_| {
        "it is neither a date nor a time; write 2026-01-31 or 2026-01-31T12:00:00Z".to_owned()
    })
}

async fn prune(before: Timestamp, config: &Config) -> Result<(), CliError> {
    let now = Clock::system().now();
    if before > clock::before(now, YOUNGEST_PRUNED) {
        return Err(CliError::new("--before is less than a day ago; name an earlier date"));
    }
    let key = audit_key(config)?;
    let (mut loans, mut left) = (0, Vec::new());
    for which in [Prunable::Ended { before }, Prunable::NeverLent { before, now }] {
        let pruned =
            ledger::prune(&config.ledger.file, &key, which).await.map_err(CliError::new)?;
        loans += pruned.loans;
        left.extend(pruned.left);
    }
    say(&format!("pruned {loans} loans that were over before {before}"))?;
    say(
        "left are loans that Bokbasen has not acknowledged, and those whose borrower is still known (privacy.retention)",
    )?;
    if left.is_empty() { Ok(()) } else { Err(CliError::all(left)) }
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
            let mut found = ledger::check(&config.ledger.file).await.map_err(CliError::new)?;
            let key = audit_key(&config)?;
            let changed =
                ledger::check_loans(&config.ledger.file, &key).await.map_err(CliError::new)?;
            found.extend(
                changed.into_iter().filter(|changed| !found.contains(changed)).collect::<Vec<_>>(),
            );
            if found.is_empty() {
                return say(&format!("{} is good", config.ledger.file.display()));
            }
            Err(CliError::all(found))
        }
        Command::Prune { before, config } => prune(before, &super::load(&config)?).await,
    }
}
