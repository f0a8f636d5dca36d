//! The file of a process with the renewals that it has seen.
//!
//! It is beside the file of its chain heads, and reveals a loss to the processes that start later
//! on this machine. Each line has a member, its renewals, and when it was last seen alive, by the
//! clock of the database in milliseconds. The file is replaced at most once per renewal.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

use super::seen_renewals::{Seen, SeenRenewals};
use crate::ledger::audit::process_file::{EPOCH_LINE, ProcessFile, read_files, replace};
use crate::telemetry::LogLimit;

/// The end of a file's name.
pub(super) const SUFFIX: &str = ".renewals";
/// The deadline of the last write. A process that leaves has two seconds.
const FLUSH_DEADLINE: Duration = Duration::from_secs(1);

/// Writes the file of this process.
#[derive(Debug)]
pub(super) struct RenewalsFile {
    text: watch::Sender<Arc<str>>,
    writing: JoinHandle<()>,
}

/// The list of an earlier process.
#[derive(Debug)]
pub(super) struct StoredRenewals {
    pub(super) path: PathBuf,
    pub(super) process: Uuid,
    pub(super) epoch: i64,
    pub(super) seen: SeenRenewals,
}

impl RenewalsFile {
    /// Starts the task that writes the file. Its first write makes these files of earlier processes
    /// superfluous, so it then removes them.
    pub(super) fn start(
        directory: &Path,
        ledger: Uuid,
        process: Uuid,
        superseded: Vec<PathBuf>,
    ) -> RenewalsFile {
        let file = ProcessFile::path(directory, ledger, process, SUFFIX);
        let (text, texts) = watch::channel(Arc::from(""));
        RenewalsFile { text, writing: tokio::spawn(write_all(file, texts, superseded)) }
    }

    /// Writes the list soon.
    pub(super) fn write(&self, epoch: i64, seen: &SeenRenewals) {
        self.text.send_replace(text_of(epoch, seen).into());
    }

    /// Waits until the last list is durable.
    pub(super) async fn finish(self) {
        drop(self.text);
        if timeout(FLUSH_DEADLINE, self.writing).await.is_err() {
            tracing::warn!("timed out while writing the file with the renewals of the members");
        }
    }
}

/// Writes the newest list whenever there is one.
async fn write_all(
    file: PathBuf,
    mut texts: watch::Receiver<Arc<str>>,
    mut superseded: Vec<PathBuf>,
) {
    static LIMIT: LogLimit = LogLimit::per_minute();
    while texts.changed().await.is_ok() {
        let (file, text) = (file.clone(), texts.borrow_and_update().clone());
        let obsolete = std::mem::take(&mut superseded);
        // On a blocking thread, so that a hanging disk does not stop other tasks.
        let written = tokio::task::spawn_blocking(move || match replace(&file, &text) {
            Ok(()) => {
                remove(&obsolete);
                Vec::new()
            }
            Err(error) => {
                if let Some(suppressed) = LIMIT.permit("write") {
                    tracing::warn!(
                        %error,
                        suppressed,
                        "cannot write the file with the renewals of the members; retrying"
                    );
                }
                obsolete
            }
        });
        superseded = written.await.unwrap_or_default();
    }
}

/// Removes files of ended processes.
pub(super) fn remove(files: &[PathBuf]) {
    for file in files {
        match std::fs::remove_file(file) {
            // Another process of this machine was faster.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                let file = file.display();
                tracing::warn!(%error, %file, "cannot remove a file of an ended process");
            }
            Ok(()) => {}
        }
    }
}

fn text_of(epoch: i64, seen: &SeenRenewals) -> String {
    let mut text = format!("{EPOCH_LINE}{epoch}\n");
    for (member, Seen { renewals, at }) in seen.iter() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{member} {renewals} {at}");
    }
    text
}

/// Reads the lists of all processes of this ledger. Lines that cannot be parsed are skipped.
///
/// # Errors
/// The error of the system if a file cannot be read. A missing directory has none.
pub(super) fn read_all(directory: &Path, ledger: Uuid) -> std::io::Result<Vec<StoredRenewals>> {
    Ok(read_files(directory, ledger, SUFFIX)?.into_iter().map(StoredRenewals::of).collect())
}

impl StoredRenewals {
    fn of(file: ProcessFile) -> StoredRenewals {
        let mut seen = SeenRenewals::default();
        let (epoch, lines) = file.lines();
        for line in lines {
            match parse(line) {
                Some((member, of_member)) => seen.merge(member, of_member),
                None => tracing::warn!("a line in a file with renewals cannot be read"),
            }
        }
        StoredRenewals { epoch, seen, process: file.process, path: file.path }
    }
}

fn parse(line: &str) -> Option<(Uuid, Seen)> {
    let mut parts = line.trim_end().splitn(3, ' ');
    let (member, renewals, at) = (parts.next()?, parts.next()?, parts.next()?);
    let seen = Seen { renewals: renewals.parse().ok()?, at: at.parse().ok()? };
    Some((member.parse().ok()?, seen))
}

#[cfg(test)]
mod tests {
    use super::super::observer::Member;
    use super::*;

    #[tokio::test]
    async fn first_write_removes_the_files_that_it_supersedes() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, process) = (Uuid::new_v4(), Uuid::new_v4());
        let earlier = ProcessFile::path(directory.path(), ledger, Uuid::new_v4(), SUFFIX);
        std::fs::write(&earlier, "epoch 4\nx\n").unwrap();
        let [stored] = &read_all(directory.path(), ledger).unwrap()[..] else { panic!("one file") };
        assert_eq!((stored.epoch, stored.seen.members().len()), (4, 0));
        let mut seen = SeenRenewals::default();
        for renewals in 1..=3 {
            seen.record_live(&[Member { id: process, renewals }], 1000 + renewals);
        }
        let file = RenewalsFile::start(directory.path(), ledger, process, vec![earlier]);
        file.write(5, &SeenRenewals::default());
        file.write(5, &seen);
        file.finish().await;
        let [stored] = &read_all(directory.path(), ledger).unwrap()[..] else { panic!("one file") };
        assert_eq!((stored.process, stored.epoch, &stored.seen), (process, 5, &seen));
    }

    #[tokio::test]
    async fn failed_write_removes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let earlier = directory.path().join("earlier");
        std::fs::write(&earlier, "").unwrap();
        let missing = directory.path().join("missing");
        let (ledger, process) = (Uuid::new_v4(), Uuid::new_v4());
        let file = RenewalsFile::start(&missing, ledger, process, vec![earlier.clone()]);
        file.write(5, &SeenRenewals::default());
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(earlier.exists());
        std::fs::create_dir(&missing).unwrap();
        file.write(5, &SeenRenewals::default());
        file.finish().await;
        assert!(!earlier.exists());
    }
}
