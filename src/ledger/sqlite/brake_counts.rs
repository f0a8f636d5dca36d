//! The counts of loans for the limits of the brake.
//!
//! Only `transaction` calls it.

use jiff::Timestamp;
use sqlx::SqliteConnection;

use super::sql::KeyColumns;
use crate::ledger::brake::{Count, Counted};
use crate::loan::LoanKey;

/// Returns when the oldest of the newest `count.maximum` counted loans was begun; none if there are
/// fewer.
pub(super) async fn begun_at_limit(
    connection: &mut SqliteConnection,
    key: &LoanKey,
    count: &Count,
) -> Result<Option<Timestamp>, sqlx::Error> {
    let Some(skipped) = count.maximum.checked_sub(1) else { return Ok(None) };
    let KeyColumns { library, borrower, .. } = key.into();
    let query = sqlx::query_scalar(begun_query(count)).bind(library);
    let query = if count.of_borrower { query.bind(borrower) } else { query };
    let query = query.bind(count.since.as_millisecond()).bind(i64::from(skipped));
    let oldest: Option<i64> = query.fetch_optional(connection).await?;
    Ok(oldest.and_then(|millis| Timestamp::from_millisecond(millis).ok()))
}

macro_rules! of_library {
    ($counted:literal) => {
        concat!(
            "SELECT begun FROM loans INDEXED BY loans_of_library ",
            "WHERE library = ? AND begun > ? AND ",
            $counted,
            " ORDER BY begun DESC LIMIT 1 OFFSET ?"
        )
    };
}

macro_rules! of_borrower {
    ($counted:literal) => {
        concat!(
            "SELECT begun FROM loans INDEXED BY loans_begun_by ",
            "WHERE library = ? AND borrower = ? AND begun > ? AND ",
            $counted,
            " ORDER BY begun DESC LIMIT 1 OFFSET ?"
        )
    };
}

/// Returns the query for [`begun_at_limit`]. It binds the library, the borrower if only loans of
/// one count, the beginning of the window, and the number of newer loans.
fn begun_query(count: &Count) -> &'static str {
    match (count.counted, count.of_borrower) {
        (Counted::Lent, false) => {
            of_library!("state <> 'refused' AND (end_reason IS NULL OR end_reason <> 'rejected')")
        }
        (Counted::Lent, true) => {
            of_borrower!("state <> 'refused' AND (end_reason IS NULL OR end_reason <> 'rejected')")
        }
        (Counted::Decided, false) => {
            of_library!("(end_reason IS NULL OR end_reason <> 'rejected')")
        }
        (Counted::Decided, true) => {
            of_borrower!("(end_reason IS NULL OR end_reason <> 'rejected')")
        }
        (Counted::Failed, false) => of_library!("end_reason = 'rejected'"),
        (Counted::Failed, true) => of_borrower!("end_reason = 'rejected'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::states;

    #[test]
    fn counts_have_the_conditions_of_all_stores() {
        for counted in [Counted::Lent, Counted::Decided, Counted::Failed] {
            for of_borrower in [false, true] {
                let count = Count { counted, of_borrower, since: Timestamp::MIN, maximum: 1 };
                let condition = format!("AND {} ORDER", states::counted(counted));
                assert!(begun_query(&count).contains(&condition), "{count:?}");
            }
        }
    }
}
