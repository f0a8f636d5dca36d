//! The files that each process keeps outside a ledger that several machines share.
//!
//! They are text files in one directory, named after the ledger and the process. The first line has
//! the epoch in which the file was written: see [`super::chain_heads`].

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use super::head_file::write_and_rename;
use crate::durable_file::sync_directory_of;

/// The start of the line with the epoch.
pub(in crate::ledger) const EPOCH_LINE: &str = "epoch ";

/// A file that a process keeps outside the database.
#[derive(Debug)]
pub(in crate::ledger) struct ProcessFile {
    pub(in crate::ledger) path: PathBuf,
    pub(in crate::ledger) process: Uuid,
    pub(in crate::ledger) text: String,
    /// When the process last wrote the file, by the clock of the machine.
    pub(super) written: Timestamp,
}

impl ProcessFile {
    /// Returns the path of the file of a process.
    pub(in crate::ledger) fn path(
        directory: &Path,
        ledger: Uuid,
        process: Uuid,
        suffix: &str,
    ) -> PathBuf {
        directory.join(format!("{ledger}.{process}{suffix}"))
    }

    /// Returns the epoch, and the other lines.
    pub(in crate::ledger) fn lines(&self) -> (i64, impl Iterator<Item = &str>) {
        let epoch = self.text.lines().find_map(|line| line.strip_prefix(EPOCH_LINE));
        let epoch = epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or_default();
        let lines = self.text.split_inclusive('\n');
        (epoch, lines.filter(|line| !line.starts_with(EPOCH_LINE)))
    }
}

/// Replaces a file that only this process writes, and syncs its directory.
pub(in crate::ledger) fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    write_and_rename(&file.with_added_extension("new"), file, text)?;
    sync_directory_of(file)
}

/// Removes temporary files that killed processes of this ledger left before this time, by the clock
/// of the machine.
pub(in crate::ledger) fn remove_leftovers(
    directory: &Path,
    ledger: Uuid,
    suffixes: &[&str],
    before: Timestamp,
) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_str().and_then(|name| name.strip_prefix(&format!("{ledger}.")));
        let Some(name) = name.and_then(|name| name.strip_suffix(".new")) else { continue };
        let process = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
        let written = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let written = written.and_then(|written| Timestamp::try_from(written).ok());
        if process.is_some_and(|process| process.parse::<Uuid>().is_ok())
            && written.is_some_and(|written| written < before)
            && let Err(error) = std::fs::remove_file(&path)
        {
            let file = path.display();
            tracing::warn!(%error, %file, "cannot remove a temporary file of a killed process");
        }
    }
}

/// Reads the files of all processes of this ledger whose name ends with this suffix.
///
/// # Errors
/// The error of the system if a file cannot be read. A missing directory has none.
pub(in crate::ledger) fn read_files(
    directory: &Path,
    ledger: Uuid,
    suffix: &str,
) -> std::io::Result<Vec<ProcessFile>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let process = name.strip_prefix(&format!("{ledger}."));
        let process = process.and_then(|process| process.strip_suffix(suffix));
        let Some(process) = process.and_then(|process| process.parse().ok()) else { continue };
        let read = std::fs::read_to_string(&path)
            .and_then(|text| Ok((text, std::fs::metadata(&path)?.modified()?)));
        let (text, written) = match read {
            // Another process has confirmed and removed it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read?,
        };
        let written = Timestamp::try_from(written).unwrap_or(Timestamp::MAX);
        files.push(ProcessFile { path, process, text, written });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use std::time::Duration;

    use super::*;
    use crate::clock::{self, Clock};

    #[test]
    fn only_old_temporary_files_of_this_ledger_are_leftovers() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, process) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let other = Uuid::from_u128(3);
        let left = format!("{ledger}.{process}.heads.new");
        let stays = [
            format!("{ledger}.{other}.heads.new"),
            format!("{ledger}.{process}.heads"),
            format!("{ledger}.{process}.new"),
            format!("{ledger}.x.heads.new"),
            format!("{other}.{process}.heads.new"),
            "notes.heads.new".to_owned(),
        ];
        let (now, day) = (Clock::system().machine_now(), Duration::from_secs(86_400));
        for name in stays.iter().chain([&left]) {
            let file = File::create(directory.path().join(name)).unwrap();
            // The first is recent.
            let age = if *name == stays[0] { day / 2 } else { day * 2 };
            let written = file.metadata().unwrap().modified().unwrap();
            file.set_modified(written - age).unwrap();
        }
        let before = clock::before(now, day);
        remove_leftovers(directory.path(), ledger, &[".heads", ".renewals"], before);
        for name in &stays {
            assert!(directory.path().join(name).exists(), "{name}");
        }
        assert!(!directory.path().join(left).exists());
        remove_leftovers(&directory.path().join("missing"), ledger, &[".heads"], before);
    }
}
