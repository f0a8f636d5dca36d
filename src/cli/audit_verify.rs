//! `loangate audit verify`: verifies the audit trail of the ledger, also while a gate runs.

use serde_json::json;

use super::ledger::{LedgerArgs, audit_key, reading};
use super::{CliError, show_lines};
use crate::ledger::{self, Chains, RowsRead, StoreSettings, Verified};

pub(super) async fn run(args: LedgerArgs) -> Result<(), CliError> {
    let config = super::load(&args.config)?;
    let key = audit_key(&config)?;
    let store = &config.ledger.store;
    let rows = RowsRead::default();
    let work = ledger::verify(store, &key, &rows);
    let verified = reading("verifying the audit trail", &rows, args.json, work).await;
    let verified = verified.map_err(CliError::new)?;
    let origins = match verified.findings.as_slice() {
        [] => ledger::copied_from(store, &key).await.map_err(CliError::new)?,
        _ => Vec::new(),
    };
    let chains = verified.chains.unwrap_or_default();
    let document = json!({
        "ledger": store.to_string(),
        "findings": verified.findings,
        "steps": verified.steps,
        "pruned": verified.pruned,
        "loans_without_hash": verified.uncovered,
        "chains": verified.chains.map(|_| chains.chains),
        "libraries": verified.chains.map(|_| chains.libraries),
        "head_files": verified.chains.map(|_| chains.head_files),
        "copied_from": origins,
    });
    let lines = match verified.findings.as_slice() {
        [] => lines(&verified, store).into_iter(),
        _ => Vec::new().into_iter(),
    };
    let lines: Vec<_> = lines.chain(origins.iter().map(ToString::to_string)).collect();
    show_lines(args.json, &document, &lines)?;
    match verified.findings.is_empty() {
        true => Ok(()),
        false => Err(CliError::all(verified.findings)),
    }
}

fn lines(verified: &Verified, store: &StoreSettings) -> Vec<String> {
    let Verified { steps, pruned, uncovered, chains, .. } = verified;
    let mut lines = vec![format!("{steps} steps, each as it was written")];
    if *pruned > 0 {
        lines.push(format!("{pruned} more were pruned; anchors replace them"));
    }
    if let (Some(Chains { chains, libraries, head_files }), StoreSettings::Postgres(settings)) =
        (chains, store)
    {
        lines.push(format!("{chains} chains in {libraries} libraries"));
        let heads = settings.heads.display();
        lines.push(match head_files {
            0 => format!("no head file in {heads}: steps that the database lost are not noticed"),
            _ => format!("compared with {head_files} head files in {heads}"),
        });
    }
    if *uncovered > 0 {
        lines.push(format!(
            "{uncovered} loans have no hash of their row: they last changed under an older version"
        ));
    }
    lines
}
