//! The successor's side of a handover: connects to the gate that runs already.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use tokio::net::UnixStream;
use tokio::time::{Duration, Instant, sleep, sleep_until, timeout};

use super::super::{Addresses, NamedSocket};
use super::message::{Message, receive, send};
use super::{FileIdentity, HandoverError, REPLY_TIMEOUT, Refusal, Settings, VERSION};
use crate::service_manager::ServiceManager;

/// The most messages with sockets.
const MAX_MESSAGES: usize = 256;

/// How often to look whether a gate that closed the connection still listens.
const DEATH_CHECKS: u32 = 10;
const DEATH_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// What was found at the file.
#[derive(Debug)]
pub(in crate::listeners) enum Found {
    /// No process listens there.
    NoProcess,
    /// A gate that has no address in common with this one.
    OtherGate(PathBuf),
    /// A gate with its sockets.
    Gate(Predecessor, Vec<NamedSocket>),
}

/// The gate that runs already, and hands over to this one.
#[derive(Debug)]
pub(in crate::listeners) struct Predecessor {
    stream: UnixStream,
    file: PathBuf,
    limit: Duration,
    /// When this gate must be ready.
    deadline: Instant,
}

impl Predecessor {
    /// Connects to the running gate, if there is one, and receives its sockets. `admin_file` is the
    /// file at this gate's `listen.admin_socket`.
    ///
    /// # Errors
    /// Returns a [`HandoverError`] if a gate may be running that does not hand over.
    pub(in crate::listeners) async fn connect(
        settings: &Settings,
        addresses: &Addresses,
        admin_file: Option<FileIdentity>,
    ) -> Result<Found, HandoverError> {
        let Some(file) = &settings.file else { return Ok(Found::NoProcess) };
        let Some(stream) = connect(file).await? else { return Ok(Found::NoProcess) };
        let no_response = |error: io::Error| no_response(file, &error);
        let user = stream.peer_cred().map_err(no_response)?.uid();
        if user != geteuid().as_raw() {
            return Err(HandoverError::OtherUser { file: file.clone(), user });
        }
        let Addresses { public, admin } = addresses;
        let hello = Message::Hello {
            version: VERSION,
            public: public.first(),
            other_public: public.others().to_vec(),
            admin: *admin,
            admin_file,
        };
        send(&stream, &hello, &[], REPLY_TIMEOUT).await.map_err(no_response)?;
        let mut sockets = Vec::new();
        for _ in 0..MAX_MESSAGES {
            match receive(&stream, REPLY_TIMEOUT).await.map_err(no_response)? {
                (Message::Refused { reason: Refusal::OtherAddresses }, _) => {
                    return Ok(Found::OtherGate(file.clone()));
                }
                (Message::Refused { reason }, _) => {
                    return Err(HandoverError::Refused { file: file.clone(), reason });
                }
                (Message::Sockets { names, is_last }, passed) => {
                    sockets.extend(named(names, passed).map_err(no_response)?);
                    if is_last {
                        let predecessor = Predecessor {
                            stream,
                            file: file.clone(),
                            limit: settings.timeout,
                            deadline: Instant::now() + settings.timeout,
                        };
                        return Ok(Found::Gate(predecessor, sockets));
                    }
                }
                _ => break,
            }
        }
        Err(no_response(ErrorKind::InvalidData.into()))
    }

    /// Waits until the running gate dies, and returns without an error then: only this process
    /// has its sockets now.
    ///
    /// # Errors
    /// Returns a [`HandoverError`] if it gives up but lives, or this process is too slow.
    pub(in crate::listeners) async fn gives_up(&self) -> Result<(), HandoverError> {
        let mut unexpected = [0];
        let closed = async {
            loop {
                self.stream.readable().await?;
                match self.stream.try_read(&mut unexpected) {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(_) => return Err(io::Error::from(ErrorKind::InvalidData)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::select! {
            closed = closed => self.unless_dead(closed).await,
            () = sleep_until(self.deadline) => Err(HandoverError::TooSlow { limit: self.limit }),
        }
    }

    /// Reports that this process can serve, and waits for the consent. Returns the service manager
    /// of the running gate.
    ///
    /// # Errors
    /// Returns a [`HandoverError`] without it.
    pub(in crate::listeners) async fn ready(&self) -> Result<ServiceManager, HandoverError> {
        let consent = async {
            send(&self.stream, &Message::Ready, &[], REPLY_TIMEOUT).await?;
            match receive(&self.stream, REPLY_TIMEOUT).await? {
                (Message::Go { service_manager }, _) => Ok(service_manager),
                _ => Err(ErrorKind::InvalidData.into()),
            }
        };
        match consent.await {
            Ok(service_manager) => Ok(service_manager),
            Err(error) => {
                self.unless_dead(Err(error)).await?;
                Ok(ServiceManager::default())
            }
        }
    }

    /// Reports that this process serves, and waits until the other one drains.
    ///
    /// # Errors
    /// Returns a [`HandoverError`] if it does not.
    pub(in crate::listeners) async fn serving(self) -> Result<(), HandoverError> {
        let reported = async {
            send(&self.stream, &Message::Serving, &[], REPLY_TIMEOUT).await?;
            match receive(&self.stream, REPLY_TIMEOUT).await? {
                (Message::Draining, _) => Ok(()),
                _ => Err(ErrorKind::InvalidData.into()),
            }
        };
        let reported = reported.await;
        self.unless_dead(reported).await
    }

    /// Returns the error, unless no process listens at the file any more.
    async fn unless_dead(&self, result: io::Result<()>) -> Result<(), HandoverError> {
        let Err(error) = result else { return Ok(()) };
        // A process that ends may close this connection before it closes its file.
        for _ in 0..DEATH_CHECKS {
            if matches!(connect(&self.file).await, Ok(None)) {
                tracing::warn!("the running gate ended during the handover; this one serves");
                return Ok(());
            }
            sleep(DEATH_CHECK_INTERVAL).await;
        }
        Err(no_response(&self.file, &error))
    }
}

/// Connects to the file. Returns none if no process listens there.
async fn connect(file: &Path) -> Result<Option<UnixStream>, HandoverError> {
    let connecting = timeout(REPLY_TIMEOUT, UnixStream::connect(file));
    match connecting.await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Ok(None),
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Err(no_response(file, &error)),
            _ => Err(HandoverError::Connect { file: file.to_owned(), source: error }),
        },
    }
}

fn no_response(file: &Path, error: &io::Error) -> HandoverError {
    let problem = match error.kind() {
        ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
        ErrorKind::InvalidData => "its answer is no message of this protocol".to_owned(),
        ErrorKind::TimedOut => "it sent nothing in time".to_owned(),
        _ => error.to_string(),
    };
    HandoverError::NoResponse { file: file.to_owned(), problem }
}

/// Names the sockets. Returns an error if one is not listening.
fn named(names: Vec<String>, passed: Vec<OwnedFd>) -> io::Result<Vec<NamedSocket>> {
    let sockets = names.into_iter().zip(passed);
    let sockets = sockets.map(|(name, socket)| NamedSocket { name, socket });
    let check = |socket: NamedSocket| match socket.is_listening() {
        true => Ok(socket),
        false => Err(ErrorKind::InvalidData.into()),
    };
    sockets.map(check).collect()
}
