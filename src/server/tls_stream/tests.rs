//! A TLS stream against a real reader over loopback that sees the boundaries of the records.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::write::RECORD_SIZE;
use super::*;
use crate::buffer_budget::Buffers;
use crate::connection_handle::Written;

/// A reader that splits the ciphertext into records before it decrypts them.
struct Reader {
    socket: TcpStream,
    session: ClientConnection,
    /// The length of each received record, in bytes, header included.
    records: Vec<usize>,
    raw: Vec<u8>,
}

async fn connect(coalesces: bool) -> (TlsStream, Reader, Connection) {
    connect_with_budget(&Buffers::new(64 << 20), coalesces).await
}

async fn connect_with_budget(
    buffers: &Buffers,
    coalesces: bool,
) -> (TlsStream, Reader, Connection) {
    let generated = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = CertificateDer::from(generated.cert.der().to_vec());
    let key = PrivateKeyDer::try_from(generated.signing_key.serialize_der()).unwrap();
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
    let size = Size::new(buffers, MAX_SEALED);
    (TlsStream::new(socket, session, connection.clone(), size, coalesces), reader, connection)
}

impl Reader {
    /// Reads `count` bytes of plaintext.
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

fn bytes_of_length(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at * 31 + at / 256) as u8).collect()
}

/// Writes the bytes in chunks of these lengths, two slices per call as hyper does, and sends them.
async fn write(stream: &mut TlsStream, bytes: &[u8], chunks: &[usize]) {
    let mut rest = bytes;
    for chunk in chunks.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at((*chunk).min(rest.len()));
        let (one, other) = now.split_at(now.len() / 3);
        let mut written = 0;
        while written < now.len() {
            let (one, other) =
                (&one[written.min(one.len())..], &other[written.saturating_sub(one.len())..]);
            let slices = [IoSlice::new(one), IoSlice::new(other)];
            let taken =
                poll_fn(|context| Pin::new(&mut *stream).poll_write_vectored(context, &slices))
                    .await;
            let taken = taken.unwrap();
            assert!(taken > 0, "Ok(0) reports that the stream is closed for writing");
            written += taken;
        }
        stream.flush().await.unwrap();
        rest = later;
    }
    poll_fn(|context| stream.poll_send(context)).await.unwrap();
}

use std::future::poll_fn;

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn reader_gets_the_same_bytes_for_any_chunk_lengths(
        coalesces in any::<bool>(),
        budget in prop_oneof![Just(0_usize), Just(64 << 20)],
        length in 0_usize..600_000,
        chunks in prop::collection::vec(
            prop_oneof![1_usize..200, 1_000_usize..40_000, 16_380_usize..16_400],
            1..6,
        ),
    ) {
        // Many small chunks would only make the test slow.
        let length = length.min(chunks.iter().sum::<usize>() * 400);
        run(async {
            let buffers = Buffers::new(budget);
            let (mut stream, mut reader, _) = connect_with_budget(&buffers, coalesces).await;
            let bytes = bytes_of_length(length);
            let (_, read) = tokio::join!(write(&mut stream, &bytes, &chunks), reader.take(length));
            assert!(read == bytes && stream.is_sent());
        });
    }
}

#[tokio::test]
async fn write_accepts_bytes_when_little_room_is_left() {
    // The bytes that may be sealed directly after a read are nearly used up. Then small chunks
    // collect in the tail.
    for used in [81_536, 81_900, 65_536] {
        let (mut stream, mut reader, _) = connect_with_budget(&Buffers::new(0), true).await;
        reader.session.writer().write_all(b"?").unwrap();
        let mut sealed = Vec::new();
        reader.session.write_tls(&mut sealed).unwrap();
        reader.socket.write_all(&sealed).await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 1);
        let bytes = bytes_of_length(used + 200_000);
        let writing = async {
            write(&mut stream, &bytes[..used], &[used]).await;
            write(&mut stream, &bytes[used..], &[4000, 4000, 4000, 4000, 370, 9]).await;
        };
        let (_, read) = tokio::join!(writing, reader.take(bytes.len()));
        assert!(read == bytes);
    }
}

#[tokio::test]
async fn frames_are_coalesced_into_full_records() {
    let (mut stream, mut reader, _) = connect(true).await;
    let bytes = bytes_of_length(64 * (16 * 1024 + 9));
    // HTTP/2 writes a frame's header and its payload, and flushes after each.
    let (_, read) =
        tokio::join!(write(&mut stream, &bytes, &[16 * 1024 + 9]), reader.take(bytes.len()));
    assert!(read == bytes);
    let short = reader.records.iter().filter(|record| **record < RECORD_SIZE).count();
    assert!(
        short <= 1 + 64 / 8,
        "{short} short records of {}: {:?}",
        reader.records.len(),
        reader.records
    );
}

#[tokio::test]
async fn coalesced_bytes_are_sent_by_poll_send_only() {
    let (mut stream, mut reader, _) = connect(true).await;
    stream.write_all(b"a frame").await.unwrap();
    stream.flush().await.unwrap();
    assert!(!stream.is_sent());
    let mut none = [0];
    assert!(reader.socket.try_read(&mut none).is_err(), "nothing is sent");
    poll_fn(|context| stream.poll_send(context)).await.unwrap();
    assert_eq!(reader.take(7).await, b"a frame");

    let (mut stream, mut reader, _) = connect(false).await;
    stream.write_all(b"an answer").await.unwrap();
    stream.flush().await.unwrap();
    assert!(stream.is_sent());
    assert_eq!(reader.take(9).await, b"an answer");
}

#[tokio::test]
async fn stalled_reader_blocks_writes_until_it_reads_again() {
    let (mut stream, mut reader, connection) = connect(false).await;
    let bytes = bytes_of_length(32 << 20);
    let mut written = 0;
    // Until the kernel accepts no more.
    loop {
        let slice = IoSlice::new(&bytes[written..]);
        let polled = poll_fn(|context| {
            Poll::Ready(Pin::new(&mut stream).poll_write_vectored(context, &[slice]))
        })
        .await;
        match polled {
            Poll::Ready(count) => written += count.unwrap(),
            Poll::Pending => break,
        }
    }
    assert!(connection.is_write_blocked() && !stream.is_sent());
    let wanted = bytes[..written].to_vec();
    let sending = poll_fn(|context| stream.poll_send(context));
    let (sent, read) = tokio::join!(sending, reader.take(written));
    sent.unwrap();
    assert!(read == wanted && !connection.is_write_blocked() && stream.is_sent());
}

#[tokio::test]
async fn put_back_input_is_read_first_and_close_notify_is_sent() {
    let (mut stream, mut reader, _) = connect(true).await;
    let mut hello = reader.session.writer();
    hello.write_all(b" of a head").unwrap();
    let mut sealed = Vec::new();
    reader.session.write_tls(&mut sealed).unwrap();
    reader.socket.write_all(&sealed).await.unwrap();
    stream.put_back(Bytes::from_static(b"the begin"));
    poll_fn(|context| stream.poll_readable(context)).await.unwrap();
    let mut head = [0; 19];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"the begin of a head");
    assert!(stream.has_unparsed_input());
    stream.clear_unparsed_input();
    assert!(!stream.has_unparsed_input());

    stream.write_all(b"bye").await.unwrap();
    stream.shutdown().await.unwrap();
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

/// Writes as much as is accepted without waiting, and returns how much.
fn write_now(stream: &mut TlsStream, bytes: &[u8]) -> usize {
    let mut context = Context::from_waker(std::task::Waker::noop());
    match Pin::new(stream).poll_write(&mut context, bytes) {
        Poll::Ready(written) => written.unwrap(),
        Poll::Pending => 0,
    }
}

#[test]
fn body_is_released_once_the_kernel_has_its_bytes() {
    run(async {
        for coalesces in [false, true] {
            let (mut stream, mut reader, connection) = connect(coalesces).await;
            let body = Arc::new(Body { connection: connection.clone(), left: Default::default() });
            let written = |count| Written { body: body.clone(), at: None, count };
            // The socket is full when no more is accepted.
            let (bytes, mut all) = (bytes_of_length(100_000), 0);
            loop {
                let count = write_now(&mut stream, &bytes);
                all += count;
                if count == 0 {
                    break;
                }
            }
            connection.record(written(1000));
            let mut context = Context::from_waker(std::task::Waker::noop());
            assert!(stream.poll_send(&mut context).is_pending());
            assert_eq!(body.left(), 0, "the HTTP library has not flushed its buffer");
            let _ = Pin::new(&mut stream).poll_flush(&mut context);
            assert!(stream.poll_send(&mut context).is_pending());
            assert_eq!(body.left(), 0, "the kernel has not accepted the bytes");
            let (plain, sent) =
                tokio::join!(reader.take(all), poll_fn(|context| stream.poll_send(context)));
            sent.unwrap();
            assert_eq!((plain.len(), body.left()), (all, 1000));
            connection.record(written(10));
            drop(stream);
            assert_eq!(
                (body.left(), Arc::strong_count(&body)),
                (1000, 1),
                "unsent bytes are not counted"
            );
        }
    });
}
