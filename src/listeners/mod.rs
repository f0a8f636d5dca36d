//! The listening sockets of the process, by name: received from the service manager or from the
//! gate that runs already, or bound.
//!
//! `app` acquires them before it builds the gate, and opens them last. During an upgrade, both
//! gates hold the same sockets, so no connection is refused or reset: what waits in the accept
//! queue of a socket is accepted by either of them.
//!
//! - `activation` takes the sockets of a service manager (`LISTEN_FDS`).
//! - `handover` passes the sockets from a running gate to its successor.
//! - `bind` opens new sockets, and `early_admin` one for the time before the gate can start.

mod activation;
mod bind;
mod early_admin;
mod handover;
mod socket;

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::service_manager::ServiceManager;
use socket::{NamedSocket, nonblocking};

pub(crate) use activation::Activated;
pub(crate) use early_admin::EarlyAdmin;
pub(crate) use handover::Settings;
use handover::{Found, Predecessor};
pub(crate) use handover::{HandoverError, HandoverService, Offer, default_file, longest_file};

/// The name of the readers' sockets.
pub(crate) const PUBLIC: &str = "public";
/// The name of the admin socket.
pub(crate) const ADMIN: &str = "admin";

/// How long a successor waits until a draining predecessor has closed an address.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval between attempts to bind such an address.
const BIND_RETRY: Duration = Duration::from_millis(20);

/// The addresses that a configuration names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// Why the process has no listening sockets.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// The public address cannot be bound.
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
    /// A socket cannot be used or duplicated.
    #[error("cannot use a listening socket: {0}")]
    Socket(std::io::Error),
}

/// The sockets of an open gate.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The readers' sockets, at least one.
    pub(crate) public: Vec<TcpListener>,
    pub(crate) admin: TcpListener,
    /// The address of the readers' sockets, with the actual port.
    pub(crate) address: SocketAddr,
    /// Duplicates, to be handed over.
    pub(crate) offer: Offer,
}

/// The sources of listening sockets.
#[derive(Debug)]
pub(crate) struct Listeners {
    addresses: Addresses,
    /// The sockets that were received, in order.
    received: Vec<NamedSocket>,
    predecessor: Option<Predecessor>,
    /// The settings of the handover service; none if it does not run.
    service: Option<Settings>,
    service_manager: ServiceManager,
}

impl Listeners {
    /// Returns listeners that bind their addresses, and hand over nothing.
    pub(crate) fn unshared(addresses: Addresses) -> Listeners {
        Listeners {
            addresses,
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
        activated: Activated,
        service_manager: ServiceManager,
    ) -> Result<Listeners, HandoverError> {
        let mut listeners = Listeners::unshared(addresses);
        listeners.service_manager = service_manager;
        listeners.received = activated.assign(addresses)?;
        // Port 0 is another port for each process, so there is nothing to hand over.
        if settings.file.is_none() || addresses.public.port() == 0 {
            return Ok(listeners);
        }
        let (predecessor, passed) = match Predecessor::connect(settings, addresses).await? {
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

    /// Returns the source of an admin socket for the time before the gate can start.
    ///
    /// # Errors
    /// Returns [`ListenError`] if a received socket cannot be duplicated.
    pub(crate) fn early_admin(&self) -> Result<EarlyAdmin, ListenError> {
        let received = self.received.iter().find(|socket| socket.name == ADMIN);
        match received {
            _ if self.has_predecessor() => Ok(EarlyAdmin::Elsewhere),
            Some(received) => {
                received.duplicate().map(EarlyAdmin::Received).map_err(ListenError::Socket)
            }
            None => Ok(EarlyAdmin::Unbound(self.addresses.admin)),
        }
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
        let Addresses { public, admin } = self.addresses;
        // First, because only one process can have it.
        let admin = match self.take(ADMIN, admin)?.into_iter().next() {
            Some(socket) => socket,
            None => self
                .bind(|| bind::exclusive(admin))
                .await
                .map_err(|source| ListenError::Admin { address: admin, source })?,
        };
        let mut sockets = self.take(PUBLIC, public)?;
        if sockets.is_empty() {
            sockets = self
                .bind(|| bind::shared(public, workers))
                .await
                .map_err(|source| ListenError::Public { address: public, source })?;
        }
        // What is left has an address that is no longer configured. The predecessor accepts what
        // waits there.
        self.received.clear();
        let offer = Offer::of(&sockets, &admin).map_err(ListenError::Socket)?;
        let address = sockets.first().map_or(Ok(public), TcpListener::local_addr);
        let address = address.map_err(ListenError::Socket)?;
        Ok(Opened { public: sockets, admin, address, offer })
    }

    /// Takes the sockets with this name and address.
    fn take(&mut self, name: &str, address: SocketAddr) -> Result<Vec<TcpListener>, ListenError> {
        let is_wanted = |socket: &mut NamedSocket| socket.name == name && socket.is_at(address);
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
