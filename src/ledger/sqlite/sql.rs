//! The parts of SQL statements that several queries share: the columns of a library, borrower and
//! title.

use sqlx::Sqlite;
use sqlx::sqlite::SqliteArguments;

pub(super) use crate::ledger::states::isbn_column;
use crate::loan::LoanKey;

/// Queries with at most this number of rows are prepared. SQLite needs one prepared statement for
/// each number of rows.
pub(super) const MAX_PREPARED_ROWS: usize = 2;

/// A query with its arguments.
pub(super) type SqliteQuery<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// The condition on a key, for [`bind_key`].
pub(super) const KEY_IS: &str = "library = ? AND borrower = ? AND isbn = ?";

/// The columns of a key, in the order of [`KEY_IS`].
pub(super) struct KeyColumns<'a> {
    pub(super) library: &'a str,
    pub(super) borrower: &'a [u8],
    pub(super) isbn: i64,
}

impl<'a> From<&'a LoanKey> for KeyColumns<'a> {
    fn from(key: &'a LoanKey) -> KeyColumns<'a> {
        KeyColumns {
            library: key.library.as_str(),
            borrower: key.borrower.as_bytes(),
            isbn: isbn_column(key.isbn),
        }
    }
}

/// Binds the three columns of [`KEY_IS`].
pub(super) fn bind_key<'q>(query: SqliteQuery<'q>, key: &LoanKey) -> SqliteQuery<'q> {
    let KeyColumns { library, borrower, isbn } = key.into();
    query.bind(library).bind(borrower).bind(isbn)
}

#[cfg(test)]
mod tests {
    use sqlx::{ConnectOptions, Connection};

    use crate::ledger::states::{CLOSED, LIVE, OVER, UNDECIDED};
    use crate::ledger::test_support::open;

    #[tokio::test]
    async fn lists_of_states_equal_those_of_the_indexes() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("loans.db");
        open(&file).await.close().await;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
        let mut connection = options.connect().await.unwrap();
        for (index, list) in [
            ("one_live_loan", &LIVE),
            ("loans_undecided", &UNDECIDED),
            ("loans_to_forget", &OVER),
            ("history_closed", &CLOSED),
        ] {
            let sql = sqlx::query_scalar("SELECT sql FROM sqlite_master WHERE name = ?");
            let sql: String = sql.bind(index).fetch_one(&mut connection).await.unwrap();
            assert!(sql.contains(&format!("state IN ({})", **list)), "{sql}");
        }
        connection.close().await.unwrap();
    }
}
