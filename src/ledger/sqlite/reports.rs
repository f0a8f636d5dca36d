//! Usage reports: the statements of a write transaction, and the queries.

use std::sync::LazyLock;

use jiff::Timestamp;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::queries::{Queries, loans};
use super::sql::isbn_column;
use crate::clock;
use crate::ledger::membership::Membership;
use crate::ledger::reports::{
    COLUMNS, LONGEST_BEGIN, RECONCILED, Report, ReportFilter, ReportPosition, ReportState,
    ReportStep, end_of_page, first_loan_id, millis, next_of, reconciled_at, report_of,
};
use crate::ledger::store::WorkError;
use crate::ledger::stored_row::{StoredRow, loan_of};
use crate::ledger::{LedgerError, reports};
use crate::loan::{Loan, LoanId, Progress};

/// The condition is that of the index.
static TO_ASSESS: LazyLock<String> = LazyLock::new(|| {
    loans(
        "licence_type = ? AND assessed IS NULL AND accepted IS NOT NULL AND id > ? \
         ORDER BY id LIMIT ?",
    )
});
static IN_STATE: LazyLock<String> = LazyLock::new(|| {
    format!("SELECT {COLUMNS} FROM reports WHERE state = ? AND loan > ? ORDER BY loan LIMIT ?")
});
static OF_LOAN: LazyLock<String> =
    LazyLock::new(|| format!("SELECT {COLUMNS} FROM reports WHERE loan = ?"));
const RECONCILED_AT: &str = "SELECT value FROM meta WHERE name = ?";
const LATE: &str = "SELECT count(*) FROM reports WHERE state = 'due' \
     AND coalesce(due_since, measured) < ?1 AND (attempts > 0 OR changed < ?1)";
/// Searches only for a licence that is not in the books. The conditions are those of the index.
const IS_PACKAGE_KNOWN: &str = "SELECT CASE WHEN EXISTS (SELECT 1 FROM reports \
     WHERE library = ?1 AND model = 'PACKAGE' AND subject = ?3) THEN false \
     ELSE EXISTS (SELECT 1 FROM loans \
     WHERE library = ?1 AND licence_type = ?2 AND licence_id = ?3 AND accepted < ?4 AND id < ?5 \
     AND assessed IS NULL AND accepted IS NOT NULL) END";
/// A claim also fails if the report became due before the ledger was reconciled.
static STEP: LazyLock<String> = LazyLock::new(|| {
    format!(
        "UPDATE reports SET state = ?1, owner = CASE WHEN ?2 THEN ?3 ELSE owner END, \
         attempts = attempts + ?2, sent = CASE WHEN ?2 THEN ?4 ELSE sent END, \
         price = coalesce(?5, price), note = ?6, changed = ?4, \
         due_since = coalesce(due_since, measured), \
         evidence = CASE WHEN ?7 THEN ?8 ELSE evidence END, \
         progress = CASE WHEN ?7 THEN ?9 ELSE progress END, \
         covered = CASE WHEN ?7 THEN ?10 ELSE covered END, \
         size = CASE WHEN ?7 THEN ?11 ELSE size END, \
         measured = CASE WHEN ?7 THEN ?12 ELSE measured END \
         WHERE loan = ?13 AND library = ?14 AND instr(?15, ' ' || state || ' ') > 0 \
         AND (?2 OR ?3 IS NULL OR owner = ?3) AND (?16 IS NULL OR attempts = ?16) \
         AND NOT (?2 AND ?17 > coalesce(due_since, measured)) RETURNING {COLUMNS}"
    )
});

/// Inserts a report. Returns false if what it reports is in the books.
pub(super) async fn add(
    connection: &mut SqliteConnection,
    report: &Report,
    now: Timestamp,
) -> Result<bool, sqlx::Error> {
    let mut query = QueryBuilder::<Sqlite>::new(format!("INSERT INTO reports ({COLUMNS}) "));
    query.push_values([report], |mut row, report| {
        let measure = &report.measure;
        row.push_bind(report.loan.library().as_str().to_owned());
        row.push_bind(report.model.name()).push_bind(report.subject.clone());
        row.push_bind(report.loan.to_string()).push_bind(isbn_column(report.isbn));
        row.push_bind(report.licence_id.clone()).push_bind(report.licence_type.clone());
        row.push_bind(report.date.to_string()).push_bind(measure.evidence.name());
        row.push_bind(measure.progress.map(Progress::hundredths));
        row.push_bind(measure.covered.map(reports::count))
            .push_bind(measure.size.map(reports::count));
        row.push_bind(millis(measure.at)).push_bind(report.price.map(reports::count));
        row.push_bind(report.state.name()).push_bind(None::<String>);
        row.push_bind(0_i64).push_bind(None::<i64>);
        row.push_bind(report.note.clone()).push_bind(millis(now));
        row.push_bind(millis(report.due_since));
    });
    query.push(" ON CONFLICT DO NOTHING");
    Ok(query.build().persistent(true).execute(connection).await?.rows_affected() == 1)
}

/// Returns whether a new package was in use before `since`. See the trait.
pub(super) async fn is_package_known(
    connection: &mut SqliteConnection,
    report: &Report,
    since: Timestamp,
) -> Result<bool, sqlx::Error> {
    let Some(licence) = report.new_package() else { return Ok(false) };
    let query = sqlx::query_scalar(IS_PACKAGE_KNOWN)
        .bind(report.loan.library().as_str().to_owned())
        .bind(&report.licence_type)
        .bind(licence)
        .bind(millis(since))
        .bind(first_loan_id(clock::after(since, LONGEST_BEGIN)).to_string());
    query.fetch_one(connection).await
}

/// Marks loans as assessed.
pub(super) async fn assess(
    connection: &mut SqliteConnection,
    loans: &[LoanId],
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    if loans.is_empty() {
        return Ok(());
    }
    let mut query = QueryBuilder::<Sqlite>::new("UPDATE loans SET assessed = ");
    query.push_bind(millis(now)).push(" WHERE id IN (");
    let mut list = query.separated(", ");
    for loan in loans {
        list.push_bind(loan.to_string());
    }
    query.push(")").build().persistent(false).execute(connection).await.map(drop)
}

/// Changes the state of a report. Returns the changed report, or none if it is in another state.
pub(super) async fn step(
    connection: &mut SqliteConnection,
    step: &ReportStep,
    now: Timestamp,
) -> Result<Option<Report>, WorkError> {
    let measure = step.measure.as_ref();
    let query = sqlx::query_scalar(RECONCILED_AT).bind(RECONCILED);
    let reconciled: Option<Vec<u8>> = query.fetch_optional(&mut *connection).await?;
    let reconciled = reconciled.as_deref().map(reconciled_at).transpose()?;
    let from: String = step.from.iter().map(|state| format!(" {state} ")).collect();
    let query = sqlx::query(STEP.as_str())
        .bind(step.to.name())
        .bind(step.claims)
        .bind(step.owner.as_deref())
        .bind(millis(now))
        .bind(step.price.map(reports::count))
        .bind(step.note.as_deref())
        .bind(measure.is_some())
        .bind(measure.map(|measure| measure.evidence.name()))
        .bind(measure.and_then(|measure| measure.progress).map(Progress::hundredths))
        .bind(measure.and_then(|measure| measure.covered).map(reports::count))
        .bind(measure.and_then(|measure| measure.size).map(reports::count))
        .bind(measure.map(|measure| millis(measure.at)))
        .bind(step.loan.to_string())
        .bind(step.loan.library().as_str().to_owned())
        .bind(from)
        .bind(step.attempts.map(reports::count))
        .bind(reconciled.map_or(i64::MIN, millis));
    let rows = query.fetch_all(connection).await?;
    Ok(rows.first().map(report_of).transpose()?)
}

impl Queries {
    pub(in crate::ledger) async fn loans_to_assess(
        &self,
        licence_type: &str,
        after: Uuid,
        limit: u32,
    ) -> Result<(Vec<Loan>, Option<Uuid>), LedgerError> {
        let query = sqlx::query(TO_ASSESS.as_str()).bind(licence_type.to_owned());
        let rows = self.rows(query.bind(after.to_string()).bind(limit)).await?;
        let next = next_of(&rows, "id", limit);
        Ok((rows.iter().filter_map(|row| self.damaged.loan(loan_of(row))).collect(), next))
    }

    pub(in crate::ledger) async fn reports_in_state(
        &self,
        state: ReportState,
        after: Uuid,
        limit: u32,
    ) -> Result<(Vec<Report>, Option<Uuid>), LedgerError> {
        let query = sqlx::query(IN_STATE.as_str()).bind(state.name());
        let rows = self.rows(query.bind(after.to_string()).bind(limit)).await?;
        let next = next_of(&rows, "loan", limit);
        Ok((rows.iter().filter_map(|row| self.damaged.skip(report_of(row))).collect(), next))
    }

    /// Asks the file of the process.
    pub(in crate::ledger) async fn is_process_dead(
        &self,
        membership: &dyn Membership,
        name: &str,
    ) -> Result<bool, LedgerError> {
        Ok(membership.is_dead(name))
    }

    pub(in crate::ledger) async fn reports(
        &self,
        filter: &ReportFilter,
    ) -> Result<(Vec<Report>, Option<ReportPosition>), LedgerError> {
        let mut query =
            QueryBuilder::<Sqlite>::new(format!("SELECT {COLUMNS} FROM reports WHERE true"));
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
            query.push(", ").push_bind(after.loan.to_string()).push(")");
        }
        query.push(" ORDER BY date, library, loan LIMIT ").push_bind(filter.limit);
        let rows = self.rows(query.build().persistent(false)).await?;
        let next = end_of_page(&rows, filter.limit);
        Ok((rows.iter().filter_map(|row| self.damaged.skip(report_of(row))).collect(), next))
    }

    pub(in crate::ledger) async fn report_of_loan(
        &self,
        loan: Uuid,
    ) -> Result<Option<Report>, LedgerError> {
        let row = self.row(sqlx::query(OF_LOAN.as_str()).bind(loan.to_string())).await?;
        row.as_ref().map(report_of).transpose()
    }

    pub(in crate::ledger) async fn count_reports(
        &self,
    ) -> Result<Vec<(ReportState, u64)>, LedgerError> {
        let mut counts = Vec::new();
        for state in ReportState::ALL.iter().filter(|state| !state.is_settled()) {
            let count = sqlx::query("SELECT count(*) FROM reports WHERE state = ?");
            counts.push((*state, self.count(count.bind(state.name())).await?));
        }
        Ok(counts)
    }

    pub(in crate::ledger) async fn count_late_reports(
        &self,
        before: Timestamp,
    ) -> Result<u64, LedgerError> {
        self.count(sqlx::query(LATE).bind(millis(before))).await
    }

    pub(in crate::ledger) async fn reconciled(&self) -> Result<Option<Timestamp>, LedgerError> {
        let rows = self.rows(sqlx::query(RECONCILED_AT).bind(RECONCILED)).await?;
        let value = rows.first().map(|row| row.bytes("value")).transpose();
        let value = value.map_err(|error| LedgerError::damaged("? (meta)", &error))?;
        value.as_deref().map(reconciled_at).transpose()
    }
}
