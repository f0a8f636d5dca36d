//! The delivered bytes and ranges of each file under each loan, in a write transaction.

use std::collections::{BTreeSet, HashMap};

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::session::prepares;
use crate::ledger::Delivered;
use crate::ledger::store::StoredTallies;
use crate::loan::{LibraryId, LoanId, Ranges, Tally};

pub(super) const LOCK: &str = "INSERT INTO delivered (library, loan, file, bytes, ranges) \
         SELECT $1, t.loan, t.file, 0, ''::bytea \
         FROM unnest($2::uuid[], $3::text[]) AS t (loan, file) \
         WHERE EXISTS (SELECT 1 FROM loans WHERE loans.library = $1 AND loans.id = t.loan) \
         ORDER BY t.loan, t.file COLLATE \"C\" \
         ON CONFLICT (library, loan, file) DO UPDATE SET bytes = delivered.bytes \
         RETURNING loan, file, bytes, ranges";

/// Locks and returns the stored tallies of these files. Unknown loans are left out.
///
/// A row that does not exist cannot be locked, so a missing one is inserted. The order of the rows
/// is that of all processes, so that they do not deadlock.
pub(super) async fn lock(
    connection: &mut PgConnection,
    library: LibraryId,
    files: &[Delivered],
) -> Result<StoredTallies, sqlx::Error> {
    // A statement must not change a row twice.
    let files: BTreeSet<(Uuid, &str)> =
        files.iter().map(|delivered| (delivered.loan.uuid(), delivered.file.as_ref())).collect();
    let (loans, paths): (Vec<Uuid>, Vec<&str>) = files.into_iter().unzip();
    let query = sqlx::query(LOCK).bind(library.as_str()).bind(loans).bind(paths);
    let mut tallies = HashMap::new();
    for row in query.persistent(prepares(connection)).fetch_all(connection).await? {
        let (loan, file): (Uuid, String) = (row.try_get("loan")?, row.try_get("file")?);
        let (bytes, ranges): (i64, Vec<u8>) = (row.try_get("bytes")?, row.try_get("ranges")?);
        // A damaged tally restarts from zero, which under-reports.
        let tally = Ranges::from_bytes(&ranges)
            .map_or_else(Tally::default, |ranges| Tally { bytes: bytes.unsigned_abs(), ranges });
        tallies.insert((LoanId::new(library, loan), file.into()), tally);
    }
    Ok(tallies)
}

pub(super) const WRITE: &str = "UPDATE delivered SET bytes = t.bytes, ranges = t.ranges \
         FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::bytea[]) \
         AS t (loan, file, bytes, ranges) \
         WHERE delivered.library = $1 AND delivered.loan = t.loan AND delivered.file = t.file";

/// Replaces tallies that [`lock`] has locked.
pub(super) async fn write(
    connection: &mut PgConnection,
    library: LibraryId,
    tallies: &StoredTallies,
) -> Result<(), sqlx::Error> {
    let (mut loans, mut files) = (Vec::new(), Vec::new());
    let (mut bytes, mut ranges) = (Vec::new(), Vec::new());
    for ((loan, file), tally) in tallies {
        loans.push(loan.uuid());
        files.push(file.as_ref());
        bytes.push(i64::try_from(tally.bytes).unwrap_or(i64::MAX));
        ranges.push(tally.ranges.to_bytes());
    }
    let query = sqlx::query(WRITE).bind(library.as_str());
    let query = query.bind(loans).bind(files).bind(bytes).bind(ranges);
    query.persistent(prepares(connection)).execute(connection).await.map(drop)
}
