//! The Unix socket of a gate that hands over.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The most bytes of a path in `sockaddr_un`, without its final zero.
const MAX_PATH: usize = 107;
/// What is appended to the name until the file has its permissions.
const TEMPORARY: &str = ".new";

/// Returns the most bytes of the file's path.
pub(crate) const fn longest_file() -> usize {
    MAX_PATH - TEMPORARY.len()
}

/// A Unix socket in the file system. Only its user can connect to it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// The device and the inode, by which this file differs from the file of a successor.
    identity: (u64, u64),
}

impl SocketFile {
    /// Listens at the path, and replaces the socket that another process has left there.
    ///
    /// # Errors
    /// Returns the error of the operating system, or `AlreadyExists` if another file is there.
    pub(super) fn bind(path: &Path) -> io::Result<(SocketFile, UnixListener)> {
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(io::Error::new(ErrorKind::AlreadyExists, "it is not a socket"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(TEMPORARY);
        let temporary = PathBuf::from(temporary);
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // No process knows it by this name before it has its permissions.
        let listener = UnixListener::bind(&temporary)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let identity = identity(&temporary)?;
        fs::rename(&temporary, path)?;
        Ok((SocketFile { path: path.to_owned(), identity }, listener))
    }

    /// Removes the file, unless a successor has replaced it.
    pub(super) fn remove(&self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn successor_replaces_the_file_and_keeps_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gate.handover");
        let (old, old_listener) = SocketFile::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (new, new_listener) = SocketFile::bind(&path).unwrap();
        drop(old_listener);
        old.remove();
        UnixStream::connect(&path).unwrap();
        drop(new_listener);
        new.remove();
        assert!(!path.exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn other_file_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        fs::write(&path, "kept").unwrap();
        assert_eq!(SocketFile::bind(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    }

    #[test]
    fn longest_path_can_be_bound() {
        let directory = tempfile::tempdir().unwrap();
        let name = longest_file() - directory.path().as_os_str().len() - 1;
        SocketFile::bind(&directory.path().join("x".repeat(name))).unwrap();
        assert!(SocketFile::bind(&directory.path().join("x".repeat(name + 1))).is_err());
    }
}
