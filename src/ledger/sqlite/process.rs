//! The names of the processes on a ledger, and the test whether one of them is alive.
//!
//! Each process locks a file beside the ledger for its whole life. The system releases the lock
//! when the process dies. A heartbeat could declare a suspended process dead, whose begin is then
//! sent after its loan was taken over; a lock cannot.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use crate::ledger::membership::Membership;

/// How long opening waits for another process, which may be migrating a large ledger.
const OPENING_DEADLINE: Duration = Duration::from_secs(120);
/// The interval between attempts to take the lock.
const OPENING_RETRY: Duration = Duration::from_millis(20);

/// The lock for opening the ledger: one process at a time creates the file and its schema. Dropping
/// it releases the lock.
#[derive(Debug)]
pub(super) struct OpeningLock {
    _lock: File,
}

impl OpeningLock {
    /// Waits for the lock.
    ///
    /// # Errors
    /// Returns the system's error, or `WouldBlock` if another process holds the lock too long.
    pub(super) async fn acquire(ledger: &Path) -> io::Result<OpeningLock> {
        let mut file = ledger.as_os_str().to_owned();
        file.push(".opening");
        let lock = OpenOptions::new().create(true).append(true).open(PathBuf::from(file))?;
        let deadline = tokio::time::Instant::now() + OPENING_DEADLINE;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(OpeningLock { _lock: lock }),
                Err(TryLockError::WouldBlock) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(OPENING_RETRY).await;
                }
                Err(error) => return Err(io::Error::from(error)),
            }
        }
    }
}

/// This process as an owner of loans.
#[derive(Debug)]
pub(super) struct Process {
    name: Arc<str>,
    directory: PathBuf,
    /// Held until this is dropped.
    _lock: File,
}

impl Process {
    /// Creates a new name and locks its file, in a directory beside the ledger.
    pub(super) fn register(ledger: &Path) -> io::Result<Process> {
        let mut directory = ledger.as_os_str().to_owned();
        directory.push(".processes");
        let directory = PathBuf::from(directory);
        fs::create_dir_all(&directory)?;
        let name: Arc<str> = Uuid::new_v4().simple().to_string().into();
        // The file is locked before it has its final name, so no other process considers it dead.
        let temporary = directory.join(format!("{name}.new"));
        let lock = File::create_new(&temporary)?;
        lock.try_lock().map_err(io::Error::from)?;
        fs::rename(&temporary, directory.join(name.as_ref()))?;
        Ok(Process { name, directory, _lock: lock })
    }
}

impl Membership for Process {
    fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// Files that cannot be read are not counted.
    fn count_others(&self) -> usize {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let is_other = |name: &String| **name != *self.name && is_valid_name(name);
        names.filter(is_other).filter(|name| !self.is_dead(name)).count()
    }

    fn leave(&self, is_silent: bool) -> BoxFuture<'_, ()> {
        // Now, and not when the last task of the process drops this.
        if is_silent {
            let _ = fs::remove_file(self.directory.join(self.name.as_ref()));
        }
        Box::pin(async {})
    }

    fn is_dead(&self, name: &str) -> bool {
        if name == self.name.as_ref() || !is_valid_name(name) {
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

fn is_valid_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.directory.join(self.name.as_ref()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_dead_when_its_lock_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("loans.db");
        let (mine, other) =
            (Process::register(&ledger).unwrap(), Process::register(&ledger).unwrap());
        assert!(!mine.is_dead(&mine.name()) && !mine.is_dead(&other.name()));
        let name = other.name();
        drop(other);
        assert!(mine.is_dead(&name));
        assert!(!mine.is_dead("../other"), "an invalid name is not dead");
    }

    /// A task that has not ended yet may still hold it.
    #[tokio::test]
    async fn process_that_has_left_is_dead_before_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("loans.db");
        let (mine, other) =
            (Process::register(&ledger).unwrap(), Process::register(&ledger).unwrap());
        other.leave(false).await;
        assert!(!mine.is_dead(&other.name()), "it may still write");
        other.leave(true).await;
        assert!(mine.is_dead(&other.name()) && mine.count_others() == 0);
    }

    #[test]
    fn only_other_living_processes_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("loans.db");
        let mine = Process::register(&ledger).unwrap();
        assert_eq!(mine.count_others(), 0);
        let other = Process::register(&ledger).unwrap();
        assert_eq!((mine.count_others(), other.count_others()), (1, 1));
        // A killed process leaves its file behind, without a lock.
        File::create_new(directory.path().join("loans.db.processes/0123456789abcdef")).unwrap();
        File::create_new(directory.path().join("loans.db.processes/0123456789abcdef.new")).unwrap();
        assert_eq!(mine.count_others(), 1);
        drop(other);
        assert_eq!(mine.count_others(), 0);
    }
}
