//! Usage reports: the statements of a write transaction, and the queries.
//!
//! The background work on a report belongs to the bucket of its loan. Two processes may still do
//! it: each change is one statement with the state that it expects.

use std::sync::LazyLock;

use jiff::Timestamp;
use sqlx::{PgConnection, Postgres, QueryBuilder};
use uuid::Uuid;

use super::queries::Queries;
use super::row::{count_of, first};
use super::session::prepares;
use super::sql::{loans, statement};
use crate::clock;
use crate::ledger::buckets::bucket_of;
use crate::ledger::membership::Membership;
use crate::ledger::reports::{
    COLUMNS, LONGEST_BEGIN, RECONCILED, Report, ReportFilter, ReportPosition, ReportState,
    ReportStep, end_of_page, first_loan_id, millis, next_of, reconciled_at, report_of,
};
use crate::ledger::states::isbn_column;
use crate::ledger::store::WorkError;
use crate::ledger::stored_row::loan_of;
use crate::ledger::{LedgerError, reports};
use crate::loan::{LibraryId, Loan, LoanId, Progress};

/// The condition is that of the index.
pub(super) static TO_ASSESS: LazyLock<String> = LazyLock::new(|| {
    loans(
        "licence_type = $1 AND assessed IS NULL AND accepted IS NOT NULL AND id > $2 \
         AND bucket = ANY($3) ORDER BY id LIMIT $4",
    )
});
pub(super) static IN_STATE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS} FROM reports WHERE state = $1 AND loan > $2 AND bucket = ANY($3) \
         ORDER BY loan LIMIT $4"
    )
});
pub(super) static OF_LOAN: LazyLock<String> =
    LazyLock::new(|| format!("SELECT {COLUMNS} FROM reports WHERE loan = $1"));
pub(super) const COUNT: &str = "SELECT count(*) FROM reports WHERE state = $1";
pub(super) const LATE: &str = "SELECT count(*) FROM reports WHERE state = 'due' \
     AND coalesce(due_since, measured) < $1 AND (attempts > 0 OR changed < $1)";
const RECONCILED_AT: &str = "SELECT value FROM meta WHERE name = $1";
/// Searches only for a licence that is not in the books. The conditions are those of the index.
pub(super) const IS_PACKAGE_KNOWN: &str = "SELECT CASE WHEN EXISTS (SELECT 1 FROM reports \
     WHERE library = $1 AND model = 'PACKAGE' AND subject = $3) THEN false \
     ELSE EXISTS (SELECT 1 FROM loans \
     WHERE library = $1 AND licence_type = $2 AND licence_id = $3 AND accepted < $4 AND id < $5 \
     AND assessed IS NULL AND accepted IS NOT NULL) END";
const IS_DEAD: &str =
    "SELECT NOT EXISTS (SELECT 1 FROM members WHERE member = $1 AND fenced IS NULL)";
const INSERT: &str = "INSERT INTO reports (library, model, subject, loan, bucket, isbn, \
     licence_id, licence_type, date, evidence, progress, covered, size, measured, price, state, \
     note, changed, due_since) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) \
     ON CONFLICT DO NOTHING";
pub(super) const ASSESS: &str =
    "UPDATE loans SET assessed = $3 WHERE library = $1 AND id = ANY($2)";
/// A claim also fails if the report became due before the ledger was reconciled, also where this
/// process has not noticed that yet. The bytes of times are in the order of the times.
pub(super) static STEP: LazyLock<String> = LazyLock::new(|| {
    format!(
        "UPDATE reports SET state = $1, \
         owner = CASE WHEN $2::boolean THEN $3::uuid ELSE owner END, \
         attempts = attempts + CASE WHEN $2::boolean THEN 1 ELSE 0 END, \
         sent = CASE WHEN $2::boolean THEN $4::bigint ELSE sent END, \
         price = coalesce($5::bigint, price), note = $6, \
         changed = $4::bigint, due_since = coalesce(due_since, measured), \
         evidence = CASE WHEN $7::boolean THEN $8 ELSE evidence END, \
         progress = CASE WHEN $7::boolean THEN $9::smallint ELSE progress END, \
         covered = CASE WHEN $7::boolean THEN $10::bigint ELSE covered END, \
         size = CASE WHEN $7::boolean THEN $11::bigint ELSE size END, \
         measured = CASE WHEN $7::boolean THEN $12::bigint ELSE measured END \
         WHERE loan = $13 AND library = $14 AND state = ANY($15) \
         AND ($2 OR $3::uuid IS NULL OR owner = $3::uuid) \
         AND ($16::bigint IS NULL OR attempts = $16::bigint) \
         AND NOT ($2::boolean AND EXISTS (SELECT 1 FROM meta WHERE name = '{RECONCILED}' \
         AND value > int8send(coalesce(due_since, measured)))) RETURNING {COLUMNS}"
    )
});

/// Inserts a report. Returns false if what it reports is in the books.
pub(super) async fn add(
    connection: &mut PgConnection,
    report: &Report,
    now: Timestamp,
) -> Result<bool, sqlx::Error> {
    let measure = &report.measure;
    let query = sqlx::query(INSERT)
        .bind(report.loan.library().as_str().to_owned())
        .bind(report.model.name())
        .bind(&report.subject)
        .bind(report.loan.uuid())
        .bind(bucket_of(report.loan.uuid()))
        .bind(isbn_column(report.isbn))
        .bind(&report.licence_id)
        .bind(&report.licence_type)
        .bind(report.date.to_string())
        .bind(measure.evidence.name())
        .bind(hundredths(measure.progress))
        .bind(measure.covered.map(reports::count))
        .bind(measure.size.map(reports::count))
        .bind(millis(measure.at))
        .bind(report.price.map(reports::count))
        .bind(report.state.name())
        .bind(&report.note)
        .bind(millis(now))
        .bind(millis(report.due_since));
    Ok(query.persistent(prepares(connection)).execute(connection).await?.rows_affected() == 1)
}

/// Returns whether a new package was in use before `since`. See the trait.
pub(super) async fn is_package_known(
    connection: &mut PgConnection,
    report: &Report,
    since: Timestamp,
) -> Result<bool, sqlx::Error> {
    let Some(licence) = report.new_package() else { return Ok(false) };
    let query = sqlx::query_scalar(IS_PACKAGE_KNOWN)
        .bind(report.loan.library().as_str().to_owned())
        .bind(&report.licence_type)
        .bind(licence)
        .bind(millis(since))
        .bind(first_loan_id(clock::after(since, LONGEST_BEGIN)));
    query.persistent(prepares(connection)).fetch_one(connection).await
}

/// Marks loans of a library as assessed.
pub(super) async fn assess(
    connection: &mut PgConnection,
    library: LibraryId,
    loans: &[LoanId],
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let mut ids: Vec<Uuid> = loans.iter().map(|id| id.uuid()).collect();
    ids.sort_unstable();
    let query = sqlx::query(ASSESS).bind(library.as_str().to_owned()).bind(ids).bind(millis(now));
    query.persistent(prepares(connection)).execute(connection).await.map(drop)
}

/// Changes the state of a report. Returns the changed report, or none if it is in another state.
pub(super) async fn step(
    connection: &mut PgConnection,
    step: &ReportStep,
    now: Timestamp,
) -> Result<Option<Report>, WorkError> {
    let measure = step.measure.as_ref();
    let owner = step.owner.as_deref().map(str::parse::<Uuid>).transpose();
    let owner = owner.map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let from: Vec<&str> = step.from.iter().map(|state| state.name()).collect();
    let query = sqlx::query(STEP.as_str())
        .bind(step.to.name())
        .bind(step.claims)
        .bind(owner)
        .bind(millis(now))
        .bind(step.price.map(reports::count))
        .bind(step.note.as_deref())
        .bind(measure.is_some())
        .bind(measure.map(|measure| measure.evidence.name()))
        .bind(hundredths(measure.and_then(|measure| measure.progress)))
        .bind(measure.and_then(|measure| measure.covered).map(reports::count))
        .bind(measure.and_then(|measure| measure.size).map(reports::count))
        .bind(measure.map(|measure| millis(measure.at)))
        .bind(step.loan.uuid())
        .bind(step.loan.library().as_str().to_owned())
        .bind(from)
        .bind(step.attempts.map(reports::count));
    let rows = query.persistent(prepares(connection)).fetch_all(connection).await?;
    Ok(rows.first().map(report_of).transpose()?)
}

fn hundredths(progress: Option<Progress>) -> Option<i16> {
    // At most 10,000.
    progress.map(|progress| i16::try_from(progress.hundredths()).unwrap_or(i16::MAX))
}

impl Queries {
    pub(in crate::ledger) async fn loans_to_assess(
        &self,
        licence_type: &str,
        after: Uuid,
        limit: u32,
    ) -> Result<(Vec<Loan>, Option<Uuid>), LedgerError> {
        let query = statement(&TO_ASSESS).bind(licence_type.to_owned()).bind(after);
        let query = query.bind(self.owned.get().to_vec()).bind(i64::from(limit));
        let rows = self.background_rows(query).await?;
        let next = next_of(&rows, "id", limit);
        Ok((rows.iter().filter_map(|row| self.damaged.loan(loan_of(row))).collect(), next))
    }

    pub(in crate::ledger) async fn reports_in_state(
        &self,
        state: ReportState,
        after: Uuid,
        limit: u32,
    ) -> Result<(Vec<Report>, Option<Uuid>), LedgerError> {
        let query = statement(&IN_STATE).bind(state.name()).bind(after);
        let query = query.bind(self.owned.get().to_vec()).bind(i64::from(limit));
        let rows = self.background_rows(query).await?;
        let next = next_of(&rows, "loan", limit);
        Ok((rows.iter().filter_map(|row| self.damaged.skip(report_of(row))).collect(), next))
    }

    /// Asks the table of the members.
    pub(in crate::ledger) async fn is_process_dead(
        &self,
        _membership: &dyn Membership,
        name: &str,
    ) -> Result<bool, LedgerError> {
        let Ok(name) = name.parse::<Uuid>() else { return Ok(false) };
        let row = self.background_row(statement(IS_DEAD).bind(name)).await?;
        Ok(first(row)?.unwrap_or_default())
    }

    pub(in crate::ledger) async fn reports(
        &self,
        filter: &ReportFilter,
    ) -> Result<(Vec<Report>, Option<ReportPosition>), LedgerError> {
        let rows = self.background_rows(listing(filter).build().persistent(false)).await?;
        let next = end_of_page(&rows, filter.limit);
        Ok((rows.iter().filter_map(|row| self.damaged.skip(report_of(row))).collect(), next))
    }

    pub(in crate::ledger) async fn report_of_loan(
        &self,
        loan: Uuid,
    ) -> Result<Option<Report>, LedgerError> {
        let row = self.row(statement(&OF_LOAN).bind(loan)).await?;
        row.as_ref().map(report_of).transpose()
    }

    pub(in crate::ledger) async fn count_reports(
        &self,
    ) -> Result<Vec<(ReportState, u64)>, LedgerError> {
        let mut counts = Vec::new();
        for state in ReportState::ALL.iter().filter(|state| !state.is_settled()) {
            let row = self.background_row(statement(COUNT).bind(state.name())).await?;
            counts.push((*state, count_of(row)?));
        }
        Ok(counts)
    }

    pub(in crate::ledger) async fn count_late_reports(
        &self,
        before: Timestamp,
    ) -> Result<u64, LedgerError> {
        count_of(self.background_row(statement(LATE).bind(millis(before))).await?)
    }

    pub(in crate::ledger) async fn reconciled(&self) -> Result<Option<Timestamp>, LedgerError> {
        let row = self.background_row(statement(RECONCILED_AT).bind(RECONCILED)).await?;
        let value: Option<Vec<u8>> = first(row)?;
        value.as_deref().map(reconciled_at).transpose()
    }
}

/// Returns the query of a listing.
pub(super) fn listing(filter: &ReportFilter) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM reports WHERE true"));
    if let Some(library) = filter.library {
        query.push(" AND library = ").push_bind(library.as_str().to_owned());
    }
    if let Some(from) = filter.from {
        query.push(" AND date >= ").push_bind(from.to_string());
    }
    if let Some(before) = filter.before {
        query.push(" AND date < ").push_bind(before.to_string());
    }
    if filter.for_a_person {
        query.push(" AND state IN (").push(reports::list(&ReportState::FOR_A_PERSON)).push(")");
    }
    if let Some(after) = &filter.after {
        query.push(" AND (date, library, loan) > (").push_bind(after.date.to_string());
        query.push(", ").push_bind(after.library.as_str().to_owned());
        query.push(", ").push_bind(after.loan).push(")");
    }
    query.push(" ORDER BY date, library, loan LIMIT ").push_bind(i64::from(filter.limit));
    query
}
