//! The audit trail: one chain of keyed hashes over the steps of all loans.
//!
//! The hash of a step covers the step, the loan's row after it, and the hash of the previous step.
//! The writing task extends the chain in the transaction that writes the step. [`verify`] walks the
//! chain and reports each step and loan that was changed, removed or moved.
//!
//! The newest link is also stored in the head file beside the ledger, at most about a second later.
//! It reveals that the last steps were removed. Copy it to another machine for more certainty.
//!
//! The hash of a row is salted. When a borrower is forgotten, the salts of the loan's steps are
//! erased, and a new step covers the row without the borrower. When loans are pruned, an anchor
//! replaces their steps.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};

use super::LedgerError;
use super::sqlite::maintenance;
use super::sqlite::row::{COLUMNS, loan_of};
use crate::loan::Loan;

/// The maximum number of reported findings.
const MAX_FINDINGS: usize = 100;

/// The length of a hash, in bytes.
const MAC_LENGTH: usize = 32;

/// The key of the chain. `Debug` does not show it.
#[derive(Clone, Debug)]
pub struct AuditKey(Arc<hmac::Key>);

impl AuditKey {
    /// Creates a key from 32 bytes.
    pub fn new(bytes: &[u8; 32]) -> AuditKey {
        AuditKey(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// Returns the hash of a loan's row. It does not cover progress, owner and deliveries, which
    /// change without a step.
    pub(super) fn loan_mac(&self, salt: &[u8], loan: &Loan) -> Vec<u8> {
        let millis = |at: Option<Timestamp>| at.map(|at| at.as_millisecond().to_be_bytes());
        let (terms, refusal) = (loan.terms.as_ref(), loan.refusal.as_ref());
        let mut parts = MacInput::with_key(&self.0);
        parts.add(Some(b"loan"));
        parts.add(Some(salt));
        parts.add(Some(loan.id.to_string().as_bytes()));
        parts.add(Some(loan.key.library.as_str().as_bytes()));
        parts.add(Some(loan.key.borrower.as_bytes()));
        parts.add(Some(&loan.key.isbn.number().to_be_bytes()));
        parts.add(Some(loan.reference.as_str().as_bytes()));
        parts.add(loan.lending_id.as_deref().map(str::as_bytes));
        parts.add(Some(loan.state.name().as_bytes()));
        parts.add(loan.end_reason.map(|reason| reason.name().as_bytes()));
        parts.add(terms.and_then(|terms| terms.licence_id.as_deref()).map(str::as_bytes));
        parts.add(terms.and_then(|terms| terms.licence_type.as_deref()).map(str::as_bytes));
        parts.add(refusal.map(|refusal| refusal.code.as_bytes()));
        parts.add(refusal.map(|refusal| refusal.message.as_bytes()));
        let times = [
            Some(loan.begun),
            loan.accepted,
            terms.map(|terms| terms.due),
            loan.ended,
            refusal.and_then(|refusal| refusal.retry_at),
            loan.forgotten,
            Some(loan.changed),
        ];
        times.map(millis).iter().for_each(|time| parts.add(time.as_ref().map(<[u8; 8]>::as_slice)));
        parts.sign()
    }

    /// Returns the seal of an anchor. It covers the hash before the first pruned step and the hash
    /// of the last one.
    pub(super) fn seal(&self, first: i64, before: &[u8], last: &Head) -> Vec<u8> {
        let mut parts = MacInput::with_key(&self.0);
        parts.add(Some(b"anchor"));
        parts.add(Some(&first.to_be_bytes()));
        parts.add(Some(before));
        parts.add(Some(&last.number.to_be_bytes()));
        parts.add(Some(&last.mac));
        parts.sign()
    }
}

/// The input of a hash. Each part is preceded by its length, and a missing part by `u64::MAX`, so
/// that different inputs never encode to the same bytes.
struct MacInput(hmac::Context);

impl MacInput {
    fn with_key(key: &hmac::Key) -> MacInput {
        MacInput(hmac::Context::with_key(key))
    }

    fn add(&mut self, bytes: Option<&[u8]>) {
        let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
        self.0.update(&length.to_be_bytes());
        self.0.update(bytes.unwrap_or_default());
    }

    fn sign(self) -> Vec<u8> {
        self.0.sign().as_ref().to_vec()
    }
}

/// The newest link of a chain.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Head {
    /// The number of the step; 0 for an empty chain.
    pub number: i64,
    /// The hash of the step.
    pub mac: Vec<u8>,
}

/// The parts of a step that its hash covers.
#[derive(Debug)]
pub(super) struct Step<'a> {
    pub(super) loan: &'a str,
    pub(super) at: i64,
    pub(super) from: Option<&'a str>,
    pub(super) to: &'a str,
    pub(super) cause: &'a str,
    pub(super) detail: Option<&'a str>,
    /// The hash of the loan's row after the step; none in a step of version 1.
    pub(super) loan_mac: Option<&'a [u8]>,
}

impl Head {
    /// Reads the newest link of a ledger.
    pub(super) async fn read(connection: &mut SqliteConnection) -> Result<Head, sqlx::Error> {
        let row = sqlx::query("SELECT number, mac FROM history ORDER BY number DESC LIMIT 1");
        match row.fetch_optional(connection).await? {
            Some(row) => Ok(Head { number: row.try_get("number")?, mac: row.try_get("mac")? }),
            None => Ok(Head::default()),
        }
    }

    /// Returns the link of the next step.
    pub(super) fn next(&self, step: &Step<'_>, key: &AuditKey) -> Head {
        let number = self.number.saturating_add(1);
        let mut parts = MacInput::with_key(&key.0);
        parts.add(Some(&self.mac));
        parts.add(Some(&number.to_be_bytes()));
        parts.add(Some(step.loan.as_bytes()));
        parts.add(Some(&step.at.to_be_bytes()));
        parts.add(step.from.map(str::as_bytes));
        parts.add(Some(step.to.as_bytes()));
        parts.add(Some(step.cause.as_bytes()));
        parts.add(step.detail.map(str::as_bytes));
        if let Some(loan_mac) = step.loan_mac {
            parts.add(Some(loan_mac));
        }
        Head { number, mac: parts.sign() }
    }

    fn text(&self) -> String {
        format!("{} {}\n", self.number, HEXLOWER.encode(&self.mac))
    }

    /// Parses a link. Returns none for a truncated text: half a hash must not count as a hash.
    fn from_text(text: &str) -> Option<Head> {
        let (number, mac) = text.strip_suffix('\n')?.split_once(' ')?;
        let mac = HEXLOWER.decode(mac.as_bytes()).ok().filter(|mac| mac.len() == MAC_LENGTH)?;
        Some(Head { number: number.parse().ok()?, mac })
    }
}

/// Returns the path of the head file.
fn head_file(ledger: &Path) -> PathBuf {
    let mut file = ledger.as_os_str().to_owned();
    file.push(".head");
    PathBuf::from(file)
}

/// Writes the newest link to the head file. The text is synced before it replaces the older one, so
/// a full disk or a power failure leaves one of the two. `process` makes the name of the temporary
/// file unique.
pub(super) fn store_head(ledger: &Path, process: &str, head: &Head) -> std::io::Result<()> {
    let file = head_file(ledger);
    let temporary = file.with_extension(format!("head.{process}.new"));
    let result =
        write_durably(&temporary, &head.text()).and_then(|()| std::fs::rename(&temporary, file));
    if result.is_err() {
        let _ = std::fs::remove_file(temporary);
    }
    result
}

fn write_durably(file: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::create(file)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Removes temporary files of processes that died while they wrote the head file.
pub(super) fn remove_leftovers(ledger: &Path, is_dead: impl Fn(&str) -> bool) {
    let head = head_file(ledger);
    let (Some(directory), Some(name)) =
        (head.parent(), head.file_name().and_then(|name| name.to_str()))
    else {
        return;
    };
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let left = entry.file_name();
        let process = left.to_str().and_then(|left| left.strip_prefix(name)?.strip_prefix('.'));
        if process.and_then(|rest| rest.strip_suffix(".new")).is_some_and(&is_dead) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Checks that the link in the head file is in the chain, and returns the newest link.
///
/// If it is not, the last steps were removed, or an older copy replaced the ledger. Opening such a
/// ledger would overwrite the head file and hide that.
pub(super) async fn check_head_file(
    connection: &mut SqliteConnection,
    ledger: &Path,
) -> Result<Head, LedgerError> {
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    let head = Head::read(connection).await.map_err(failed)?;
    let Ok(text) = std::fs::read_to_string(head_file(ledger)) else {
        return Ok(head);
    };
    // A head file that a power failure truncated counts as a missing one.
    let Some(stored_head) = Head::from_text(&text) else {
        tracing::warn!("the head file of the audit trail cannot be read; it is written again");
        return Ok(head);
    };
    let query =
        sqlx::query_scalar("SELECT mac FROM history WHERE number = ?").bind(stored_head.number);
    let mac: Option<Vec<u8>> = query.fetch_optional(&mut *connection).await.map_err(failed)?;
    if mac.as_ref() == Some(&stored_head.mac)
        || is_pruned(connection, &stored_head).await.map_err(failed)?
    {
        return Ok(head);
    }
    Err(LedgerError::HeadMissing { file: ledger.to_owned(), head_file: head_file(ledger) })
}

/// Returns whether an anchor covers this step.
async fn is_pruned(connection: &mut SqliteConnection, step: &Head) -> Result<bool, sqlx::Error> {
    let anchor = sqlx::query_as(
        "SELECT last, mac FROM anchors WHERE last >= ? AND first <= ? ORDER BY last LIMIT 1",
    );
    let anchor: Option<(i64, Vec<u8>)> =
        anchor.bind(step.number).bind(step.number).fetch_optional(connection).await?;
    Ok(anchor.is_some_and(|(last, mac)| last > step.number || mac == step.mac))
}

/// Computes the hashes of steps from versions without a chain.
pub(super) async fn fill_in_hashes(
    connection: &mut SqliteConnection,
    key: &AuditKey,
) -> Result<(), sqlx::Error> {
    let rows = sqlx::query("SELECT * FROM history WHERE mac IS NULL ORDER BY number");
    let rows = rows.fetch_all(&mut *connection).await?;
    let Some(first) = rows.first() else { return Ok(()) };
    let before = sqlx::query("SELECT number, mac FROM history WHERE number = ?");
    let before = before
        .bind(first.try_get::<i64, _>("number")? - 1)
        .fetch_optional(&mut *connection)
        .await?;
    let mut head = match before {
        Some(row) => Head { number: row.try_get("number")?, mac: row.try_get("mac")? },
        None => Head::default(),
    };
    for row in &rows {
        head = next_link(&head, row, key)?;
        let update = sqlx::query("UPDATE history SET mac = ? WHERE number = ?");
        update.bind(&head.mac).bind(head.number).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Returns the link that the step of this row must have after `before`.
pub(super) fn next_link(
    before: &Head,
    row: &SqliteRow,
    key: &AuditKey,
) -> Result<Head, sqlx::Error> {
    let loan_mac: Option<Vec<u8>> = row.try_get("loan_mac")?;
    let loan_mac = if row.try_get::<i64, _>("version")? > 1 {
        Some(loan_mac.unwrap_or_default())
    } else {
        None
    };
    let step = Step {
        loan: row.try_get("loan")?,
        at: row.try_get("at")?,
        from: row.try_get("from_state")?,
        to: row.try_get("to_state")?,
        cause: row.try_get("cause")?,
        detail: row.try_get("detail")?,
        loan_mac: loan_mac.as_deref(),
    };
    Ok(before.next(&step, key))
}

/// The result of [`verify`].
#[derive(Debug, Default)]
pub struct Verified {
    /// The newest link of the chain.
    pub head: Head,
    /// The problems found, as sentences.
    pub findings: Vec<String>,
    /// The number of loans whose last step is of version 1, so that no hash covers their row.
    pub uncovered: u64,
    /// The number of pruned steps.
    pub pruned: i64,
}

/// Walks the chain of a ledger and compares every loan with its last step. A running gate does not
/// disturb it.
///
/// # Errors
/// [`LedgerError`] if the ledger cannot be read.
pub async fn verify(ledger: &Path, key: &AuditKey) -> Result<Verified, LedgerError> {
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    // Read first: the ledger may grow between the two reads.
    let stored_head = std::fs::read_to_string(head_file(ledger)).ok();
    let mut connection = maintenance::open(ledger).await?;
    let mut reading = connection.begin().await.map_err(failed)?;
    let anchors: Vec<Anchor> =
        sqlx::query_as("SELECT first, last, mac, seal FROM anchors ORDER BY first")
            .fetch_all(&mut *reading)
            .await
            .map_err(failed)?;
    let stored_head = stored_head.as_deref().and_then(Head::from_text);
    let mut walk =
        Walk { key, stored_head, anchors: anchors.into(), verified: Verified::default() };
    if walk.stored_head.is_none() {
        let sentence = format!(
            "{} cannot be read, so removed last steps cannot be detected",
            head_file(ledger).display()
        );
        walk.verified.findings.push(sentence);
    }
    let mut rows = sqlx::query("SELECT * FROM history ORDER BY number").fetch(&mut *reading);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        walk.row(&row).map_err(failed)?;
    }
    drop(rows);
    let mut verified = walk.end();
    compare_loans(&mut reading, key, &mut verified).await.map_err(failed)?;
    Ok(verified)
}

/// Compares every loan with the hash in its last step, and returns the problems as sentences.
///
/// # Errors
/// [`LedgerError`] if the ledger cannot be read.
pub async fn check_loans(ledger: &Path, key: &AuditKey) -> Result<Vec<String>, LedgerError> {
    let mut connection = maintenance::open(ledger).await?;
    let mut verified = Verified::default();
    let compared = compare_loans(&mut connection, key, &mut verified).await;
    compared.map_err(|source| LedgerError::Database { file: ledger.to_owned(), source })?;
    Ok(verified.findings)
}

async fn compare_loans(
    connection: &mut SqliteConnection,
    key: &AuditKey,
    verified: &mut Verified,
) -> Result<(), sqlx::Error> {
    let sql = format!(
        "SELECT {COLUMNS}, version, salt, loan_mac FROM loans LEFT JOIN history \
         ON number = (SELECT max(number) FROM history WHERE loan = loans.id)"
    );
    let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(connection);
    while let Some(row) = rows.try_next().await? {
        match row_matches(&row, key) {
            Ok(Some(true)) => {}
            Ok(Some(false)) => verified.uncovered += 1,
            Ok(None) => {
                let id: String = row.try_get("id")?;
                verified.report(format!(
                    "loan {id} is not as its last step left it: its row was changed"
                ));
            }
            Err(error) => verified.report(error.to_string()),
        }
    }
    Ok(())
}

/// Compares the row of a loan, joined with its last step, with the hash in that step. Returns none
/// if they differ, and false if the step is of version 1 and has no such hash.
pub(super) fn row_matches(row: &SqliteRow, key: &AuditKey) -> Result<Option<bool>, LedgerError> {
    let loan = loan_of(row)?;
    let column = |error: sqlx::Error| LedgerError::Damaged {
        id: loan.id.to_string(),
        why: error.to_string(),
    };
    match row.try_get::<Option<i64>, _>("version").map_err(column)? {
        None => Ok(None),
        Some(1) => Ok(Some(false)),
        Some(_) => {
            let salt: Option<Vec<u8>> = row.try_get("salt").map_err(column)?;
            let mac: Option<Vec<u8>> = row.try_get("loan_mac").map_err(column)?;
            let is_same = salt.is_some_and(|salt| Some(key.loan_mac(&salt, &loan)) == mac);
            Ok(is_same.then_some(true))
        }
    }
}

/// The replacement of a run of pruned steps.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(super) struct Anchor {
    pub(super) first: i64,
    pub(super) last: i64,
    pub(super) mac: Vec<u8>,
    pub(super) seal: Vec<u8>,
}

impl Anchor {
    /// Returns the link of the last pruned step.
    pub(super) fn end(&self) -> Head {
        Head { number: self.last, mac: self.mac.clone() }
    }

    /// Returns whether the seal was made with this key, for a chain with the hash `before`.
    pub(super) fn is_genuine(&self, before: &[u8], key: &AuditKey) -> bool {
        key.seal(self.first, before, &self.end()) == self.seal
    }
}

struct Walk<'a> {
    key: &'a AuditKey,
    stored_head: Option<Head>,
    anchors: VecDeque<Anchor>,
    verified: Verified,
}

impl Walk<'_> {
    fn row(&mut self, row: &SqliteRow) -> Result<(), sqlx::Error> {
        let number: i64 = row.try_get("number")?;
        let mac: Option<Vec<u8>> = row.try_get("mac")?;
        let mac = mac.unwrap_or_default();
        self.cross_anchors();
        let before = self.verified.head.clone();
        if number != before.number.saturating_add(1) {
            let missing =
                format!("steps {} to {} are missing", before.number.saturating_add(1), number - 1);
            self.verified.report(missing);
        } else if next_link(&before, row, self.key)?.mac != mac {
            let (loan, at): (String, i64) = (row.try_get("loan")?, row.try_get("at")?);
            self.verified
                .report(format!("step {number} (loan {loan}, at {at} ms) was changed or moved"));
        }
        // Continue from the stored hash, so that each wrong row is reported only once.
        self.advance(Head { number, mac });
        Ok(())
    }

    /// Advances over pruned steps.
    fn cross_anchors(&mut self) {
        while let Some(anchor) =
            self.anchors.pop_front_if(|anchor| anchor.first == self.verified.head.number + 1)
        {
            if !anchor.is_genuine(&self.verified.head.mac, self.key) {
                let Anchor { first, last, .. } = anchor;
                self.verified
                    .report(format!("the anchor of steps {first} to {last} was changed or forged"));
            }
            self.verified.pruned += anchor.last - anchor.first + 1;
            self.advance(anchor.end());
        }
    }

    fn advance(&mut self, head: Head) {
        self.verified.head = head;
        let head = &self.verified.head;
        if let Some(stored_head) =
            self.stored_head.as_ref().filter(|stored_head| stored_head.number == head.number)
            && stored_head.mac != head.mac
        {
            let sentence = format!("step {} differs from the one in the head file", head.number);
            self.verified.report(sentence);
        }
    }

    fn end(mut self) -> Verified {
        self.cross_anchors();
        let last = self.verified.head.number;
        for Anchor { first, last, .. } in std::mem::take(&mut self.anchors) {
            self.verified
                .report(format!("the anchor of steps {first} to {last} does not fit the chain"));
        }
        if let Some(stored_head) =
            self.stored_head.clone().filter(|stored_head| stored_head.number > last)
        {
            self.verified.report(format!(
                "the last steps are missing: the chain ends at {last}, the head file names step {}",
                stored_head.number
            ));
        }
        self.verified
    }
}

impl Verified {
    fn report(&mut self, sentence: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(sentence);
        }
    }
}
