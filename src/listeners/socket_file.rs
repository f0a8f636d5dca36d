//! Unix sockets in the file system, which only the user of this process can connect to.
//!
//! `handover` and `admin_socket` bind one each.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::durable_file::directory_of;

/// The most bytes of a path in `sockaddr_un`, without its final zero.
const MAX_PATH: usize = 107;
/// What is appended to the name until the socket listens.
const TEMPORARY: &str = ".new";
/// The length of the accept queue. The kernel allows no more than `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// The permissions of the file.
const MODE: u32 = 0o600;
/// The rights of the group and of all users to write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Returns the most bytes of the file's path.
pub(crate) const fn longest_file() -> usize {
    MAX_PATH - TEMPORARY.len()
}

/// Returns the name of the file at a path until its socket listens.
pub(crate) fn temporary_file(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY);
    PathBuf::from(name)
}

/// Differs for any two files that exist at the same time.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(super) struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// Returns the identity of the file at a path, without following a link.
    pub(super) fn at(path: &Path) -> io::Result<FileIdentity> {
        let found = fs::symlink_metadata(path)?;
        Ok(FileIdentity { device: found.dev(), inode: found.ino() })
    }
}

/// A Unix socket in the file system. Only its user can connect to it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// By which this file differs from the file of a successor.
    identity: FileIdentity,
}

impl SocketFile {
    /// Listens at the path, and replaces the socket that another process has left there.
    ///
    /// # Errors
    /// Returns the error of the operating system, or `AlreadyExists` if another file is there.
    pub(super) fn bind(path: &Path) -> io::Result<(SocketFile, UnixListener)> {
        refuse_other_file(path)?;
        let temporary = temporary_file(path);
        refuse_other_file(&temporary)?;
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // Linux makes the file with the permissions of the socket, so there is no moment in which
        // others could open it.
        fchmod(&socket, Mode::from_raw_mode(MODE))?;
        socket.bind(&SockAddr::unix(&temporary)?)?;
        // Another kernel may not. Clients cannot connect before the socket listens.
        fs::set_permissions(&temporary, fs::Permissions::from_mode(MODE))?;
        socket.listen(BACKLOG)?;
        let identity = FileIdentity::at(&temporary)?;
        fs::rename(&temporary, path)?;
        Ok((SocketFile { path: path.to_owned(), identity }, socket.into()))
    }

    /// Returns the file at a path that another process has bound.
    pub(super) fn of_other(path: &Path, identity: FileIdentity) -> SocketFile {
        SocketFile { path: path.to_owned(), identity }
    }

    pub(super) fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Removes the file, unless a successor has replaced it.
    pub(super) fn remove(&self) {
        if FileIdentity::at(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Checks that a path has no file, or a socket.
fn refuse_other_file(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(()),
        Ok(_) => {
            let sentence = "a file that is not a socket is there. Move it away, or write another \
                            path";
            Err(io::Error::new(ErrorKind::AlreadyExists, sentence))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Checks that a socket can be bound at this path, and that other users cannot replace it there.
///
/// # Errors
/// Returns a sentence that says what to do.
pub(crate) fn check_socket_path(path: &Path) -> Result<(), String> {
    check_directory(path)?;
    refuse_other_file(path).map_err(|error| format!("cannot use {}: {error}", path.display()))
}

/// Checks the directory of a socket.
fn check_directory(path: &Path) -> Result<(), String> {
    let directory = directory_of(path);
    let shown = directory.display();
    let found = fs::metadata(directory).map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!(
            "the directory {shown} does not exist. Create it for the user of the gate (systemd: \
             RuntimeDirectory=), or write another path"
        ),
        _ => format!("the directory {shown} cannot be used: {error}. Write another path"),
    })?;
    if !found.is_dir() {
        return Err(format!("{shown} is not a directory. Write another path"));
    }
    // Also with a sticky bit: while no gate runs, another user could listen there and get tokens.
    if found.permissions().mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(format!(
            "other users can write to the directory {shown}, and so listen there in place of the \
             gate. Allow only the user of the gate: chmod go-w {shown}"
        ));
    }
    // Root checks the configuration of a gate that runs as another user.
    let user = geteuid().as_raw();
    if user != 0 && ![0, user].contains(&found.uid()) {
        return Err(format!(
            "the directory {shown} is another user's. Give it to the user of the gate (chown), or \
             write another path"
        ));
    }
    Ok(())
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
        assert!(check_socket_path(&path).unwrap_err().contains("not a socket"));
    }

    #[test]
    fn longest_path_can_be_bound() {
        let directory = tempfile::tempdir().unwrap();
        let name = longest_file() - directory.path().as_os_str().len() - 1;
        SocketFile::bind(&directory.path().join("x".repeat(name))).unwrap();
        assert!(SocketFile::bind(&directory.path().join("x".repeat(name + 1))).is_err());
    }

    /// The permissions are those of the socket, whatever the mask of the process is.
    #[test]
    fn file_is_private_before_it_has_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("private");
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        fchmod(&socket, Mode::from_raw_mode(MODE)).unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
    }

    #[test]
    fn directory_of_other_users_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (shared, missing) = (directory.path().join("shared"), directory.path().join("missing"));
        fs::create_dir(&shared).unwrap();
        for (mode, is_good) in
            [(0o700, true), (0o755, true), (0o770, false), (0o702, false), (0o1777, false)]
        {
            fs::set_permissions(&shared, fs::Permissions::from_mode(mode)).unwrap();
            let checked = check_socket_path(&shared.join("admin.sock"));
            assert_eq!(checked.is_ok(), is_good, "{mode:o}: {checked:?}");
        }
        let checked = check_socket_path(&missing.join("admin.sock")).unwrap_err();
        assert!(checked.contains("does not exist. Create it"), "{checked}");
        fs::write(&missing, "").unwrap();
        assert!(check_socket_path(&missing.join("admin.sock")).is_err());
    }
}
