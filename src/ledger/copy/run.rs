//! The steps of a copy, in their order. `start` has those before the first row.

use std::time::Instant;

use futures_util::TryStreamExt;
use jiff::Timestamp;

use super::exclusive::{ExclusiveLedger, Extent};
use super::mark::Mark;
use super::origin::{self, Origin};
use super::release;
use super::rows::Table;
use super::source::source_mark;
use super::start::Start;
use super::summary::Summary;
use super::write::OTHER_COPY;
use super::{Copied, CopyError, CopyProgress, Deadlines, Keys};
use crate::ledger::reports::RECONCILED;
use crate::ledger::{LedgerError, StoreSettings};

/// A complete destination has newer loans as soon as a gate has used it.
const DIFFERENT: &str = "if no gate has used the destination, empty it, and copy again; otherwise \
     keep it, since it has newer loans";
/// A gate has opened the source, or another copy of it has begun.
const SOURCE_CHANGED: &str = "the source has changed during the copy, or a gate or another copy \
     has opened it; stop them, empty the destination, and copy again";

/// Nothing marks the source any more.
const RELEASED: &str = "the copy is complete, but --release-source let gates use the source again \
     meanwhile; if none has, copy again, which marks it; otherwise keep the source";

/// A running copy.
pub(super) struct Copy<'a> {
    pub(super) keys: &'a Keys,
    /// The number of rows of a transaction.
    pub(super) batch: usize,
    pub(super) deadlines: Deadlines,
    pub(super) now: Timestamp,
    pub(super) report: &'a mut (dyn FnMut(CopyProgress) + Send),
}

impl Copy<'_> {
    /// Copies, compares and completes.
    pub(super) async fn run(
        mut self,
        from: &StoreSettings,
        to: &StoreSettings,
    ) -> Result<Copied, CopyError> {
        let mut source = self.open_source(from, to).await?;
        let opened = ExclusiveLedger::open(to, self.keys, self.deadlines);
        let mut destination = opened.await?;
        self.require_alone(&mut destination, "--to").await?;
        let extent = source.extent().await?;
        let copied = match self.start(&mut destination, &extent.head).await? {
            Start::Complete(origin) => {
                let verified = self.verify(&mut source, "source").await?;
                let summary = self.compare(&mut source, &mut destination, &extent).await?;
                // The mark may have been removed since.
                let mark = source_mark(&Mark::new(&extent.head).chain, to);
                if !source.mark_moved_before(&mark, &extent).await? {
                    return Err(CopyError::Refused(SOURCE_CHANGED.to_owned()));
                }
                self.wait_for_silence(&mut source).await?;
                release::take_up(&mut destination).await?;
                Copied { counts: summary.counts(), covered: verified.uncovered, origin }
            }
            Start::At(mark, is_new) => {
                let ends = (&mut source, &mut destination);
                self.copy_from(ends, (mark, is_new), &extent, to).await?
            }
        };
        source.close().await;
        destination.close().await;
        Ok(copied)
    }

    /// Copies what follows the mark, and completes the destination.
    async fn copy_from(
        &mut self,
        (source, destination): (&mut ExclusiveLedger, &mut ExclusiveLedger),
        (mark, is_new): (Mark, bool),
        extent: &Extent,
        to: &StoreSettings,
    ) -> Result<Copied, CopyError> {
        if let Some(to) = source.moved_elsewhere(&mark.chain).await? {
            return Err(LedgerError::Moved { to }.into());
        }
        let of_source = source_mark(&mark.chain, to);
        // First: what is verified now must not be pruned later.
        source.mark_source(&of_source).await?;
        let begun = self.begin(source, destination, (&mark, is_new)).await;
        if begun.is_err() && mark.is_first() {
            source.unmark_source(&of_source).await?;
        }
        let verified = begun?;
        let mut origins = origin::read_origins(&source.origins().await?, &self.keys.audit)?;
        let mark = self.copy_tables(source, destination, mark).await?;
        destination.seal_chains(mark.chain(), &self.keys.audit).await?;
        let summary = self.compare(source, destination, extent).await?;
        let counts = [Table::Loans, Table::Steps].map(|table| summary.count(table));
        let last = (verified.pruned, self.now);
        let origin = Origin::new(source.store(), &extent.head, counts, last, &self.keys.audit);
        origins.push(origin.clone());
        if !source.mark_moved(&of_source, extent).await? {
            return Err(CopyError::Refused(SOURCE_CHANGED.to_owned()));
        }
        // Again: a gate that was suspended may have joined before the mark was there.
        self.require_alone(source, "--from").await?;
        self.wait_for_silence(source).await?;
        // What may have been reported before is not sent from the copy either.
        let reconciled = source.find_meta(RECONCILED).await?;
        let pauses = source.pauses().await?;
        let reconciled = reconciled.as_deref();
        if !destination.complete(&mark, &origins, reconciled, &pauses).await? {
            return Err(CopyError::Refused(OTHER_COPY.to_owned()));
        }
        if !source.is_moved_by(&mark.chain).await? {
            return Err(CopyError::Refused(RELEASED.to_owned()));
        }
        Ok(Copied { counts: summary.counts(), covered: verified.uncovered, origin })
    }

    /// Copies the tables from the mark on. Returns the last mark.
    async fn copy_tables(
        &mut self,
        source: &mut ExclusiveLedger,
        destination: &mut ExclusiveLedger,
        mut mark: Mark,
    ) -> Result<Mark, CopyError> {
        while let Some(table) = mark.table {
            let total = source.count_copied(table).await?;
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
        let rows = source.rows(table, &mark.after, self.batch, &self.keys.audit);
        let mut rows = rows.try_chunks(self.batch);
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
        extent: &Extent,
    ) -> Result<Summary, CopyError> {
        (self.report)(CopyProgress::Comparing);
        let summary = self.summarize(source).await?;
        let mut differences = summary.differences(&self.summarize(destination).await?);
        if !differences.is_empty() {
            differences.push(DIFFERENT.to_owned());
            return Err(CopyError::Findings(differences));
        }
        destination.write_head_file().await?;
        self.verify(destination, "destination").await?;
        // Again: what was copied must be what was verified, also if somebody changed rows since.
        self.verify(source, "source").await?;
        self.require_alone(source, "--from").await?;
        self.require_alone(destination, "--to").await?;
        if source.extent().await? != *extent {
            return Err(CopyError::Refused(SOURCE_CHANGED.to_owned()));
        }
        Ok(summary)
    }

    async fn summarize(&self, ledger: &mut ExclusiveLedger) -> Result<Summary, LedgerError> {
        Summary::read(ledger, self.batch, &self.keys.audit).await
    }
}
