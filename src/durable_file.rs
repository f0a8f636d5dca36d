//! What code that replaces files by others has in common. Every module may call it.

use std::fs::File;
use std::io::{ErrorKind, Result};
use std::path::Path;

/// Waits until the names in the directory of a file are on the disk. A renamed file may have its
/// old name after a power failure until then.
pub(crate) fn sync_directory_of(file: &Path) -> Result<()> {
    let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Ignores that there is no such file.
pub(crate) fn ignore_missing(done: Result<()>) -> Result<()> {
    done.or_else(|error| match error.kind() {
        ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}
