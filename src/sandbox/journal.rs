//! The books on disk: a file of JSON lines, one for each change, written before the change is
//! answered.
//!
//! The books call it. It calls nothing of ours. A line is written with one call and not flushed to
//! the disk: it outlives a killed process, not a power cut, and a thousand loans a second stay
//! possible. What a kill left of a last line is dropped at the next start, for it was never
//! answered.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::api_types::BookedReport;
use super::loan::Loan;

/// One line. A later one of the same loan replaces the earlier.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Entry {
    Loan(Box<Loan>),
    Report(BookedReport),
}

/// The open file. It is locked, so that two sandboxes never write one set of books.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    /// How long the whole lines are together.
    whole: u64,
    lock: File,
}

impl Drop for Journal {
    /// Lets the lock go by name: a program that this process is starting just now may hold the file
    /// for a moment more.
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

impl Journal {
    /// Opens the books in `dir`, which is made where it is missing, and reads what they hold.
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
        let whole = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let entries = parse(written.get(..whole).unwrap_or_default())?;
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let whole = u64::try_from(whole).unwrap_or(u64::MAX);
        file.set_len(whole)?;
        Ok((Journal { file, whole, lock }, entries))
    }

    /// Writes a line, or none of it: half a line on a full disk would swallow the next one.
    pub(super) fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        match self.file.write_all(&line) {
            Ok(()) => {
                self.whole += line.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.file.set_len(self.whole)?;
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
                let sentence = format!("line {number} of books.jsonl is not one of ours ({error})");
                io::Error::new(io::ErrorKind::InvalidData, sentence)
            })
        })
        .collect()
}
