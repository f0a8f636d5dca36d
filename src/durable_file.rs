//! What code that makes and replaces files has in common. Every module may call it.

use std::fs::File;
use std::io::{ErrorKind, Result};
use std::path::Path;

/// Waits until the names in the directory of a file are on the disk. A renamed file may have its
/// old name after a power failure until then.
pub(crate) fn sync_directory_of(file: &Path) -> Result<()> {
    File::open(directory_of(file))?.sync_all()
}

/// Returns the directory of a file, also if its path is only a name.
pub(crate) fn directory_of(file: &Path) -> &Path {
    let named = file.parent().filter(|directory| !directory.as_os_str().is_empty());
    named.unwrap_or(Path::new("."))
}

/// Ignores that there is no such file.
pub(crate) fn ignore_missing(done: Result<()>) -> Result<()> {
    done.or_else(|error| match error.kind() {
        ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}
