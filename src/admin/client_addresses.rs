//! Connections to the admin listener, with a limit on them and a record of wrong tokens by address.
//!
//! `listen` admits each connection, and `auth` records whether a token was right, for the client
//! that a proxy has named. All state is bounded.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use http::HeaderMap;
use tokio_util::sync::CancellationToken;

use super::forwarded::Proxies;
use crate::client_networks::subscriber;
use crate::lock::lock;

/// The most open connections.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// The most connections of one session of the console. A browser opens six, and streams.
const MAX_OF_SESSION: usize = 12;
/// The most addresses whose wrong tokens are recorded.
const MAX_RECORDED_ADDRESSES: usize = 1024;
/// How long an address is recorded after its last wrong token.
const RECORD_LIFETIME: Duration = Duration::from_secs(600);
/// The additional delay for each further wrong token, and the longest delay.
const DELAY_STEP: Duration = Duration::from_millis(25);
const MAX_DELAY: Duration = Duration::from_secs(1);

/// All open connections, shared between clones.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    /// The connections by number: the oldest first.
    connections: BTreeMap<u64, Connection>,
    wrong_tokens: HashMap<IpAddr, WrongTokens>,
}

#[derive(Debug)]
struct Connection {
    close: CancellationToken,
    credentials: Credentials,
}

/// What the client of a connection has sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Credentials {
    None,
    /// A session of the console, by its number.
    Session(u64),
    /// The admin token.
    Token,
}

#[derive(Clone, Copy, Debug)]
struct WrongTokens {
    count: u32,
    last: Instant,
}

/// Where a connection is from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Source {
    Address(IpAddr),
    /// The Unix socket. All its connections are of one client of this machine.
    Local,
}

/// A connection to the admin listener.
#[derive(Debug)]
pub(super) struct Peer {
    peers: Peers,
    number: u64,
    source: Source,
    close: CancellationToken,
}

/// The client of a request.
#[derive(Clone, Debug)]
pub(super) struct Client {
    peer: Arc<Peer>,
    address: IpAddr,
    is_forwarded: bool,
}

impl Source {
    fn address(self) -> IpAddr {
        match self {
            Source::Address(address) => address,
            Source::Local => Ipv4Addr::LOCALHOST.into(),
        }
    }
}

impl Peers {
    /// Admits a connection. At the limit, it closes the oldest one without credentials, or else the
    /// oldest one of the session with the most. None if all have the token.
    pub(super) fn admit(&self, source: Source) -> Option<Arc<Peer>> {
        let mut state = self.lock();
        if state.connections.len() >= MAX_CONNECTIONS {
            let number = state.least()?;
            state.close(number);
        }
        state.last += 1;
        let (number, close) = (state.last, CancellationToken::new());
        let credentials = Credentials::None;
        state.connections.insert(number, Connection { close: close.clone(), credentials });
        drop(state);
        Some(Arc::new(Peer { peers: self.clone(), number, source, close }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

impl State {
    /// Returns the connection to close for another one.
    fn least(&self) -> Option<u64> {
        let mut all = self.connections.iter();
        let unknown = all.find(|(_, connection)| connection.credentials == Credentials::None);
        if let Some((number, _)) = unknown {
            return Some(*number);
        }
        let sessions = self.connections.values().filter_map(|one| match one.credentials {
            Credentials::Session(session) => Some(session),
            Credentials::None | Credentials::Token => None,
        });
        let largest = sessions.max_by_key(|session| self.of_session(*session).len())?;
        self.of_session(largest).first().copied()
    }

    /// Returns the connections of a session, the oldest first.
    fn of_session(&self, session: u64) -> Vec<u64> {
        let credentials = Credentials::Session(session);
        let all = self.connections.iter();
        let own = all.filter(|(_, connection)| connection.credentials == credentials);
        own.map(|(number, _)| *number).collect()
    }

    fn close(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            connection.close.cancel();
        }
    }
}

impl Peer {
    /// Returns the client of a request on this connection.
    pub(super) fn client(self: &Arc<Peer>, headers: &HeaderMap, proxies: &Proxies) -> Client {
        let forwarded = match self.source {
            Source::Address(address) => proxies.client(address, headers),
            // A proxy is found by its address, and has none here.
            Source::Local => None,
        };
        let address = subscriber(forwarded.unwrap_or(self.source.address())).addr();
        Client { peer: self.clone(), address, is_forwarded: forwarded.is_some() }
    }

    /// Completes when the connection must close to make room for another.
    pub(super) async fn closed(&self) {
        self.close.cancelled().await;
    }
}

impl Client {
    /// Returns the client's address; for IPv6, its /64 network.
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether the connection is to the Unix socket.
    pub(super) fn is_local(&self) -> bool {
        self.peer.source == Source::Local
    }

    /// Whether a proxy has named the client.
    pub(super) fn is_forwarded(&self) -> bool {
        self.is_forwarded
    }

    /// Records that the client sent the token.
    pub(super) fn record_token(&self) {
        let peer = &self.peer;
        if let Some(connection) = peer.peers.lock().connections.get_mut(&peer.number) {
            connection.credentials = Credentials::Token;
        }
    }

    /// Records that the client has a session of the console. A session with too many connections
    /// loses its oldest one: nobody with a session can keep others out.
    pub(super) fn record_session(&self, session: u64) {
        let mut state = self.peer.peers.lock();
        let Some(connection) = state.connections.get_mut(&self.peer.number) else { return };
        let credentials = Credentials::Session(session);
        if connection.credentials == credentials {
            return;
        }
        connection.credentials = credentials;
        let of_session = state.of_session(session);
        if let Some(oldest) = of_session.first().filter(|_| of_session.len() > MAX_OF_SESSION) {
            state.close(*oldest);
        }
    }

    /// Records a wrong token, and returns the delay for the response. The delay grows with each
    /// wrong token from the address.
    pub(super) fn record_wrong_token(&self, now: Instant) -> Duration {
        let wrong = &mut self.peer.peers.lock().wrong_tokens;
        if wrong.len() >= MAX_RECORDED_ADDRESSES && !wrong.contains_key(&self.address) {
            wrong.retain(|_, tokens| now.duration_since(tokens.last) < RECORD_LIFETIME);
            let oldest =
                wrong.iter().min_by_key(|(_, tokens)| tokens.last).map(|(address, _)| *address);
            if let (true, Some(oldest)) = (wrong.len() >= MAX_RECORDED_ADDRESSES, oldest) {
                wrong.remove(&oldest);
            }
        }
        let tokens = wrong.entry(self.address).or_insert(WrongTokens { count: 0, last: now });
        if now.duration_since(tokens.last) >= RECORD_LIFETIME {
            tokens.count = 0;
        }
        tokens.count = tokens.count.saturating_add(1);
        tokens.last = now;
        DELAY_STEP.saturating_mul(tokens.count - 1).min(MAX_DELAY)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.peers.lock().connections.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(number))
    }

    fn client(peers: &Peers, number: u32) -> Client {
        let peer = peers.admit(Source::Address(address(number))).unwrap();
        peer.client(&HeaderMap::new(), &Proxies::default())
    }

    #[test]
    fn oldest_connection_without_the_token_is_closed() {
        let peers = Peers::default();
        let mut open: Vec<_> = (0..MAX_CONNECTIONS).map(|_| client(&peers, 1)).collect();
        open[0].record_token();
        open.push(client(&peers, 2));
        let closed: Vec<bool> = open.iter().map(|peer| peer.peer.close.is_cancelled()).collect();
        assert_eq!(closed.iter().filter(|closed| **closed).count(), 1);
        assert!(closed[1], "the oldest without the token");
        open.iter().for_each(|peer| peer.record_token());
        let another = Source::Address(address(3));
        assert!(peers.admit(another).is_none(), "all have the token");
        open.pop();
        assert!(peers.admit(another).is_some());
        drop(open);
        assert!(peers.lock().connections.is_empty());
    }

    #[test]
    fn sessions_keep_nobody_out() {
        let peers = Peers::default();
        let one = |session| {
            let peer = client(&peers, 1);
            peer.record_session(session);
            peer
        };
        let mut open: Vec<_> = (0..64).map(|_| one(1)).collect();
        let closed =
            |open: &[Client]| open.iter().filter(|one| one.peer.close.is_cancelled()).count();
        assert_eq!(closed(&open), 64 - MAX_OF_SESSION, "its oldest ones");
        // Many sessions together, and a client without credentials, such as a probe.
        open.extend((2..20).flat_map(|session| [0; 10].map(|_| one(session))));
        let probe = client(&peers, 2);
        assert!(!probe.peer.close.is_cancelled());
        probe.record_token();
        open.extend((20..40).flat_map(|session| [0; 10].map(|_| one(session))));
        assert!(!probe.peer.close.is_cancelled());
        assert_eq!(open.len() - closed(&open), MAX_CONNECTIONS - 1);
    }

    #[test]
    fn unix_socket_is_one_client_that_no_proxy_names() {
        let peers = Peers::default();
        let proxies =
            Proxies { networks: vec!["127.0.0.0/8".parse().unwrap()], ..Proxies::default() };
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "192.0.2.7".parse().unwrap());
        let of = |source| peers.admit(source).unwrap().client(&headers, &proxies);
        let (local, proxy) = (of(Source::Local), of(Source::Address(Ipv4Addr::LOCALHOST.into())));
        assert!(local.is_local() && !local.is_forwarded());
        assert_eq!(local.address(), Ipv4Addr::LOCALHOST);
        assert!(!proxy.is_local() && proxy.is_forwarded());
        let (now, other) = (Instant::now(), of(Source::Local));
        assert!(local.record_wrong_token(now).is_zero());
        assert!(!other.record_wrong_token(now).is_zero(), "the same client");
    }

    #[test]
    fn delay_grows_with_each_wrong_token_of_an_address() {
        let peers = Peers::default();
        let (guesser, other) = (client(&peers, 1), client(&peers, 2));
        let now = Instant::now();
        let delays: Vec<_> = (0..100).map(|_| guesser.record_wrong_token(now)).collect();
        assert!(delays[0].is_zero() && delays.is_sorted() && delays[99] == MAX_DELAY, "{delays:?}");
        assert!(other.record_wrong_token(now).is_zero());
        assert!(
            guesser.record_wrong_token(now + RECORD_LIFETIME).is_zero(),
            "the record has expired"
        );
    }

    #[test]
    fn number_of_recorded_addresses_is_bounded() {
        let peers = Peers::default();
        let began = Instant::now();
        for number in 0..5000 {
            let peer = client(&peers, number);
            peer.record_wrong_token(began + Duration::from_millis(number.into()));
        }
        assert_eq!(peers.lock().wrong_tokens.len(), MAX_RECORDED_ADDRESSES);
        assert!(peers.lock().wrong_tokens.contains_key(&address(4999)));
    }
}
