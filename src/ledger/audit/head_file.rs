//! The head file: the newest link of the chain, as a text file beside the ledger.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use super::Head;

/// The longest text that is read, in bytes: several times that of a link.
const MAX_LENGTH: u64 = 1024;

/// Returns the path of the head file.
pub(in crate::ledger) fn path(ledger: &Path) -> PathBuf {
    let mut file = ledger.as_os_str().to_owned();
    file.push(".head");
    PathBuf::from(file)
}

/// The contents of a head file.
#[derive(Debug)]
pub(in crate::ledger) enum StoredHead {
    /// There is no file.
    Missing,
    /// The text is no link: it is truncated or was changed.
    Damaged,
    /// The link that was stored last.
    Link(Head),
}

impl StoredHead {
    /// Returns the link, if the file has one.
    pub(in crate::ledger) fn link(self) -> Option<Head> {
        match self {
            StoredHead::Link(head) => Some(head),
            StoredHead::Missing | StoredHead::Damaged => None,
        }
    }
}

/// Reads the head file.
///
/// # Errors
/// The error of a file that is there and cannot be read. Nothing is known of its link then.
pub(in crate::ledger) fn read(ledger: &Path) -> std::io::Result<StoredHead> {
    let text = match read_start(&path(ledger)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(StoredHead::Missing),
        Err(error) => return Err(error),
    };
    let head = std::str::from_utf8(&text).ok().and_then(Head::from_text);
    Ok(head.map_or(StoredHead::Damaged, StoredHead::Link))
}

/// Reads the first bytes of a regular file. Anything else might have no end, or never begin.
fn read_start(file: &Path) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(file)?.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    let mut text = Vec::new();
    File::open(file)?.take(MAX_LENGTH).read_to_end(&mut text)?;
    Ok(text)
}

/// Writes the newest link to the head file. The text is synced before it replaces the older one, so
/// a full disk or a power failure leaves one of the two. `process` makes the name of the temporary
/// file unique.
pub(in crate::ledger) fn store(ledger: &Path, process: &str, head: &Head) -> std::io::Result<()> {
    let file = path(ledger);
    let temporary = file.with_extension(format!("head.{process}.new"));
    write_and_rename(&temporary, &file, &head.text())
}

/// Writes and syncs a temporary file, and renames it.
pub(super) fn write_and_rename(temporary: &Path, file: &Path, text: &str) -> std::io::Result<()> {
    let result = write_durably(temporary, text).and_then(|()| std::fs::rename(temporary, file));
    if result.is_err() {
        let _ = std::fs::remove_file(temporary);
    }
    result
}

/// Writes a file and syncs it.
fn write_durably(file: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::create(file)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Removes temporary files of processes that died while they wrote the head file.
pub(in crate::ledger) fn remove_leftovers(ledger: &Path, is_dead: impl Fn(&str) -> bool) {
    let head = path(ledger);
    let (Some(directory), Some(name)) =
        (head.parent(), head.file_name().and_then(|name| name.to_str()))
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
