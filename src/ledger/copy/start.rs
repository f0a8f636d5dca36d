//! The beginning of a copy: the tests of both ledgers, and the mark of the destination.

use super::exclusive::ExclusiveLedger;
use super::mark::Mark;
use super::origin::{self, Origin};
use super::rows::Table;
use super::run::Copy;
use super::{CopyError, CopyProgress};
use crate::ledger::audit::{Head, Verified};
use crate::ledger::{LedgerError, StoreSettings};

/// Where a copy begins.
pub(super) enum Start {
    /// At this mark, and whether it is a new one, which the destination does not have yet.
    At(Mark, bool),
    /// It is complete, and only compares.
    Complete(Origin),
}

impl Copy<'_> {
    pub(super) async fn open_source(
        &mut self,
        from: &StoreSettings,
        to: &StoreSettings,
    ) -> Result<ExclusiveLedger, CopyError> {
        use StoreSettings::{Postgres, Sqlite};
        if let (Sqlite(_), Sqlite(_)) | (Postgres(_), Postgres(_)) = (from, to) {
            let sentence = "--from and --to must be a SQLite file and a PostgreSQL database, \
                 in either order";
            return Err(CopyError::Refused(sentence.to_owned()));
        }
        if !ExclusiveLedger::exists(from).await? {
            return Err(CopyError::Refused("--from names no ledger; check its path".to_owned()));
        }
        let mut source = ExclusiveLedger::open(from, self.keys, self.deadlines).await?;
        if source.mark().await?.is_some() {
            return Err(LedgerError::HalfCopied.into());
        }
        if source.begins_are_closed().await? {
            let sentence = "the database of --from lacks steps, so its begins are closed; follow \
                 \"At night\" in docs/cluster.md first";
            return Err(CopyError::Refused(sentence.to_owned()));
        }
        // A gate would take it for an older one, but not its copy.
        if !source.has_head_file().await? {
            let sentence = "the head file of --from is missing or damaged, so the ledger may be an \
                 older copy; run `loangate ledger reconcile` with a configuration that names it";
            return Err(CopyError::Refused(sentence.to_owned()));
        }
        self.require_alone(&mut source, "--from").await?;
        Ok(source)
    }

    /// Refuses a ledger that a gate uses.
    pub(super) async fn require_alone(
        &mut self,
        ledger: &mut ExclusiveLedger,
        option: &str,
    ) -> Result<(), CopyError> {
        let report = &mut self.report;
        if ledger.is_alone(|gates| report(CopyProgress::Waiting(gates))).await? {
            return Ok(());
        }
        Err(CopyError::Refused(format!(
            "a gate has the ledger of {option} open; stop all gates, and copy again"
        )))
    }

    /// Waits until no gate delivers files under loans of the source. The gates on the destination
    /// cannot wait for it before they send an end to Bokbasen: they do not know of it.
    pub(super) async fn wait_for_silence(
        &mut self,
        source: &mut ExclusiveLedger,
    ) -> Result<(), LedgerError> {
        let report = &mut self.report;
        source.wait_for_silence(|gates| report(CopyProgress::Silencing(gates))).await
    }

    /// Returns where the copy begins or continues. Changes nothing.
    pub(super) async fn start(
        &mut self,
        destination: &mut ExclusiveLedger,
        source: &Head,
    ) -> Result<Start, CopyError> {
        if let Some(stored) = destination.mark().await? {
            return match Mark::parse(&stored).filter(|mark| mark.is_of(source)) {
                Some(mark) => Ok(Start::At(mark, false)),
                None => Err(CopyError::Refused(
                    "the destination has a part of another ledger, or the source has changed \
                     since the copy began; empty the destination, and copy again"
                        .to_owned(),
                )),
            };
        }
        let mut origins = origin::read_origins(&destination.origins().await?, &self.keys.audit)?;
        let origin = origins.pop_if(|origin| origin.is_of(source));
        match (origin, first_filled(destination).await?) {
            // A complete copy that was emptied since is copied again.
            (Some(origin), filled) if filled.is_some() || origin.loans == 0 => {
                Ok(Start::Complete(origin))
            }
            (_, None) => Ok(Start::At(Mark::new(source), true)),
            (_, Some(table)) => Err(CopyError::Refused(format!(
                "the destination has {} that are not of this copy; name an empty database or a new \
                 file",
                table.name()
            ))),
        }
    }

    /// Verifies the source, and inserts a new mark into the destination.
    pub(super) async fn begin(
        &mut self,
        source: &mut ExclusiveLedger,
        destination: &mut ExclusiveLedger,
        (mark, is_new): (&Mark, bool),
    ) -> Result<Verified, CopyError> {
        let verified = self.verify(source, "source").await?;
        if is_new {
            destination.insert_mark(mark).await?;
        }
        // Also if the copy was killed between the mark and this.
        if mark.is_first()
            && let Err(error) = self.require_unused(destination).await
        {
            destination.remove_mark(mark).await?;
            return Err(error);
        }
        Ok(verified)
    }

    /// Refuses a destination that a gate uses or has used: one that started before the mark was
    /// there may have not seen it, and may have begun loans.
    async fn require_unused(&mut self, destination: &mut ExclusiveLedger) -> Result<(), CopyError> {
        self.require_alone(destination, "--to").await?;
        match first_filled(destination).await? {
            None => Ok(()),
            Some(table) => Err(CopyError::Refused(format!(
                "a gate has used the destination meanwhile, which now has {}; keep it, and name an \
                 empty database or a new file",
                table.name()
            ))),
        }
    }

    /// Verifies the audit trail of one side.
    pub(super) async fn verify(
        &mut self,
        ledger: &mut ExclusiveLedger,
        side: &'static str,
    ) -> Result<Verified, CopyError> {
        (self.report)(CopyProgress::Verifying(side));
        let verified = ledger.verify(&self.keys.audit).await?;
        if verified.findings.is_empty() {
            return Ok(verified);
        }
        let findings = verified.findings.iter().map(|finding| format!("{side}: {finding}"));
        Err(CopyError::Findings(findings.collect()))
    }
}

/// Returns the first table with rows.
async fn first_filled(ledger: &mut ExclusiveLedger) -> Result<Option<Table>, LedgerError> {
    for table in Table::ALL {
        if ledger.count(table).await? > 0 {
            return Ok(Some(table));
        }
    }
    Ok(None)
}
