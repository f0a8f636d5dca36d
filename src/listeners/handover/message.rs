//! Messages between two gates, with file descriptors.
//!
//! A message is its length, in four bytes, and JSON. The file descriptors travel with its first
//! byte.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{FileIdentity, Refusal};
use crate::service_manager::ServiceManager;

/// The most bytes of a message's JSON.
const MAX_LENGTH: usize = 16 * 1024;
/// The most sockets of one message. The kernel allows 253.
pub(super) const MAX_SOCKETS: usize = 64;
const LENGTH_BYTES: usize = 4;

/// A message between two gates.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// The successor's first message.
    ///
    /// `public` is the first of its public addresses. `other_public` are the others, which a gate
    /// of an earlier version neither sends nor reads.
    Hello {
        version: u32,
        public: SocketAddr,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        other_public: Vec<SocketAddr>,
        admin: SocketAddr,
        /// The file at its `listen.admin_socket`. An older gate does not know it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        admin_file: Option<FileIdentity>,
    },
    /// The predecessor does not hand over.
    Refused { reason: Refusal },
    /// The names of the sockets that come with the message, in order. More follow unless it is the
    /// last one.
    Sockets { names: Vec<String>, is_last: bool },
    /// The successor can serve.
    Ready,
    /// The successor shall serve.
    Go { service_manager: ServiceManager },
    /// The successor serves.
    Serving,
    /// The predecessor drains.
    Draining,
}

/// Sends a message with file descriptors, [`MAX_SOCKETS`] at most.
///
/// # Errors
/// Returns the error of the operating system, or `TimedOut`.
pub(super) async fn send(
    stream: &UnixStream,
    message: &Message,
    sockets: &[BorrowedFd<'_>],
    limit: Duration,
) -> io::Result<()> {
    let json = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    let bytes = [length.to_be_bytes().as_slice(), &json].concat();
    let sending = async {
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            let with = if sent == 0 { sockets } else { &[] };
            sent += stream.async_io(Interest::WRITABLE, || send_some(stream, rest, with)).await?;
        }
        Ok(())
    };
    timeout(limit, sending).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

fn send_some(stream: &UnixStream, bytes: &[u8], sockets: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(stream.as_fd(), &[IoSlice::new(bytes)], &mut control, flags)?)
}

/// Receives a message with its file descriptors.
///
/// # Errors
/// Returns the error of the operating system, `UnexpectedEof` if the other side has closed the
/// stream, `InvalidData` for what is no message, or `TimedOut`.
pub(super) async fn receive(
    stream: &UnixStream,
    limit: Duration,
) -> io::Result<(Message, Vec<OwnedFd>)> {
    let receiving = async {
        let mut sockets = Vec::new();
        let mut length = [0; LENGTH_BYTES];
        fill(stream, &mut length, &mut sockets).await?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_LENGTH {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut json = vec![0; length];
        fill(stream, &mut json, &mut sockets).await?;
        let message = serde_json::from_slice(&json)
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        let expected = match &message {
            Message::Sockets { names, .. } => names.len(),
            _ => 0,
        };
        match sockets.len() == expected {
            true => Ok((message, sockets)),
            false => Err(ErrorKind::InvalidData.into()),
        }
    };
    timeout(limit, receiving).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

async fn fill(
    stream: &UnixStream,
    buffer: &mut [u8],
    sockets: &mut Vec<OwnedFd>,
) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let received =
            stream.async_io(Interest::READABLE, || receive_some(stream, rest, sockets)).await?;
        if received == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        filled += received;
    }
    Ok(())
}

fn receive_some(
    stream: &UnixStream,
    buffer: &mut [u8],
    sockets: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(stream.as_fd(), &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            sockets.extend(received);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || sockets.len() > MAX_SOCKETS {
        return Err(ErrorKind::InvalidData.into());
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn pair() -> (UnixStream, std::os::unix::net::UnixStream) {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        (UnixStream::from_std(one).unwrap(), other)
    }

    #[tokio::test]
    async fn sockets_arrive_with_their_names() {
        let (one, other) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let names = vec!["public".to_owned(); MAX_SOCKETS];
        let message = Message::Sockets { names, is_last: true };
        let sockets = [listener.as_fd(); MAX_SOCKETS];
        send(&one, &message, &sockets, LIMIT).await.unwrap();
        send(&one, &Message::Ready, &[], LIMIT).await.unwrap();
        let (received, sockets) = receive(&other, LIMIT).await.unwrap();
        assert_eq!((received, sockets.len()), (message, MAX_SOCKETS));
        let duplicate = TcpListener::from(sockets.into_iter().next().unwrap());
        assert_eq!(duplicate.local_addr().unwrap(), listener.local_addr().unwrap());
        let (received, sockets) = receive(&other, LIMIT).await.unwrap();
        assert_eq!((received, sockets.len()), (Message::Ready, 0));
        drop(one);
        assert_eq!(receive(&other, LIMIT).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn sockets_without_names_are_refused() {
        let (one, other) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for (names, sockets) in [(0, 1), (1, 0), (2, 1), (1, 2)] {
            let names = vec!["public".to_owned(); names];
            let message = Message::Sockets { names, is_last: true };
            send(&one, &message, &vec![listener.as_fd(); sockets], LIMIT).await.unwrap();
            assert_eq!(receive(&other, LIMIT).await.unwrap_err().kind(), ErrorKind::InvalidData);
        }
        send(&one, &Message::Ready, &[listener.as_fd()], LIMIT).await.unwrap();
        assert_eq!(receive(&other, LIMIT).await.unwrap_err().kind(), ErrorKind::InvalidData);
    }

    /// A gate of an earlier version knows no list.
    #[test]
    fn one_address_is_sent_as_before() {
        let json =
            "{\"hello\":{\"version\":1,\"public\":\"127.0.0.1:1\",\"admin\":\"127.0.0.1:2\"}}";
        let hello: Message = serde_json::from_str(json).unwrap();
        let one = Message::Hello {
            version: 1,
            public: ([127, 0, 0, 1], 1).into(),
            other_public: Vec::new(),
            admin: ([127, 0, 0, 1], 2).into(),
            admin_file: None,
        };
        assert_eq!(hello, one);
        assert_eq!(serde_json::to_string(&one).unwrap(), json);
    }

    #[tokio::test]
    async fn garbage_is_refused() {
        for bytes in [
            b"GET / HTTP/1.1\r\n\r\n".as_slice(),
            &[0xff; 64],
            &[0, 0, 0, 0],
            b"\0\0\0\x02{}",
            b"\0\0\0\x07\"readyy",
            b"\0\0\0\x0c{\"hello\": 1}",
            b"\0\0\0\x02\xff\xfe",
        ] {
            let (gate, mut client) = pair();
            client.write_all(bytes).unwrap();
            let error = receive(&gate, LIMIT).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{bytes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silent_peer_is_not_waited_for() {
        let (gate, mut client) = pair();
        client.write_all(b"\0\0\0\x07\"re").unwrap();
        assert_eq!(receive(&gate, LIMIT).await.unwrap_err().kind(), ErrorKind::TimedOut);
        let message = Message::Sockets { names: vec!["x".repeat(8000)], is_last: true };
        let sent = async { while send(&gate, &message, &[], LIMIT).await.is_ok() {} };
        sent.await;
    }
}
