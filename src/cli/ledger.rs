//! `loangate ledger` and `loangate audit`: back up, check, prune and restore the ledger. All but
//! `copy` and `restore` also work while a gate runs. `contract`, `copy`, `reconcile` and `verify`
//! have files of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use jiff::Timestamp;
use serde_json::json;

use super::progress::{during, showing, time_left};
use super::{CliError, reconcile, show_lines};
use crate::clock::{self, Clock};
use crate::config::Config;
use crate::ledger::{
    self, AuditKey, Keys, PauseOrigin, Prunable, Restored, RowsRead, StoreSettings,
};
use crate::reader::Readers;

/// Why there is no backup of PostgreSQL. Its own tools also copy a database that is in use.
const BACKUP_OF_POSTGRES: &str = "the ledger is in PostgreSQL, which has tools for this: \
    use pg_basebackup with WAL archiving, or pg_dump for a copy of one moment";

/// How long before the newest step of a backup the balance after its restore begins: a begin may
/// have been on its way.
const BEFORE_BACKUP: Duration = Duration::from_secs(3600);
/// The minimum time since a pruned loan ended.
const MIN_PRUNED_AGE: Duration = Duration::from_secs(86_400);

/// The arguments of all commands on one ledger.
#[derive(Debug, clap::Args)]
pub(super) struct LedgerArgs {
    /// Configuration that names the ledger and the pseudonym key.
    #[arg(long, default_value = "config.toml")]
    pub(super) config: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Copy the whole ledger into a new file.
    Backup {
        /// The file to create.
        file: PathBuf,
        #[command(flatten)]
        ledger: LedgerArgs,
    },
    /// Check the structure of the ledger, each loan and its history; exit with 1 if something is
    /// wrong. `loangate audit verify` checks that none was changed.
    Check(LedgerArgs),
    /// Remove from the schema of PostgreSQL what no gate uses any more, after an upgrade of all
    /// gates. Works while gates run. Older programs cannot use the ledger then.
    Contract(super::ledger_contract::Args),
    /// Copy the ledger from SQLite to PostgreSQL or back, while no gate runs. Continues an
    /// interrupted copy.
    Copy(super::ledger_copy::Args),
    /// Remove loans that ended before a date, whose end Bokbasen has acknowledged and whose
    /// borrower is erased, and begins before it that led to no loan. Works while a gate runs.
    ///
    /// The audit trail still verifies: anchors replace the removed steps. Make a backup first to
    /// archive them.
    Prune {
        /// A date (2026-01-31, at midnight UTC) or a time, at least a day ago.
        #[arg(long, value_parser = date)]
        before: Timestamp,
        #[command(flatten)]
        ledger: LedgerArgs,
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
        #[command(flatten)]
        ledger: LedgerArgs,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Audit {
    /// Verify the hash chain of all steps of all loans; exit with 1 if a step was changed, removed
    /// or moved.
    Verify(LedgerArgs),
    /// List who of the staff looked at loans or acted on them, and why, the newest first. Asks a
    /// running gate.
    Accesses(super::accesses::Args),
}

pub(super) async fn audit(command: Audit) -> Result<(), CliError> {
    match command {
        // Boxed: connecting takes much memory.
        Audit::Verify(args) => Box::pin(super::audit_verify::run(args)).await,
        Audit::Accesses(args) => super::accesses::run(args).await,
    }
}

pub(super) fn audit_key(config: &Config) -> Result<AuditKey, CliError> {
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

pub(super) async fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Backup { file, ledger } => backup(&file, ledger).await,
        Command::Check(args) => check(args).await,
        Command::Contract(args) => super::ledger_contract::run(args).await,
        Command::Copy(args) => super::ledger_copy::run(args).await,
        Command::Prune { before, ledger } => prune(before, ledger).await,
        Command::Reconcile(args) => reconcile::run(args).await,
        Command::Restore { file, ledger } => restore(&file, ledger).await,
    }
}

async fn backup(file: &Path, args: LedgerArgs) -> Result<(), CliError> {
    let config = super::load(&args.config)?;
    let StoreSettings::Sqlite(ledger) = &config.ledger.store else {
        return Err(CliError::new(BACKUP_OF_POSTGRES));
    };
    let size = |file: &Path| std::fs::metadata(file).map_or(0, |found| found.len());
    let state = |elapsed| {
        let (copied, total) = (size(file), size(ledger));
        let left = time_left(copied, total, elapsed);
        let (copied, total) = (ByteSize(copied), ByteSize(total.max(copied)));
        format!("copying the ledger: {copied} of at most {total}{left}")
    };
    let work = ledger::backup(ledger, file);
    showing(state, args.json, work).await.map_err(CliError::new)?;
    let (ledger, file) = (ledger.display().to_string(), file.display().to_string());
    let line = format!("copied {ledger} to {file}");
    show_lines(args.json, &json!({ "ledger": ledger, "backup": file }), &[line])
}

async fn check(args: LedgerArgs) -> Result<(), CliError> {
    let config = super::load(&args.config)?;
    let (store, key) = (&config.ledger.store, audit_key(&config)?);
    let rows = RowsRead::default();
    let work = ledger::check(store, &key, &rows);
    let found = reading("checking the ledger", &rows, args.json, work).await;
    let found = found.map_err(CliError::new)?;
    let good = found.is_empty().then(|| format!("{store} is good"));
    let document = json!({ "ledger": store.to_string(), "findings": found });
    show_lines(args.json, &document, good.as_slice())?;
    if found.is_empty() { Ok(()) } else { Err(CliError::all(found)) }
}

/// Does long work that reads rows, and shows how many.
pub(super) async fn reading<T>(
    what: &str,
    rows: &RowsRead,
    is_json: bool,
    work: impl Future<Output = T>,
) -> T {
    let state = |elapsed| {
        let left = time_left(rows.read(), rows.total(), elapsed);
        format!("{what}: {rows}{left}")
    };
    showing(state, is_json, work).await
}

async fn prune(before: Timestamp, args: LedgerArgs) -> Result<(), CliError> {
    let now = Clock::system().now();
    if before > clock::before(now, MIN_PRUNED_AGE) {
        let sentence = "--before is less than a day ago; name an earlier date";
        return Err(CliError::of_arguments(sentence));
    }
    let config = super::load(&args.config)?;
    let (store, key) = (&config.ledger.store, audit_key(&config)?);
    let (mut loans, mut left) = (0, Vec::new());
    for which in [Prunable::Ended { before }, Prunable::NeverLent { before, now }] {
        let rows = RowsRead::default();
        let work = ledger::prune(store, &key, which, &rows);
        let pruned = reading("pruning loans", &rows, args.json, work).await;
        let pruned = pruned.map_err(CliError::new)?;
        loans += pruned.loans;
        left.extend(pruned.left);
    }
    let lines = [
        format!("pruned {loans} loans that were over before {before}"),
        "kept: ends that Bokbasen has not acknowledged, and lent loans whose borrower is still \
         known (privacy.retention)"
            .to_owned(),
    ];
    let document = json!({ "pruned": loans, "before": before, "left": left });
    show_lines(args.json, &document, &lines)?;
    if left.is_empty() { Ok(()) } else { Err(CliError::all(left)) }
}

async fn restore(backup: &Path, args: LedgerArgs) -> Result<(), CliError> {
    let config = super::load(&args.config)?;
    let StoreSettings::Sqlite(ledger) = &config.ledger.store else {
        return Err(CliError::new(
            "the ledger is in PostgreSQL: restore the database with its own tools, and run \
             `loangate ledger reconcile --restored` before the first gate starts",
        ));
    };
    let (now, keys) = (Clock::system().machine_now(), keys(&config)?);
    let pause = PauseOrigin {
        since: now,
        who: "loangate ledger restore".to_owned(),
        why: Some("the ledger was restored from a backup; compare it with Bokbasen".to_owned()),
    };
    let work = ledger::restore(ledger, backup, &keys, now, &pause);
    let restored = during("checking and restoring the backup", args.json, work).await;
    let Restored { replaced, newest, reports } = restored.map_err(CliError::new)?;
    let replaced = replaced.map(|replaced| replaced.display().to_string());
    let since = newest
        .map(|newest| clock::before(newest, BEFORE_BACKUP).strftime("%Y-%m-%dT%H:%M:%SZ"))
        .map(|since| since.to_string());
    let document = json!({ "ledger": ledger.display().to_string(), "replaced": replaced,
        "reports_for_a_person": reports, "balance_since": since });
    let mut lines =
        vec![format!("{} has taken the place of {}", backup.display(), ledger.display())];
    lines.extend(replaced.map(|replaced| format!("the ledger of before is {replaced}")));
    let since = since.map_or_else(String::new, |since| format!(" --since {since}"));
    lines.push(format!(
        "no loan begins now, and {reports} usage reports that were not sent yet are listed for a \
         person. Start the gate, run `loangate loans balance{since}`, settle its findings with \
         Bokbasen, and then run `loangate lending resume --all`"
    ));
    show_lines(args.json, &document, &lines)
}
