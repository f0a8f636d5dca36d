//! The listening sockets of the process, by name: received from the service manager or from the
//! gate that runs already, or bound.
//!
//! `app` acquires them before it builds the gate, and opens them last. During an upgrade, both
//! gates hold the same sockets, so no connection is refused or reset: what waits in the accept
//! queue of a socket is accepted by either of them.
//!
//! - `activation` takes the sockets of a service manager (`LISTEN_FDS`).
//! - `handover` passes the sockets from a running gate to its successor.
//! - `public_sockets` opens the readers' sockets of every address: received, or new ones.
//! - `bind` opens new sockets, and `early_admin` those for the time before the gate can start.
//! - `admin_socket` is the Unix socket of the admin listener, and `socket_file` the file of such a
//!   socket.

mod activation;
mod admin_socket;
mod bind;
mod early_admin;
mod handover;
mod public_sockets;
mod socket;
mod socket_file;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::public_addresses::PublicAddresses;
use crate::service_manager::ServiceManager;
use socket::{NamedSocket, nonblocking};
use socket_file::FileIdentity;

pub(crate) use activation::Activated;
pub(crate) use admin_socket::{AdminSocket, AdminSocketFile};
pub(crate) use early_admin::{EarlyAdmin, EarlySockets};
pub(crate) use handover::Settings;
use handover::{Found, Predecessor};
pub(crate) use handover::{HandoverError, HandoverService, Offer, default_file};
pub(crate) use socket_file::{check_socket_path, longest_file, temporary_file};

/// The name of the readers' sockets.
pub(crate) const PUBLIC: &str = "public";
/// The name of the admin socket.
pub(crate) const ADMIN: &str = "admin";
/// The name of the Unix socket of the admin listener.
const ADMIN_SOCKET: &str = "admin-socket";

/// How long a successor waits until a draining predecessor has closed an address.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval between attempts to bind such an address.
const BIND_RETRY: Duration = Duration::from_millis(20);

/// The addresses that a configuration names.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) public: PublicAddresses,
    pub(crate) admin: SocketAddr,
}

/// Why the process has no listening sockets.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// A public address cannot be bound.
    #[error(
        "cannot listen on {address}: {source}; is another program there, \
         or is the port below 1024?"
    )]
    Public {
        /// The address as configured.
        address: SocketAddr,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The admin address cannot be bound.
    #[error(
        "the admin listener cannot listen on {address}: {source}; is another program using it?"
    )]
    Admin {
        /// The address as configured.
        address: SocketAddr,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The Unix socket of the admin listener cannot be bound.
    #[error("cannot listen at {} (listen.admin_socket): {source}", path.display())]
    AdminSocket {
        /// The path as configured.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// A socket cannot be used or duplicated.
    #[error("cannot use a listening socket: {0}")]
    Socket(std::io::Error),
}

/// The sockets of an open gate.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The readers' sockets of all addresses, at least one.
    pub(crate) public: Vec<TcpListener>,
    pub(crate) admin: TcpListener,
    /// The Unix socket of the admin listener, if it is configured.
    pub(crate) admin_socket: Option<AdminSocket>,
    /// The addresses of the readers' sockets, with the actual ports.
    pub(crate) addresses: PublicAddresses,
    /// Duplicates, to be handed over.
    pub(crate) offer: Offer,
}

/// The sources of listening sockets.
#[derive(Debug)]
pub(crate) struct Listeners {
    addresses: Addresses,
    /// The path of `listen.admin_socket`.
    admin_socket: Option<PathBuf>,
    /// The file at that path before the predecessor sent its sockets.
    admin_file: Option<FileIdentity>,
    /// The sockets that were received, in order.
    received: Vec<NamedSocket>,
    predecessor: Option<Predecessor>,
    /// The settings of the handover service; none if it does not run.
    service: Option<Settings>,
    service_manager: ServiceManager,
}

impl Listeners {
    /// Returns listeners that bind their addresses, and hand over nothing.
    pub(crate) fn unshared(addresses: Addresses, admin_socket: Option<PathBuf>) -> Listeners {
        Listeners {
            addresses,
            admin_socket,
            admin_file: None,
            received: Vec::new(),
            predecessor: None,
            service: None,
            service_manager: ServiceManager::default(),
        }
    }

    /// Receives the sockets of the service manager and of the gate that runs already.
    ///
    /// # Errors
    /// Returns a [`HandoverError`] if a gate may be running there and does not hand over.
    pub(crate) async fn acquire(
        settings: &Settings,
        addresses: Addresses,
        admin_socket: Option<PathBuf>,
        activated: Activated,
        service_manager: ServiceManager,
    ) -> Result<Listeners, HandoverError> {
        let file = admin_socket.as_deref().and_then(|path| FileIdentity::at(path).ok());
        let received = activated.assign(&addresses)?;
        let mut listeners = Listeners {
            received,
            service_manager,
            admin_file: file,
            ..Listeners::unshared(addresses, admin_socket)
        };
        // Port 0 is another port for each process, so there is nothing to hand over.
        let has_any_port = listeners.addresses.public.iter().any(|address| address.port() == 0);
        if settings.file.is_none() || has_any_port {
            return Ok(listeners);
        }
        let found = Predecessor::connect(settings, &listeners.addresses, file).await?;
        let (predecessor, passed) = match found {
            Found::NoProcess => {
                listeners.service = Some(settings.clone());
                return Ok(listeners);
            }
            Found::OtherGate(file) => {
                tracing::warn!(
                    file = %file.display(),
                    "a gate with other addresses hands over at this file, so this one cannot be \
                     upgraded without a restart; set server.handover to another file"
                );
                return Ok(listeners);
            }
            Found::Gate(predecessor, passed) => (predecessor, passed),
        };
        for socket in passed {
            if !listeners.has(&socket) {
                listeners.received.push(socket);
            }
        }
        listeners.predecessor = Some(predecessor);
        listeners.service = Some(settings.clone());
        Ok(listeners)
    }

    /// Whether this very socket was received before, from the service manager.
    fn has(&self, socket: &NamedSocket) -> bool {
        let cookie = |socket: &NamedSocket| rustix::net::sockopt::socket_cookie(&socket.socket);
        let Ok(of_socket) = cookie(socket) else { return false };
        self.received.iter().any(|other| cookie(other).is_ok_and(|other| other == of_socket))
    }

    /// Whether another gate serves until this one is ready.
    pub(crate) fn has_predecessor(&self) -> bool {
        self.predecessor.is_some()
    }

    /// Returns the source of admin sockets for the time before the gate can start.
    ///
    /// # Errors
    /// Returns [`ListenError`] if a received socket cannot be duplicated.
    pub(crate) fn early_admin(&self) -> Result<EarlyAdmin, ListenError> {
        if self.has_predecessor() {
            return Ok(EarlyAdmin::Elsewhere);
        }
        let received = self.received.iter().find(|socket| socket.name == ADMIN);
        let received = received.map(NamedSocket::duplicate).transpose();
        Ok(EarlyAdmin::Here {
            received: received.map_err(ListenError::Socket)?,
            address: self.addresses.admin,
            path: self.admin_socket.clone(),
        })
    }

    /// Waits for the work of the start. Fails if the predecessor gives up before its end. If the
    /// predecessor dies, the start continues with its sockets.
    ///
    /// # Errors
    /// Returns a [`HandoverError`] if the predecessor serves on without this process.
    pub(crate) async fn during<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, HandoverError> {
        let Some(predecessor) = &self.predecessor else { return Ok(work.await) };
        let mut work = std::pin::pin!(work);
        tokio::select! {
            done = &mut work => return Ok(done),
            error = predecessor.gives_up() => error?,
        }
        self.predecessor = None;
        Ok(work.await)
    }

    /// Opens every socket: those that were received for an address, or new ones, `workers` at most.
    ///
    /// # Errors
    /// Returns [`ListenError`]; nothing is left open.
    pub(crate) async fn open(&mut self, workers: usize) -> Result<Opened, ListenError> {
        let admin = self.addresses.admin;
        // First, because only one process can have it.
        let admin = match self.take(ADMIN, |socket| socket.is_at(admin))?.into_iter().next() {
            Some(socket) => socket,
            None => self
                .bind(|| bind::exclusive(admin))
                .await
                .map_err(|source| ListenError::Admin { address: admin, source })?,
        };
        let admin_socket = self.open_admin_socket().await?;
        let (public, addresses) = self.open_public(workers).await?;
        // What is left has an address that is no longer configured. The predecessor accepts what
        // waits there.
        self.received.clear();
        let offer = Offer::of(&public, &admin, admin_socket.as_ref());
        let offer = offer.map_err(ListenError::Socket)?;
        Ok(Opened { public, admin, admin_socket, addresses, offer })
    }

    /// Takes the Unix socket of the predecessor, if the file at the path is its, or binds one.
    async fn open_admin_socket(&mut self) -> Result<Option<AdminSocket>, ListenError> {
        let Some(path) = self.admin_socket.clone() else { return Ok(None) };
        let passed = self.received.extract_if(.., |socket| socket.name == ADMIN_SOCKET).next();
        let file = FileIdentity::at(&path).ok();
        let opened = match (passed, file) {
            // Not if somebody has replaced the file in the meantime.
            (Some(passed), Some(file)) if self.admin_file == Some(file) => {
                AdminSocket::adopt(&path, file, passed.socket)
            }
            _ => self.bind(|| AdminSocket::bind(&path)).await,
        };
        opened.map(Some).map_err(|source| ListenError::AdminSocket { path, source })
    }

    /// Takes the sockets with this name that are wanted.
    fn take(
        &mut self,
        name: &str,
        is_wanted: impl Fn(&NamedSocket) -> bool,
    ) -> Result<Vec<TcpListener>, ListenError> {
        let is_wanted = |socket: &mut NamedSocket| socket.name == name && is_wanted(socket);
        let taken = self.received.extract_if(.., is_wanted);
        taken.map(|taken| nonblocking(taken.socket).map_err(ListenError::Socket)).collect()
    }

    /// Binds, and tries again for some time if a predecessor may be closing the address.
    async fn bind<T>(&self, bind: impl Fn() -> std::io::Result<T>) -> std::io::Result<T> {
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        loop {
            match bind() {
                Err(error)
                    if error.kind() == std::io::ErrorKind::AddrInUse
                        && self.has_predecessor()
                        && Instant::now() < deadline =>
                {
                    sleep(BIND_RETRY).await;
                }
                bound => return bound,
            }
        }
    }

    /// Reports that everything is ready to serve, and waits for the consent of the predecessor.
    ///
    /// # Errors
    /// Returns a [`HandoverError`] if it serves on. This process must not accept a connection then.
    pub(crate) async fn ready(&mut self) -> Result<(), HandoverError> {
        let Some(predecessor) = &self.predecessor else { return Ok(()) };
        let of_predecessor = predecessor.ready().await?;
        self.service_manager = std::mem::take(&mut self.service_manager).or(of_predecessor);
        Ok(())
    }

    /// The service manager of this process, which its predecessor may have named.
    pub(crate) fn service_manager(&self) -> &ServiceManager {
        &self.service_manager
    }

    /// Reports that this process serves, waits until the predecessor drains, and starts the service
    /// that hands over to a successor. It cancels `handed_over` when it has. Returns none if there
    /// is no such service.
    ///
    /// # Errors
    /// Returns a [`HandoverError`] if the predecessor serves on. This process must drain then.
    pub(crate) async fn serving(
        mut self,
        offer: Offer,
        handed_over: CancellationToken,
    ) -> Result<Option<HandoverService>, HandoverError> {
        if let Some(predecessor) = self.predecessor.take() {
            predecessor.serving().await?;
        }
        // No predecessor removes it any more, and a successor may take over from now on.
        offer.own_admin_file(true);
        let Some(settings) = self.service else { return Ok(None) };
        let service = HandoverService::start(
            &settings,
            self.addresses,
            offer,
            self.service_manager,
            handed_over,
        );
        match service {
            Ok(service) => Ok(service),
            Err(error) => {
                tracing::warn!(%error, "this gate cannot be upgraded without a restart");
                Ok(None)
            }
        }
    }
}
