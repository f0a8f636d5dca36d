//! Puts a backup in the place of a ledger file, while no gate uses it.
//!
//! `loangate ledger restore` calls [`restore`]. An old backup has forgotten loans and ends, and
//! Bokbasen's listing does not say who has a loan. So the restored ledger is paused: it begins no
//! loan until a person has compared it with Bokbasen and resumes lending.
//!
//! All is prepared in a copy beside the ledger, which then takes its name. While the files change
//! their names, a mark keeps gates from opening any of them. A crash leaves the ledger of before,
//! or the mark, and then the command is repeated.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use super::connection::write_options;
use super::process::{OpeningLock, Process};
use super::{copy_marks, pauses, reconcile_file};
use crate::crash::{self, Edge};
use crate::durable_file::{directory_of, ignore_missing, sync_directory_of};
use crate::ledger::audit::head_file;
use crate::ledger::membership::Membership;
use crate::ledger::pauses::{PauseChange, PauseOrigin};
use crate::ledger::{Keys, LedgerError, RowsRead, StoreSettings, check, verify};

/// The files that SQLite puts beside a database.
const LOG: &str = "-wal";
const INDEX: &str = "-shm";

/// A backup that has taken the place of the ledger.
#[derive(Debug)]
pub struct Restored {
    /// Where the ledger of before is now; none if there was none.
    pub replaced: Option<PathBuf>,
    /// The time of the newest step in the backup; none if it has no step.
    pub newest: Option<Timestamp>,
    /// The number of usage reports that went to a person.
    pub reports: u64,
}

/// The backup cannot be restored. The ledger is unchanged, unless the error says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A gate or another command uses the ledger.
    #[error("{0} processes use {1}; stop the gates first")]
    InUse(usize, PathBuf),
    /// The backup is the ledger itself.
    #[error("{0} is the ledger itself; name the backup")]
    Same(PathBuf),
    /// The file is a part of a ledger in use.
    #[error(
        "{0} exists, so {1} is the copy of a ledger in use and may lack its newest loans; make a \
         backup by `loangate ledger backup`, or copy both while no gate runs and open them once \
         by `loangate ledger check`"
    )]
    HasLog(PathBuf, PathBuf),
    /// The backup is damaged, or not authentic.
    #[error("the backup is not good: {}", .0.join("; "))]
    Damaged(Vec<String>),
    /// A file cannot be copied or renamed.
    #[error("cannot {doing} {file}: {source}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        file: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The backup cannot be used, or the ledger was moved.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Returns what makes an error of the system one of the restore.
fn failed(doing: &'static str, file: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let file = file.to_owned();
    move |source| RestoreError::File { doing, file, source }
}

/// Checks a backup and puts it in the place of the ledger, which is kept beside it. `pause` is what
/// the pause of all libraries says.
///
/// # Errors
/// [`RestoreError`]. The command can be repeated.
pub async fn restore(
    ledger: &Path,
    backup: &Path,
    keys: &Keys,
    now: Timestamp,
    pause: &PauseOrigin,
) -> Result<Restored, RestoreError> {
    require_whole(ledger, backup)?;
    let directory = directory_of(ledger);
    fs::create_dir_all(directory).map_err(failed("create", directory))?;
    // No gate can open the ledger while this is held.
    let _opening = OpeningLock::acquire(ledger).await.map_err(failed("lock", ledger))?;
    let process = Process::register(ledger).map_err(failed("lock", ledger))?;
    let others = process.count_others();
    process.leave(true).await;
    if others > 0 {
        return Err(RestoreError::InUse(others, ledger.to_owned()));
    }
    require_not_moved(ledger).await?;
    let restoring = beside(ledger, ".restoring");
    remove_all(&restoring).map_err(failed("remove", &restoring))?;
    let prepared = prepare(backup, &restoring, keys, now, pause).await;
    let swapped = prepared.and_then(|(newest, reports)| {
        let replaced = swap(ledger, &restoring, now)?;
        Ok(Restored { replaced, newest, reports })
    });
    let _ = remove_all(&restoring);
    swapped
}

/// Returns an error if the backup is the ledger, or a part of one.
fn require_whole(ledger: &Path, backup: &Path) -> Result<(), RestoreError> {
    let found = fs::metadata(backup).map_err(failed("read", backup))?;
    let is_same = fs::metadata(ledger)
        .is_ok_and(|ledger| (ledger.dev(), ledger.ino()) == (found.dev(), found.ino()));
    if is_same {
        return Err(RestoreError::Same(backup.to_owned()));
    }
    let log = beside(backup, LOG);
    match fs::metadata(&log) {
        Ok(log_of_it) if log_of_it.len() > 0 => Err(RestoreError::HasLog(log, backup.to_owned())),
        _ => Ok(()),
    }
}

/// Returns an error if the ledger says that another one has taken its place. One that cannot be
/// read says nothing: that may be why it is restored.
async fn require_not_moved(ledger: &Path) -> Result<(), LedgerError> {
    let options = SqliteConnectOptions::new().filename(ledger);
    let Ok(mut connection) = options.connect().await else { return Ok(()) };
    let marks = copy_marks::read(&mut connection).await;
    let _ = connection.close().await;
    marks.map_or(Ok(()), |marks| marks.allow_gate())
}

/// Makes the file that is to take the ledger's place. Returns the time of its newest step, and how
/// many usage reports went to a person.
async fn prepare(
    backup: &Path,
    restoring: &Path,
    keys: &Keys,
    now: Timestamp,
    pause: &PauseOrigin,
) -> Result<(Option<Timestamp>, u64), RestoreError> {
    let (from, to) = (backup.to_owned(), restoring.to_owned());
    let copied = tokio::task::spawn_blocking(move || copy(&from, &to)).await;
    copied.map_err(io::Error::other).flatten().map_err(failed("copy", backup))?;
    // Opening would make a ledger without loans of a file that is empty.
    if !is_ledger(restoring).await {
        return Err(RestoreError::Damaged(vec!["it is no ledger of loangate".to_owned()]));
    }
    let reports = reconcile_file(restoring, keys, now, true).await?;
    let store = StoreSettings::Sqlite(restoring.to_owned());
    let mut found = check(&store, &keys.audit, &RowsRead::default()).await?;
    found.extend(verify(&store, &keys.audit, &RowsRead::default()).await?.findings);
    if !found.is_empty() {
        return Err(RestoreError::Damaged(found));
    }
    let newest = finish(restoring, pause).await;
    let newest =
        newest.map_err(|source| LedgerError::Database { file: restoring.to_owned(), source })?;
    Ok((newest.and_then(|at| Timestamp::from_millisecond(at).ok()), reports))
}

async fn is_ledger(file: &Path) -> bool {
    let options = SqliteConnectOptions::new().filename(file);
    let Ok(mut connection) = options.connect().await else { return false };
    let key = sqlx::query("SELECT 1 FROM meta WHERE name = 'pseudonym key'");
    let key = key.fetch_optional(&mut connection).await;
    let _ = connection.close().await;
    matches!(key, Ok(Some(_)))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    io::copy(&mut File::open(from)?, &mut created)?;
    created.sync_all()
}

/// Pauses lending, and puts all into the file itself. Returns the time of the newest step.
async fn finish(restoring: &Path, pause: &PauseOrigin) -> Result<Option<i64>, sqlx::Error> {
    let mut connection = write_options(restoring).connect().await?;
    let value = serde_json::to_vec(pause).unwrap_or_default();
    pauses::set(&mut connection, &PauseChange::of_all(value)).await?;
    let newest = sqlx::query_scalar("SELECT max(at) FROM history").fetch_one(&mut connection).await;
    // The log is gone then, so the file is all that has to be moved.
    let emptied = sqlx::query_scalar::<_, i64>("PRAGMA wal_checkpoint(TRUNCATE)");
    let is_busy = emptied.fetch_one(&mut connection).await? != 0;
    connection.close().await?;
    let left = fs::metadata(beside(restoring, LOG)).map_or(0, |log| log.len());
    if is_busy || left > 0 {
        let error = "the write-ahead log of the copy is in use; repeat the command";
        return Err(sqlx::Error::Io(io::Error::other(error)));
    }
    newest
}

/// Gives the prepared file the ledger's name, and the ledger and its head file another one.
fn swap(ledger: &Path, restoring: &Path, now: Timestamp) -> Result<Option<PathBuf>, RestoreError> {
    let head = |file: &Path| head_file::path(file);
    let replaced = beside(ledger, &now.strftime(".replaced-%Y%m%dT%H%M%SZ").to_string());
    let mark = mark(ledger);
    let kept = keep(ledger, &replaced).and_then(|had_one| {
        keep(&head(ledger), &head(&replaced))?;
        File::create(&mark)?.sync_all()?;
        sync_directory_of(ledger)?;
        Ok(had_one)
    });
    if kept.is_err() {
        // A second name of a database in use would be opened with another log.
        for name in [&replaced, &head(&replaced), &mark] {
            let _ = fs::remove_file(name);
        }
    }
    let had_one = kept.map_err(failed("keep", ledger))?;
    crash::point("restore", "log", Edge::Before);
    // A log of the old file would be applied to the new one.
    let log = beside(ledger, LOG);
    ignore_missing(fs::rename(&log, beside(&replaced, LOG))).map_err(failed("rename", &log))?;
    let index = beside(ledger, INDEX);
    ignore_missing(fs::remove_file(&index)).map_err(failed("remove", &index))?;
    sync_directory_of(ledger).map_err(failed("write the directory of", ledger))?;
    crash::point("restore", "file", Edge::Before);
    fs::rename(restoring, ledger).map_err(failed("rename", restoring))?;
    sync_directory_of(ledger).map_err(failed("write the directory of", ledger))?;
    // A ledger without steps has no head file.
    let renamed = match fs::rename(head(restoring), head(ledger)) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            ignore_missing(fs::remove_file(head(ledger)))
        }
        renamed => renamed,
    };
    renamed.map_err(failed("replace", &head(ledger)))?;
    sync_directory_of(ledger).map_err(failed("write the directory of", ledger))?;
    crash::point("restore", "mark", Edge::Before);
    ignore_missing(fs::remove_file(&mark)).map_err(failed("remove", &mark))?;
    sync_directory_of(ledger).map_err(failed("write the directory of", ledger))?;
    Ok(had_one.then_some(replaced))
}

/// The file that is there while the files of a ledger change their names.
fn mark(ledger: &Path) -> PathBuf {
    beside(ledger, ".swapping")
}

/// Returns an error if a restore of this ledger was interrupted.
pub(super) fn require_whole_restore(ledger: &Path) -> Result<(), LedgerError> {
    match mark(ledger).try_exists() {
        Ok(false) => Ok(()),
        Ok(true) | Err(_) => Err(LedgerError::HalfRestored { file: ledger.to_owned() }),
    }
}

/// Gives a file a second name. Returns whether there is such a file.
fn keep(file: &Path, name: &Path) -> io::Result<bool> {
    match fs::hard_link(file, name) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a file that was being prepared, and what belongs to it.
fn remove_all(restoring: &Path) -> io::Result<()> {
    let own = ["", LOG, INDEX, ".opening"].map(|suffix| beside(restoring, suffix));
    for file in own.into_iter().chain([head_file::path(restoring)]) {
        ignore_missing(fs::remove_file(file))?;
    }
    Ok(())
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::backup;
    use super::*;
    use crate::clock::Clock;
    use crate::ledger::test_support::{
        KEY, accepted, audit_key, by, end, intend, key, open, try_open,
    };
    use crate::ledger::{Event, Intended};
    use crate::loan::{EndReason, LoanId};

    fn keys() -> Keys {
        Keys { fingerprint: KEY, audit: audit_key() }
    }

    fn origin() -> PauseOrigin {
        let since = Clock::system().now();
        PauseOrigin { since, who: "a test".to_owned(), why: None }
    }

    async fn restored(ledger: &Path, from: &Path) -> Result<Restored, RestoreError> {
        restore(ledger, from, &keys(), Clock::system().machine_now(), &origin()).await
    }

    /// A ledger as kill -9 leaves it, with a log. A loan of it is in its backup, another is not.
    struct Two {
        directory: TempDir,
        in_backup: LoanId,
        lost: LoanId,
    }

    impl Two {
        async fn new() -> Two {
            let (live, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let file = live.path().join("loans.db");
            let ledger = open(&file).await;
            let in_backup = accepted(&ledger, 1).await;
            backup(&file, &directory.path().join("backup")).await.unwrap();
            end(&ledger, in_backup).await;
            let lost = accepted(&ledger, 2).await;
            let two = Two { directory, in_backup, lost };
            for (file, copy) in
                [(beside(&file, LOG), beside(&two.ledger(), LOG)), (file.clone(), two.ledger())]
            {
                fs::copy(file, copy).unwrap();
            }
            ledger.close().await;
            fs::copy(head_file::path(&file), head_file::path(&two.ledger())).unwrap();
            two
        }

        fn ledger(&self) -> PathBuf {
            self.directory.path().join("loans.db")
        }

        fn backup(&self) -> PathBuf {
            self.directory.path().join("backup")
        }

        /// The names of the files, without locks and those that SQLite makes and removes.
        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.directory.path()).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let passing = [LOG, INDEX, ".opening", ".processes"];
            let mut names: Vec<_> =
                names.filter(|name| !passing.iter().any(|end| name.ends_with(end))).collect();
            names.sort();
            names
        }

        async fn has_lost_loan(&self, file: &Path) -> bool {
            let ledger = open(file).await;
            let loan = ledger.newest(&key(2)).await.unwrap();
            ledger.close().await;
            assert!(loan.as_ref().is_none_or(|loan| loan.id == self.lost));
            loan.is_some()
        }
    }

    #[tokio::test]
    async fn backup_takes_the_place_of_the_ledger_which_is_kept_with_its_log() {
        let two = Two::new().await;
        let done = restored(&two.ledger(), &two.backup()).await.unwrap();
        assert!(done.newest.is_some());
        assert!(!two.has_lost_loan(&two.ledger()).await);
        let ledger = open(&two.ledger()).await;
        let loan = ledger.newest(&key(1)).await.unwrap().unwrap();
        assert!(loan.id == two.in_backup && loan.state.is_live(), "as it was then");
        assert!(matches!(intend(&ledger, 3).await, Intended::Paused));
        // Ends go on.
        let event = Event::Ending { reason: EndReason::Returned };
        ledger.apply(two.in_backup, event, by("reader")).await.unwrap();
        ledger.resume_lending(None).await.unwrap();
        assert!(matches!(intend(&ledger, 3).await, Intended::Written(_)));
        ledger.close().await;
        let store = StoreSettings::Sqlite(two.ledger());
        assert_eq!(
            verify(&store, &audit_key(), &RowsRead::default()).await.unwrap().findings,
            Vec::<String>::new()
        );
        let replaced = done.replaced.unwrap();
        assert!(two.has_lost_loan(&replaced).await);
        let name = replaced.file_name().unwrap().to_str().unwrap().to_owned();
        let head = format!("{name}.head");
        assert_eq!(two.names(), ["backup", "loans.db", "loans.db.head", &name, &head]);
    }

    #[tokio::test]
    async fn interrupted_restore_keeps_gates_away_until_it_is_repeated() {
        let two = Two::new().await;
        // As a crash leaves it between the names: the log is gone, and there is no head file.
        fs::write(mark(&two.ledger()), b"").unwrap();
        fs::remove_file(beside(&two.ledger(), LOG)).unwrap();
        fs::remove_file(head_file::path(&two.ledger())).unwrap();
        let opened = try_open(&two.ledger(), &KEY).await;
        assert!(matches!(opened, Err(LedgerError::HalfRestored { .. })), "{opened:?}");
        restored(&two.ledger(), &two.backup()).await.unwrap();
        let ledger = open(&two.ledger()).await;
        assert!(matches!(intend(&ledger, 3).await, Intended::Paused));
        ledger.close().await;
    }

    #[tokio::test]
    async fn ledger_in_use_is_not_replaced() {
        let two = Two::new().await;
        let ledger = open(&two.ledger()).await;
        let in_use = restored(&two.ledger(), &two.backup()).await;
        assert!(matches!(in_use, Err(RestoreError::InUse(1, _))), "{in_use:?}");
        ledger.close().await;
        assert!(two.has_lost_loan(&two.ledger()).await);
    }

    #[tokio::test]
    async fn what_cannot_be_restored_changes_nothing() {
        let two = Two::new().await;
        let before = two.names();
        let same = restored(&two.ledger(), &two.ledger()).await;
        assert!(matches!(same, Err(RestoreError::Same(_))), "{same:?}");
        let missing = restored(&two.ledger(), Path::new("/nowhere/backup")).await;
        assert!(matches!(missing, Err(RestoreError::File { .. })), "{missing:?}");
        let (other, now) = (Keys { fingerprint: [7; 32], ..keys() }, Clock::system().machine_now());
        let of_another_key = restore(&two.ledger(), &two.backup(), &other, now, &origin()).await;
        assert!(
            matches!(of_another_key, Err(RestoreError::Ledger(LedgerError::OtherPseudonymKey))),
            "{of_another_key:?}"
        );
        let log = beside(&two.backup(), LOG);
        fs::write(&log, b"log").unwrap();
        let with_log = restored(&two.ledger(), &two.backup()).await;
        assert!(matches!(with_log, Err(RestoreError::HasLog(..))), "{with_log:?}");
        fs::remove_file(&log).unwrap();
        let good = fs::read(two.backup()).unwrap();
        let mut changed = good.clone();
        let state = good.windows(8).rposition(|window| window == b"accepted").unwrap();
        changed[state..state + 8].copy_from_slice(b"refused!");
        for bad in [changed, good[..good.len() / 2].to_vec(), Vec::new(), vec![b'x'; 9000]] {
            fs::write(two.backup(), bad).unwrap();
            let damaged = restored(&two.ledger(), &two.backup()).await;
            assert!(
                matches!(damaged, Err(RestoreError::Damaged(_) | RestoreError::Ledger(_))),
                "{damaged:?}"
            );
        }
        assert_eq!(two.names(), before);
        assert!(two.has_lost_loan(&two.ledger()).await);
    }
}
