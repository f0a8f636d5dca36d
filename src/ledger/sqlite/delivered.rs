//! The delivered bytes and ranges of each file under each loan, for the support API.
//!
//! The executor adds new counts in the transaction that reads the old ones, so two processes on
//! one ledger do not overwrite each other's counts. A row names a loan and a file, but no person,
//! so it is retained when a borrower is forgotten.

use std::collections::{BTreeMap, HashMap};

use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::queries::{Queries, id_of};
use super::sql::MAX_PREPARED_ROWS;
use crate::ledger::store::StoredTallies;
use crate::ledger::stored_row::tally_of;
use crate::ledger::{Delivered, LedgerError};
use crate::loan::{LoanId, Tally};

impl Queries {
    pub(in crate::ledger) async fn delivered(
        &self,
        loans: &[LoanId],
    ) -> Result<HashMap<LoanId, BTreeMap<String, Tally>>, LedgerError> {
        let mut found: HashMap<LoanId, BTreeMap<String, Tally>> = HashMap::new();
        if loans.is_empty() {
            return Ok(found);
        }
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT loan, library, file, bytes, ranges \
             FROM delivered CROSS JOIN loans ON loans.id = delivered.loan WHERE loan IN (",
        );
        let mut list = query.separated(", ");
        for loan in loans {
            list.push_bind(loan.to_string());
        }
        query.push(")");
        let query = query.build().persistent(loans.len() <= MAX_PREPARED_ROWS);
        for row in self.rows(query).await? {
            let Some((_, file, tally)) = self.damaged.skip(tally_of(&row)) else { continue };
            let Some(id) = self.damaged.skip(id_of(&row, "loan")) else { continue };
            found.entry(id).or_default().insert(file, tally);
        }
        Ok(found)
    }
}

/// Reads the stored tallies of these files, zero if none is stored. Unknown loans are left out.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    files: &[Delivered],
) -> Result<StoredTallies, sqlx::Error> {
    let mut query = QueryBuilder::<Sqlite>::new("WITH wanted (loan, file) AS (");
    query.push_values(files, |mut row, delivered| {
        row.push_bind(delivered.loan.to_string());
        row.push_bind(delivered.file.as_ref());
    });
    // CROSS JOIN fixes the join order: each loan and each row is looked up by its key.
    query.push(
        ") SELECT wanted.loan, library, wanted.file, coalesce(bytes, 0) AS bytes, \
         coalesce(ranges, x'') AS ranges FROM wanted CROSS JOIN loans ON loans.id = wanted.loan \
         LEFT JOIN delivered ON delivered.loan = wanted.loan AND delivered.file = wanted.file",
    );
    let query = query.build().persistent(files.len() <= MAX_PREPARED_ROWS);
    let mut tallies = HashMap::with_capacity(files.len());
    for row in query.fetch_all(connection).await? {
        let file: String = row.try_get("file")?;
        // A damaged tally restarts from zero, which under-reports. `ledger check` reports it until
        // then.
        let tally = tally_of(&row).map_or_else(|_| Tally::default(), |(_, _, tally)| tally);
        // Every UUID is one of those bound above. A damaged library is reported by the check.
        if let Ok(loan) = id_of(&row, "loan") {
            tallies.insert((loan, file.into()), tally);
        }
    }
    Ok(tallies)
}

/// Replaces the stored tallies. There must be at least one.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    tallies: &StoredTallies,
) -> Result<(), sqlx::Error> {
    let mut query =
        QueryBuilder::<Sqlite>::new("INSERT INTO delivered (loan, file, bytes, ranges) ");
    query.push_values(tallies, |mut row, ((loan, file), tally)| {
        row.push_bind(loan.to_string());
        row.push_bind(file.as_ref());
        row.push_bind(i64::try_from(tally.bytes).unwrap_or(i64::MAX));
        row.push_bind(tally.ranges.to_bytes());
    });
    query.push(
        " ON CONFLICT (loan, file) DO UPDATE SET bytes = excluded.bytes, ranges = excluded.ranges",
    );
    let query = query.build().persistent(tallies.len() <= MAX_PREPARED_ROWS);
    query.execute(connection).await.map(drop)
}
