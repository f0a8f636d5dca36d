//! Queries about what is stored besides a loan's row: the delivered bytes, and the state of the
//! balance.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::queries::Queries;
use super::row::{count_of, id_of};
use super::sql::{for_ids, statement};
use crate::ledger::LedgerError;
use crate::ledger::states::doubts_discarded_before;
use crate::loan::{LibraryId, LoanId, Ranges, Tally};

pub(super) const DELIVERED: &str = "SELECT library, loan, file, bytes, ranges FROM delivered \
     WHERE library = $1 AND loan = ANY($2)";
pub(super) const DELIVERED_OF_LIBRARIES: &str = "SELECT library, loan, file, bytes, ranges \
     FROM unnest($1::text[], $2::uuid[]) AS wanted (library, loan) \
     JOIN delivered USING (library, loan)";
pub(super) const DOUBTS: &str =
    "SELECT library, loan, since FROM doubts WHERE library = $1 AND run >= $2";
pub(super) const ENDED_BY_BALANCE: &str = "SELECT count(*) FROM history \
     WHERE cause = 'balance' AND to_state = 'ended' AND at > $1 AND library = $2";
pub(super) const ALL_ENDED_BY_BALANCE: &str = "SELECT count(*) FROM history \
     WHERE cause = 'balance' AND to_state = 'ended' AND at > $1";

impl Queries {
    pub(in crate::ledger) async fn delivered(
        &self,
        loans: &[LoanId],
    ) -> Result<HashMap<LoanId, BTreeMap<String, Tally>>, LedgerError> {
        let mut found: HashMap<LoanId, BTreeMap<String, Tally>> = HashMap::new();
        if loans.is_empty() {
            return Ok(found);
        }
        for row in self.rows(for_ids(loans, DELIVERED, DELIVERED_OF_LIBRARIES)).await? {
            let Some((id, file, tally)) = self.damaged.skip(stored_tally(&row)) else { continue };
            found.entry(id).or_default().insert(file, tally);
        }
        Ok(found)
    }

    pub(in crate::ledger) async fn doubts(
        &self,
        library: LibraryId,
        now: Timestamp,
    ) -> Result<HashMap<LoanId, Timestamp>, LedgerError> {
        let query = statement(DOUBTS).bind(library.as_str().to_owned());
        let rows = self.background_rows(query.bind(doubts_discarded_before(now))).await?;
        let read = |row: &PgRow| {
            let since = Timestamp::from_millisecond(row.try_get("since").ok()?).ok()?;
            Some((id_of(row, "loan").ok()?, since))
        };
        // Damaged doubts are skipped: the balance starts again with those loans.
        Ok(rows.iter().filter_map(read).collect())
    }

    pub(in crate::ledger) async fn ended_by_balance(
        &self,
        library: Option<LibraryId>,
        after: Timestamp,
    ) -> Result<u64, LedgerError> {
        let after = after.as_millisecond();
        let query = match library {
            Some(library) => {
                statement(ENDED_BY_BALANCE).bind(after).bind(library.as_str().to_owned())
            }
            None => statement(ALL_ENDED_BY_BALANCE).bind(after),
        };
        count_of(self.background_row(query).await?)
    }
}

/// Converts a stored row.
fn stored_tally(row: &PgRow) -> Result<(LoanId, String, Tally), LedgerError> {
    let id = id_of(row, "loan")?;
    let name = id.to_string();
    let wrong = |error: sqlx::Error| LedgerError::damaged(&name, &error);
    let (file, bytes): (String, i64) =
        (row.try_get("file").map_err(wrong)?, row.try_get("bytes").map_err(wrong)?);
    let ranges: Vec<u8> = row.try_get("ranges").map_err(wrong)?;
    let ranges = Ranges::from_bytes(&ranges)
        .ok_or_else(|| LedgerError::damaged(&name, &"the tally of a file cannot be read"))?;
    Ok((id, file, Tally { bytes: bytes.unsigned_abs(), ranges }))
}
