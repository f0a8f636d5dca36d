//! The newest links of the chains of this process, in a file outside the database.
//!
//! A ledger that several machines share has a chain for each process and library. Each process
//! keeps the newest links of its own chains in one file of a directory, at most about a second old.
//! The file reveals later that the database lost them: it was restored from a backup, or a failover
//! lost its last transactions.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{Head, head_file};
use crate::loan::LibraryId;
use crate::lock::lock;

/// The interval between writes of the file.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// The deadline of the last write.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);
/// The end of a file's name.
const SUFFIX: &str = ".heads";

/// The newest committed links of the chains of this process.
#[derive(Debug)]
pub(in crate::ledger) struct ChainHeads {
    file: PathBuf,
    chain: Uuid,
    heads: Mutex<HashMap<LibraryId, Head>>,
    /// Whether the file lacks a link.
    is_changed: AtomicBool,
    /// Held during a write.
    writing: tokio::sync::Mutex<()>,
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
    pub(in crate::ledger) heads: Vec<StoredChainHead>,
}

impl ChainHeads {
    /// Creates the empty list of the chains with this name, and a task that writes it to a file.
    /// `ledger` is the id of the database: several ledgers may share the directory.
    ///
    /// # Errors
    /// The error of the system if the directory cannot be created.
    pub(in crate::ledger) fn start(
        directory: &Path,
        ledger: Uuid,
        chain: Uuid,
    ) -> std::io::Result<Arc<ChainHeads>> {
        std::fs::create_dir_all(directory)?;
        let heads = Arc::new(ChainHeads {
            file: directory.join(format!("{ledger}.{chain}{SUFFIX}")),
            chain,
            heads: Mutex::default(),
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

    /// Records a committed link. The file has it within [`WRITE_INTERVAL`].
    pub(in crate::ledger) fn record(&self, library: LibraryId, head: Head) {
        if head.number == 0 {
            return;
        }
        let former = lock(&self.heads).insert(library, head.clone());
        if former.as_ref() != Some(&head) {
            self.is_changed.store(true, Ordering::Release);
        }
    }

    /// Returns the newest committed link of a library, if this process has written one.
    pub(in crate::ledger) fn newest(&self, library: LibraryId) -> Option<Head> {
        lock(&self.heads).get(&library).cloned()
    }

    /// Writes the file and waits until it is durable. Used on closing.
    pub(in crate::ledger) async fn flush(&self) {
        if timeout(FLUSH_DEADLINE, self.write_if_changed()).await.is_err() {
            tracing::warn!("timed out while writing the head file of the audit trail");
        }
    }

    async fn write_if_changed(&self) {
        let _writing = self.writing.lock().await;
        if !self.is_changed.swap(false, Ordering::AcqRel) {
            return;
        }
        let (file, text) = (self.file.clone(), self.text());
        // On a blocking thread, so that a hanging disk does not stop other tasks.
        let written = tokio::task::spawn_blocking(move || replace(&file, &text)).await;
        if let Ok(Err(error)) = written {
            self.is_changed.store(true, Ordering::Release);
            tracing::warn!(%error, "cannot write the head file of the audit trail; retrying");
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (library, head) in &*lock(&self.heads) {
            // Writing to a string does not fail.
            let _ = write!(text, "{library} {} {}", self.chain, head.text());
        }
        text
    }
}

fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    let temporary = file.with_added_extension("new");
    let result =
        head_file::write_durably(&temporary, text).and_then(|()| std::fs::rename(&temporary, file));
    if result.is_err() {
        let _ = std::fs::remove_file(temporary);
    }
    result
}

/// Reads the files of this ledger. Lines that cannot be parsed are skipped.
///
/// # Errors
/// The error of the system if a file cannot be read. A missing directory has none.
pub(in crate::ledger) fn read_all(
    directory: &Path,
    ledger: Uuid,
) -> std::io::Result<Vec<HeadsFile>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let chain = name.strip_prefix(&format!("{ledger}.")).and_then(|n| n.strip_suffix(SUFFIX));
        let Some(chain) = chain.and_then(|chain| chain.parse().ok()) else { continue };
        let text = match std::fs::read_to_string(&path) {
            // Another process has confirmed and removed it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            text => text?,
        };
        let heads = text.split_inclusive('\n').filter_map(parse).collect();
        files.push(HeadsFile { path, chain, heads });
    }
    Ok(files)
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
        let heads = ChainHeads::start(directory.path(), ledger, chain).unwrap();
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
        assert_eq!((file.chain, &file.heads), (chain, &vec![stored(one, 2), stored(other, 7)]));
        assert_eq!(heads.newest(one), Some(head(2)));
        assert!(parse("NO-1 x 1 00\n").is_none());
    }
}
