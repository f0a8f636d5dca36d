//! The newest links of the chains of this process, in a file outside the database.
//!
//! A ledger that several machines share has a chain for each process and library. Each process
//! keeps the newest links of its own chains in one file of a directory, at most about a second old.
//! The file reveals later that the database lost them: it was restored from a backup, or a failover
//! lost its last transactions.
//!
//! The links belong to an epoch, a number that grows when an operator reconciles a ledger that lost
//! steps. Links of older epochs are not compared.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::Head;
use super::process_file::{EPOCH_LINE, ProcessFile, read_files, replace};
use crate::loan::LibraryId;
use crate::lock::lock;
use crate::telemetry::LogLimit;

/// The interval between writes of the file.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// The deadline of the last write.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);
/// The end of a file's name.
pub(in crate::ledger) const SUFFIX: &str = ".heads";

/// The newest committed links of the chains of this process.
#[derive(Debug)]
pub(in crate::ledger) struct ChainHeads {
    file: PathBuf,
    chain: Uuid,
    heads: Mutex<Heads>,
    /// Whether the file lacks a link.
    is_changed: AtomicBool,
    /// Held during a write.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Heads {
    epoch: i64,
    newest: HashMap<LibraryId, Head>,
}

/// A link of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::ledger) struct StoredChainHead {
    pub(in crate::ledger) library: String,
    pub(in crate::ledger) chain: Uuid,
    pub(in crate::ledger) head: Head,
}

/// The file of one process.
#[derive(Debug)]
pub(in crate::ledger) struct HeadsFile {
    pub(in crate::ledger) path: PathBuf,
    /// The name of the process's chains.
    pub(in crate::ledger) chain: Uuid,
    /// The epoch in which the links were written.
    pub(in crate::ledger) epoch: i64,
    pub(in crate::ledger) heads: Vec<StoredChainHead>,
    /// When the process last wrote the file, by the clock of the machine.
    pub(in crate::ledger) written: Timestamp,
}

impl ChainHeads {
    /// Creates the empty list of the chains with this name, and a task that writes it to a file.
    /// `ledger` is the id of the database: several ledgers may share the directory. `epoch` is the
    /// one of the database.
    ///
    /// # Errors
    /// The error of the system if the directory cannot be created.
    pub(in crate::ledger) fn start(
        directory: &Path,
        ledger: Uuid,
        chain: Uuid,
        epoch: i64,
    ) -> std::io::Result<Arc<ChainHeads>> {
        std::fs::create_dir_all(directory)?;
        let heads = Arc::new(ChainHeads {
            file: ProcessFile::path(directory, ledger, chain, SUFFIX),
            chain,
            heads: Mutex::new(Heads { epoch, newest: HashMap::new() }),
            is_changed: AtomicBool::new(false),
            writing: tokio::sync::Mutex::default(),
        });
        let of_task = Arc::downgrade(&heads);
        tokio::spawn(async move {
            while let Some(heads) = of_task.upgrade() {
                heads.write_if_changed().await;
                drop(heads);
                sleep(WRITE_INTERVAL).await;
            }
        });
        Ok(heads)
    }

    /// Records a committed link, unless a newer one is recorded: two tasks extend the chains. The
    /// file has it within [`WRITE_INTERVAL`].
    pub(in crate::ledger) fn record(&self, library: LibraryId, head: Head) {
        let mut heads = lock(&self.heads);
        let former = heads.newest.get(&library).map(|former| former.number).unwrap_or_default();
        if head.number > former {
            heads.newest.insert(library, head);
            self.is_changed.store(true, Ordering::Release);
        }
    }

    /// Returns the libraries in which this process has written a step.
    pub(in crate::ledger) fn libraries(&self) -> Vec<LibraryId> {
        lock(&self.heads).newest.keys().copied().collect()
    }

    /// Returns the epoch, and the newest committed link of each library.
    pub(in crate::ledger) fn all(&self) -> (i64, HashMap<LibraryId, Head>) {
        let heads = lock(&self.heads);
        (heads.epoch, heads.newest.clone())
    }

    /// Returns the newest committed link of a library, if this process has written one.
    pub(in crate::ledger) fn newest(&self, library: LibraryId) -> Option<Head> {
        lock(&self.heads).newest.get(&library).cloned()
    }

    /// Returns the epoch of the links. Read it before [`ChainHeads::newest`]: the link is of this
    /// epoch or a newer one.
    pub(in crate::ledger) fn epoch(&self) -> i64 {
        lock(&self.heads).epoch
    }

    /// Discards the links of older epochs.
    pub(in crate::ledger) fn begin_epoch(&self, epoch: i64) {
        let mut heads = lock(&self.heads);
        if epoch > heads.epoch {
            *heads = Heads { epoch, newest: HashMap::new() };
            self.is_changed.store(true, Ordering::Release);
        }
    }

    /// Writes the file and waits until it is durable. Used on closing.
    pub(in crate::ledger) async fn flush(&self) {
        if timeout(FLUSH_DEADLINE, self.write_if_changed()).await.is_err() {
            tracing::warn!("timed out while writing the head file of the audit trail");
        }
    }

    async fn write_if_changed(&self) {
        static LIMIT: LogLimit = LogLimit::per_minute();
        let _writing = self.writing.lock().await;
        if !self.is_changed.swap(false, Ordering::AcqRel) {
            return;
        }
        let (file, text) = (self.file.clone(), self.text());
        // On a blocking thread, so that a hanging disk does not stop other tasks.
        let written = tokio::task::spawn_blocking(move || replace(&file, &text)).await;
        if let Ok(Err(error)) = written {
            self.is_changed.store(true, Ordering::Release);
            if let Some(suppressed) = LIMIT.permit("write") {
                tracing::warn!(
                    %error,
                    suppressed,
                    "cannot write the head file of the audit trail; retrying"
                );
            }
        }
    }

    fn text(&self) -> String {
        let heads = lock(&self.heads);
        let mut text = format!("{EPOCH_LINE}{}\n", heads.epoch);
        for (library, head) in &heads.newest {
            // Writing to a string does not fail.
            let _ = write!(text, "{library} {} {}", self.chain, head.text());
        }
        text
    }
}

/// Reads the files of this ledger. Lines that cannot be parsed are skipped.
///
/// # Errors
/// The error of the system if a file cannot be read. A missing directory has none.
pub(in crate::ledger) fn read_all(
    directory: &Path,
    ledger: Uuid,
) -> std::io::Result<Vec<HeadsFile>> {
    let files = read_files(directory, ledger, SUFFIX)?;
    Ok(files.into_iter().map(HeadsFile::of).collect())
}

impl HeadsFile {
    fn of(file: ProcessFile) -> HeadsFile {
        let (epoch, lines) = file.lines();
        let heads = lines.filter_map(parse).collect();
        let ProcessFile { path, process, written, .. } = file;
        HeadsFile { path, chain: process, epoch, heads, written }
    }
}

fn parse(line: &str) -> Option<StoredChainHead> {
    let stored = || {
        let mut parts = line.splitn(3, ' ');
        let (library, chain) = (parts.next()?.to_owned(), parts.next()?.parse().ok()?);
        Some(StoredChainHead { library, chain, head: Head::from_text(parts.next()?)? })
    };
    let stored = stored();
    if stored.is_none() {
        tracing::warn!("a line in a head file of the audit trail cannot be read");
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_contain_the_newest_link_of_each_library() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, chain) = (Uuid::new_v4(), Uuid::new_v4());
        let heads = ChainHeads::start(directory.path(), ledger, chain, 5).unwrap();
        let (one, other): (LibraryId, LibraryId) =
            ("NO-1".parse().unwrap(), "NO-2".parse().unwrap());
        let head = |number: i64| Head { number, mac: vec![number as u8; 32] };
        heads.record(one, head(1));
        heads.record(other, head(7));
        heads.record(one, head(2));
        heads.record("NO-3".parse().unwrap(), Head::default());
        heads.flush().await;
        std::fs::write(directory.path().join(format!("{}.{chain}.heads", Uuid::new_v4())), "x")
            .unwrap();
        let mut files = read_all(directory.path(), ledger).unwrap();
        assert_eq!(files.len(), 1, "files of other ledgers are ignored");
        let file = &mut files[0];
        file.heads.sort_by(|a, b| a.library.cmp(&b.library));
        let stored = |library: LibraryId, number| StoredChainHead {
            library: library.to_string(),
            chain,
            head: head(number),
        };
        assert_eq!(file.epoch, 5);
        assert_eq!((file.chain, &file.heads), (chain, &vec![stored(one, 2), stored(other, 7)]));
        assert_eq!(heads.newest(one), Some(head(2)));
        assert!(parse("NO-1 x 1 00\n").is_none());
    }

    #[tokio::test]
    async fn new_epoch_discards_the_links_of_the_former() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, library) = (Uuid::new_v4(), "NO-1".parse().unwrap());
        let heads = ChainHeads::start(directory.path(), ledger, Uuid::new_v4(), 5).unwrap();
        heads.record(library, Head { number: 3, mac: vec![3; 32] });
        heads.begin_epoch(4);
        heads.begin_epoch(5);
        assert!(heads.newest(library).is_some());
        heads.begin_epoch(6);
        assert_eq!((heads.newest(library), heads.epoch()), (None, 6));
        heads.flush().await;
        let files = read_all(directory.path(), ledger).unwrap();
        assert_eq!((files[0].epoch, files[0].heads.len()), (6, 0));
    }
}
