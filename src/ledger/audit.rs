//! The audit trail: every step bears a keyed hash of itself and of the step before it, in one chain over all loans.
//!
//! The writing task extends it inside the transaction that writes the step; [`verify`] walks it and names each row that was
//! changed, taken out or put elsewhere. So that a tail cannot be cut off unseen, the newest link is kept apart, in a file
//! beside the ledger that is written within a second or so; whoever wants to be sure of more copies it away.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use futures_util::TryStreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{LedgerError, upkeep};

/// How many findings are told.
const TOLD: usize = 100;

/// The length of a hash, in bytes.
const MAC_LENGTH: usize = 32;

/// The key of the chain. `Debug` does not show it.
#[derive(Clone, Debug)]
pub struct AuditKey(hmac::Key);

impl AuditKey {
    /// A key of these 32 bytes.
    pub fn new(bytes: &[u8; 32]) -> AuditKey {
        AuditKey(hmac::Key::new(hmac::HMAC_SHA256, bytes))
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
        let mut context = hmac::Context::with_key(&key.0);
        // A part that may be missing says so, and each has its length before it: no two steps read alike.
        let mut part = |bytes: Option<&[u8]>| {
            let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
            context.update(&length.to_be_bytes());
            context.update(bytes.unwrap_or_default());
        };
        part(Some(&self.mac));
        part(Some(&number.to_be_bytes()));
        part(Some(step.loan.as_bytes()));
        part(Some(&step.at.to_be_bytes()));
        part(step.from.map(str::as_bytes));
        part(Some(step.to.as_bytes()));
        part(Some(step.cause.as_bytes()));
        part(step.detail.map(str::as_bytes));
        Head { number, mac: context.sign().as_ref().to_vec() }
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

/// Stores the newest link apart. The text is on the disk before it replaces the one before: on a full disk the older
/// link stays, and a power cut leaves one of the two. `process` keeps two processes from writing one temporary file.
pub(super) fn keep_apart(ledger: &Path, process: &str, head: &Head) -> std::io::Result<()> {
    let file = head_file(ledger);
    let beside = file.with_extension(format!("head.{process}.new"));
    let replaced = write_durably(&beside, &head.text()).and_then(|()| std::fs::rename(&beside, file));
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
    let (Some(directory), Some(name)) = (head.parent(), head.file_name().and_then(|name| name.to_str()))
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

/// The newest link of a ledger that is being opened, once it is certain that the one kept apart is in its chain: else the
/// ledger was cut off, or an older copy was put in its place, and going on would hide that for good.
pub(super) async fn opened(connection: &mut SqliteConnection, ledger: &Path) -> Result<Head, LedgerError> {
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    let head = Head::read(connection).await.map_err(failed)?;
    let Ok(text) = std::fs::read_to_string(head_file(ledger)) else {
        return Ok(head);
    };
    // What a power cut left of it says no more than a file that is not there.
    let Some(apart) = Head::from_text(&text) else {
        tracing::warn!("the link of the audit trail that was kept apart cannot be read; it is written anew");
        return Ok(head);
    };
    let there = sqlx::query_scalar("SELECT mac FROM history WHERE number = ?").bind(apart.number);
    let there: Option<Vec<u8>> = there.fetch_optional(connection).await.map_err(failed)?;
    if there.as_ref() == Some(&apart.mac) {
        return Ok(head);
    }
    Err(LedgerError::CutOff { file: ledger.to_owned(), apart: head_file(ledger) })
}

/// Fills in the hashes of steps that were written before there was a chain.
pub(super) async fn fill_in(connection: &mut SqliteConnection, key: &AuditKey) -> Result<(), sqlx::Error> {
    let rows = sqlx::query("SELECT * FROM history WHERE mac IS NULL ORDER BY number");
    let rows = rows.fetch_all(&mut *connection).await?;
    let Some(first) = rows.first() else { return Ok(()) };
    let before = sqlx::query("SELECT number, mac FROM history WHERE number = ?");
    let before = before.bind(first.try_get::<i64, _>("number")? - 1).fetch_optional(&mut *connection).await?;
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
fn linked(before: &Head, row: &SqliteRow, key: &AuditKey) -> Result<Head, sqlx::Error> {
    let step = Step {
        loan: row.try_get("loan")?,
        at: row.try_get("at")?,
        from: row.try_get("from_state")?,
        to: row.try_get("to_state")?,
        cause: row.try_get("cause")?,
        detail: row.try_get("detail")?,
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
}

/// Walks the chain of a ledger, also beside a running gate.
///
/// # Errors
/// [`LedgerError`], where the ledger cannot be read at all.
pub async fn verify(ledger: &Path, key: &AuditKey) -> Result<Verified, LedgerError> {
    let failed = |source| LedgerError::Database { file: ledger.to_owned(), source };
    // Read before the ledger, which may grow meanwhile.
    let apart = std::fs::read_to_string(head_file(ledger)).ok();
    let mut connection = upkeep::open(ledger).await?;
    let mut walk =
        Walk { key, apart: apart.as_deref().and_then(Head::from_text), verified: Verified::default() };
    if walk.apart.is_none() {
        let sentence = format!(
            "{} cannot be read: whether the end was cut off cannot be told",
            head_file(ledger).display()
        );
        walk.verified.findings.push(sentence);
    }
    let mut rows = sqlx::query("SELECT * FROM history ORDER BY number").fetch(&mut connection);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        walk.row(&row).map_err(failed)?;
    }
    Ok(walk.end())
}

struct Walk<'a> {
    key: &'a AuditKey,
    apart: Option<Head>,
    verified: Verified,
}

impl Walk<'_> {
    fn row(&mut self, row: &SqliteRow) -> Result<(), sqlx::Error> {
        let number: i64 = row.try_get("number")?;
        let mac: Option<Vec<u8>> = row.try_get("mac")?;
        let mac = mac.unwrap_or_default();
        let before = self.verified.head.clone();
        if number != before.number.saturating_add(1) {
            self.found(format!("steps {} to {} are missing", before.number.saturating_add(1), number - 1));
        } else if linked(&before, row, self.key)?.mac != mac {
            let (loan, at): (String, i64) = (row.try_get("loan")?, row.try_get("at")?);
            self.found(format!(
                "step {number} (loan {loan}, at {at} ms) was changed, or stands where another stood"
            ));
        }
        // The walk goes on from what stands there, so that each row that is wrong is told once.
        self.verified.head = Head { number, mac };
        if let Some(apart) = self.apart.clone().filter(|apart| apart.number == number)
            && apart.mac != self.verified.head.mac
        {
            self.found(format!("step {number} is not the one whose hash was kept apart"));
        }
        Ok(())
    }

    fn found(&mut self, sentence: String) {
        if self.verified.findings.len() < TOLD {
            self.verified.findings.push(sentence);
        }
    }

    fn end(mut self) -> Verified {
        let last = self.verified.head.number;
        if let Some(apart) = self.apart.clone().filter(|apart| apart.number > last) {
            self.found(format!(
                "the end is cut off: the last step is {last}, and step {} was kept apart",
                apart.number
            ));
        }
        self.verified
    }
}
