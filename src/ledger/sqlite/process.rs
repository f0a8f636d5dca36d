//! The names of the processes on a ledger, and the test whether one of them is alive.
//!
//! Each process locks a file beside the ledger for its whole life. The system releases the lock
//! when the process dies. A heartbeat could declare a suspended process dead, whose begin is then
//! sent after its loan was taken over; a lock cannot. Ends may be sent twice, so for them there is
//! a heartbeat, too.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use uuid::Uuid;

use super::end_shares::EndShares;
use crate::clock::Clock;
use crate::ledger::membership::Membership;
use crate::loan::LoanId;
use crate::lock::lock;

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
        let deadline = Instant::now() + OPENING_DEADLINE;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(OpeningLock { _lock: lock }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
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
    /// Locked until this is dropped. The time of its modification is the heartbeat.
    lock: Mutex<File>,
    end_shares: Mutex<EndShares>,
    /// Held while they are updated.
    refreshing: Mutex<()>,
    has_left: AtomicBool,
}

impl Process {
    /// Creates a new name and locks its file, in a directory beside the ledger.
    pub(super) fn register(ledger: &Path) -> io::Result<Process> {
        let mut directory = ledger.as_os_str().to_owned();
        directory.push(".processes");
        let directory = PathBuf::from(directory);
        fs::create_dir_all(&directory)?;
        let id = Uuid::new_v4();
        let name: Arc<str> = id.simple().to_string().into();
        let lock = Mutex::new(locked_file(&directory, &name)?);
        let others = live_others(&directory, &name)?;
        let end_shares = Mutex::new(EndShares::new(id, others));
        Ok(Process {
            name,
            directory,
            lock,
            end_shares,
            refreshing: Mutex::default(),
            has_left: AtomicBool::new(false),
        })
    }

    /// Makes the file again if somebody has removed it: without it, others take this process for
    /// dead, and decide its begins.
    fn replace_file(&self) -> io::Result<()> {
        let file = self.directory.join(self.name.as_ref());
        if self.has_left.load(Ordering::SeqCst) || fs::exists(&file)? {
            return Ok(());
        }
        fs::create_dir_all(&self.directory)?;
        *lock(&self.lock) = locked_file(&self.directory, &self.name)?;
        if self.has_left.load(Ordering::SeqCst) {
            return fs::remove_file(file);
        }
        let directory = self.directory.display();
        tracing::error!(
            %directory,
            "the file that shows that this gate runs was removed, and is there again. Begins of \
             that time may be with another gate. Remove nothing in this directory while gates run"
        );
        Ok(())
    }

    /// Returns the other live processes, each with its heartbeat.
    fn others(&self) -> io::Result<Vec<(Uuid, Option<SystemTime>)>> {
        live_others(&self.directory, &self.name)
    }
}

/// Creates the file of a process, and locks it.
fn locked_file(directory: &Path, name: &str) -> io::Result<File> {
    // The file is locked before it has its final name, so no other process considers it dead.
    let temporary = directory.join(format!("{name}.new"));
    let file = File::create(&temporary)?;
    file.try_lock().map_err(io::Error::from)?;
    fs::rename(&temporary, directory.join(name))?;
    Ok(file)
}

/// Returns the live processes in this directory but `own`, each with its heartbeat.
fn live_others(directory: &Path, own: &str) -> io::Result<Vec<(Uuid, Option<SystemTime>)>> {
    let entries = match fs::read_dir(directory) {
        // Somebody removed it, with the files of all processes.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut others = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if is_valid_name(&name)
            && name != own
            && let Ok(process) = Uuid::try_parse(&name)
            && !is_dead(directory, &name)
        {
            others.push((process, entry.metadata().and_then(|file| file.modified()).ok()));
        }
    }
    Ok(others)
}

/// Returns whether the process with this valid name is dead, and removes its file then.
fn is_dead(directory: &Path, name: &str) -> bool {
    let file = directory.join(name);
    // Opening anything else, such as a named pipe, may block.
    if fs::symlink_metadata(&file).is_ok_and(|file| !file.is_file()) {
        return true;
    }
    // A file of another user may be open to reading only.
    match OpenOptions::new().write(true).open(&file).or_else(|_| File::open(&file)) {
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

impl Membership for Process {
    fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// If that is uncertain, there is another one.
    fn count_others(&self) -> usize {
        self.others().map_or(1, |others| others.len())
    }

    /// Also gives a heartbeat.
    fn refresh_end_shares(&self) {
        // One that is slow goes on, and has newer results than the next.
        let Ok(_turn) = self.refreshing.try_lock() else { return };
        let (beaten, now) = (Instant::now(), Clock::system().machine_now().as_millisecond());
        let now = Duration::from_millis(u64::try_from(now).unwrap_or_default());
        let heartbeat = lock(&self.lock).set_modified(SystemTime::UNIX_EPOCH + now);
        let others = heartbeat.and_then(|()| self.replace_file()).and_then(|()| self.others());
        let begins = match others {
            Ok(others) => {
                lock(&self.end_shares).refresh(beaten, others);
                return;
            }
            Err(error) => lock(&self.end_shares).keep(beaten).then_some(error),
        };
        if let Some(error) = begins {
            let directory = self.directory.display();
            tracing::warn!(%directory, %error, "the other gates on the ledger cannot be found");
        }
    }

    fn end_shares_version(&self) -> Option<u64> {
        Some(lock(&self.end_shares).version())
    }

    fn sends_end_of(&self, loan: LoanId) -> bool {
        lock(&self.end_shares).includes(loan)
    }

    fn leave(&self, is_silent: bool) -> BoxFuture<'_, ()> {
        // Now, and not when the last task of the process drops this.
        if is_silent {
            self.has_left.store(true, Ordering::SeqCst);
            let _ = fs::remove_file(self.directory.join(self.name.as_ref()));
        }
        Box::pin(async {})
    }

    fn is_dead(&self, name: &str) -> bool {
        name != self.name.as_ref() && is_valid_name(name) && is_dead(&self.directory, name)
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

    #[tokio::test]
    async fn removed_file_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("loans.db");
        let (mine, other) =
            (Process::register(&ledger).unwrap(), Process::register(&ledger).unwrap());
        fs::remove_dir_all(directory.path().join("loans.db.processes")).unwrap();
        assert!(other.is_dead(&mine.name()));
        mine.refresh_end_shares();
        assert!(!other.is_dead(&mine.name()));
        mine.leave(true).await;
        mine.refresh_end_shares();
        assert!(other.is_dead(&mine.name()), "it has left");
    }

    #[test]
    fn what_is_no_file_is_no_process() {
        let directory = tempfile::tempdir().unwrap();
        let mine = Process::register(&directory.path().join("loans.db")).unwrap();
        let pipe = directory.path().join("loans.db.processes/0123456789abcdef0123456789abcdef");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert_eq!(mine.count_others(), 0);
    }

    #[test]
    fn others_that_cannot_be_listed_are_assumed() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("loans.db");
        let mine = Process::register(&ledger).unwrap();
        let processes = directory.path().join("loans.db.processes");
        fs::remove_dir_all(&processes).unwrap();
        fs::write(&processes, "").unwrap();
        assert_eq!(mine.count_others(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn end_is_sent_by_one_process_that_lives_and_runs() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("loans.db");
        let first = Process::register(&ledger).unwrap();
        let loans: Vec<LoanId> = (0..100).map(|_| LoanId::random()).collect();
        let sent =
            |process: &Process| loans.iter().filter(|loan| process.sends_end_of(**loan)).count();
        assert_eq!(sent(&first), 100);
        let second = Process::register(&ledger).unwrap();
        for _ in 0..70 {
            tokio::time::advance(Duration::from_secs(1)).await;
            first.refresh_end_shares();
            second.refresh_end_shares();
        }
        assert!(sent(&first) > 0 && sent(&second) > 0);
        assert_eq!(sent(&first) + sent(&second), 100);
        // The second is suspended: it lives, and its heartbeat has stopped.
        let both = sent(&first);
        for _ in 0..62 {
            tokio::time::advance(Duration::from_secs(1)).await;
            first.refresh_end_shares();
        }
        assert!(both < 100 && sent(&first) == 100, "{both}");
        drop(second);
    }
}
