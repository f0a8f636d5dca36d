//! Verification of the audit trail: of each chain, and of every loan with its last step.
//!
//! It reads the ledger in pages beside running gates, without false alarms:
//!
//! - `chain_walk` reads a chain.
//! - A loan and its steps are read in one statement.
//! - The head files are read first: they are older than everything in the database.
//! - The head records of a library are read before its chains.

use std::path::Path;

use futures_util::TryStreamExt;
use futures_util::future::try_join;
use sqlx::AssertSqlSafe;

use super::chain_walk::ChainWalk;
use super::closed_begins::EPOCH;
use super::epoch::{EpochSeals, FORGED, FORGED_SENTENCE};
use super::recorded_heads::RecordedHeads;
use super::settings::PostgresSettings;
use super::whole_ledger::{WALKS, WholeLedger};
use super::{head_files, last_steps};
use crate::ledger::audit::{AuditKey, Chains, Verified};
use crate::ledger::{LedgerError, RowsRead, findings};
use crate::loan::LibraryId;

/// Walks every chain, compares every loan with its last step, and the chains with the head files.
///
/// # Errors
/// [`LedgerError`] if the ledger cannot be read.
pub(in crate::ledger) async fn verify(
    settings: &PostgresSettings,
    key: &AuditKey,
    rows: &RowsRead,
) -> Result<Verified, LedgerError> {
    let mut ledger = WholeLedger::open(settings).await?;
    ledger.count_rows(rows, &["history", "loans"]).await;
    let verified = verify_ledger(&ledger, &settings.heads, key).await;
    ledger.pool.close().await;
    verified
}

/// Verifies a ledger that is open. `heads` is the directory of the head files.
pub(super) async fn verify_ledger(
    ledger: &WholeLedger,
    heads: &Path,
    key: &AuditKey,
) -> Result<Verified, LedgerError> {
    let mut verified = Verified::default();
    let head_files = compare_with_head_files(ledger, heads, key, &mut verified).await?;
    let mut extent = Chains { head_files, ..Chains::default() };
    for name in ledger.libraries().await? {
        extent.libraries += 1;
        let Ok(library) = name.parse::<LibraryId>() else {
            verified.report(findings::damaged_library(&name));
            continue;
        };
        // Before the chains, which then have the recorded links or newer ones.
        let mut recorded = RecordedHeads::read(ledger, library).await?;
        let walks = ledger.chains(library).map_ok(|chain| {
            ChainWalk::new(ledger, library, chain, key).walk_all(recorded.take(chain))
        });
        let walks = walks.try_buffered(WALKS).try_for_each(|walked| {
            extent.chains += 1;
            absorb(&mut verified, walked);
            std::future::ready(Ok(()))
        });
        let ((), compared) = try_join(walks, last_steps::compare(ledger, library, key)).await?;
        absorb(&mut verified, compared);
        let missing = recorded.missing();
        missing.for_each(|found| verified.report(format!("library {library}, {found}")));
    }
    verified.chains = Some(extent);
    Ok(verified)
}

/// Adds the result of a part.
fn absorb(verified: &mut Verified, part: Verified) {
    verified.steps += part.steps;
    verified.pruned += part.pruned;
    part.findings.into_iter().for_each(|finding| verified.report(finding));
}

/// Reports each chain that lacks a link of a head file. Returns the number of files that were
/// compared.
async fn compare_with_head_files(
    ledger: &WholeLedger,
    directory: &Path,
    key: &AuditKey,
    verified: &mut Verified,
) -> Result<u64, LedgerError> {
    let files = head_files::read(directory, ledger.id)?;
    let seals = EpochSeals::new(key.clone(), ledger.id);
    let missing = ledger.snapshot(async |connection| {
        let sql = AssertSqlSafe(format!("SELECT {EPOCH}"));
        let epoch = sqlx::query_scalar::<_, Option<Vec<u8>>>(sql).persistent(false);
        let epoch = seals.read_row(epoch.fetch_one(&mut *connection).await?.as_deref());
        // An operator has settled what files of older epochs name.
        let current = files.iter().filter(|file| file.epoch >= epoch);
        let missing = head_files::missing(connection, current.clone()).await?;
        Ok((missing, current.count(), epoch))
    });
    let (missing, compared, epoch) = missing.await?;
    if epoch == FORGED {
        verified.report(FORGED_SENTENCE.to_owned());
    }
    for file in &files {
        // The files were read before the database, whose epoch never decreases.
        if epoch != FORGED && file.epoch > epoch {
            verified.report(format!(
                "the epoch {epoch} in the table meta is older than {} in {}: the database was set \
                 back",
                file.epoch,
                file.path.display()
            ));
        }
        for stored in &file.heads {
            let (library, chain) = (&stored.library, stored.chain);
            if missing.contains(&(library.clone(), chain)) {
                let library = library.escape_debug();
                verified.report(format!(
                    "library {library}, chain {chain}: the database does not have step {} as {} \
                     names it",
                    stored.head.number,
                    file.path.display()
                ));
            }
        }
    }
    Ok(compared as u64)
}
