//! `loangate ledger reconcile`: uses a ledger again that lost its newest steps. Usage reports that
//! are not sent yet go to a person, and in PostgreSQL the begins of all gates are opened.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::ledger::date;
use super::{CliError, show_lines};
use crate::clock::Clock;
use crate::config::Config;
use crate::ledger::{self, Keys, PostgresSettings, StoreSettings};

/// The largest difference between the clocks of the database and of a gate that begins loans.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(10);

/// The result of a command, as JSON and as a line.
type Reconciled = (Value, String);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The --since of the `loangate loans balance` whose findings are settled with Bokbasen: a time
    /// before the backup that was restored, like 2026-01-31T12:00:00Z.
    /// Required for a ledger in PostgreSQL.
    #[arg(long, value_parser = date)]
    balanced_since: Option<Timestamp>,
    /// The ledger was restored from a backup, also if nothing shows that. In PostgreSQL, it closes
    /// begins, which --balanced-since opens: run it before the first gate starts.
    #[arg(long, conflicts_with = "balanced_since")]
    restored: bool,
    #[command(flatten)]
    ledger: super::ledger::LedgerArgs,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let config = super::load(&args.ledger.config)?;
    let is_json = args.ledger.json;
    let keys = super::ledger::keys(&config)?;
    let (document, line) = match (&config.ledger.store, args.balanced_since) {
        (StoreSettings::Sqlite(_), Some(_)) => Err(CliError::of_arguments(
            "--balanced-since is for a ledger in PostgreSQL; omit it, and run `loangate loans \
             balance` when a gate runs",
        )),
        (StoreSettings::Sqlite(file), None) => reconcile_file(file, &keys, args.restored).await,
        (StoreSettings::Postgres(postgres), None) if args.restored => {
            close_restored(postgres, &keys).await
        }
        (StoreSettings::Postgres(_), None) => Err(CliError::of_arguments(
            "--balanced-since is missing; name the --since of the `loangate loans balance` whose \
             findings are settled with Bokbasen. Before the first gate starts on a restored \
             database, write --restored instead",
        )),
        (StoreSettings::Postgres(postgres), Some(since)) => {
            open_begins(postgres, since, &config, &keys).await
        }
    }?;
    show_lines(is_json, &document, &[line])
}

async fn open_begins(
    postgres: &PostgresSettings,
    since: Timestamp,
    config: &Config,
    keys: &Keys,
) -> Result<Reconciled, CliError> {
    // A begin may start until a gate's lease ends, and Bokbasen lists it after the settling time.
    let settling =
        CLOCK_DIFFERENCE + postgres.lease + config.lending.timeout + 2 * config.circulation.settle;
    let reconciled = ledger::reconcile(postgres, since, settling, keys).await;
    let closed = reconciled.map_err(CliError::new)?;
    let line = format!(
        "begins, which were closed at {closed}, are open; the gates notice it within a fifth of \
         ledger.lease. Usage reports that were not sent yet are listed for a person"
    );
    Ok((json!({ "begins": "open", "closed_at": closed }), line))
}

async fn close_restored(postgres: &PostgresSettings, keys: &Keys) -> Result<Reconciled, CliError> {
    let passed = ledger::close_restored(postgres, keys).await.map_err(CliError::new)?;
    let line = format!(
        "begins are closed, and {passed} usage reports that were not sent yet are listed for a \
         person. Start the gates, and follow \"At night\" in docs/cluster.md"
    );
    Ok((json!({ "begins": "closed", "reports_for_a_person": passed }), line))
}

async fn reconcile_file(
    file: &Path,
    keys: &Keys,
    is_restored: bool,
) -> Result<Reconciled, CliError> {
    let now = Clock::system().machine_now();
    let passed = ledger::reconcile_file(file, keys, now, is_restored).await;
    let passed = passed.map_err(CliError::new)?;
    let line = format!(
        "gates may use {}; {passed} usage reports that were not sent yet are listed for a person. \
         Run `loangate loans balance` when a gate runs",
        file.display()
    );
    Ok((json!({ "reports_for_a_person": passed }), line))
}
