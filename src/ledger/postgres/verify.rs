//! Verification of the audit trail: of each chain, and of every loan with its last step.
//!
//! It reads one snapshot and disturbs no running gate.

use std::sync::LazyLock;

use futures_util::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::{Connection, FromRow, PgConnection, Row};
use uuid::Uuid;

use crate::ledger::LedgerError;
use crate::ledger::audit::{Anchor, AuditKey, ExpectedEnd, Head, StoredStep, Verified, Walk};
use crate::ledger::stored_row::{COLUMNS, anchor_of, loan_of, step_of};
use crate::loan::LibraryId;

impl FromRow<'_, PgRow> for StoredStep {
    fn from_row(row: &PgRow) -> Result<StoredStep, sqlx::Error> {
        step_of(row)
    }
}

impl FromRow<'_, PgRow> for Anchor {
    fn from_row(row: &PgRow) -> Result<Anchor, sqlx::Error> {
        anchor_of(row)
    }
}

/// The row of a chain.
struct Chain {
    library: String,
    name: Uuid,
    head: Head,
}

/// Walks every chain and compares every loan with its last step.
///
/// # Errors
/// [`LedgerError`] if the ledger cannot be read.
pub(in crate::ledger) async fn verify(
    connection: &mut PgConnection,
    key: &AuditKey,
) -> Result<Verified, LedgerError> {
    const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let verified = async {
        let mut reading = connection.begin_with(BEGIN).await?;
        let mut verified = Verified::default();
        for chain in chains(&mut reading, &mut verified).await? {
            walk_chain(&mut reading, &chain, key, &mut verified).await?;
        }
        compare_loans(&mut reading, key, &mut verified).await?;
        reading.rollback().await?;
        Ok(verified)
    };
    verified.await.map_err(LedgerError::Server)
}

/// Returns all chains. Reports those whose row is missing.
async fn chains(
    connection: &mut PgConnection,
    verified: &mut Verified,
) -> Result<Vec<Chain>, sqlx::Error> {
    const CHAINS: &str = "SELECT library, chain, number, mac FROM chains ORDER BY library, chain";
    const WITHOUT: &str = "SELECT DISTINCT library, chain FROM history WHERE NOT EXISTS \
         (SELECT 1 FROM chains \
         WHERE chains.library = history.library AND chains.chain = history.chain)";
    for row in sqlx::query(WITHOUT).persistent(false).fetch_all(&mut *connection).await? {
        let (library, chain): (String, Uuid) = (row.try_get(0)?, row.try_get(1)?);
        verified.report(format!("library {library}, chain {chain}: its row is missing"));
    }
    let rows = sqlx::query(CHAINS).persistent(false).fetch_all(connection).await?;
    let chain = |row: &PgRow| {
        let head = Head { number: row.try_get("number")?, mac: row.try_get("mac")? };
        Ok(Chain { library: row.try_get("library")?, name: row.try_get("chain")?, head })
    };
    rows.iter().map(chain).collect()
}

async fn walk_chain(
    connection: &mut PgConnection,
    chain: &Chain,
    key: &AuditKey,
    verified: &mut Verified,
) -> Result<(), sqlx::Error> {
    const ANCHORS: &str = "SELECT first, last, mac, seal FROM anchors \
         WHERE library = $1 AND chain = $2 ORDER BY first";
    const STEPS: &str = "SELECT * FROM history WHERE library = $1 AND chain = $2 ORDER BY number";
    let Chain { library, name, head } = chain;
    let Ok(id) = library.parse::<LibraryId>() else {
        verified.report(format!("the name of the library {library} is damaged"));
        return Ok(());
    };
    let anchors = sqlx::query_as(ANCHORS).bind(library).bind(name).persistent(false);
    let anchors = anchors.fetch_all(&mut *connection).await?;
    let start = Head { number: 0, mac: key.chain_start(id, *name) };
    let mut walk = Walk::new(key, start);
    walk.expect(Some(ExpectedEnd { head: head.clone(), place: "its row" }));
    walk.add_anchors(anchors);
    let steps = sqlx::query_as::<_, StoredStep>(STEPS).bind(library).bind(name).persistent(false);
    let mut steps = steps.fetch(connection);
    while let Some(step) = steps.try_next().await? {
        walk.step(step);
    }
    let walked = walk.end();
    for finding in walked.findings {
        verified.report(format!("library {library}, chain {name}: {finding}"));
    }
    if walked.head.number > head.number {
        verified.report(format!(
            "library {library}, chain {name}: it ends at {}, its row names step {}",
            walked.head.number, head.number
        ));
    }
    verified.pruned += walked.pruned;
    Ok(())
}

static LOANS_WITH_LAST_STEP: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS}, version, salt, loan_mac FROM loans LEFT JOIN LATERAL ( \
         SELECT version, salt, loan_mac FROM history \
         WHERE history.library = loans.library AND history.loan = loans.id \
         ORDER BY at DESC, chain DESC, number DESC LIMIT 1) AS step ON true"
    )
});

async fn compare_loans(
    connection: &mut PgConnection,
    key: &AuditKey,
    verified: &mut Verified,
) -> Result<(), sqlx::Error> {
    let query = sqlx::query(LOANS_WITH_LAST_STEP.as_str()).persistent(false);
    let mut rows = query.fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let loan = match loan_of(&row) {
            Ok(loan) => loan,
            Err(error) => {
                verified.report(error.to_string());
                continue;
            }
        };
        let (salt, mac): (Option<Vec<u8>>, Option<Vec<u8>>) =
            (row.try_get("salt")?, row.try_get("loan_mac")?);
        if salt.is_none_or(|salt| Some(key.loan_mac(&salt, &loan)) != mac) {
            let id = loan.id;
            verified.report(format!("loan {id} is not as its last step left it"));
        }
    }
    Ok(())
}
