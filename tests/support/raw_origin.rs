//! An origin that sends scripted bytes: responses that no HTTP library would send.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// What the origin does with one request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Sends these bytes and waits for the next request.
    Send(Vec<u8>),
    /// Sends the first bytes, and the others after the next request on the same connection.
    SendLate(Vec<u8>, Vec<u8>),
    /// Sends these bytes and closes the connection.
    Close(Vec<u8>),
    /// Sends these bytes repeatedly, with this pause between.
    Repeat(Vec<u8>, Duration),
    /// Sends nothing and keeps the connection open.
    Hang,
}

impl Reply {
    pub(crate) fn send(text: &str) -> Reply {
        Reply::Send(text.as_bytes().to_vec())
    }

    pub(crate) fn close(text: &str) -> Reply {
        Reply::Close(text.as_bytes().to_vec())
    }
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    connections: AtomicUsize,
    max_open: AtomicUsize,
}

#[derive(Debug)]
pub(crate) struct RawOrigin {
    pub(crate) url: String,
    counts: Arc<Counts>,
    stop: CancellationToken,
}

impl RawOrigin {
    /// Starts an origin. The function chooses the reply by the request's head and number, from 0.
    pub(crate) async fn start(
        reply: impl Fn(&str, usize) -> Reply + Send + Sync + 'static,
    ) -> RawOrigin {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let origin = RawOrigin { url, counts: Arc::default(), stop: CancellationToken::new() };
        let (counts, stop, reply) = (origin.counts.clone(), origin.stop.clone(), Arc::new(reply));
        tokio::spawn(async move {
            let mut open: Vec<Weak<std::net::TcpStream>> = Vec::new();
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((socket, _)) = accepted else { continue };
                let (counts, stop, reply) = (counts.clone(), stop.clone(), reply.clone());
                let socket = socket.into_std().unwrap();
                let handle = Arc::new(socket.try_clone().unwrap());
                open.retain(|other| other.upgrade().is_some_and(|other| is_open(&other)));
                open.push(Arc::downgrade(&handle));
                counts.connections.fetch_add(1, Ordering::SeqCst);
                counts.max_open.fetch_max(open.len(), Ordering::SeqCst);
                tokio::spawn(async move {
                    let socket = TcpStream::from_std(socket).unwrap();
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = serve(socket, &counts, &*reply) => {}
                    }
                    drop(handle);
                });
            }
        });
        origin
    }

    /// Returns the number of requests so far.
    pub(crate) fn request_count(&self) -> usize {
        self.counts.requests.load(Ordering::SeqCst)
    }

    /// Returns the number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::SeqCst)
    }

    /// Returns the maximum number of connections open at once.
    pub(crate) fn max_open(&self) -> usize {
        self.counts.max_open.load(Ordering::SeqCst)
    }
}

impl Drop for RawOrigin {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Returns whether the peer has not closed this connection. Reads the socket itself, because on a
/// loaded machine the task that serves it notices the close late.
fn is_open(socket: &std::net::TcpStream) -> bool {
    match socket.peek(&mut [0]) {
        Ok(length) => length > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

async fn serve(
    mut socket: TcpStream,
    counts: &Counts,
    reply: &(impl Fn(&str, usize) -> Reply + Sync),
) {
    let (mut read, mut late) = (Vec::new(), Vec::new());
    loop {
        let end = loop {
            if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            match socket.read_buf(&mut read).await {
                Ok(1..) => {}
                _ => return,
            }
        };
        let head = String::from_utf8(read.drain(..end).collect()).unwrap();
        let number = counts.requests.fetch_add(1, Ordering::SeqCst);
        if socket.write_all(&std::mem::take(&mut late)).await.is_err() {
            return;
        }
        match reply(&head, number) {
            Reply::SendLate(bytes, later) => {
                late = later;
                if socket.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Reply::Send(bytes) => {
                if socket.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Reply::Close(bytes) => {
                let _ = socket.write_all(&bytes).await;
                return;
            }
            Reply::Repeat(bytes, pause) => {
                while socket.write_all(&bytes).await.is_ok() {
                    tokio::time::sleep(pause).await;
                }
                return;
            }
            Reply::Hang => {
                // Returns when the gate closes the connection.
                let _ = socket.read_buf(&mut read).await;
                return;
            }
        }
    }
}
