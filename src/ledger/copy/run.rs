//! The steps of a copy, in their order.

use std::time::Instant;

use futures_util::TryStreamExt;
use jiff::Timestamp;

use super::exclusive::ExclusiveLedger;
use super::mark::Mark;
use super::origin::{self, Origin};
use super::rows::{Position, Table};
use super::summary::Summary;
use super::{Copied, CopyError, CopyProgress, Keys};
use crate::ledger::audit::{Head, Verified};
use crate::ledger::postgres::ExclusiveDatabase;
use crate::ledger::{LedgerError, StoreSettings};

/// A running copy.
pub(super) struct Copy<'a> {
    pub(super) keys: &'a Keys,
    /// The number of rows of a transaction.
    pub(super) batch: usize,
    pub(super) now: Timestamp,
    pub(super) report: &'a mut (dyn FnMut(CopyProgress) + Send),
}

/// Where a copy begins.
enum Start {
    At(Mark),
    /// It is complete, and only compares.
    Complete(Origin),
}

impl Copy<'_> {
    /// Copies, compares and completes.
    pub(super) async fn run(
        mut self,
        from: &StoreSettings,
        to: &StoreSettings,
    ) -> Result<Copied, CopyError> {
        let mut source = self.open_source(from, to).await?;
        let mut destination = ExclusiveLedger::open(to, self.keys).await?;
        self.require_alone(&mut destination, "--to").await?;
        (self.report)(CopyProgress::Verifying("source"));
        let verified = sound("source", source.verify(&self.keys.audit).await?)?;
        let head = source.head().await?;
        let mut origins = origin::read_origins(&source.origins().await?, &self.keys.audit)?;
        let (summary, origin) = match self.begin(&mut destination, &head).await? {
            Start::Complete(origin) => {
                (self.compare(&mut source, &mut destination, &head).await?, origin)
            }
            Start::At(mark) => {
                let mark = self.copy_tables(&mut source, &mut destination, mark).await?;
                destination.seal_chains(mark.chain(), &self.keys.audit).await?;
                let summary = self.compare(&mut source, &mut destination, &head).await?;
                let counts = [Table::Loans, Table::Steps].map(|table| summary.count(table));
                let last = (verified.pruned, self.now);
                let origin = Origin::new(source.store(), &head, counts, last, &self.keys.audit);
                origins.push(origin.clone());
                destination.complete(&origins).await?;
                (summary, origin)
            }
        };
        source.close().await;
        destination.close().await;
        Ok(Copied { counts: summary.counts(), covered: verified.uncovered, origin })
    }

    async fn open_source(
        &mut self,
        from: &StoreSettings,
        to: &StoreSettings,
    ) -> Result<ExclusiveLedger, CopyError> {
        use StoreSettings::{Postgres, Sqlite};
        let exists = match (from, to) {
            (Sqlite(file), Postgres(_)) => file.exists(),
            (Postgres(settings), Sqlite(_)) => {
                ExclusiveDatabase::has_ledger(settings).await.map_err(LedgerError::Server)?
            }
            _ => {
                let sentence = "--from and --to must be a SQLite file and a PostgreSQL database, \
                     in either order";
                return Err(CopyError::Refused(sentence.to_owned()));
            }
        };
        if !exists {
            return Err(CopyError::Refused("--from names no ledger; check its path".to_owned()));
        }
        let mut source = ExclusiveLedger::open(from, self.keys).await?;
        if source.mark().await?.is_some() {
            return Err(LedgerError::HalfCopied.into());
        }
        if source.begins_are_closed().await? {
            let sentence = "the database of --from lacks steps, so its begins are closed; follow \
                 \"At night\" in docs/cluster.md first";
            return Err(CopyError::Refused(sentence.to_owned()));
        }
        self.require_alone(&mut source, "--from").await?;
        Ok(source)
    }

    /// Refuses a ledger that a gate uses.
    async fn require_alone(
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

    /// Returns where the copy begins or continues.
    async fn begin(
        &mut self,
        destination: &mut ExclusiveLedger,
        source: &Head,
    ) -> Result<Start, CopyError> {
        if let Some(stored) = destination.mark().await? {
            return match Mark::parse(&stored).filter(|mark| mark.is_of(source)) {
                Some(mark) => Ok(Start::At(mark)),
                None => Err(CopyError::Refused(
                    "the destination has a part of another ledger, or the source has changed \
                     since the copy began; empty the destination, and copy again"
                        .to_owned(),
                )),
            };
        }
        let mut origins = origin::read_origins(&destination.origins().await?, &self.keys.audit)?;
        if let Some(origin) = origins.pop_if(|origin| origin.is_of(source)) {
            return Ok(Start::Complete(origin));
        }
        for table in Table::ALL {
            if destination.count(table).await? > 0 {
                return Err(CopyError::Refused(format!(
                    "the destination has {} that are not of this copy; name an empty database or \
                     a new file",
                    table.name()
                )));
            }
        }
        let mark = Mark::new(source);
        destination.insert_mark(&mark).await?;
        // A gate that started before the mark was there may have not seen it.
        if let Err(error) = self.require_alone(destination, "--to").await {
            destination.remove_mark().await?;
            return Err(error);
        }
        Ok(Start::At(mark))
    }

    /// Copies the tables from the mark on. Returns the last mark.
    async fn copy_tables(
        &mut self,
        source: &mut ExclusiveLedger,
        destination: &mut ExclusiveLedger,
        mut mark: Mark,
    ) -> Result<Mark, CopyError> {
        while let Some(table) = mark.table {
            let total = source.count(table).await?;
            mark = self.copy_table(source, destination, (table, total), mark).await?;
            let next = mark.next_table();
            destination.write(&[], (&mark, &next), &self.keys.audit).await?;
            mark = next;
        }
        Ok(mark)
    }

    async fn copy_table(
        &mut self,
        source: &mut ExclusiveLedger,
        destination: &mut ExclusiveLedger,
        (table, total): (Table, u64),
        mut mark: Mark,
    ) -> Result<Mark, CopyError> {
        let (started, former) = (Instant::now(), mark.done);
        source.begin_reading().await?;
        let mut rows = source.rows(table, &mark.after, &self.keys.audit).try_chunks(self.batch);
        while let Some(batch) = rows.try_next().await.map_err(|error| error.1)? {
            let Some(last) = batch.last() else { continue };
            let next = mark.advance(batch.len(), last.position());
            destination.write(&batch, (&mark, &next), &self.keys.audit).await?;
            mark = next;
            let (rows, done) = (table.name(), mark.done);
            let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
            let per_second = (done - former) * 1000 / millis;
            (self.report)(CopyProgress::Copying { rows, done, total, per_second });
        }
        drop(rows);
        source.end_reading().await?;
        Ok(mark)
    }

    /// Compares all rows, verifies the destination, and checks that the source is as it was at the
    /// beginning. The mark protects the destination.
    async fn compare(
        &mut self,
        source: &mut ExclusiveLedger,
        destination: &mut ExclusiveLedger,
        head: &Head,
    ) -> Result<Summary, CopyError> {
        (self.report)(CopyProgress::Comparing);
        let summary = self.summarize(source).await?;
        let mut differences = summary.differences(&self.summarize(destination).await?);
        if !differences.is_empty() {
            differences.push("empty the destination, and copy again".to_owned());
            return Err(CopyError::Findings(differences));
        }
        (self.report)(CopyProgress::Verifying("destination"));
        destination.write_head_file().await?;
        sound("destination", destination.verify(&self.keys.audit).await?)?;
        // Again: what was copied must be what was verified, also if somebody changed rows since.
        (self.report)(CopyProgress::Verifying("source"));
        sound("source", source.verify(&self.keys.audit).await?)?;
        self.require_alone(source, "--from").await?;
        self.require_alone(destination, "--to").await?;
        if source.head().await? != *head {
            let sentence = "the source has changed during the copy; stop all gates, empty the \
                 destination, and copy again";
            return Err(CopyError::Refused(sentence.to_owned()));
        }
        Ok(summary)
    }

    async fn summarize(&self, ledger: &mut ExclusiveLedger) -> Result<Summary, LedgerError> {
        let mut summary = Summary::default();
        ledger.begin_reading().await?;
        for table in Table::ALL {
            let mut rows = ledger.rows(table, &Position::start(), &self.keys.audit);
            while let Some(row) = rows.try_next().await? {
                summary.add(table, &row);
            }
        }
        ledger.end_reading().await?;
        Ok(summary)
    }
}

/// Returns the result of a verification that found nothing.
fn sound(side: &str, verified: Verified) -> Result<Verified, CopyError> {
    if verified.findings.is_empty() {
        return Ok(verified);
    }
    let findings = verified.findings.iter().map(|finding| format!("{side}: {finding}"));
    Err(CopyError::Findings(findings.collect()))
}
