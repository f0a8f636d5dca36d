//! `loangate ledger` and `loangate audit`: back up, check and prune the ledger, and verify its
//! audit trail. All of them but `copy` also work while a gate runs. `contract`, `copy` and
//! `reconcile` have files of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::{CliError, reconcile, say};
use crate::clock::{self, Clock};
use crate::config::Config;
use crate::ledger::{self, AuditKey, Chains, Keys, PauseOrigin, Prunable, Restored, StoreSettings};
use crate::reader::Readers;

/// Why there is no backup of PostgreSQL. Its own tools also copy a database that is in use.
const BACKUP_OF_POSTGRES: &str = "the ledger is in PostgreSQL, which has tools for this: \
    use pg_basebackup with WAL archiving, or pg_dump for a copy of one moment";

/// How long before the newest step of a backup the balance after its restore begins: a begin may
/// have been on its way.
const BEFORE_BACKUP: Duration = Duration::from_secs(3600);
/// The minimum time since a pruned loan ended.
const MIN_PRUNED_AGE: Duration = Duration::from_secs(86_400);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Copy the whole ledger into a new file.
    Backup {
        /// The file to create.
        file: PathBuf,
        /// Configuration that names the ledger.
        #[arg(long, default_value = "config.toml")]
        config: PathBuf,
    },
    /// Check everything in the ledger; exit with 1 if something is wrong.
    Check {
        /// Configuration that names the ledger.
        #[arg(long, default_value = "config.toml")]
        config: PathBuf,
    },
    /// Remove from the schema of PostgreSQL what no gate uses any more, after an upgrade of all
    /// gates. Works while gates run. Older programs cannot use the ledger then.
    Contract(super::ledger_contract::Args),
    /// Copy the ledger from SQLite to PostgreSQL or back, while no gate runs. Continues an
    /// interrupted copy.
    Copy(super::ledger_copy::Args),
    /// Remove loans that ended and were reported before a date, and whose borrower is forgotten.
    /// Works while a gate runs.
    ///
    /// The audit trail still verifies: anchors replace the removed steps. Make a backup first to
    /// archive them.
    Prune {
        /// A date (2026-01-31, at midnight UTC) or a time, at least a day ago.
        #[arg(long, value_parser = date)]
        before: Timestamp,
        /// Configuration that names the ledger and the pseudonym key.
        #[arg(long, default_value = "config.toml")]
        config: PathBuf,
    },
    /// Use a ledger again that lost its newest steps. Passes usage reports that are not sent yet to
    /// a person. Opens the begins of all gates on PostgreSQL, once the ledger is compared with
    /// Bokbasen, while gates run.
    Reconcile(reconcile::Args),
    /// Put a backup in the place of a ledger in SQLite, while no gate runs. The ledger of before is
    /// kept. No loan begins until lending is resumed.
    Restore {
        /// The backup, made by `loangate ledger backup`.
        file: PathBuf,
        /// Configuration that names the ledger and the pseudonym key.
        #[arg(long, default_value = "config.toml")]
        config: PathBuf,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Audit {
    /// Verify the hash chain of all steps of all loans; exit with 1 if a step was changed, removed
    /// or moved.
    Verify {
        /// Configuration that names the ledger and the pseudonym key.
        #[arg(long, default_value = "config.toml")]
        config: PathBuf,
    },
    /// List who of the staff looked at loans or acted on them, and why, the newest first. Asks a
    /// running gate.
    Accesses(super::accesses::Args),
}

pub(super) async fn audit(command: Audit) -> Result<(), CliError> {
    let config = match command {
        Audit::Verify { config } => config,
        Audit::Accesses(args) => return super::accesses::run(args).await,
    };
    let config = super::load(&config)?;
    let key = audit_key(&config)?;
    let store = &config.ledger.store;
    let verified = ledger::verify(store, &key).await.map_err(CliError::new)?;
    if !verified.findings.is_empty() {
        return Err(CliError::all(verified.findings));
    }
    say_verified(&verified, store)?;
    super::ledger_copy::say_origins(store, &key).await
}

fn say_verified(verified: &ledger::Verified, store: &StoreSettings) -> Result<(), CliError> {
    let ledger::Verified { steps, pruned, uncovered, chains, .. } = verified;
    say(&format!("{steps} steps, each as it was written"))?;
    if *pruned > 0 {
        say(&format!("{pruned} more were pruned; anchors replace them"))?;
    }
    if let (Some(Chains { chains, libraries, head_files }), StoreSettings::Postgres(settings)) =
        (chains, store)
    {
        say(&format!("{chains} chains in {libraries} libraries"))?;
        let heads = settings.heads.display();
        say(&match head_files {
            0 => format!("no head file in {heads}: steps that the database lost are not noticed"),
            _ => format!("compared with {head_files} head files in {heads}"),
        })?;
    }
    if *uncovered > 0 {
        say(&format!(
            "{uncovered} loans have no hash of their row: they last changed under an older version"
        ))?;
    }
    Ok(())
}

fn audit_key(config: &Config) -> Result<AuditKey, CliError> {
    keys(config).map(|keys| keys.audit)
}

/// Derives the keys of the ledger from the pseudonym key.
pub(super) fn keys(config: &Config) -> Result<Keys, CliError> {
    let readers = Readers::new(&config.readers, Clock::system()).map_err(CliError::new)?;
    let audit = AuditKey::new(&readers.audit_key());
    Ok(Keys { fingerprint: readers.key_fingerprint(), audit })
}

/// Reads a time, or a date, which means midnight UTC.
pub(super) fn date(text: &str) -> Result<Timestamp, String> {
    text.parse().or_else(|_| format!("{text}T00:00:00Z").parse()).map_err(|_| {
        "it is neither a date nor a time; write 2026-01-31 or 2026-01-31T12:00:00Z".to_owned()
    })
}

async fn prune(before: Timestamp, config: &Config) -> Result<(), CliError> {
    let now = Clock::system().now();
    if before > clock::before(now, MIN_PRUNED_AGE) {
        return Err(CliError::new("--before is less than a day ago; name an earlier date"));
    }
    let (store, key) = (&config.ledger.store, audit_key(config)?);
    let (mut loans, mut left) = (0, Vec::new());
    for which in [Prunable::Ended { before }, Prunable::NeverLent { before, now }] {
        let pruned = ledger::prune(store, &key, which).await.map_err(CliError::new)?;
        loans += pruned.loans;
        left.extend(pruned.left);
    }
    say(&format!("pruned {loans} loans that were over before {before}"))?;
    say(
        "kept: loans that Bokbasen has not acknowledged, and loans whose borrower is still known \
         (privacy.retention)",
    )?;
    if left.is_empty() { Ok(()) } else { Err(CliError::all(left)) }
}

pub(super) async fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Backup { file, config } => {
            let config = super::load(&config)?;
            let StoreSettings::Sqlite(ledger) = &config.ledger.store else {
                return Err(CliError::new(BACKUP_OF_POSTGRES));
            };
            ledger::backup(ledger, &file).await.map_err(CliError::new)?;
            say(&format!("copied {} to {}", ledger.display(), file.display()))
        }
        Command::Check { config } => {
            let config = super::load(&config)?;
            let (store, key) = (&config.ledger.store, audit_key(&config)?);
            let found = ledger::check(store, &key).await.map_err(CliError::new)?;
            if found.is_empty() {
                say(&format!("{store} is good"))
            } else {
                Err(CliError::all(found))
            }
        }
        Command::Contract(args) => super::ledger_contract::run(args).await,
        Command::Copy(args) => super::ledger_copy::run(args).await,
        Command::Prune { before, config } => prune(before, &super::load(&config)?).await,
        Command::Reconcile(args) => reconcile::run(args).await,
        Command::Restore { file, config } => restore(&file, &super::load(&config)?).await,
    }
}

async fn restore(backup: &Path, config: &Config) -> Result<(), CliError> {
    let StoreSettings::Sqlite(ledger) = &config.ledger.store else {
        return Err(CliError::new(
            "the ledger is in PostgreSQL: restore the database with its own tools, and run \
             `loangate ledger reconcile --restored` before the first gate starts",
        ));
    };
    let now = Clock::system().machine_now();
    let pause = PauseOrigin {
        since: now,
        who: "loangate ledger restore".to_owned(),
        why: Some("the ledger was restored from a backup; compare it with Bokbasen".to_owned()),
    };
    let restored = ledger::restore(ledger, backup, &keys(config)?, now, &pause).await;
    let Restored { replaced, newest, reports } = restored.map_err(CliError::new)?;
    say(&format!("{} has taken the place of {}", backup.display(), ledger.display()))?;
    if let Some(replaced) = replaced {
        say(&format!("the ledger of before is {}", replaced.display()))?;
    }
    let since = newest.map_or_else(String::new, |newest| {
        format!(" --since {}", clock::before(newest, BEFORE_BACKUP).strftime("%Y-%m-%dT%H:%M:%SZ"))
    });
    say(&format!(
        "no loan begins now, and {reports} usage reports that were not sent yet are listed for a \
         person. Start the gate, run `loangate loans balance{since}`, settle its findings with \
         Bokbasen, and then run `loangate lending resume --all`"
    ))
}
