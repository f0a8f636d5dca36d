//! The journal of the books: a file with one JSON line per change, written before the response.
//!
//! The books call it. Each line is one write without fsync. It survives a killed process but not a
//! power failure, and allows a thousand loans per second. A start drops a partial last line,
//! because its change got no response.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::api_types::BookedReport;
use super::loan::Loan;

/// A line of the journal. A later line of the same loan replaces the earlier one.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Entry {
    Loan(Box<Loan>),
    Report(BookedReport),
}

/// The open journal, locked so that only one sandbox writes it.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    /// The length of all complete lines, in bytes.
    complete_len: u64,
    lock: File,
}

impl Drop for Journal {
    /// Unlocks explicitly, because a child process that is just starting may still hold the file.
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

impl Journal {
    /// Opens the journal in `dir` and reads its entries. Creates the directory if it is missing.
    pub(super) fn open(dir: &Path) -> io::Result<(Journal, Vec<Entry>)> {
        std::fs::create_dir_all(dir)?;
        let lock = File::create(dir.join("books.lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                io::Error::other("another sandbox has these books open; stop it first")
            }
            TryLockError::Error(error) => error,
        })?;
        let path = dir.join("books.jsonl");
        let written = match std::fs::read(&path) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let complete_len = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let entries = parse(written.get(..complete_len).unwrap_or_default())?;
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let complete_len = u64::try_from(complete_len).unwrap_or(u64::MAX);
        file.set_len(complete_len)?;
        Ok((Journal { file, complete_len, lock }, entries))
    }

    /// Appends a line or nothing: a partial line on a full disk would corrupt the next one.
    pub(super) fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        match self.file.write_all(&line) {
            Ok(()) => {
                self.complete_len += line.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.file.set_len(self.complete_len)?;
                Err(error)
            }
        }
    }
}

fn parse(written: &[u8]) -> io::Result<Vec<Entry>> {
    let lines = written.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    (1..)
        .zip(lines)
        .map(|(number, line)| {
            serde_json::from_slice(line).map_err(|error| {
                let sentence = format!("line {number} of books.jsonl is invalid ({error})");
                io::Error::new(io::ErrorKind::InvalidData, sentence)
            })
        })
        .collect()
}
