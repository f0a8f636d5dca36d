//! The statements on loans in a write transaction.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use super::session::prepares;
use super::sql::column;
use crate::ledger::brake::Count;
use crate::ledger::buckets::bucket_of;
use crate::ledger::rules::KeyStanding;
use crate::ledger::states::{LIVE, UNDECIDED, counted, isbn_column};
use crate::ledger::store::WorkError;
use crate::ledger::stored_row::{COLUMNS, loan_of};
use crate::loan::{EndReason, LibraryId, Loan, LoanId, LoanKey, LoanState, Progress};

/// In the order of their keys, so that two processes that claim the same keys do not deadlock. An
/// uncommitted claim of another process is waited for.
pub(super) static CLAIM: LazyLock<String> = LazyLock::new(|| {
    let live = &*LIVE;
    format!(
        "INSERT INTO loans \
         (library, id, bucket, borrower, isbn, reference, state, begun, changed, owner) \
         SELECT $1, t.id, t.bucket, t.borrower, t.isbn, t.reference, 'intended', t.begun, \
         t.changed, $2 \
         FROM unnest($3::uuid[], $4::smallint[], $5::bytea[], $6::bigint[], $7::text[], \
         $8::bigint[], $9::bigint[]) \
         AS t (id, bucket, borrower, isbn, reference, begun, changed) \
         ORDER BY t.borrower, t.isbn \
         ON CONFLICT (library, borrower, isbn) WHERE state IN ({live}) DO NOTHING RETURNING id"
    )
});

/// Inserts those of these intents whose key has no live loan. Returns their ids.
pub(super) async fn claim(
    connection: &mut PgConnection,
    library: LibraryId,
    intents: &[&Loan],
    owner: Uuid,
) -> Result<HashSet<Uuid>, sqlx::Error> {
    let query = sqlx::query_scalar(CLAIM.as_str())
        .bind(library.as_str())
        .bind(owner)
        .bind(column(intents, |loan| loan.id.uuid()))
        .bind(column(intents, |loan| bucket_of(loan.id.uuid())))
        .bind(column(intents, |loan| loan.key.borrower.as_bytes().as_slice()))
        .bind(column(intents, |loan| isbn_column(loan.key.isbn)))
        .bind(column(intents, |loan| loan.reference.as_str()))
        .bind(column(intents, |loan| loan.begun.as_millisecond()))
        .bind(column(intents, |loan| loan.changed.as_millisecond()));
    Ok(query.persistent(prepares(connection)).fetch_all(connection).await?.into_iter().collect())
}

/// Returns whether the row of a claimed loan already has these values.
pub(super) fn is_as_claimed(loan: &Loan) -> bool {
    loan.state == LoanState::Intended && loan.changed == loan.begun
}

pub(super) const REMOVE: &str = "DELETE FROM loans WHERE library = $1 AND id = ANY($2)";

/// Deletes claimed loans.
pub(super) async fn remove(
    connection: &mut PgConnection,
    library: LibraryId,
    ids: &[Uuid],
) -> Result<(), sqlx::Error> {
    let query =
        sqlx::query(REMOVE).bind(library.as_str()).bind(ids).persistent(prepares(connection));
    query.execute(connection).await.map(drop)
}

pub(super) static LOCK: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS}, owner FROM loans WHERE library = $1 AND id = ANY($2) \
         ORDER BY id FOR UPDATE"
    )
});

/// Locks and returns these loans, and those of them that belong to another process than `owner`.
pub(super) async fn lock(
    connection: &mut PgConnection,
    library: LibraryId,
    ids: &[LoanId],
    owner: Uuid,
) -> Result<(Vec<Loan>, HashSet<LoanId>), WorkError> {
    let (mut loans, mut foreign) = (Vec::new(), HashSet::new());
    if ids.is_empty() {
        return Ok((loans, foreign));
    }
    let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
    let query = sqlx::query(LOCK.as_str())
        .bind(library.as_str())
        .bind(ids)
        .persistent(prepares(connection));
    for row in query.fetch_all(connection).await? {
        let loan = loan_of(&row)?;
        if row.try_get::<Uuid, _>("owner")? != owner {
            foreign.insert(loan.id);
        }
        loans.push(loan);
    }
    Ok((loans, foreign))
}

pub(super) static STANDINGS: LazyLock<String> = LazyLock::new(|| {
    let live = &*LIVE;
    format!(
        "SELECT {COLUMNS} FROM unnest($2::bytea[], $3::bigint[]) AS wanted (borrower, isbn) \
         JOIN loans USING (borrower, isbn) \
         WHERE library = $1 AND id <> ALL($4) \
         AND (state IN ({live}) OR (accepted IS NOT NULL AND ended IS NOT NULL))"
    )
});

/// Returns the standings of these keys, without these unwritten claims. The keys that are not
/// claimed may change before the transaction ends.
pub(super) async fn read_standings(
    connection: &mut PgConnection,
    library: LibraryId,
    keys: &[LoanKey],
    unwritten: &[Uuid],
) -> Result<HashMap<LoanKey, KeyStanding>, WorkError> {
    let mut standings: HashMap<LoanKey, KeyStanding> =
        keys.iter().map(|key| (*key, KeyStanding::default())).collect();
    if keys.is_empty() {
        return Ok(standings);
    }
    let borrowers: Vec<&[u8]> =
        standings.keys().map(|key| key.borrower.as_bytes().as_slice()).collect();
    let titles: Vec<i64> = standings.keys().map(|key| isbn_column(key.isbn)).collect();
    let query = sqlx::query(STANDINGS.as_str()).bind(library.as_str());
    let query = query.bind(borrowers).bind(titles).bind(unwritten).persistent(prepares(connection));
    for row in query.fetch_all(connection).await? {
        let loan = loan_of(&row)?;
        standings.entry(loan.key).or_default().include(&loan);
    }
    Ok(standings)
}

/// Updates the columns that a step can change. Owner, progress and the mark of opened loans have
/// their own commands. `closed` is the time of the first end, by the clock of the database.
pub(super) const UPDATE: &str = "UPDATE loans SET lending_id = t.lending_id, state = t.state, \
     accepted = t.accepted, due = t.due, licence_id = t.licence_id, \
     licence_type = t.licence_type, ended = t.ended, end_reason = t.end_reason, \
     refusal_code = t.refusal_code, refusal_message = t.refusal_message, \
     refusal_retry = t.refusal_retry, changed = t.changed, \
     closed = CASE WHEN t.state IN ('ending', 'ended') THEN coalesce(loans.closed, \
     (extract(epoch FROM clock_timestamp()) * 1000)::bigint) ELSE loans.closed END \
     FROM unnest($2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], \
     $8::text[], $9::bigint[], $10::text[], $11::text[], $12::text[], $13::bigint[], \
     $14::bigint[]) AS t (id, lending_id, state, accepted, due, licence_id, licence_type, \
     ended, end_reason, refusal_code, refusal_message, refusal_retry, changed) \
     WHERE loans.library = $1 AND loans.id = t.id";

/// Updates loans that this transaction has locked or claimed.
///
/// # Errors
/// The error of the database; `RowNotFound` if a loan is missing.
pub(super) async fn update(
    connection: &mut PgConnection,
    library: LibraryId,
    loans: &[&Loan],
) -> Result<(), sqlx::Error> {
    if loans.is_empty() {
        return Ok(());
    }
    let millis = |time: Option<Timestamp>| time.map(Timestamp::as_millisecond);
    let query = sqlx::query(UPDATE)
        .bind(library.as_str())
        .bind(column(loans, |loan| loan.id.uuid()))
        .bind(column(loans, |loan| loan.lending_id.as_deref()))
        .bind(column(loans, |loan| loan.state.name()))
        .bind(column(loans, |loan| millis(loan.accepted)))
        .bind(column(loans, |loan| millis(loan.terms.as_ref().map(|terms| terms.due))))
        .bind(column(loans, |loan| loan.terms.as_ref()?.licence_id.as_deref()))
        .bind(column(loans, |loan| loan.terms.as_ref()?.licence_type.as_deref()))
        .bind(column(loans, |loan| millis(loan.ended)))
        .bind(column(loans, |loan| loan.end_reason.map(EndReason::name)))
        .bind(column(loans, |loan| loan.refusal.as_ref().map(|refusal| refusal.code.as_str())))
        .bind(column(loans, |loan| loan.refusal.as_ref().map(|refusal| refusal.message.as_str())))
        .bind(column(loans, |loan| millis(loan.refusal.as_ref()?.retry_at)))
        .bind(column(loans, |loan| loan.changed.as_millisecond()));
    let updated = query.persistent(prepares(connection)).execute(connection).await?.rows_affected();
    if updated == loans.len() as u64 { Ok(()) } else { Err(sqlx::Error::RowNotFound) }
}

/// Returns the statement that counts loans of a library and of one of its borrowers. It has a
/// column for each count. After the library, the borrower and the claims that do not count, it
/// binds the beginning of the window and the number of newer loans, for each count.
pub(super) fn begun_query(counts: &[Count]) -> String {
    let column = |(number, count): (usize, &Count)| {
        let (since, skipped) = (4 + 2 * number, 5 + 2 * number);
        let borrower = if count.of_borrower { "AND borrower = $2 " } else { "" };
        format!(
            "(SELECT begun FROM loans WHERE library = $1 AND begun > ${since} AND {counted} \
             AND id <> ALL($3) {borrower}ORDER BY begun DESC LIMIT 1 OFFSET ${skipped})",
            counted = counted(count.counted)
        )
    };
    let columns: Vec<String> = counts.iter().enumerate().map(column).collect();
    format!("SELECT {}", columns.join(", "))
}

/// Returns, for each count, when the oldest of the newest `count.maximum` counted loans was begun.
/// These claims do not count, but those of recorded intents do.
///
/// Nothing is locked. Claims that other processes have not committed are not counted, so a limit
/// may be exceeded by one batch of each other process.
pub(super) async fn begun_at_limits(
    connection: &mut PgConnection,
    key: &LoanKey,
    counts: &[Count],
    unrecorded: &[Uuid],
) -> Result<Vec<Option<Timestamp>>, sqlx::Error> {
    // The statement has no text of a caller.
    let sql = AssertSqlSafe(begun_query(counts));
    let mut query = sqlx::query(sql).bind(key.library.as_str().to_owned());
    query = query.bind(key.borrower.as_bytes().as_slice()).bind(unrecorded);
    for count in counts {
        // A limit of 0 is no limit, and is not asked for.
        let skipped = i64::from(count.maximum.saturating_sub(1));
        query = query.bind(count.since.as_millisecond()).bind(skipped);
    }
    let row = query.persistent(prepares(connection)).fetch_one(connection).await?;
    let oldest = |number| {
        let millis: Option<i64> = row.try_get(number)?;
        Ok(millis.and_then(|millis| Timestamp::from_millisecond(millis).ok()))
    };
    (0..counts.len()).map(oldest).collect()
}

pub(super) static ADOPT: LazyLock<String> = LazyLock::new(|| {
    let undecided = &*UNDECIDED;
    format!(
        "UPDATE loans SET owner = $3 WHERE library = $1 AND id = $2 AND state IN ({undecided}) \
         AND NOT EXISTS \
         (SELECT 1 FROM members WHERE member = loans.owner AND fenced IS NULL)"
    )
});

/// Makes this process the owner of an undecided loan whose owner is no member. A fenced member
/// never becomes one again, so no lock on `members` is needed.
pub(super) async fn adopt(
    connection: &mut PgConnection,
    id: LoanId,
    owner: Uuid,
) -> Result<bool, sqlx::Error> {
    changes_loan(connection, id, sqlx::query(ADOPT.as_str()), |query| query.bind(owner)).await
}

pub(super) const SET_PROGRESS: &str = "UPDATE loans SET progress = $3 \
         WHERE library = $1 AND id = $2 AND accepted IS NOT NULL";

pub(super) async fn set_progress(
    connection: &mut PgConnection,
    id: LoanId,
    progress: Progress,
) -> Result<bool, sqlx::Error> {
    let hundredths = i32::from(progress.hundredths());
    changes_loan(connection, id, sqlx::query(SET_PROGRESS), |query| query.bind(hundredths)).await
}

pub(super) const MARK_OPENED: &str = "UPDATE loans SET opened = coalesce(opened, $3) \
         WHERE library = $1 AND id = $2 AND state = 'accepted'";

pub(super) async fn mark_opened(
    connection: &mut PgConnection,
    id: LoanId,
    at: Timestamp,
) -> Result<bool, sqlx::Error> {
    let at = at.as_millisecond();
    changes_loan(connection, id, sqlx::query(MARK_OPENED), |query| query.bind(at)).await
}

pub(super) const IS_OPENED: &str = "SELECT opened IS NOT NULL FROM loans \
         WHERE library = $1 AND id = $2 FOR UPDATE";

/// Returns whether a loan is marked as opened, and locks it: a concurrent mark is seen, or waits.
pub(super) async fn is_opened(
    connection: &mut PgConnection,
    id: LoanId,
) -> Result<bool, sqlx::Error> {
    let query =
        sqlx::query_scalar(IS_OPENED).bind(id.library().as_str().to_owned()).bind(id.uuid());
    let opened: Option<bool> =
        query.persistent(prepares(connection)).fetch_optional(connection).await?;
    Ok(opened.unwrap_or(false))
}

type PgQuery = sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// Runs an update of one loan, whose id is bound first. Returns whether it changed the row.
async fn changes_loan(
    connection: &mut PgConnection,
    id: LoanId,
    query: PgQuery,
    bind_values: impl FnOnce(PgQuery) -> PgQuery,
) -> Result<bool, sqlx::Error> {
    let query = query.bind(id.library().as_str().to_owned()).bind(id.uuid());
    let executed = bind_values(query).persistent(prepares(connection)).execute(connection).await?;
    Ok(executed.rows_affected() == 1)
}
