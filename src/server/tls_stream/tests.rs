//! A wire against a real reader over loopback, whose records are looked at from outside.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::buffer_budget::Buffers;

/// A reader who takes the bytes off the socket by itself, so that it sees how they were sealed.
struct Reader {
    socket: TcpStream,
    session: ClientConnection,
    /// How long each record is that came, with its head.
    records: Vec<usize>,
    raw: Vec<u8>,
}

async fn joined(gathers: bool) -> (Wire, Reader, Connection) {
    joined_under(&Buffers::new(64 << 20), gathers).await
}

async fn joined_under(buffers: &Buffers, gathers: bool) -> (Wire, Reader, Connection) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = CertificateDer::from(made.cert.der().to_vec());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    server.send_tls13_tickets = 0;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connecting = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, socket);
    let accepting = async {
        let socket = listener.accept().await.unwrap().0;
        TlsAcceptor::from(Arc::new(server))
            .accept_with(socket, |session| session.set_buffer_limit(None))
            .await
    };
    let (reader, served) = tokio::join!(connecting, accepting);
    let (socket, session) = reader.unwrap().into_inner();
    let reader = Reader { socket, session, records: Vec::new(), raw: Vec::new() };
    let (socket, session) = served.unwrap().into_inner();
    let connection = Connection::new();
    let size = Size::new(buffers, MOST);
    (Wire::new(socket, session, connection.clone(), size, gathers), reader, connection)
}

impl Reader {
    /// Reads so many bytes of plaintext.
    async fn take(&mut self, count: usize) -> Vec<u8> {
        let mut plain = Vec::new();
        while plain.len() < count {
            let mut bytes = vec![0; 64 * 1024];
            let length = self.socket.read(&mut bytes).await.unwrap();
            assert!(length > 0, "the connection ended after {} of {count} bytes", plain.len());
            self.raw.extend_from_slice(&bytes[..length]);
            self.open(&mut plain);
        }
        assert_eq!(plain.len(), count);
        plain
    }

    fn open(&mut self, plain: &mut Vec<u8>) {
        while self.raw.len() >= 5 {
            let length = 5 + usize::from(u16::from_be_bytes([self.raw[3], self.raw[4]]));
            if self.raw.len() < length {
                return;
            }
            let record: Vec<u8> = self.raw.drain(..length).collect();
            self.records.push(length);
            let mut rest = record.as_slice();
            while !rest.is_empty() {
                self.session.read_tls(&mut rest).unwrap();
                self.session.process_new_packets().unwrap();
                let _ = self.session.reader().read_to_end(plain);
            }
        }
    }
}

fn some(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at * 31 + at / 256) as u8).collect()
}

/// Writes all of it in these pieces, two at a time, as hyper would, and sends it.
async fn write(wire: &mut Wire, bytes: &[u8], pieces: &[usize]) {
    let mut rest = bytes;
    for piece in pieces.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at((*piece).min(rest.len()));
        let (one, other) = now.split_at(now.len() / 3);
        let mut written = 0;
        while written < now.len() {
            let (one, other) =
                (&one[written.min(one.len())..], &other[written.saturating_sub(one.len())..]);
            let slices = [IoSlice::new(one), IoSlice::new(other)];
            let taken =
                poll_fn(|context| Pin::new(&mut *wire).poll_write_vectored(context, &slices)).await;
            let taken = taken.unwrap();
            assert!(taken > 0, "to HTTP it seems that nothing can be written any more");
            written += taken;
        }
        wire.flush().await.unwrap();
        rest = later;
    }
    poll_fn(|context| wire.poll_send(context)).await.unwrap();
}

use std::future::poll_fn;

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_the_pieces_the_reader_gets_the_same_bytes(
        gathers in any::<bool>(),
        budget in prop_oneof![Just(0_usize), Just(64 << 20)],
        length in 0_usize..600_000,
        pieces in prop::collection::vec(prop_oneof![1_usize..200, 1_000_usize..40_000, 16_380_usize..16_400], 1..6),
    ) {
        // Small pieces of something large would only take time.
        let length = length.min(pieces.iter().sum::<usize>() * 400);
        run(async {
            let (mut wire, mut reader, _) = joined_under(&Buffers::new(budget), gathers).await;
            let bytes = some(length);
            let (_, read) = tokio::join!(write(&mut wire, &bytes, &pieces), reader.take(length));
            assert!(read == bytes && wire.is_sent());
        });
    }
}

#[tokio::test]
async fn something_is_taken_however_little_room_is_left() {
    // What may be sealed at once after a question is used up but for some bytes, and then small
    // pieces are kept.
    for used in [81_536, 81_900, 65_536] {
        let (mut wire, mut reader, _) = joined_under(&Buffers::new(0), true).await;
        reader.session.writer().write_all(b"?").unwrap();
        let mut sealed = Vec::new();
        reader.session.write_tls(&mut sealed).unwrap();
        reader.socket.write_all(&sealed).await.unwrap();
        assert_eq!(wire.read(&mut [0; 8]).await.unwrap(), 1);
        let bytes = some(used + 200_000);
        let writing = async {
            write(&mut wire, &bytes[..used], &[used]).await;
            write(&mut wire, &bytes[used..], &[4000, 4000, 4000, 4000, 370, 9]).await;
        };
        let (_, read) = tokio::join!(writing, reader.take(bytes.len()));
        assert!(read == bytes);
    }
}

#[tokio::test]
async fn frames_are_gathered_into_whole_records() {
    let (mut wire, mut reader, _) = joined(true).await;
    let bytes = some(64 * (16 * 1024 + 9));
    // As HTTP/2 writes: a frame's head and its payload, and a flush after each.
    let (_, read) =
        tokio::join!(write(&mut wire, &bytes, &[16 * 1024 + 9]), reader.take(bytes.len()));
    assert!(read == bytes);
    let short = reader.records.iter().filter(|record| **record < RECORD).count();
    assert!(
        short <= 1 + 64 / 8,
        "{short} short records of {}: {:?}",
        reader.records.len(),
        reader.records
    );
}

#[tokio::test]
async fn what_is_gathered_leaves_when_it_is_sent_and_not_before() {
    let (mut wire, mut reader, _) = joined(true).await;
    wire.write_all(b"a frame").await.unwrap();
    wire.flush().await.unwrap();
    assert!(!wire.is_sent());
    let mut none = [0];
    assert!(reader.socket.try_read(&mut none).is_err(), "nothing has left");
    poll_fn(|context| wire.poll_send(context)).await.unwrap();
    assert_eq!(reader.take(7).await, b"a frame");

    let (mut wire, mut reader, _) = joined(false).await;
    wire.write_all(b"an answer").await.unwrap();
    wire.flush().await.unwrap();
    assert!(wire.is_sent());
    assert_eq!(reader.take(9).await, b"an answer");
}

#[tokio::test]
async fn a_reader_who_takes_nothing_holds_the_connection_up_until_it_takes_again() {
    let (mut wire, mut reader, connection) = joined(false).await;
    let bytes = some(32 << 20);
    let mut written = 0;
    // Until the system takes no more.
    loop {
        let slice = IoSlice::new(&bytes[written..]);
        let polled = poll_fn(|context| {
            Poll::Ready(Pin::new(&mut wire).poll_write_vectored(context, &[slice]))
        })
        .await;
        match polled {
            Poll::Ready(count) => written += count.unwrap(),
            Poll::Pending => break,
        }
    }
    assert!(connection.is_held_up() && !wire.is_sent());
    let wanted = bytes[..written].to_vec();
    let sending = poll_fn(|context| wire.poll_send(context));
    let (sent, read) = tokio::join!(sending, reader.take(written));
    sent.unwrap();
    assert!(read == wanted && !connection.is_held_up() && wire.is_sent());
}

#[tokio::test]
async fn the_end_is_told_and_what_was_put_back_is_read_first() {
    let (mut wire, mut reader, _) = joined(true).await;
    let mut hello = reader.session.writer();
    hello.write_all(b" of a head").unwrap();
    let mut sealed = Vec::new();
    reader.session.write_tls(&mut sealed).unwrap();
    reader.socket.write_all(&sealed).await.unwrap();
    wire.put_back(Bytes::from_static(b"the begin"));
    poll_fn(|context| wire.poll_readable(context)).await.unwrap();
    let mut head = [0; 19];
    wire.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"the begin of a head");
    assert!(wire.was_heard());
    wire.forget_heard();
    assert!(!wire.was_heard());

    wire.write_all(b"bye").await.unwrap();
    wire.shutdown().await.unwrap();
    assert_eq!(reader.take(3).await, b"bye");
    let mut rest = Vec::new();
    reader.socket.read_to_end(&mut rest).await.unwrap();
    let _ = reader.session.read_tls(&mut rest.as_slice());
    assert!(reader.session.process_new_packets().unwrap().peer_has_closed(), "by a close_notify");
}

#[derive(Debug)]
struct Body {
    connection: Connection,
    left: std::sync::atomic::AtomicUsize,
}

impl Body {
    fn left(&self) -> usize {
        self.left.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl crate::connection_handle::OutgoingBody for Body {
    fn connection(&self) -> &Connection {
        &self.connection
    }

    fn abort(&self, _why: crate::connection_handle::Abort) {}

    fn left(&self, _at: Option<u64>, count: usize) {
        self.left.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Writes what is accepted at once; how much that is.
fn write_now(wire: &mut Wire, bytes: &[u8]) -> usize {
    let mut context = Context::from_waker(std::task::Waker::noop());
    match Pin::new(wire).poll_write(&mut context, bytes) {
        Poll::Ready(written) => written.unwrap(),
        Poll::Pending => 0,
    }
}

#[test]
fn body_is_held_until_the_kernel_has_its_bytes() {
    run(async {
        for gathers in [false, true] {
            let (mut wire, mut reader, connection) = joined(gathers).await;
            let body = Arc::new(Body { connection: connection.clone(), left: Default::default() });
            let written = |count| Written { body: body.clone(), at: None, count };
            // The socket is full when no more is accepted.
            let (bytes, mut all) = (some(100_000), 0);
            loop {
                let count = write_now(&mut wire, &bytes);
                all += count;
                if count == 0 {
                    break;
                }
            }
            connection.record(written(1000));
            let mut context = Context::from_waker(std::task::Waker::noop());
            assert!(wire.poll_send(&mut context).is_pending());
            assert_eq!(body.left(), 0, "HTTP has not written all that it buffers");
            let _ = Pin::new(&mut wire).poll_flush(&mut context);
            assert!(wire.poll_send(&mut context).is_pending());
            assert_eq!(body.left(), 0, "it waits for the kernel");
            let (plain, sent) =
                tokio::join!(reader.take(all), poll_fn(|context| wire.poll_send(context)));
            sent.unwrap();
            assert_eq!((plain.len(), body.left()), (all, 1000));
            connection.record(written(10));
            drop(wire);
            assert_eq!(
                (body.left(), Arc::strong_count(&body)),
                (1000, 1),
                "what was not sent is not counted"
            );
        }
    });
}
