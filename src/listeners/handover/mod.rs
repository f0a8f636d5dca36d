//! Hands the listening sockets of a running gate over to its successor, during an upgrade.
//!
//! The running gate listens on a Unix socket that only its user can open. A starting gate connects
//! to it, and both follow this protocol:
//!
//! | successor | predecessor |
//! |---|---|
//! | `hello`: the version, and its addresses | |
//! | | `sockets`: duplicates of its listening sockets, by SCM_RIGHTS |
//! | starts, and accepts no connection yet | serves |
//! | `ready` | |
//! | | `go` |
//! | accepts connections, `serving` | serves |
//! | | `draining`; stops accepting, and drains |
//!
//! Until `draining`, the predecessor serves on, whatever happens to the successor. Each wait has a
//! deadline. A successor without an answer stops, unless no process listens at the file any more.
//!
//! - `message` encodes messages and file descriptors.
//! - `predecessor` is the successor's side, and `service` the side of the running gate.
//!
//! `hello` also names the file at the successor's `listen.admin_socket`. If the file belongs to the
//! predecessor, the Unix socket is passed too. From then on the predecessor leaves the file, unless
//! the successor fails, and it is the successor's from `draining` on.

#[cfg(test)]
mod address_tests;
mod message;
mod predecessor;
mod service;
#[cfg(test)]
mod tests;

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::activation::ActivationError;
use super::admin_socket::Ownership;
use super::socket_file::FileIdentity;
use super::{ADMIN, ADMIN_SOCKET, AdminSocket, NamedSocket, PUBLIC};
use crate::lock::lock;
pub(super) use predecessor::{Found, Predecessor};
pub(crate) use service::HandoverService;

/// The version of the protocol. Only equal versions hand over to each other.
const VERSION: u32 = 1;
/// The timeout of a message that the other gate need not wait for anything to send.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// The keys of `[server]` about upgrades.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// The Unix socket where a running gate hands over; none if it does not.
    pub file: Option<PathBuf>,
    /// How long a new gate may take until it is ready.
    pub timeout: Duration,
}

/// Why a gate cannot take over from the one that runs already.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoverError {
    /// The sockets of the service manager cannot be used.
    #[error(transparent)]
    Activation(ActivationError),
    /// The file cannot be opened.
    #[error(
        "cannot connect to the running gate at {}: {source}. Start the new gate as the same user, \
         or stop the running one first",
        file.display()
    )]
    Connect {
        /// The Unix socket.
        file: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A process of another user listens at the file.
    #[error(
        "user {user} listens at {}, and not the user of this gate. Set server.handover to a file \
         in a directory that only this gate's user can write to",
        file.display()
    )]
    OtherUser {
        /// The Unix socket.
        file: PathBuf,
        /// The user of the other process.
        user: u32,
    },
    /// The running gate refused.
    #[error("the running gate at {} does not hand over: {reason}", file.display())]
    Refused {
        /// The Unix socket.
        file: PathBuf,
        /// Why.
        reason: Refusal,
    },
    /// The running gate did not answer as expected. It may serve on.
    #[error(
        "the gate at {} does not respond ({problem}). It may still serve, so this one ends. Stop \
         the other gate first",
        file.display()
    )]
    NoResponse {
        /// The Unix socket.
        file: PathBuf,
        /// What happened instead.
        problem: String,
    },
    /// This gate was not ready in time.
    #[error(
        "this gate was not ready within {} s (server.handover_timeout), so the running gate serves \
         on",
        limit.as_secs()
    )]
    TooSlow {
        /// `server.handover_timeout`.
        limit: Duration,
    },
}

/// Why a running gate does not hand over.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Refusal {
    /// The versions of the protocol differ.
    #[error("it speaks another version of the protocol. Stop it, and then start this one")]
    Version,
    /// Another successor is starting.
    #[error("another gate is already taking over. Wait until it is ready or has ended")]
    Busy,
    /// The gates have no address in common.
    #[error("it has other addresses")]
    OtherAddresses,
    /// A successor has taken over.
    #[error("it has already handed over to another gate. Try again")]
    HandedOver,
}

/// Duplicates of listening sockets, for a successor. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    sockets: Arc<Mutex<Vec<NamedSocket>>>,
    /// The file of the Unix socket of the admin listener.
    admin_file: Option<(FileIdentity, Ownership)>,
}

impl Offer {
    /// Duplicates the sockets.
    pub(super) fn of(
        public: &[TcpListener],
        admin: &TcpListener,
        admin_socket: Option<&AdminSocket>,
    ) -> std::io::Result<Offer> {
        let public = public.iter().map(|socket| (PUBLIC, socket.as_fd()));
        let local = admin_socket.iter().map(|socket| (ADMIN_SOCKET, socket.listener.as_fd()));
        let all = public.chain([(ADMIN, admin.as_fd())]).chain(local);
        let duplicates = all.map(|(name, socket)| {
            Ok(NamedSocket { name: name.to_owned(), socket: socket.try_clone_to_owned()? })
        });
        let sockets = Arc::new(Mutex::new(duplicates.collect::<std::io::Result<_>>()?));
        let file = admin_socket.map(|socket| &socket.file);
        let admin_file = file.map(|file| (file.identity(), file.ownership()));
        Ok(Offer { sockets, admin_file })
    }

    /// Whether this is the file of the Unix socket of the admin listener.
    fn has_admin_file(&self, file: Option<FileIdentity>) -> bool {
        let own = self.admin_file.as_ref().map(|(identity, _)| *identity);
        file.is_some() && file == own
    }

    /// Sets whether this gate removes that file at its end.
    pub(super) fn own_admin_file(&self, is_own: bool) {
        self.admin_file.iter().for_each(|(_, ownership)| ownership.set(is_own));
    }

    /// Duplicates the sockets again, to be sent. The Unix socket is only for a successor that has
    /// its file.
    fn duplicates(&self, with_admin_socket: bool) -> std::io::Result<Vec<NamedSocket>> {
        let duplicate = |named: &NamedSocket| {
            Ok(NamedSocket { name: named.name.clone(), socket: named.socket.try_clone()? })
        };
        let sockets = lock(&self.sockets);
        let is_sent = |named: &&NamedSocket| with_admin_socket || named.name != ADMIN_SOCKET;
        sockets.iter().filter(is_sent).map(duplicate).collect()
    }

    /// Closes the duplicates with this name.
    pub(crate) fn close(&self, name: &str) {
        lock(&self.sockets).retain(|socket| socket.name != name);
    }

    /// Closes all duplicates.
    fn close_all(&self) {
        lock(&self.sockets).clear();
    }
}

/// Returns the default file beside a ledger file, or a directory of one gate. The port is in its
/// name, since several gates may use one ledger.
pub(crate) fn default_file(beside: &Path, port: u16) -> PathBuf {
    let mut file = beside.as_os_str().to_owned();
    file.push(format!(".handover-{port}"));
    file.into()
}
