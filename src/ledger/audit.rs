//! The audit trail: every step has a keyed hash of itself, of the loan's row after it, and of the
//! step before it, in one chain over all loans.
//!
//! The writing task extends it inside the transaction that writes the step. [`verify`] walks it and
//! names each step and each loan that was changed, removed or moved. The newest link is also stored
//! apart, in a file beside the ledger that is at most a second or so behind, so that a cut-off end
//! is found; copy it away to be sure of more.
//!
//! A row's hash is salted. When a borrower is forgotten, the salts of the loan's steps are erased,
//! and a new step covers the row without the borrower. Where loans were pruned, an anchor stands
//! for their steps.

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

use super::row::{COLUMNS, loan_of};
use super::{LedgerError, maintenance};
use crate::loan::Loan;

/// The maximum number of findings that are reported.
const TOLD: usize = 100;

/// The length of a hash, in bytes.
const MAC_LENGTH: usize = 32;

/// The key of the chain. `Debug` does not show it.
#[derive(Clone, Debug)]
pub struct AuditKey(Arc<hmac::Key>);

impl AuditKey {
    /// A key of these 32 bytes.
    pub fn new(bytes: &[u8; 32]) -> AuditKey {
        AuditKey(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// The hash of a loan's row. What is no part of a step is left out: progress, owner and
    /// deliveries.
    pub(super) fn loan_mac(&self, salt: &[u8], loan: &Loan) -> Vec<u8> {
        let millis = |at: Option<Timestamp>| at.map(|at| at.as_millisecond().to_be_bytes());
        let (terms, refusal) = (loan.terms.as_ref(), loan.refusal.as_ref());
        let mut parts = Parts::with_key(&self.0);
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

    /// The seal of an anchor, which leads from the hash before its first step to the hash of its
    /// last.
    pub(super) fn seal(&self, first: i64, before: &[u8], last: &Head) -> Vec<u8> {
        let mut parts = Parts::with_key(&self.0);
        parts.add(Some(b"anchor"));
        parts.add(Some(&first.to_be_bytes()));
        parts.add(Some(before));
        parts.add(Some(&last.number.to_be_bytes()));
        parts.add(Some(&last.mac));
        parts.sign()
    }
}

/// What a hash is made of. Each part has its length before it, and a part that may be missing says
/// so: no two inputs are alike.
struct Parts(hmac::Context);

impl Parts {
    fn with_key(key: &hmac::Key) -> Parts {
        Parts(hmac::Context::with_key(key))
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
    /// Which step it is; 0 where there is none.
    pub number: i64,
    /// Its hash.
    pub mac: Vec<u8>,
}

/// A step, as it is hashed.
#[derive(Debug)]
pub(super) struct Step<'a> {
    pub(super) loan: &'a str,
    pub(super) at: i64,
    pub(super) from: Option<&'a str>,
    pub(super) to: &'a str,
    pub(super) cause: &'a str,
    pub(super) detail: Option<&'a str>,
    /// The hash of the loan's row after it; none in a step of version 1.
    pub(super) loan_mac: Option<&'a [u8]>,
}

impl Head {
    /// The newest link that a ledger has.
    pub(super) async fn read(connection: &mut SqliteConnection) -> Result<Head, sqlx::Error> {
        let row = sqlx::query("SELECT number, mac FROM history ORDER BY number DESC LIMIT 1");
        match row.fetch_optional(connection).await? {
            Some(row) => Ok(Head { number: row.try_get("number")?, mac: row.try_get("mac")? }),
            None => Ok(Head::default()),
        }
    }

    /// The link of the step that comes next.
    pub(super) fn next(&self, step: &Step<'_>, key: &AuditKey) -> Head {
        let number = self.number.saturating_add(1);
        let mut parts = Parts::with_key(&key.0);
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

    /// None for a text that was cut short: half a hash must not pass for another hash.
    fn from_text(text: &str) -> Option<Head> {
        let (number, mac) = text.strip_suffix('\n')?.split_once(' ')?;
        let mac = HEXLOWER.decode(mac.as_bytes()).ok().filter(|mac| mac.len() == MAC_LENGTH)?;
        Some(Head { number: number.parse().ok()?, mac })
    }
}

/// Where the newest link is kept apart.
fn head_file(ledger: &Path) -> PathBuf {
    let mut file = ledger.as_os_str().to_owned();
    file.push(".head");
    PathBuf::from(file)
}

/// Stores the newest link apart. The text is on the disk before it replaces the one before: on a
/// full disk the older link stays, and a power cut leaves one of the two. `process` keeps two
/// processes from writing one temporary file.
pub(super) fn keep_apart(ledger: &Path, process: &str, head: &Head) -> std::io::Result<()> {
    let file = head_file(ledger);
    let beside = file.with_extension(format!("head.{process}.new"));
    let replaced =
        write_durably(&beside, &head.text()).and_then(|()| std::fs::rename(&beside, file));
    if replaced.is_err() {
        let _ = std::fs::remove_file(beside);
    }
    replaced
}

fn write_durably(file: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::create(file)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Removes what processes left that died while they stored a link.
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

/// The newest link of a ledger that is being opened, once it is certain that the one kept apart is
/// in its chain: else the ledger was cut off, or an older copy was put in its place, and going on
/// would hide that for good.
pub(super) async fn opened(
    connection: &mut SqliteConnection,
    ledger: &Path,
) -> Result<Head, LedgerError> {
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    let head = Head::read(connection).await.map_err(failed)?;
    let Ok(text) = std::fs::read_to_string(head_file(ledger)) else {
        return Ok(head);
    };
    // What a power cut left of it says no more than a file that is not there.
    let Some(apart) = Head::from_text(&text) else {
        tracing::warn!(
            "the link of the audit trail that was kept apart cannot be read; it is written anew"
        );
        return Ok(head);
    };
    let there = sqlx::query_scalar("SELECT mac FROM history WHERE number = ?").bind(apart.number);
    let there: Option<Vec<u8>> = there.fetch_optional(&mut *connection).await.map_err(failed)?;
    if there.as_ref() == Some(&apart.mac) || is_pruned(connection, &apart).await.map_err(failed)? {
        return Ok(head);
    }
    Err(LedgerError::CutOff { file: ledger.to_owned(), apart: head_file(ledger) })
}

/// Whether an anchor stands for this step.
async fn is_pruned(connection: &mut SqliteConnection, step: &Head) -> Result<bool, sqlx::Error> {
    let anchor = sqlx::query_as(
        "SELECT last, mac FROM anchors WHERE last >= ? AND first <= ? ORDER BY last LIMIT 1",
    );
    let anchor: Option<(i64, Vec<u8>)> =
        anchor.bind(step.number).bind(step.number).fetch_optional(connection).await?;
    Ok(anchor.is_some_and(|(last, mac)| last > step.number || mac == step.mac))
}

/// Fills in the hashes of steps that were written before there was a chain.
pub(super) async fn fill_in(
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
        head = linked(&head, row, key)?;
        let update = sqlx::query("UPDATE history SET mac = ? WHERE number = ?");
        update.bind(&head.mac).bind(head.number).execute(&mut *connection).await?;
    }
    Ok(())
}

/// The link that a row must bear after this one.
pub(super) fn linked(before: &Head, row: &SqliteRow, key: &AuditKey) -> Result<Head, sqlx::Error> {
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

/// What a walk through the chain came to.
#[derive(Debug, Default)]
pub struct Verified {
    /// The newest link.
    pub head: Head,
    /// What is wrong, as sentences.
    pub findings: Vec<String>,
    /// Loans whose last step is of version 1, so that no hash covers their row.
    pub uncovered: u64,
    /// Steps that were pruned.
    pub pruned: i64,
}

/// Walks the chain of a ledger and compares every loan with its last step, also beside a running
/// gate.
///
/// # Errors
/// [`LedgerError`], where the ledger cannot be read at all.
pub async fn verify(ledger: &Path, key: &AuditKey) -> Result<Verified, LedgerError> {
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    // Read before the ledger, which may grow meanwhile.
    let apart = std::fs::read_to_string(head_file(ledger)).ok();
    let mut connection = maintenance::open(ledger).await?;
    let mut reading = connection.begin().await.map_err(failed)?;
    let anchors: Vec<Anchor> =
        sqlx::query_as("SELECT first, last, mac, seal FROM anchors ORDER BY first")
            .fetch_all(&mut *reading)
            .await
            .map_err(failed)?;
    let apart = apart.as_deref().and_then(Head::from_text);
    let mut walk = Walk { key, apart, anchors: anchors.into(), verified: Verified::default() };
    if walk.apart.is_none() {
        let sentence = format!(
            "{} cannot be read: whether the end was cut off cannot be told",
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

/// Compares every loan with the hash that its last step has of it.
///
/// # Errors
/// [`LedgerError`], where the ledger cannot be read at all.
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
                verified.found(format!(
                    "loan {id} is not as its last step left it: its row was changed"
                ));
            }
            Err(error) => verified.found(error.to_string()),
        }
    }
    Ok(())
}

/// Whether the row of a loan, joined with its last step, is what that step's hash covers: none
/// where it is not, false where the step is of version 1 and covers nothing.
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

/// What stands for steps that were pruned.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(super) struct Anchor {
    pub(super) first: i64,
    pub(super) last: i64,
    pub(super) mac: Vec<u8>,
    pub(super) seal: Vec<u8>,
}

impl Anchor {
    /// The last step that it stands for.
    pub(super) fn end(&self) -> Head {
        Head { number: self.last, mac: self.mac.clone() }
    }

    /// Whether the key made it, to go on from this hash.
    pub(super) fn is_genuine(&self, before: &[u8], key: &AuditKey) -> bool {
        key.seal(self.first, before, &self.end()) == self.seal
    }
}

struct Walk<'a> {
    key: &'a AuditKey,
    apart: Option<Head>,
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
            self.verified.found(missing);
        } else if linked(&before, row, self.key)?.mac != mac {
            let (loan, at): (String, i64) = (row.try_get("loan")?, row.try_get("at")?);
            self.verified.found(format!(
                "step {number} (loan {loan}, at {at} ms) was changed, or stands where another stood"
            ));
        }
        // The walk goes on from what stands there, so that each wrong row is reported once.
        self.arrived(Head { number, mac });
        Ok(())
    }

    /// Goes over the steps that were pruned.
    fn cross_anchors(&mut self) {
        while let Some(anchor) =
            self.anchors.pop_front_if(|anchor| anchor.first == self.verified.head.number + 1)
        {
            if !anchor.is_genuine(&self.verified.head.mac, self.key) {
                let Anchor { first, last, .. } = anchor;
                self.verified
                    .found(format!("the anchor of steps {first} to {last} was changed or forged"));
            }
            self.verified.pruned += anchor.last - anchor.first + 1;
            self.arrived(anchor.end());
        }
    }

    fn arrived(&mut self, head: Head) {
        self.verified.head = head;
        let head = &self.verified.head;
        if let Some(apart) = self.apart.as_ref().filter(|apart| apart.number == head.number)
            && apart.mac != head.mac
        {
            let sentence = format!("step {} is not the one whose hash was kept apart", head.number);
            self.verified.found(sentence);
        }
    }

    fn end(mut self) -> Verified {
        self.cross_anchors();
        let last = self.verified.head.number;
        for Anchor { first, last, .. } in std::mem::take(&mut self.anchors) {
            self.verified
                .found(format!("an anchor stands for steps {first} to {last}, where others stand"));
        }
        if let Some(apart) = self.apart.clone().filter(|apart| apart.number > last) {
            self.verified.found(format!(
                "the end is cut off: the last step is {last}, and step {} was kept apart",
                apart.number
            ));
        }
        self.verified
    }
}

impl Verified {
    fn found(&mut self, sentence: String) {
        if self.findings.len() < TOLD {
            self.findings.push(sentence);
        }
    }
}
