//! The Unix socket of the admin listener, with its file.
//!
//! A gate binds it, or receives it from its predecessor, whose file stays then. So each file has
//! one owner, which removes it.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::socket_file::{FileIdentity, SocketFile, check_socket_path};

/// A Unix socket that listens and does not block.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    // First, so that the file is gone before the socket is closed.
    pub(crate) file: AdminSocketFile,
    pub(crate) listener: UnixListener,
}

/// The file of the socket. Dropping it removes the file, if it is this gate's.
#[derive(Debug)]
pub(crate) struct AdminSocketFile {
    file: SocketFile,
    ownership: Ownership,
}

/// Whether a file is this gate's. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Ownership(Arc<AtomicBool>);

impl Ownership {
    fn new(is_own: bool) -> Ownership {
        Ownership(Arc::new(AtomicBool::new(is_own)))
    }

    pub(super) fn set(&self, is_own: bool) {
        self.0.store(is_own, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl AdminSocket {
    /// Listens at the path, and replaces a socket at which no process listens.
    ///
    /// # Errors
    /// `AddrInUse` if a process listens there; any other error if the path cannot be used.
    pub(super) fn bind(path: &Path) -> io::Result<AdminSocket> {
        check_socket_path(path).map_err(io::Error::other)?;
        refuse_listening(path)?;
        let (file, listener) = SocketFile::bind(path)?;
        let file = AdminSocketFile { file, ownership: Ownership::new(true) };
        Ok(AdminSocket { file, listener })
    }

    /// Separates the file from the listener; none of either without a socket.
    pub(crate) fn parts(
        socket: Option<AdminSocket>,
    ) -> (Option<AdminSocketFile>, Option<UnixListener>) {
        socket.map(|AdminSocket { file, listener }| (file, listener)).unzip()
    }

    /// Takes the socket of a predecessor, to which the file at the path belongs.
    pub(super) fn adopt(
        path: &Path,
        identity: FileIdentity,
        socket: OwnedFd,
    ) -> io::Result<AdminSocket> {
        // Any other socket would be served without TLS.
        let is_unix = SockRef::from(&socket).domain().is_ok_and(|domain| domain == Domain::UNIX);
        if !is_unix {
            return Err(io::Error::new(ErrorKind::InvalidData, "it is no Unix socket"));
        }
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        let file = SocketFile::of_other(path, identity);
        let file = AdminSocketFile { file, ownership: Ownership::new(false) };
        Ok(AdminSocket { file, listener })
    }
}

impl AdminSocketFile {
    pub(super) fn identity(&self) -> FileIdentity {
        self.file.identity()
    }

    /// Returns what the handover needs: it takes the file over, and leaves it to a successor.
    pub(super) fn ownership(&self) -> Ownership {
        self.ownership.clone()
    }
}

impl Drop for AdminSocketFile {
    fn drop(&mut self) {
        if self.ownership.get() {
            self.file.remove();
        }
    }
}

/// Checks that no process listens at the path: two gates would take it from each other.
fn refuse_listening(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // With a full accept queue, a blocking attempt would wait.
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        Ok(()) | Err(_) => {
            let sentence = "another process listens there. Stop it, or write another path";
            Err(io::Error::new(ErrorKind::AddrInUse, sentence))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn socket_of_a_living_process_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let first = AdminSocket::bind(&path).unwrap();
        assert_eq!(AdminSocket::bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert!(first.listener.accept().is_ok(), "the attempt itself");
        let client = UnixStream::connect(&path).unwrap();
        // A killed process leaves its file.
        first.file.ownership().set(false);
        drop((first, client));
        assert!(path.exists());
        let second = AdminSocket::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn adopted_file_is_removed_by_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let old = AdminSocket::bind(&path).unwrap();
        let adopt = |old: &AdminSocket| {
            let socket = old.listener.try_clone().unwrap().into();
            AdminSocket::adopt(&path, old.file.identity(), socket).unwrap()
        };
        drop(adopt(&old));
        UnixStream::connect(&path).unwrap();
        let new = adopt(&old);
        new.file.ownership().set(true);
        old.file.ownership().set(false);
        drop(old);
        UnixStream::connect(&path).unwrap();
        drop(new);
        assert!(!path.exists());
    }
}
