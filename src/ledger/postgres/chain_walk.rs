//! A walk along one chain of the audit trail, page by page. Only `verify` calls it.
//!
//! A page has the row of the chain, its next steps and their anchors, in one snapshot. The last
//! page must end with the step that the row names.
//!
//! If a pruning has replaced steps of earlier pages since they were read, a newer anchor covers
//! them. Its seal proves its last link, and the walk continues there.

use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row};
use uuid::Uuid;

use super::sql::statement;
use super::whole_ledger::WholeLedger;
use crate::ledger::LedgerError;
use crate::ledger::audit::{Anchor, AuditKey, ExpectedEnd, Head, StoredStep, Verified, Walk};
use crate::ledger::stored_row::{anchor_of, step_of};
use crate::loan::LibraryId;

impl FromRow<'_, PgRow> for StoredStep {
    fn from_row(row: &PgRow) -> Result<StoredStep, sqlx::Error> {
        step_of(row)
    }
}

impl FromRow<'_, PgRow> for Anchor {
    fn from_row(row: &PgRow) -> Result<Anchor, sqlx::Error> {
        anchor_of(row)
    }
}

/// A fenced process may still write for some time, and the others seal its chains later.
pub(super) const ROW: &str = "SELECT number, mac, closed, seal, EXISTS ( \
     SELECT 1 FROM members WHERE process = $2 AND (fenced IS NULL OR NOT has_left \
     AND fenced > (extract(epoch FROM now()) * 1000)::bigint - 86400000)) AS may_write \
     FROM chains WHERE library = $1 AND chain = $2";
pub(super) const ANCHORS: &str = "SELECT first, last, mac, seal FROM anchors \
     WHERE library = $1 AND chain = $2 AND last > $3 ORDER BY last LIMIT $4";
/// Searches the loan of each intent. Every loan has one, and is removed together with its steps.
pub(super) const STEPS: &str = "SELECT *, CASE WHEN from_state IS NULL THEN NOT EXISTS ( \
     SELECT 1 FROM loans WHERE loans.library = $1 AND loans.id = history.loan) \
     ELSE false END AS has_no_loan FROM history \
     WHERE library = $1 AND chain = $2 AND number > $3 ORDER BY number LIMIT $4";
pub(super) const STEP_MAC: &str =
    "SELECT mac FROM history WHERE library = $1 AND chain = $2 AND number = $3";

/// The row of a chain.
#[derive(Clone, Debug)]
struct ChainRow {
    newest: Head,
    closed: Option<i64>,
    seal: Option<Vec<u8>>,
    /// Whether the process of the chain may write.
    may_write: bool,
}

impl ChainRow {
    fn of(row: &PgRow) -> Result<ChainRow, sqlx::Error> {
        Ok(ChainRow {
            newest: Head { number: row.try_get("number")?, mac: row.try_get("mac")? },
            closed: row.try_get("closed")?,
            seal: row.try_get("seal")?,
            may_write: row.try_get("may_write")?,
        })
    }

    /// Returns what is wrong with the seal.
    fn finding(&self, library: LibraryId, chain: Uuid, key: &AuditKey) -> Option<&'static str> {
        let Some(seal) = &self.seal else {
            let is_open = self.may_write && self.closed.is_none();
            return (!is_open).then_some("its process has ended, but no seal names its last step");
        };
        let closed = self.closed.unwrap_or_default();
        let expected = key.closing_seal(library.as_str(), chain, &self.newest, closed);
        (*seal != expected).then_some("its seal does not fit its row: one of them was changed")
    }
}

/// A part of a chain, of one moment.
#[derive(Debug, Default)]
struct Page {
    row: Option<ChainRow>,
    anchors: Vec<Anchor>,
    /// The steps, and whether the loan of an intent is missing.
    steps: Vec<(StoredStep, bool)>,
    /// The hash before the first anchor, if that covers earlier pages too.
    before: Option<Vec<u8>>,
    /// Whether there is a step with the lowest number, which no page has.
    has_lowest: bool,
}

/// A walk along one chain, page by page.
pub(super) struct ChainWalk<'a> {
    ledger: &'a WholeLedger,
    library: LibraryId,
    chain: Uuid,
    /// The hash before the first step.
    start: Vec<u8>,
    walk: Walk<'a>,
    /// The number of the last step that was read.
    pub(super) position: i64,
    row: Option<ChainRow>,
    key: &'a AuditKey,
}

impl<'a> ChainWalk<'a> {
    pub(super) fn new(
        ledger: &'a WholeLedger,
        library: LibraryId,
        chain: Uuid,
        key: &'a AuditKey,
    ) -> ChainWalk<'a> {
        let start = key.chain_start(library, chain);
        let walk = Walk::new(key, Head { number: 0, mac: start.clone() });
        ChainWalk { ledger, library, chain, start, walk, position: i64::MIN, row: None, key }
    }

    /// Walks the whole chain, which must contain the link that another chain has recorded. The
    /// findings name it.
    pub(super) async fn walk_all(
        mut self,
        recorded: Option<ExpectedEnd>,
    ) -> Result<Verified, LedgerError> {
        self.walk.expect_recorded(recorded);
        while self.read_page().await? {}
        Ok(self.end())
    }

    /// Walks the next page. Returns whether there are more.
    pub(super) async fn read_page(&mut self) -> Result<bool, LedgerError> {
        let (library, chain, position) = (self.library, self.chain, self.position);
        let rows = self.ledger.page;
        let page = self.ledger.snapshot(async |connection| {
            Page::read(connection, library, chain, position, rows).await
        });
        let mut page = page.await?;
        self.ledger.rows.add(page.steps.len());
        if page.has_lowest {
            self.walk.report(format!("step {position} is not part of it"));
        }
        let end = page.cut(self.ledger);
        let newest = page.row.as_ref().map(|row| row.newest.clone());
        let expected = newest.map(|head| ExpectedEnd { head, place: "its row".into() });
        self.walk.expect(expected);
        self.row = page.row.take();
        if page.is_covered_before(position) {
            let anchor = page.anchors.remove(0);
            let before = page.before.as_ref().unwrap_or(&self.start);
            self.walk.cross_newer_anchor(&anchor, before);
        }
        self.walk.add_anchors(page.anchors);
        for (step, has_no_loan) in page.steps {
            if has_no_loan {
                let (loan, number) = (&step.loan, step.number);
                self.walk.report(format!("loan {loan} is missing; step {number} began it"));
            }
            self.walk.step(step);
        }
        // Before the next page, whose anchors may cover the last ones of this page too.
        self.walk.cross_anchors();
        self.position = end.unwrap_or(i64::MAX);
        Ok(end.is_some())
    }

    pub(super) fn end(self) -> Verified {
        let ChainWalk { library, chain, walk, row, key, .. } = self;
        let mut walked = walk.end();
        let last = walked.head.number;
        match row {
            None => walked.report("its row is missing".to_owned()),
            Some(row) => {
                let number = row.newest.number;
                if last > number {
                    walked.report(format!("it ends at {last}, its row names step {number}"));
                }
                let found = row.finding(library, chain, key);
                found.into_iter().for_each(|found| walked.report(found.to_owned()));
            }
        }
        let named = |finding| format!("library {library}, chain {chain}: {finding}");
        walked.findings = walked.findings.into_iter().map(named).collect();
        walked
    }
}

impl Page {
    /// Reads what follows the step with the number `position`.
    async fn read(
        connection: &mut PgConnection,
        library: LibraryId,
        chain: Uuid,
        position: i64,
        rows: i64,
    ) -> Result<Page, sqlx::Error> {
        let of_chain = |sql| statement(sql).bind(library.as_str().to_owned()).bind(chain);
        let row = of_chain(ROW).fetch_optional(&mut *connection).await?;
        let row = row.as_ref().map(ChainRow::of).transpose()?;
        let anchors = of_chain(ANCHORS).bind(position).bind(rows);
        let anchors = anchors.fetch_all(&mut *connection).await?;
        let anchors = anchors.iter().map(anchor_of).collect::<Result<Vec<_>, _>>()?;
        let steps = of_chain(STEPS).bind(position).bind(rows);
        let steps = steps.fetch_all(&mut *connection).await?;
        let step = |row: &PgRow| Ok((step_of(row)?, row.try_get("has_no_loan")?));
        let steps = steps.iter().map(step).collect::<Result<Vec<_>, sqlx::Error>>()?;
        let mut page = Page { row, anchors, steps, ..Page::default() };
        if position == i64::MIN {
            let lowest = of_chain(STEP_MAC).bind(position).fetch_optional(&mut *connection).await?;
            page.has_lowest = lowest.is_some();
        }
        if let Some(anchor) = page.anchors.first().filter(|_| page.is_covered_before(position)) {
            let mac = of_chain(STEP_MAC).bind(anchor.first.saturating_sub(1));
            let mac = mac.fetch_optional(connection).await?;
            page.before = mac.map(|row| row.try_get(0)).transpose()?;
        }
        Ok(page)
    }

    /// Returns whether the first anchor also covers steps up to `position`.
    fn is_covered_before(&self, position: i64) -> bool {
        self.anchors.first().is_some_and(|anchor| anchor.first <= position)
    }

    /// Removes what follows the last step up to which both lists are complete. Returns its number;
    /// none if the lists are complete to the end of the chain.
    fn cut(&mut self, ledger: &WholeLedger) -> Option<i64> {
        let anchors = self.anchors.last().filter(|_| ledger.is_full(&self.anchors));
        let steps = self.steps.last().filter(|_| ledger.is_full(&self.steps));
        let ends = [anchors.map(|anchor| anchor.last), steps.map(|(step, _)| step.number)];
        let end = ends.into_iter().flatten().min()?;
        self.anchors.retain(|anchor| anchor.last <= end);
        self.steps.retain(|(step, _)| step.number <= end);
        Some(end)
    }
}
