//! `loangate ledger contract`: removes from the schema what no gate uses any more.

use std::path::PathBuf;

use super::{CliError, say};
use crate::ledger::{self, ContractionPlan, StoreSettings};

/// Why the command has nothing to do.
const NOTHING: &str = "nothing to contract: every part of the schema is in use";
const NOTHING_IN_SQLITE: &str =
    "nothing to contract: the only gate of a ledger in SQLite migrates it at its start";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Remove it. Without this, the command only shows what it would remove.
    #[arg(long)]
    yes: bool,
    /// Configuration that names the ledger.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let config = super::load(&args.config)?;
    let StoreSettings::Postgres(postgres) = &config.ledger.store else {
        return say(NOTHING_IN_SQLITE);
    };
    // Boxed: connecting takes much memory.
    let plan = Box::pin(ledger::plan_contraction(postgres)).await.map_err(CliError::new)?;
    let Some(ContractionPlan { removals, min_program, obstacles }) = plan else {
        return say(NOTHING);
    };
    for removes in removals {
        say(&format!("removes {removes}"))?;
    }
    say(&format!("afterwards, programs below schema version {min_program} refuse to start"))?;
    if !obstacles.is_empty() {
        return Err(CliError::all(obstacles));
    }
    if !args.yes {
        return say("nothing was removed; run the command again with --yes");
    }
    for removes in Box::pin(ledger::contract(postgres)).await.map_err(CliError::new)? {
        say(&format!("removed {removes}"))?;
    }
    Ok(())
}
