use std::io::{ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::super::{Activated, Listeners, Opened};
use super::*;
use crate::listeners::Addresses;
use crate::public_addresses::PublicAddresses;
use crate::service_manager::ServiceManager;

pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// A gate without anything but its listening sockets.
pub(super) struct Gate {
    pub(super) public: PublicAddresses,
    pub(super) sockets: Vec<TcpListener>,
    admin: TcpListener,
    admin_socket: Option<AdminSocket>,
    handed_over: CancellationToken,
    service: Option<HandoverService>,
}

pub(super) fn settings(file: &Path, timeout: Duration) -> Settings {
    Settings { file: Some(file.to_owned()), timeout }
}

/// Returns addresses that no process has now.
pub(super) fn addresses() -> Addresses {
    let free = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (public, admin) = (free(), free());
    Addresses { public: public.local_addr().unwrap().into(), admin: admin.local_addr().unwrap() }
}

pub(super) async fn acquire(
    settings: &Settings,
    addresses: &Addresses,
) -> Result<Listeners, HandoverError> {
    acquire_with(settings, addresses, None).await
}

/// Like [`acquire`], with a Unix socket of the admin listener at this path.
async fn acquire_with(
    settings: &Settings,
    addresses: &Addresses,
    admin_socket: Option<&Path>,
) -> Result<Listeners, HandoverError> {
    let (path, manager) = (admin_socket.map(Path::to_owned), ServiceManager::default());
    Listeners::acquire(settings, addresses.clone(), path, Activated::default(), manager).await
}

async fn serve(listeners: Listeners, opened: Opened) -> Result<Gate, HandoverError> {
    let Opened { public: sockets, admin, admin_socket, addresses, offer } = opened;
    let handed_over = CancellationToken::new();
    let service = listeners.serving(offer, handed_over.clone()).await?;
    Ok(Gate { public: addresses, sockets, admin, admin_socket, handed_over, service })
}

/// Starts a gate as `app` does, after this other work.
pub(super) async fn start(
    settings: &Settings,
    addresses: &Addresses,
    work: impl Future<Output = ()>,
) -> Result<Gate, HandoverError> {
    start_with(settings, addresses, None, work).await
}

async fn start_with(
    settings: &Settings,
    addresses: &Addresses,
    admin_socket: Option<&Path>,
    work: impl Future<Output = ()>,
) -> Result<Gate, HandoverError> {
    let mut listeners = acquire_with(settings, addresses, admin_socket).await?;
    listeners.during(work).await?;
    let opened = listeners.open(2).await.unwrap();
    listeners.ready().await?;
    serve(listeners, opened).await
}

impl Gate {
    pub(super) fn has_handed_over(&self) -> bool {
        self.handed_over.is_cancelled()
    }

    /// Accepts a connection of the Unix socket of the admin listener.
    fn accept_local(&self) -> bool {
        self.admin_socket.as_ref().is_some_and(|socket| socket.listener.accept().is_ok())
    }

    /// Accepts a connection that waits in one of the queues.
    pub(super) fn accept(&self) -> bool {
        self.sockets.iter().any(|socket| socket.accept().is_ok())
    }
}

#[tokio::test]
async fn connections_of_all_queues_are_accepted_by_the_successor() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory.path().join("handover"), TIMEOUT);
    let addresses = addresses();
    let old = start(&settings, &addresses, async {}).await.unwrap();
    assert_eq!((&old.public, old.sockets.len()), (&addresses.public, 2));
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(TcpStream::connect(addresses.public.first()).await.unwrap());
    }
    let admin = TcpStream::connect(addresses.admin).await.unwrap();
    let new = start(&settings, &addresses, async {}).await.unwrap();
    assert!(old.has_handed_over() && !new.has_handed_over());
    assert_eq!(old.service.as_ref().unwrap().successor(), Some(std::process::id()));
    drop(old);
    let accepted = std::iter::from_fn(|| new.accept().then_some(())).count();
    assert_eq!(accepted, clients.len());
    new.admin.accept().unwrap();
    drop((clients, admin));
    // And back.
    let next = start(&settings, &addresses, async {}).await.unwrap();
    assert!(new.has_handed_over() && !next.has_handed_over());
    assert_eq!(next.sockets.len(), 2);
}

#[tokio::test]
async fn failed_successor_leaves_the_gate_serving() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("handover");
    let old_settings = settings(&file, TIMEOUT);
    let addresses = addresses();
    let old = start(&old_settings, &addresses, async {}).await.unwrap();
    // It dies after each of its steps.
    drop(acquire(&old_settings, &addresses).await.unwrap());
    let mut listeners = retried(&old_settings, &addresses).await;
    let opened = listeners.open(2).await.unwrap();
    drop((listeners, opened));
    let mut listeners = retried(&old_settings, &addresses).await;
    let opened = listeners.open(2).await.unwrap();
    listeners.ready().await.unwrap();
    drop((listeners, opened));
    assert!(!old.has_handed_over());
    let _client = TcpStream::connect(addresses.public.first()).await.unwrap();
    while !old.accept() {
        tokio::task::yield_now().await;
    }
    // It is too slow itself.
    let hurried = settings(&file, Duration::from_millis(1));
    let slow = loop {
        match start(&hurried, &addresses, std::future::pending()).await {
            Err(HandoverError::Refused { reason: Refusal::Busy, .. }) => {}
            other => break other.map(drop).unwrap_err(),
        }
    };
    assert!(matches!(slow, HandoverError::TooSlow { .. }), "{slow}");
    assert!(!old.has_handed_over());
}

/// Acquires, until the gate has noticed that the last successor is gone.
async fn retried(settings: &Settings, addresses: &Addresses) -> Listeners {
    loop {
        match acquire(settings, addresses).await {
            Err(HandoverError::Refused { reason: Refusal::Busy, .. }) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            listeners => return listeners.unwrap(),
        }
    }
}

#[tokio::test]
async fn gate_does_not_wait_for_a_hanging_successor() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("handover");
    let addresses = addresses();
    let impatient = settings(&file, Duration::from_millis(50));
    let old = start(&impatient, &addresses, async {}).await.unwrap();
    let error = start(&settings(&file, TIMEOUT), &addresses, std::future::pending()).await;
    let error = error.map(drop).unwrap_err();
    assert!(matches!(error, HandoverError::NoResponse { .. }), "{error}");
    assert!(!old.has_handed_over());
    let new = start(&settings(&file, TIMEOUT), &addresses, async {}).await.unwrap();
    assert!(old.has_handed_over());
    drop(new);
}

#[tokio::test]
async fn only_one_successor_starts_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory.path().join("handover"), TIMEOUT);
    let addresses = addresses();
    let old = start(&settings, &addresses, async {}).await.unwrap();
    let first = acquire(&settings, &addresses).await.unwrap();
    let second = acquire(&settings, &addresses).await.unwrap_err();
    assert!(matches!(second, HandoverError::Refused { reason: Refusal::Busy, .. }), "{second}");
    drop(first);
    assert!(!old.has_handed_over());
}

#[tokio::test]
async fn successor_continues_when_the_gate_dies() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory.path().join("handover"), TIMEOUT);
    let addresses = addresses();
    let old = start(&settings, &addresses, async {}).await.unwrap();
    let client = TcpStream::connect(addresses.public.first()).await.unwrap();
    let Gate { service, sockets, admin, .. } = old;
    // The kernel closes its listeners last, so the file is refused first.
    let dies = async {
        service.unwrap().stop().await;
        drop((sockets, admin));
    };
    let new = start(&settings, &addresses, dies).await.unwrap();
    assert!(new.accept(), "the connection that the dead gate had not accepted");
    drop(client);
    // And before the consent.
    let mut listeners = acquire(&settings, &addresses).await.unwrap();
    let opened = listeners.open(2).await.unwrap();
    new.service.unwrap().stop().await;
    listeners.ready().await.unwrap();
    let next = serve(listeners, opened).await.unwrap();
    assert!(next.service.is_some());
}

#[tokio::test]
async fn gate_with_other_addresses_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory.path().join("handover"), TIMEOUT);
    let old_addresses = addresses();
    let old = start(&settings, &old_addresses, async {}).await.unwrap();
    let other = start(&settings, &addresses(), async {}).await.unwrap();
    assert!(!old.has_handed_over() && other.service.is_none());
    // One address in common is enough. The other one is bound.
    let moved = Addresses { public: addresses().public, admin: old_addresses.admin };
    let new = start(&settings, &moved, async {}).await.unwrap();
    assert!(old.has_handed_over());
    assert_eq!(new.public, moved.public);
}

#[tokio::test]
async fn address_of_a_gate_that_hands_over_nothing_is_not_shared() {
    let directory = tempfile::tempdir().unwrap();
    let addresses = addresses();
    let off = Settings { file: None, timeout: TIMEOUT };
    let old = start(&off, &addresses, async {}).await.unwrap();
    assert!(old.service.is_none());
    for admin in [addresses.admin, "127.0.0.1:0".parse().unwrap()] {
        let moved = Addresses { admin, ..addresses.clone() };
        let settings = settings(&directory.path().join("handover"), TIMEOUT);
        let mut listeners = acquire(&settings, &moved).await.unwrap();
        let error = listeners.open(2).await.unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn silent_gate_is_not_doubled() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("handover");
    let _silent = UnixListener::bind(&file).unwrap();
    let error = acquire(&settings(&file, TIMEOUT), &addresses()).await.unwrap_err();
    assert!(matches!(error, HandoverError::NoResponse { .. }), "{error}");
}

#[tokio::test]
async fn answers_of_no_gate_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let names = |names: &str| format!("{{\"sockets\":{{\"names\":[{names}],\"is_last\":true}}}}");
    for (number, answer) in [
        "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
        "{\"ready\":1}".to_owned(),
        "\"ready\"".to_owned(),
        "\"draining\"".to_owned(),
        names("\"public\""),
        "{\"refused\":{\"reason\":\"version\"}}".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        let file = directory.path().join(format!("handover-{number}"));
        let listener = UnixListener::bind(&file).unwrap();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let length = u32::try_from(answer.len()).unwrap().to_be_bytes();
            let _ = stream.write_all(&[&length, answer.as_bytes()].concat());
            (stream, listener)
        });
        let error = acquire(&settings(&file, TIMEOUT), &addresses()).await.unwrap_err();
        let is_expected =
            matches!(error, HandoverError::NoResponse { .. } | HandoverError::Refused { .. });
        assert!(is_expected, "{number}: {error}");
        drop(answering.join().unwrap());
    }
}

#[tokio::test]
async fn stale_and_missing_files_are_no_gates() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("handover");
    let settings = settings(&file, TIMEOUT);
    let first = start(&settings, &addresses(), async {}).await.unwrap();
    drop(first);
    drop(UnixListener::bind(&file).unwrap());
    assert_eq!(UnixStream::connect(&file).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let second = start(&settings, &addresses(), async {}).await.unwrap();
    assert!(second.service.is_some());
    UnixStream::connect(&file).unwrap();
}

#[tokio::test]
async fn unix_socket_passes_with_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory.path().join("handover"), TIMEOUT);
    let (addresses, path) = (addresses(), directory.path().join("admin.sock"));
    let old = start_with(&settings, &addresses, Some(&path), async {}).await.unwrap();
    let identity = FileIdentity::at(&path).unwrap();
    let waiting = UnixStream::connect(&path).unwrap();
    // One that fails after it has received it.
    let mut listeners = acquire_with(&settings, &addresses, Some(&path)).await.unwrap();
    let opened = listeners.open(2).await.unwrap();
    assert!(opened.admin_socket.is_some());
    drop((listeners, opened));
    let new = loop {
        match start_with(&settings, &addresses, Some(&path), async {}).await {
            Err(HandoverError::Refused { reason: Refusal::Busy, .. }) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            new => break new.unwrap(),
        }
    };
    assert!(old.has_handed_over());
    drop(old);
    assert_eq!(FileIdentity::at(&path).unwrap(), identity, "the very socket");
    assert!(new.accept_local(), "the connection that the old gate had not accepted");
    drop(waiting);
    drop(new);
    assert!(!path.exists());
}

#[tokio::test]
async fn gate_that_ends_before_the_consent_leaves_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory.path().join("handover"), TIMEOUT);
    let (addresses, path) = (addresses(), directory.path().join("admin.sock"));
    let old = start_with(&settings, &addresses, Some(&path), async {}).await.unwrap();
    let mut listeners = acquire_with(&settings, &addresses, Some(&path)).await.unwrap();
    let opened = listeners.open(2).await.unwrap();
    let Gate { service, sockets, admin, admin_socket, .. } = old;
    service.unwrap().stop().await;
    drop((sockets, admin, admin_socket));
    listeners.ready().await.unwrap();
    let new = serve(listeners, opened).await.unwrap();
    let _client = UnixStream::connect(&path).unwrap();
    assert!(new.accept_local());
    drop(new);
    assert!(!path.exists(), "the file is the new gate's");
}

#[tokio::test]
async fn unix_socket_at_another_path_is_bound() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory.path().join("handover"), TIMEOUT);
    let path = |name: &str| directory.path().join(name);
    let addresses = addresses();
    let old = start_with(&settings, &addresses, Some(&path("a.sock")), async {}).await.unwrap();
    let new = start_with(&settings, &addresses, Some(&path("b.sock")), async {}).await.unwrap();
    assert!(old.has_handed_over());
    drop(old);
    assert!(!path("a.sock").exists());
    UnixStream::connect(path("b.sock")).unwrap();
    // A file that somebody has removed is made again, and a gate without the key leaves none.
    std::fs::remove_file(path("b.sock")).unwrap();
    let next = start_with(&settings, &addresses, Some(&path("b.sock")), async {}).await.unwrap();
    drop(new);
    UnixStream::connect(path("b.sock")).unwrap();
    let last = start(&settings, &addresses, async {}).await.unwrap();
    drop(next);
    assert!(last.admin_socket.is_none() && !path("b.sock").exists());
}
