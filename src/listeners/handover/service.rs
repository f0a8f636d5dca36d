//! The running gate's side of a handover.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::socket_file::SocketFile;
use super::super::{Addresses, NamedSocket};
use super::message::{MAX_SOCKETS, Message, receive, send};
use super::{Offer, REPLY_TIMEOUT, Refusal, Settings, VERSION};
use crate::service_manager::ServiceManager;
use crate::telemetry::LogLimit;

/// The most connections at once.
const MAX_CONNECTIONS: usize = 16;
/// The wait after an accept that failed.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Limits the log of connections that are no successors.
static LIMIT: LogLimit = LogLimit::per_minute();

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for a successor at {}: {source}", file.display())]
pub(crate) struct ServiceError {
    file: std::path::PathBuf,
    source: io::Error,
}

/// Hands the sockets over to one successor. Dropping it ends the service.
#[derive(Debug)]
pub(crate) struct HandoverService {
    shared: Arc<Shared>,
    file: SocketFile,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Shared {
    addresses: Addresses,
    timeout: Duration,
    offer: Offer,
    service_manager: ServiceManager,
    /// Whether a successor is starting.
    is_busy: AtomicBool,
    /// The process id of the successor that has taken over.
    successor: AtomicU32,
    handed_over: CancellationToken,
    stop: CancellationToken,
}

/// Marks that a successor is starting, until it is dropped.
struct Starting<'a>(&'a AtomicBool);

impl HandoverService {
    /// Starts to listen on the current runtime.
    ///
    /// # Errors
    /// Returns [`ServiceError`] if the file cannot be bound.
    pub(in crate::listeners) fn start(
        settings: &Settings,
        addresses: Addresses,
        offer: Offer,
        service_manager: ServiceManager,
        handed_over: CancellationToken,
    ) -> Result<Option<HandoverService>, ServiceError> {
        let Some(file) = &settings.file else { return Ok(None) };
        let failed = |source| ServiceError { file: file.clone(), source };
        let (bound, listener) = SocketFile::bind(file).map_err(failed)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        let shared = Arc::new(Shared {
            addresses,
            timeout: settings.timeout,
            offer,
            service_manager,
            is_busy: AtomicBool::new(false),
            successor: AtomicU32::new(0),
            handed_over,
            stop: CancellationToken::new(),
        });
        let tasks = TaskTracker::new();
        tasks.spawn(accept(listener, shared.clone(), tasks.clone()));
        Ok(Some(HandoverService { shared, file: bound, tasks }))
    }

    /// Returns the process id of the successor that has taken over; none before.
    pub(crate) fn successor(&self) -> Option<u32> {
        Some(self.shared.successor.load(Ordering::Acquire)).filter(|process| *process != 0)
    }

    /// Passes these sockets to no successor any more.
    pub(crate) fn close(&self, name: &str) {
        self.shared.offer.close(name);
    }

    /// Stops listening, and removes the file. A successor that is starting sees that this gate is
    /// gone.
    pub(crate) async fn stop(self) {
        self.shared.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for HandoverService {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.shared.offer.close_all();
        // The file of a successor may have the number that this one had.
        if !self.shared.handed_over.is_cancelled() {
            self.file.remove();
        }
    }
}

/// Accepts connections until the service stops or a successor has taken over.
async fn accept(listener: UnixListener, shared: Arc<Shared>, tasks: TaskTracker) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.stop.cancelled() => return,
            () = shared.handed_over.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
                let shared = shared.clone();
                tasks.spawn(async move {
                    let _slot = slot;
                    let stop = shared.stop.clone();
                    stop.run_until_cancelled(shared.serve(&stream)).await;
                });
            }
            Err(error) => {
                if let Some(left_out) = LIMIT.permit("accept") {
                    tracing::warn!(%error, left_out, "cannot accept a successor");
                }
                shared.stop.run_until_cancelled(tokio::time::sleep(RETRY_DELAY)).await;
            }
        }
    }
}

impl Shared {
    /// Serves one connection, and logs why nothing was handed over.
    async fn serve(&self, stream: &UnixStream) {
        let Err(error) = self.hand_over(stream).await else { return };
        if let Some(left_out) = LIMIT.permit("refused") {
            tracing::warn!(%error, left_out, "no handover; this gate serves on");
        }
    }

    /// Hands over to a successor.
    ///
    /// # Errors
    /// Returns why this gate serves on.
    async fn hand_over(&self, stream: &UnixStream) -> io::Result<()> {
        let peer = stream.peer_cred()?;
        if peer.uid() != geteuid().as_raw() {
            let sentence = format!("user {} is not the user of this gate", peer.uid());
            return Err(io::Error::new(ErrorKind::PermissionDenied, sentence));
        }
        let (hello, _) = receive(stream, REPLY_TIMEOUT).await?;
        let starting = match self.accepts(&hello) {
            Ok(starting) => starting,
            Err(reason) => {
                send(stream, &Message::Refused { reason }, &[], REPLY_TIMEOUT).await?;
                return Err(io::Error::other(format!("refused a successor: {reason:?}")));
            }
        };
        let process = peer.pid().unwrap_or_default();
        tracing::info!(process, "a successor is starting; this gate serves until it is ready");
        let with_admin_socket = matches!(hello, Message::Hello { admin_file, .. }
            if self.offer.has_admin_file(admin_file));
        // From now on the file may be the successor's, which this gate must leave if it ends first.
        self.offer.own_admin_file(!with_admin_socket);
        if let Err(error) = self.pass_over(stream, with_admin_socket).await {
            self.offer.own_admin_file(true);
            return Err(error);
        }
        self.successor.store(u32::try_from(process).unwrap_or_default(), Ordering::Release);
        self.offer.close_all();
        self.handed_over.cancel();
        drop(starting);
        Ok(())
    }

    /// Passes the sockets, and waits until the successor serves them.
    async fn pass_over(&self, stream: &UnixStream, with_admin_socket: bool) -> io::Result<()> {
        self.pass_sockets(stream, with_admin_socket).await?;
        expect(stream, &Message::Ready, self.timeout).await?;
        let go = Message::Go { service_manager: self.service_manager.clone() };
        send(stream, &go, &[], REPLY_TIMEOUT).await?;
        expect(stream, &Message::Serving, REPLY_TIMEOUT).await?;
        // If it cannot be sent, the successor is dead.
        send(stream, &Message::Draining, &[], REPLY_TIMEOUT).await
    }

    /// Returns whether a successor may start.
    fn accepts(&self, hello: &Message) -> Result<Starting<'_>, Refusal> {
        let Message::Hello { version, public, other_public, admin, .. } = hello else {
            return Err(Refusal::Version);
        };
        let own = &self.addresses;
        let is_shared = |address: &SocketAddr| own.public.iter().any(|one| one == *address);
        if *version != VERSION {
            Err(Refusal::Version)
        } else if *admin != own.admin && !std::iter::once(public).chain(other_public).any(is_shared)
        {
            Err(Refusal::OtherAddresses)
        } else if self.is_busy.swap(true, Ordering::AcqRel) {
            Err(Refusal::Busy)
        } else {
            let starting = Starting(&self.is_busy);
            // Checked last: another successor may have taken over just now.
            match self.handed_over.is_cancelled() {
                true => Err(Refusal::HandedOver),
                false => Ok(starting),
            }
        }
    }

    async fn pass_sockets(&self, stream: &UnixStream, with_admin_socket: bool) -> io::Result<()> {
        let sockets = self.offer.duplicates(with_admin_socket)?;
        let chunks: Vec<&[NamedSocket]> = match sockets.is_empty() {
            true => vec![&[]],
            false => sockets.chunks(MAX_SOCKETS).collect(),
        };
        let last = chunks.len() - 1;
        for (number, chunk) in chunks.into_iter().enumerate() {
            let names = chunk.iter().map(|socket| socket.name.clone()).collect();
            let descriptors: Vec<_> = chunk.iter().map(|socket| socket.socket.as_fd()).collect();
            let message = Message::Sockets { names, is_last: number == last };
            send(stream, &message, &descriptors, REPLY_TIMEOUT).await?;
        }
        Ok(())
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Receives this message.
async fn expect(stream: &UnixStream, expected: &Message, limit: Duration) -> io::Result<()> {
    let failed = |error: io::Error| {
        let what = match error.kind() {
            ErrorKind::UnexpectedEof => "it ended",
            ErrorKind::TimedOut => "it was too slow",
            ErrorKind::InvalidData => "it sent no message of this protocol",
            _ => return error,
        };
        io::Error::new(error.kind(), format!("the successor is not {expected:?}: {what}"))
    };
    match receive(stream, limit).await.map_err(failed)? {
        (message, _) if message == *expected => Ok(()),
        (message, _) => Err(io::Error::other(format!("the successor sent {message:?}"))),
    }
}
