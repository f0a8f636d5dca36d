//! Which process wrote an intent, and whether it still lives.
//!
//! Each process holds a lock on a file of its own beside the ledger for as long as it lives. The
//! system lets the lock go at the moment the process dies, however it dies; so unlike a heartbeat
//! this cannot take a process that was merely stopped for a while for a dead one and let its begin
//! be sent after all.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

/// How long an opening waits for that of another process, which may be migrating a large ledger.
const OPENING_DEADLINE: Duration = Duration::from_secs(120);
/// How often it tries.
const OPENING_RETRY: Duration = Duration::from_millis(20);

/// The right to open the ledger: one process at a time creates the file and its schema. Released
/// when it is dropped.
#[derive(Debug)]
pub(super) struct Opening {
    _lock: File,
}

impl Opening {
    /// Waits for the lock.
    ///
    /// # Errors
    /// The system's, or that another process did not finish in time.
    pub(super) async fn acquire(ledger: &Path) -> io::Result<Opening> {
        let mut file = ledger.as_os_str().to_owned();
        file.push(".opening");
        let lock = OpenOptions::new().create(true).append(true).open(PathBuf::from(file))?;
        let deadline = tokio::time::Instant::now() + OPENING_DEADLINE;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Opening { _lock: lock }),
                Err(TryLockError::WouldBlock) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(OPENING_RETRY).await;
                }
                Err(error) => return Err(io::Error::from(error)),
            }
        }
    }
}

/// This process, by the name under which it writes.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    directory: PathBuf,
    /// Held until the process ends.
    _lock: File,
}

impl Process {
    /// Takes a fresh name and its lock, in a directory beside the ledger.
    pub(super) fn enter(ledger: &Path) -> io::Result<Process> {
        let mut directory = ledger.as_os_str().to_owned();
        directory.push(".processes");
        let directory = PathBuf::from(directory);
        fs::create_dir_all(&directory)?;
        let name = Uuid::new_v4().simple().to_string();
        // Under its name the file is locked from the start: nobody takes it for a dead process's.
        let unnamed = directory.join(format!("{name}.new"));
        let lock = File::create_new(&unnamed)?;
        lock.try_lock().map_err(io::Error::from)?;
        fs::rename(&unnamed, directory.join(&name))?;
        Ok(Process { name, directory, _lock: lock })
    }

    /// The name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Counts the other processes that live. A file that cannot be read counts as none.
    pub(super) fn count_others(&self) -> usize {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let is_other = |name: &String| *name != self.name && is_a_name(name);
        names.filter(is_other).filter(|name| !self.is_dead(name)).count()
    }

    /// Whether the process of this name has died. In doubt it lives.
    pub(super) fn is_dead(&self, name: &str) -> bool {
        if name == self.name || !is_a_name(name) {
            return false;
        }
        let file = self.directory.join(name);
        match OpenOptions::new().write(true).open(&file) {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(opened) => match opened.try_lock() {
                Ok(()) => {
                    let _ = fs::remove_file(&file);
                    true
                }
                Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
            },
        }
    }
}

fn is_a_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.directory.join(&self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_dead_when_its_lock_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("loans.db");
        let (mine, other) = (Process::enter(&ledger).unwrap(), Process::enter(&ledger).unwrap());
        assert!(!mine.is_dead(mine.name()) && !mine.is_dead(other.name()));
        let name = other.name().to_owned();
        drop(other);
        assert!(mine.is_dead(&name));
        assert!(!mine.is_dead("../other"), "in doubt it lives");
    }

    #[test]
    fn only_other_living_processes_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("loans.db");
        let mine = Process::enter(&ledger).unwrap();
        assert_eq!(mine.count_others(), 0);
        let other = Process::enter(&ledger).unwrap();
        assert_eq!((mine.count_others(), other.count_others()), (1, 1));
        // A killed process leaves its file behind, without a lock.
        File::create_new(directory.path().join("loans.db.processes/0123456789abcdef")).unwrap();
        File::create_new(directory.path().join("loans.db.processes/0123456789abcdef.new")).unwrap();
        assert_eq!(mine.count_others(), 1);
        drop(other);
        assert_eq!(mine.count_others(), 0);
    }
}
