//! `loangate ledger reconcile`: uses a ledger again that lost its newest steps. Usage reports that
//! are not sent yet go to a person, and in PostgreSQL the begins of all gates are opened.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::ledger::date;
use super::{CliError, say};
use crate::clock::Clock;
use crate::ledger::{self, Keys, StoreSettings};

/// The largest difference between the clocks of the database and of a gate that begins loans.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The --since of the `loangate loans balance` whose findings are settled with Bokbasen: a time
    /// before the backup that was restored, like 2026-01-31T12:00:00Z.
    /// Required for a ledger in PostgreSQL.
    #[arg(long, value_parser = date)]
    balanced_since: Option<Timestamp>,
    /// Configuration that names the ledger.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let config = super::load(&args.config)?;
    let keys = super::ledger::keys(&config)?;
    let postgres = match &config.ledger.store {
        StoreSettings::Postgres(postgres) => postgres,
        StoreSettings::Sqlite(file) => return reconcile_file(file, &keys).await,
    };
    let Some(balanced_since) = args.balanced_since else {
        let sentence = "--balanced-since is missing; name the --since of the `loangate loans \
            balance` whose findings are settled with Bokbasen";
        return Err(CliError::new(sentence));
    };
    // A begin may start until a gate's lease ends, and Bokbasen lists it after the settling time.
    let settling =
        CLOCK_DIFFERENCE + postgres.lease + config.lending.timeout + 2 * config.circulation.settle;
    let reconciled = ledger::reconcile(postgres, balanced_since, settling, &keys).await;
    let closed = reconciled.map_err(CliError::new)?;
    say(&format!(
        "begins, which were closed at {closed}, are open; the gates notice it within a fifth of \
         ledger.lease. Usage reports that were not sent yet are listed for a person"
    ))
}

async fn reconcile_file(file: &Path, keys: &Keys) -> Result<(), CliError> {
    let passed = ledger::reconcile_file(file, keys, Clock::system().machine_now()).await;
    let passed = passed.map_err(CliError::new)?;
    say(&format!(
        "gates may use {}; {passed} usage reports that were not sent yet are listed for a person. \
         Run `loangate loans balance` when a gate runs",
        file.display()
    ))
}
