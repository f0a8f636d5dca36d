//! `loangate ledger reconcile`: opens the begins of all gates after the database lost steps.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::ledger::date;
use super::{CliError, say};
use crate::ledger::{self, StoreSettings};

/// The largest difference between the clocks of the database and of a gate that begins loans.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The --since of the `loangate loans balance` whose findings are settled with Bokbasen: a time
    /// before the backup that was restored, like 2026-01-31T12:00:00Z.
    #[arg(long, value_parser = date)]
    balanced_since: Timestamp,
    /// Configuration that names the ledger.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let config = super::load(&args.config)?;
    let StoreSettings::Postgres(postgres) = &config.ledger.store else {
        let sentence = "only a ledger in PostgreSQL closes begins; a gate with SQLite refuses to \
            start, and names the remedy";
        return Err(CliError::new(sentence));
    };
    // A begin may start until a gate's lease ends, and Bokbasen lists it after the settling time.
    let settling =
        CLOCK_DIFFERENCE + postgres.lease + config.lending.timeout + 2 * config.circulation.settle;
    let keys = super::ledger::keys(&config)?;
    let reconciled = ledger::reconcile(postgres, args.balanced_since, settling, &keys).await;
    let closed = reconciled.map_err(CliError::new)?;
    say(&format!(
        "begins, which were closed at {closed}, are open; the gates notice it within a fifth of \
         ledger.lease"
    ))
}
