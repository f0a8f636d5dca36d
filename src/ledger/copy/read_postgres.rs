//! Reads the rows of a table of PostgreSQL, as a stream from a position. Each page is a short
//! transaction.
//!
//! Steps are read loan by loan, and those of a loan are sorted. SQLite has one chain for all loans,
//! in which only the order of each loan's own steps has a meaning.

use std::sync::LazyLock;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::order::{ChainStep, in_order};
use super::read_sqlite::Rows;
use super::rows::{Position, Row, Table};
use crate::ledger::accesses::ACCESS;
use crate::ledger::audit::AuditKey;
use crate::ledger::postgres::ExclusiveDatabase;
use crate::ledger::stored_row::{COLUMNS, loan_of};
use crate::ledger::{LedgerError, reports};

static LOANS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS}, opened, assessed, examine, owner FROM loans \
         WHERE (library, id) > ($1, $2) ORDER BY library, id LIMIT $3"
    )
});
/// With the columns of the loan, for the hash of its row. A step without a loan is an error. Head
/// records are left out, since they name links of the source.
static STEPS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS}, step.*, 0::bigint AS is_uncovered FROM ( \
         SELECT library AS of_library, loan, at, chain, number, from_state, to_state, cause, \
         detail, version, salt, loan_mac FROM history \
         WHERE (library, loan, at, chain, number) > ($1, $2, $3, $4, $5) \
         AND loan <> '00000000-0000-0000-0000-000000000000' AND loan <> '{ACCESS}' \
         ORDER BY library, loan, at, chain, number LIMIT $6) AS step \
         LEFT JOIN loans ON loans.library = of_library AND loans.id = step.loan \
         ORDER BY of_library, step.loan, at, chain, number"
    )
});
/// Library by library, so that each page reads few of the other steps.
const ACCESSES: &str = "SELECT found.* \
     FROM (SELECT DISTINCT library AS name FROM chains WHERE library >= $1) AS t \
     CROSS JOIN LATERAL (SELECT library, chain, number, loan, at, from_state, to_state, cause, \
     detail, version, salt, loan_mac FROM history \
     WHERE library = t.name AND loan = $2 AND (t.name > $1 OR (chain, number) > ($3, $4)) \
     ORDER BY chain, number LIMIT $5) AS found ORDER BY library, chain, number LIMIT $5";
const DELIVERED: &str = "SELECT library, loan, file, bytes, ranges FROM delivered \
     WHERE (library, loan, file) > ($1, $2, $3) ORDER BY library, loan, file LIMIT $4";
const DOUBTS: &str = "SELECT library, loan, since, run FROM doubts \
     WHERE (library, loan) > ($1, $2) ORDER BY library, loan LIMIT $3";
static REPORTS: LazyLock<String> = LazyLock::new(|| {
    let columns = reports::COLUMNS;
    format!(
        "SELECT {columns} FROM reports WHERE (library, loan) > ($1, $2) \
         ORDER BY library, loan LIMIT $3"
    )
});

/// Reads the rows of a table after a position, in pages of `page` rows.
pub(super) fn postgres_rows<'a>(
    database: &'a ExclusiveDatabase,
    table: Table,
    after: &Position,
    page: usize,
    key: &'a AuditKey,
) -> Rows<'a> {
    if table == Table::Steps {
        return steps(Steps::after(database, after, page, key)).boxed_local();
    }
    let pages = stream::try_unfold(Some(after.clone()), move |after| async move {
        let Some(after) = after else { return Ok(None) };
        let rows = read_page(database, table, &after, page).await?;
        let rows = rows.iter().map(|row| Row::read(table, row, key));
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let next = rows.last().filter(|_| rows.len() == page).map(Row::position);
        Ok::<_, LedgerError>(Some((stream::iter(rows.into_iter().map(Ok)), next)))
    });
    pages.try_flatten().boxed_local()
}

async fn read_page(
    database: &ExclusiveDatabase,
    table: Table,
    after: &Position,
    page: usize,
) -> Result<Vec<PgRow>, LedgerError> {
    let sql = match table {
        Table::Loans => LOANS.as_str(),
        Table::Steps => STEPS.as_str(),
        Table::Delivered => DELIVERED,
        Table::Doubts => DOUBTS,
        Table::Accesses => ACCESSES,
        Table::Reports => REPORTS.as_str(),
    };
    let read = database.read(async |connection| {
        let query = sqlx::query(sql).persistent(false);
        let query = query.bind(after.library.as_str());
        let query = match table {
            Table::Delivered => query.bind(after.uuid()).bind(after.file.as_str()),
            Table::Accesses => query.bind(ACCESS).bind(after.uuid()).bind(after.number),
            Table::Loans | Table::Steps | Table::Doubts | Table::Reports => {
                query.bind(after.uuid())
            }
        };
        query.bind(limit(page)).fetch_all(connection).await
    });
    read.await.map_err(LedgerError::Server)
}

fn limit(page: usize) -> i64 {
    i64::try_from(page).unwrap_or(i64::MAX)
}

/// The reading of all steps, a loan after the other.
struct Steps<'a> {
    database: &'a ExclusiveDatabase,
    key: &'a AuditKey,
    page: usize,
    /// The place of the last step that was copied. Its loan is read again from its start, since
    /// only all its steps together have an order.
    resumed: Position,
    /// The last step that was read; none after the end.
    after: Option<StepKey>,
    /// Steps of the last loan that was read, of which there may be more.
    held: Vec<ChainStep>,
}

/// The key of a step in the index of a loan's steps.
#[derive(Clone)]
struct StepKey {
    library: String,
    loan: Uuid,
    at: i64,
    chain: Uuid,
    number: i64,
}

impl<'a> Steps<'a> {
    fn after(
        database: &'a ExclusiveDatabase,
        after: &Position,
        page: usize,
        key: &'a AuditKey,
    ) -> Steps<'a> {
        let (library, loan) = (after.library.clone(), after.uuid());
        let first = StepKey { library, loan, at: i64::MIN, chain: Uuid::nil(), number: i64::MIN };
        let (resumed, held) = (after.clone(), Vec::new());
        Steps { database, key, page, resumed, after: Some(first), held }
    }

    /// Reads the next page. Returns the steps of the loans that are complete, in their order; none
    /// after the last.
    async fn next(&mut self) -> Result<Option<Vec<Row>>, LedgerError> {
        let Some(after) = self.after.take() else { return Ok(None) };
        let rows = self.database.read(async |connection| {
            let query = sqlx::query(STEPS.as_str()).persistent(false);
            let query = query.bind(after.library.as_str()).bind(after.loan).bind(after.at);
            query
                .bind(after.chain)
                .bind(after.number)
                .bind(limit(self.page))
                .fetch_all(connection)
                .await
        });
        let rows = rows.await.map_err(LedgerError::Server)?;
        for row in &rows {
            self.held.push(chain_step(row, self.key)?);
        }
        let mut complete = std::mem::take(&mut self.held);
        if let Some(last) = complete.last().filter(|_| rows.len() == self.page) {
            let ChainStep { step, chain, number, .. } = last;
            let (library, loan) = (step.library, step.loan);
            let key = StepKey {
                library: library.to_string(),
                loan,
                at: step.at,
                chain: *chain,
                number: *number,
            };
            self.after = Some(key);
            let is_of_last =
                |step: &ChainStep| (step.step.library, step.step.loan) == (library, loan);
            let first = complete.iter().position(is_of_last).unwrap_or_default();
            self.held = complete.split_off(first);
        }
        self.sorted(complete).map(Some)
    }

    /// Sorts the steps of each loan, and leaves out those that were copied before.
    fn sorted(&self, steps: Vec<ChainStep>) -> Result<Vec<Row>, LedgerError> {
        let mut rows = Vec::with_capacity(steps.len());
        let mut steps = steps.into_iter().peekable();
        while let Some(first) = steps.next() {
            let (library, loan) = (first.step.library, first.step.loan);
            let mut of_loan = vec![first];
            let is_of_loan =
                |step: &ChainStep| (step.step.library, step.step.loan) == (library, loan);
            while let Some(step) = steps.next_if(is_of_loan) {
                of_loan.push(step);
            }
            let sorted = in_order(of_loan).ok_or_else(|| {
                let why = "the states of its steps do not continue each other to its own state";
                LedgerError::damaged(&loan.to_string(), &why)
            })?;
            let is_resumed =
                self.resumed.uuid() == loan && self.resumed.library == library.as_str();
            for (ChainStep { mut step, .. }, place) in sorted.into_iter().zip(1..) {
                step.place = place;
                if !is_resumed || place > self.resumed.number {
                    rows.push(Row::Step(Box::new(step)));
                }
            }
        }
        Ok(rows)
    }
}

fn steps(steps: Steps<'_>) -> impl stream::Stream<Item = Result<Row, LedgerError>> {
    let pages = stream::try_unfold(steps, |mut steps| async move {
        let rows = steps.next().await?;
        Ok::<_, LedgerError>(rows.map(|rows| (stream::iter(rows.into_iter().map(Ok)), steps)))
    });
    pages.try_flatten()
}

fn chain_step(row: &PgRow, key: &AuditKey) -> Result<ChainStep, LedgerError> {
    let Row::Step(step) = Row::read(Table::Steps, row, key)? else {
        return Err(LedgerError::damaged("?", &"a row of another table"));
    };
    let id = step.loan.to_string();
    let wrong = |error: sqlx::Error| LedgerError::damaged(&id, &error);
    let fits_loan = match (&step.salt, &step.loan_mac) {
        (Some(salt), Some(mac)) => key.loan_mac(salt, &loan_of(row)?) == *mac,
        _ => false,
    };
    let chain = sqlx::Row::try_get(row, "chain").map_err(wrong)?;
    let number = sqlx::Row::try_get(row, "number").map_err(wrong)?;
    Ok(ChainStep { step: *step, chain, number, fits_loan })
}
