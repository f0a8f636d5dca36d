//! Writes copied rows to PostgreSQL, in the transaction of the caller. Each library gets one chain.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::rows::{DeliveredRow, DoubtRow, LoanRow, ReportRow, Row, StepRow};
use crate::ledger::audit::{AuditKey, Head};
use crate::ledger::buckets::bucket_of;
use crate::ledger::postgres::column;

/// The time of the database stands for an end in the future: the change feed is read by that time.
const INSERT_LOANS: &str = "INSERT INTO loans (library, id, bucket, borrower, isbn, reference, \
     lending_id, state, begun, accepted, due, licence_id, licence_type, ended, end_reason, \
     refusal_code, refusal_message, refusal_retry, progress, forgotten, opened, changed, owner, \
     assessed, examine, closed) \
     SELECT t.*, CASE WHEN t.state IN ('ending', 'ended') THEN \
     least(t.ended, (extract(epoch FROM clock_timestamp()) * 1000)::bigint) END \
     FROM unnest($1::text[], $2::uuid[], $3::smallint[], $4::bytea[], $5::bigint[], $6::text[], \
     $7::text[], $8::text[], $9::bigint[], $10::bigint[], $11::bigint[], $12::text[], \
     $13::text[], $14::bigint[], $15::text[], $16::text[], $17::text[], $18::bigint[], \
     $19::smallint[], $20::bigint[], $21::bigint[], $22::bigint[], $23::uuid[], $24::bigint[], \
     $25::bigint[]) \
     AS t (library, id, bucket, borrower, isbn, reference, lending_id, state, begun, accepted, \
     due, licence_id, licence_type, ended, end_reason, refusal_code, refusal_message, \
     refusal_retry, progress, forgotten, opened, changed, owner, assessed, examine)";
const INSERT_STEPS: &str = "INSERT INTO history (library, chain, number, loan, at, from_state, \
     to_state, cause, detail, version, salt, loan_mac, mac) \
     SELECT t.library, $1, t.number, t.loan, t.at, t.from_state, t.to_state, t.cause, t.detail, \
     t.version, t.salt, t.loan_mac, t.mac \
     FROM unnest($2::text[], $3::bigint[], $4::uuid[], $5::bigint[], $6::text[], $7::text[], \
     $8::text[], $9::text[], $10::bigint[], $11::bytea[], $12::bytea[], $13::bytea[]) \
     AS t (library, number, loan, at, from_state, to_state, cause, detail, version, salt, \
     loan_mac, mac)";
const EXTEND_CHAINS: &str = "INSERT INTO chains (library, chain, batch, number, mac, opened) \
     SELECT t.library, $1, 0, t.number, t.mac, \
     (extract(epoch FROM clock_timestamp()) * 1000)::bigint \
     FROM unnest($2::text[], $3::bigint[], $4::bytea[]) AS t (library, number, mac) \
     ON CONFLICT (library, chain) DO UPDATE \
     SET number = excluded.number, mac = excluded.mac, closed = NULL, seal = NULL";
const CHAINS: &str = "SELECT library, number, mac FROM chains WHERE chain = $1 FOR UPDATE";
const INSERT_DELIVERED: &str = "INSERT INTO delivered (library, loan, file, bytes, ranges) \
     SELECT * FROM unnest($1::text[], $2::uuid[], $3::text[], $4::bigint[], $5::bytea[])";
const INSERT_DOUBTS: &str = "INSERT INTO doubts (library, loan, since, run) \
     SELECT * FROM unnest($1::text[], $2::uuid[], $3::bigint[], $4::bigint[])";
const INSERT_REPORTS: &str = "INSERT INTO reports (library, model, subject, loan, bucket, isbn, \
     licence_id, licence_type, date, evidence, progress, covered, size, measured, price, state, \
     owner, attempts, sent, note, changed, due_since) \
     SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::uuid[], $5::smallint[], \
     $6::bigint[], $7::text[], $8::text[], $9::text[], $10::text[], $11::smallint[], \
     $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::text[], $17::uuid[], \
     $18::bigint[], $19::bigint[], $20::text[], $21::bigint[], $22::bigint[])";

/// Inserts rows of one table. Steps extend the chains with this name.
///
/// # Errors
/// The error of the database, also if a row exists.
pub(super) async fn insert(
    connection: &mut PgConnection,
    rows: &[Row],
    chain: Uuid,
    key: &AuditKey,
) -> Result<(), sqlx::Error> {
    match rows.first() {
        None => Ok(()),
        Some(Row::Loan(_)) => insert_loans(connection, rows).await,
        Some(Row::Step(_)) => insert_steps(connection, rows, chain, key).await,
        Some(Row::Delivered(_)) => insert_delivered(connection, rows).await,
        Some(Row::Doubt(_)) => insert_doubts(connection, rows).await,
        Some(Row::Report(_)) => insert_reports(connection, rows).await,
    }
}

async fn insert_loans(connection: &mut PgConnection, rows: &[Row]) -> Result<(), sqlx::Error> {
    let loans: Vec<&LoanRow> = rows
        .iter()
        .filter_map(|row| match row {
            Row::Loan(loan) => Some(loan.as_ref()),
            _ => None,
        })
        .collect();
    // The database checks the range of progress, so a wrong one must not become none.
    let progress =
        column(&loans, |loan| loan.progress.map(|value| i16::try_from(value).unwrap_or(i16::MAX)));
    let query = sqlx::query(INSERT_LOANS)
        .bind(column(&loans, |loan| loan.library.as_str()))
        .bind(column(&loans, |loan| loan.id))
        .bind(column(&loans, |loan| bucket_of(loan.id)))
        .bind(column(&loans, |loan| loan.borrower.as_slice()))
        .bind(column(&loans, |loan| loan.isbn))
        .bind(column(&loans, |loan| loan.reference.as_str()))
        .bind(column(&loans, |loan| loan.lending_id.as_deref()))
        .bind(column(&loans, |loan| loan.state.as_str()))
        .bind(column(&loans, |loan| loan.begun))
        .bind(column(&loans, |loan| loan.accepted))
        .bind(column(&loans, |loan| loan.due))
        .bind(column(&loans, |loan| loan.licence_id.as_deref()))
        .bind(column(&loans, |loan| loan.licence_type.as_deref()))
        .bind(column(&loans, |loan| loan.ended))
        .bind(column(&loans, |loan| loan.end_reason.as_deref()))
        .bind(column(&loans, |loan| loan.refusal_code.as_deref()))
        .bind(column(&loans, |loan| loan.refusal_message.as_deref()))
        .bind(column(&loans, |loan| loan.refusal_retry))
        .bind(progress)
        .bind(column(&loans, |loan| loan.forgotten))
        .bind(column(&loans, |loan| loan.opened))
        .bind(column(&loans, |loan| loan.changed))
        .bind(column(&loans, |loan| loan.owner))
        .bind(column(&loans, |loan| loan.assessed))
        .bind(column(&loans, |loan| loan.examine));
    query.persistent(false).execute(connection).await.map(drop)
}

async fn insert_steps(
    connection: &mut PgConnection,
    rows: &[Row],
    chain: Uuid,
    key: &AuditKey,
) -> Result<(), sqlx::Error> {
    let steps: Vec<&StepRow> = rows
        .iter()
        .filter_map(|row| match row {
            Row::Step(step) => Some(step.as_ref()),
            _ => None,
        })
        .collect();
    let stored = heads(&mut *connection, chain).await?;
    // The new heads of the libraries in this batch.
    let mut heads: BTreeMap<&str, Head> = BTreeMap::new();
    let mut links = Vec::with_capacity(steps.len());
    for step in &steps {
        let library = step.library.as_str();
        let start = || Head { number: 0, mac: key.chain_start(step.library, chain) };
        let head = heads
            .entry(library)
            .or_insert_with(|| stored.get(library).cloned().unwrap_or_else(start));
        *head = step.link_after(head, key);
        links.push(head.clone());
    }
    let query = sqlx::query(INSERT_STEPS)
        .bind(chain)
        .bind(column(&steps, |step| step.library.as_str()))
        .bind(links.iter().map(|link| link.number).collect::<Vec<_>>())
        .bind(column(&steps, |step| step.loan))
        .bind(column(&steps, |step| step.at))
        .bind(column(&steps, |step| step.from_state.as_deref()))
        .bind(column(&steps, |step| step.to_state.as_str()))
        .bind(column(&steps, |step| step.cause.as_str()))
        .bind(column(&steps, |step| step.detail.as_deref()))
        .bind(column(&steps, |step| step.version))
        .bind(column(&steps, |step| step.salt.as_deref()))
        .bind(column(&steps, |step| step.loan_mac.as_deref()))
        .bind(links.iter().map(|link| link.mac.as_slice()).collect::<Vec<_>>());
    query.persistent(false).execute(&mut *connection).await?;
    let extend = sqlx::query(EXTEND_CHAINS)
        .bind(chain)
        .bind(heads.keys().copied().collect::<Vec<_>>())
        .bind(heads.values().map(|head| head.number).collect::<Vec<_>>())
        .bind(heads.values().map(|head| head.mac.as_slice()).collect::<Vec<_>>());
    extend.persistent(false).execute(connection).await.map(drop)
}

/// Returns the newest link of this copy's chain of each library.
async fn heads(
    connection: &mut PgConnection,
    chain: Uuid,
) -> Result<BTreeMap<String, Head>, sqlx::Error> {
    let query = sqlx::query(CHAINS).bind(chain).persistent(false);
    let rows = query.fetch_all(connection).await?;
    let head = |row: &sqlx::postgres::PgRow| {
        let head = Head { number: row.try_get("number")?, mac: row.try_get("mac")? };
        Ok((row.try_get("library")?, head))
    };
    rows.iter().map(head).collect()
}

async fn insert_delivered(connection: &mut PgConnection, rows: &[Row]) -> Result<(), sqlx::Error> {
    let delivered: Vec<&DeliveredRow> = rows
        .iter()
        .filter_map(|row| match row {
            Row::Delivered(delivered) => Some(delivered),
            _ => None,
        })
        .collect();
    let query = sqlx::query(INSERT_DELIVERED)
        .bind(column(&delivered, |row| row.library.as_str()))
        .bind(column(&delivered, |row| row.loan))
        .bind(column(&delivered, |row| row.file.as_str()))
        .bind(column(&delivered, |row| row.bytes))
        .bind(column(&delivered, |row| row.ranges.as_slice()));
    query.persistent(false).execute(connection).await.map(drop)
}

async fn insert_doubts(connection: &mut PgConnection, rows: &[Row]) -> Result<(), sqlx::Error> {
    let doubts: Vec<&DoubtRow> = rows
        .iter()
        .filter_map(|row| match row {
            Row::Doubt(doubt) => Some(doubt),
            _ => None,
        })
        .collect();
    let query = sqlx::query(INSERT_DOUBTS)
        .bind(column(&doubts, |row| row.library.as_str()))
        .bind(column(&doubts, |row| row.loan))
        .bind(column(&doubts, |row| row.since))
        .bind(column(&doubts, |row| row.run));
    query.persistent(false).execute(connection).await.map(drop)
}

async fn insert_reports(connection: &mut PgConnection, rows: &[Row]) -> Result<(), sqlx::Error> {
    let reports: Vec<&ReportRow> = rows
        .iter()
        .filter_map(|row| match row {
            Row::Report(report) => Some(report.as_ref()),
            _ => None,
        })
        .collect();
    // The database checks the range of progress, so a wrong one must not become none.
    let progress =
        column(&reports, |row| row.progress.map(|value| i16::try_from(value).unwrap_or(i16::MAX)));
    let query = sqlx::query(INSERT_REPORTS)
        .bind(column(&reports, |row| row.library.as_str()))
        .bind(column(&reports, |row| row.model.as_str()))
        .bind(column(&reports, |row| row.subject.as_str()))
        .bind(column(&reports, |row| row.loan))
        .bind(column(&reports, |row| bucket_of(row.loan)))
        .bind(column(&reports, |row| row.isbn))
        .bind(column(&reports, |row| row.licence_id.as_deref()))
        .bind(column(&reports, |row| row.licence_type.as_str()))
        .bind(column(&reports, |row| row.date.as_str()))
        .bind(column(&reports, |row| row.evidence.as_str()))
        .bind(progress)
        .bind(column(&reports, |row| row.covered))
        .bind(column(&reports, |row| row.size))
        .bind(column(&reports, |row| row.measured))
        .bind(column(&reports, |row| row.price))
        .bind(column(&reports, |row| row.state.as_str()))
        .bind(column(&reports, |row| row.owner))
        .bind(column(&reports, |row| row.attempts))
        .bind(column(&reports, |row| row.sent))
        .bind(column(&reports, |row| row.note.as_deref()))
        .bind(column(&reports, |row| row.changed))
        .bind(column(&reports, |row| row.due_since));
    query.persistent(false).execute(connection).await.map(drop)
}
