//! The data directory: the account's key, the certificate, the challenges and the attempts.
//!
//! Every file is written beside its place, synchronised and renamed, so a crash leaves the old file
//! or the new one. Only the user of the gate can read them.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{CHALLENGES, Settings};
use crate::durable_file::{ignore_missing, sync_directory_of};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 256 * 1024;
/// What others than the user and the group may do with the directory: nothing.
const OTHERS: u32 = 0o007;
const LOCK: &str = "lock";
/// What is appended to the name of a file until it is complete.
const TEMPORARY: &str = ".new";

/// Why the directory or a file in it cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    /// The operating system refuses it.
    #[error("{path} cannot be {action}: {source}. The user that runs the gate must own it")]
    Failed {
        /// The file or the directory.
        path: PathBuf,
        /// What fails, as a participle.
        action: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Other users have access.
    #[error(
        "other users have access to {path} (mode {mode:03o}), which contains private keys. Allow \
         only its owner: chmod 700 {path}"
    )]
    Shared {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// The data directory. It exists, and other users have no access.
#[derive(Clone, Debug)]
pub(crate) struct DataDirectory(PathBuf);

/// The exclusive right to order, as long as it is not dropped. The operating system releases it
/// when the process ends.
#[derive(Debug)]
pub(super) struct OrderLock(#[allow(dead_code)] File);

impl DataDirectory {
    /// Opens the directory, and creates it if it is absent.
    ///
    /// # Errors
    /// [`DataError`], if it cannot be used.
    pub(crate) fn open(path: &Path) -> Result<DataDirectory, DataError> {
        Self::check(path)?;
        let challenges = path.join(CHALLENGES);
        let created = DirBuilder::new().recursive(true).mode(0o700).create(&challenges);
        created.map_err(|source| failed(&challenges, "created", source))?;
        Ok(DataDirectory(path.to_owned()))
    }

    /// Checks the directory without creating it.
    ///
    /// # Errors
    /// [`DataError`], if it exists and cannot be used.
    pub(crate) fn check(path: &Path) -> Result<(), DataError> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(failed(path, "read", source)),
        };
        if !metadata.is_dir() {
            return Err(failed(path, "used as a directory", ErrorKind::NotADirectory.into()));
        }
        let mode = metadata.permissions().mode() & 0o777;
        match mode & OTHERS {
            0 => Ok(()),
            _ => Err(DataError::Shared { path: path.to_owned(), mode }),
        }
    }

    /// Returns the path of a file.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Returns the directory of the challenges.
    pub(super) fn challenges(&self) -> PathBuf {
        Settings::challenges(&self.0)
    }

    /// Does work in the directory off the runtime: a file system may be slow.
    pub(super) async fn off_runtime<T, E>(
        &self,
        work: impl FnOnce(&DataDirectory) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DataError> + Send + 'static,
    {
        let data = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&data)).await;
        done.map_err(|error| failed(&self.0, "used", io::Error::other(error)))?
    }

    /// Takes the right to order; none if another gate has it.
    pub(super) fn lock(&self) -> Result<Option<OrderLock>, DataError> {
        let path = self.file(LOCK);
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let file = opened.map_err(|source| failed(&path, "opened", source))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(OrderLock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed(&path, "locked", source)),
        }
    }

    /// Reads a file; none if it is absent. A file that is too large is cut off, and cannot be
    /// parsed then.
    pub(super) fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, DataError> {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed(path, "read", source)),
        }
    }

    /// Replaces a file.
    pub(super) fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), DataError> {
        self.write_if(path, bytes, |_| Ok::<_, DataError>(()))
    }

    /// Replaces a file, if the check of the new one, in another place, succeeds.
    pub(super) fn write_if<E: From<DataError>>(
        &self,
        path: &Path,
        bytes: &[u8],
        check: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let temporary = temporary(path);
        let written = create(&temporary, bytes);
        let checked = written.map_err(|source| failed(&temporary, "written", source).into());
        let replaced = checked.and_then(|()| check(&temporary)).and_then(|()| {
            replace(&temporary, path).map_err(|source| failed(path, "written", source).into())
        });
        if replaced.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        replaced
    }

    /// Proves that a file of this many bytes could be written.
    pub(super) fn prove_writable(&self, path: &Path, size: usize) -> Result<(), DataError> {
        let temporary = temporary(path);
        let written = create(&temporary, &vec![0; size]);
        let removed = fs::remove_file(&temporary);
        written.and(removed).map_err(|source| failed(&temporary, "written", source))
    }

    /// Removes the answers to all challenges, and leaves what is none.
    pub(super) fn remove_challenges(&self) -> Result<(), DataError> {
        let directory = self.challenges();
        let failed = |source| failed(&directory, "emptied", source);
        let mut removed = Ok(());
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_challenge = name.strip_suffix(TEMPORARY).unwrap_or(&name).ends_with(".pem");
            if !is_challenge || !path.is_file() {
                continue;
            }
            if let Err(error) = ignore_missing(fs::remove_file(&path)) {
                removed = Err(failed(error));
            }
        }
        removed
    }
}

fn failed(path: &Path, action: &'static str, source: io::Error) -> DataError {
    DataError::Failed { path: path.to_owned(), action, source }
}

/// Returns where a file is until it is complete.
fn temporary(path: &Path) -> PathBuf {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    temporary.into()
}

/// Creates a file that only its user can read, and waits until it is on the disk.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    ignore_missing(fs::remove_file(path))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn replace(temporary: &Path, path: &Path) -> io::Result<()> {
    fs::rename(temporary, path)?;
    sync_directory_of(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_the_right_to_order() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(&directory.path().join("acme")).unwrap();
        let right = data.lock().unwrap();
        assert!(right.is_some());
        assert!(data.lock().unwrap().is_none());
        drop(right);
        assert!(data.lock().unwrap().is_some());
    }

    #[test]
    fn new_file_replaces_the_old_one_only_if_it_is_good() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(&directory.path().join("acme")).unwrap();
        let path = data.file("x");
        assert_eq!(data.read(&path).unwrap(), None);
        data.write(&path, b"old").unwrap();
        // What a crash has left, with other permissions.
        fs::write(data.file("x.new"), "half").unwrap();
        data.write(&path, b"new").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let refused = data.write_if(&path, b"bad", |new| {
            assert_eq!(fs::read(new).unwrap(), b"bad");
            Err(failed(new, "used", ErrorKind::InvalidData.into()))
        });
        assert!(refused.is_err());
        assert_eq!(data.read(&path).unwrap().unwrap(), b"new");
        assert!(!data.file("x.new").exists());
    }

    #[test]
    fn only_challenges_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(&directory.path().join("acme")).unwrap();
        let challenges = data.challenges();
        for name in ["a.pem", "b.pem.new", "notes.txt"] {
            fs::write(challenges.join(name), "").unwrap();
        }
        fs::create_dir(challenges.join("c.pem")).unwrap();
        data.remove_challenges().unwrap();
        let left = fs::read_dir(&challenges).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        assert_eq!(left, ["c.pem", "notes.txt"]);
    }

    #[test]
    fn place_that_cannot_be_written_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(&directory.path().join("acme")).unwrap();
        data.prove_writable(&data.file("x"), 1000).unwrap();
        assert_eq!(fs::read_dir(data.file("")).unwrap().count(), 1, "nothing is left behind");
        data.prove_writable(&data.file("absent/x"), 1000).unwrap_err();
    }

    #[test]
    fn directory_that_others_can_use_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("acme");
        DataDirectory::check(&path).unwrap();
        DataDirectory::open(&path).unwrap();
        for (mode, is_private) in [(0o700, true), (0o770, true), (0o704, false), (0o701, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(DataDirectory::open(&path).is_ok(), is_private, "{mode:o}");
        }
        fs::remove_dir_all(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(DataDirectory::open(&path).is_err());
    }
}
