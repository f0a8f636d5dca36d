//! A TCP proxy that delays, blocks and aborts connections, to simulate a bad network between two
//! programs. It uses nothing of the product.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

const CHUNK: usize = 64 * 1024;

/// State of one direction of all connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Link {
    /// Bytes pass at once.
    Open,
    /// Each chunk of bytes arrives this much later.
    Delayed(Duration),
    /// Bytes and closes are held back until the link is open again, or lost by [`TcpProxy::abort`].
    Blocked,
}

/// A proxy on a loopback port. Dropping it closes its connections.
#[derive(Debug)]
pub(crate) struct TcpProxy {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    target: Mutex<SocketAddr>,
    to_server: watch::Sender<Link>,
    to_client: watch::Sender<Link>,
    refuses: AtomicBool,
    /// One value for each call of [`TcpProxy::abort`].
    aborts: watch::Sender<u64>,
}

impl TcpProxy {
    /// Starts a proxy for the server at this address.
    pub(crate) async fn start(target: SocketAddr) -> TcpProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            target: Mutex::new(target),
            to_server: watch::Sender::new(Link::Open),
            to_client: watch::Sender::new(Link::Open),
            refuses: AtomicBool::new(false),
            aborts: watch::Sender::new(0),
        });
        let task = tokio::spawn(accept(listener, state.clone()));
        TcpProxy { address, state, task }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Sets the direction from clients to the server.
    pub(crate) fn set_to_server(&self, link: Link) {
        self.state.to_server.send_replace(link);
    }

    /// Sets the direction from the server to clients. `Blocked` and then [`Self::abort`] lose the
    /// responses to requests that arrived.
    pub(crate) fn set_to_client(&self, link: Link) {
        self.state.to_client.send_replace(link);
    }

    /// Sets both directions. With `Blocked`, the proxy accepts connections that never respond.
    pub(crate) fn set(&self, link: Link) {
        self.set_to_server(link);
        self.set_to_client(link);
    }

    /// Makes the proxy abort new connections at once, or accept them again.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.state.refuses.store(refuses, Ordering::SeqCst);
    }

    /// Sends new connections to another server.
    pub(crate) fn retarget(&self, target: SocketAddr) {
        *self.state.target.lock().unwrap() = target;
    }

    /// Aborts all open connections on both sides with a reset. Bytes on their way are lost.
    pub(crate) fn abort(&self) {
        self.state.aborts.send_modify(|count| *count += 1);
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new(); // ends with this task
    loop {
        let (client, _) = listener.accept().await.unwrap();
        // Before anything is awaited, so that an abort after the client connected is seen.
        let aborts = state.aborts.subscribe();
        connections.spawn(relay(client, state.clone(), aborts));
        while connections.try_join_next().is_some() {}
    }
}

/// Relays one connection until both directions are closed or it is aborted.
async fn relay(mut client: TcpStream, state: Arc<State>, mut aborts: watch::Receiver<u64>) {
    if state.refuses.load(Ordering::SeqCst) {
        client.set_zero_linger().unwrap();
        return;
    }
    let target = *state.target.lock().unwrap();
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    for socket in [&client, &server] {
        socket.set_nodelay(true).unwrap();
    }
    let both = async {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        tokio::join!(
            pump(from_client, to_server, state.to_server.subscribe()),
            pump(from_server, to_client, state.to_client.subscribe()),
        )
    };
    tokio::select! {
        // First, so that a link that is opened after an abort passes nothing of this connection.
        biased;
        _ = aborts.changed() => {}
        _ = both => return,
    }
    for socket in [client, server] {
        socket.set_zero_linger().unwrap(); // so that its drop sends a reset
    }
}

/// Copies one direction until its end, which it passes on.
async fn pump(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut link: watch::Receiver<Link>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = from.read(&mut chunk).await.unwrap_or(0);
        let Ok(state) = link.wait_for(|link| *link != Link::Blocked).await.map(|link| *link) else {
            return;
        };
        if let Link::Delayed(delay) = state {
            sleep(delay).await;
        }
        if read == 0 {
            let _ = to.shutdown().await;
            return;
        }
        if to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
    }
}
