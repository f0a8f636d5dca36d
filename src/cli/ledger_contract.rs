//! `loangate ledger contract`: removes from the schema what no gate uses any more.

use serde_json::json;

use super::{CliError, say, show_lines};
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
    #[command(flatten)]
    ledger: super::ledger::LedgerArgs,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let config = super::load(&args.ledger.config)?;
    let is_json = args.ledger.json;
    let nothing = |text: &str| {
        show_lines(is_json, &json!({ "removals": [], "removed": false }), &[text.to_owned()])
    };
    let StoreSettings::Postgres(postgres) = &config.ledger.store else {
        return nothing(NOTHING_IN_SQLITE);
    };
    // Boxed: connecting takes much memory.
    let plan = Box::pin(ledger::plan_contraction(postgres)).await.map_err(CliError::new)?;
    let Some(ContractionPlan { removals, min_program, obstacles }) = plan else {
        return nothing(NOTHING);
    };
    let obstacles: Vec<String> = obstacles.iter().map(ToString::to_string).collect();
    let is_removed = args.yes && obstacles.is_empty();
    let mut lines: Vec<_> = removals.iter().map(|removes| format!("removes {removes}")).collect();
    lines.push(format!("afterwards, programs below schema version {min_program} refuse to start"));
    if is_removed {
        if !is_json {
            say(&lines.join("\n"))?;
        }
        let removed = Box::pin(ledger::contract(postgres)).await.map_err(CliError::new)?;
        lines = removed.iter().map(|removes| format!("removed {removes}")).collect();
    } else if obstacles.is_empty() {
        lines.push("nothing was removed; run the command again with --yes".to_owned());
    }
    let document = json!({ "removals": removals, "min_program": min_program,
        "obstacles": obstacles, "removed": is_removed });
    show_lines(is_json, &document, &lines)?;
    if obstacles.is_empty() { Ok(()) } else { Err(CliError::all(obstacles)) }
}
