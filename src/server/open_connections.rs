//! The open connections of all workers: their limits, and which one is closed to admit a new one.
//!
//! The accept loops admit each connection here before it has a task, and drain all connections
//! here. A connection with accepted credentials is closed for another one only while it is idle. It
//! is drained, so that a request which is arriving still gets a response. The mutex is locked when
//! a connection opens or closes, never for a request.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use ipnet::IpNet;

use super::limits::{Limit, Limits};
use crate::client_networks::subscriber;
use crate::connection_handle::Connection;
use crate::lock::lock;
use crate::telemetry::Metrics;

/// How many connections may be closing, in addition to `limits.connections`. An evicted connection
/// keeps its file descriptor until its worker has closed it.
pub(super) const MAX_CLOSING: usize = 32;
/// How many connections one search for an idle connection checks.
const MAX_CHECKED: usize = 512;
/// How long a new connection has for its handshake and first request. After that, it is closed
/// before an idle one is.
const REQUEST_GRACE: Duration = Duration::from_secs(2);

/// The open connections of the server. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct OpenConnections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: ArcSwap<Limits>,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    draining: bool,
    last_number: u64,
    /// All open connections by number, the oldest first.
    connections: BTreeMap<u64, Connection>,
    /// Connections without accepted credentials, as far as known. One that has had them since is
    /// removed when it is next considered for closing.
    unproven: BTreeMap<u64, Unproven>,
    by_network: HashMap<IpNet, BTreeSet<u64>>,
    /// The number at which the next search for an idle connection starts.
    next_checked: u64,
}

/// A connection without accepted credentials, a candidate for closing.
#[derive(Debug)]
struct Unproven {
    /// The network that the connection counts for; none if it is exempt.
    network: Option<IpNet>,
    since: Instant,
}

/// The entry of an open connection, removed when it is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    open: OpenConnections,
    number: u64,
    connection: Connection,
    /// Whether another connection was closed for this one.
    pub(super) evicted_another: bool,
    /// Whether a load balancer has opened it, which names the client by a PROXY protocol header.
    pub(super) is_proxied: bool,
}

impl OpenConnections {
    pub(super) fn new(limits: Limits, metrics: Metrics) -> OpenConnections {
        let limits = ArcSwap::from_pointee(limits);
        OpenConnections(Arc::new(Shared { limits, metrics, state: Mutex::default() }))
    }

    /// Sets the limits for connections that are admitted later.
    pub(super) fn set_limits(&self, limits: &Arc<Limits>) {
        self.0.limits.store(limits.clone());
    }

    /// Admits a connection from this address. `local` returns the gate's address of it. Returns
    /// none if the server is full and no connection can be closed for it.
    pub(super) fn admit(
        &self,
        address: IpAddr,
        local: impl FnOnce() -> Option<SocketAddr>,
    ) -> Option<Entry> {
        let (limits, metrics) = (self.0.limits.load(), &self.0.metrics);
        let is_proxied = limits.has_proxy_header(address, local);
        // The client of a proxied connection is counted when it is known.
        let network = limits.counted_network(address).filter(|_| !is_proxied);
        let mut state = self.lock();
        let mut evicted_another =
            network.is_some_and(|network| state.make_room_in(network, &limits, metrics));
        // Nearly all connections beyond the limit are already closing, unless a reload has lowered
        // it. Then each refused one closes an idle one.
        if state.connections.len() >= limits.connections + MAX_CLOSING {
            metrics.limit_reached(Limit::Connections);
            if state.connections.len() > limits.connections + 2 * MAX_CLOSING {
                state.make_room(Instant::now());
            }
            return None;
        }
        // Connections that are already closing count against `MAX_CLOSING` only.
        if state.connections.len() >= limits.connections && !evicted_another {
            metrics.limit_reached(Limit::Connections);
            evicted_another = state.make_room(Instant::now());
            if !evicted_another {
                return None;
            }
        }
        let connection = Connection::new();
        if state.draining {
            connection.drain();
        }
        state.last_number += 1;
        let number = state.last_number;
        state.connections.insert(number, connection.clone());
        state.unproven.insert(number, Unproven { network, since: Instant::now() });
        if let Some(network) = network {
            state.by_network.entry(network).or_default().insert(number);
        }
        drop(state);
        Some(Entry { open: self.clone(), number, connection, evicted_another, is_proxied })
    }

    /// Closes a connection to free a file descriptor. Returns false if none can be closed.
    pub(super) fn make_room(&self) -> bool {
        self.lock().make_room(Instant::now())
    }

    /// Drains all connections, including those that are admitted later.
    pub(super) fn drain(&self) {
        let mut state = self.lock();
        state.draining = true;
        state.connections.values().for_each(Connection::drain);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

impl State {
    /// Closes a connection for another one: the oldest without accepted credentials after
    /// [`REQUEST_GRACE`], else an idle one, else the oldest without credentials. Returns false if
    /// there is none.
    fn make_room(&mut self, now: Instant) -> bool {
        let is_late = |since: Instant| now.saturating_duration_since(since) >= REQUEST_GRACE;
        self.close_oldest(is_late) || self.drain_idle() || self.close_oldest(|_| true)
    }

    /// Closes the oldest connections of a network until it may open another. Returns whether it
    /// closed one.
    fn make_room_in(&mut self, network: IpNet, limits: &Limits, metrics: &Metrics) -> bool {
        let mut has_closed = false;
        while let Some(own) = self.by_network.get(&network)
            && own.len() >= limits.connections_per_address
        {
            let oldest = own.first().copied();
            if oldest.is_some_and(|number| self.close_unproven(number)) {
                metrics.limit_reached(Limit::ConnectionsPerAddress);
                has_closed = true;
            }
        }
        has_closed
    }

    /// Closes the oldest connection without accepted credentials, if `may_close` allows it. Returns
    /// false if none is closed.
    fn close_oldest(&mut self, may_close: impl Fn(Instant) -> bool) -> bool {
        while let Some((number, unproven)) = self.unproven.first_key_value() {
            let (number, since) = (*number, unproven.since);
            let has_credentials =
                self.connections.get(&number).is_none_or(Connection::has_credentials);
            if !has_credentials && !may_close(since) {
                return false;
            }
            if self.close_unproven(number) {
                return true;
            }
        }
        false
    }

    /// Drains an idle connection. Returns false if none of the checked connections is idle. Each
    /// call continues where the last one ended, so that all connections are checked in turn.
    fn drain_idle(&mut self) -> bool {
        let (before, after) = (self.connections.range(..self.next_checked), self.next_checked..);
        for (number, connection) in self.connections.range(after).chain(before).take(MAX_CHECKED) {
            self.next_checked = number + 1;
            if connection.is_idle() && !connection.is_draining() {
                connection.evict();
                return true;
            }
        }
        false
    }

    /// Closes a connection unless it has had accepted credentials, and removes it from the
    /// candidates. Returns whether it was closed.
    fn close_unproven(&mut self, number: u64) -> bool {
        self.remove_candidate(number);
        match self.connections.get(&number) {
            Some(connection) if !connection.has_credentials() => {
                connection.abort();
                true
            }
            _ => false,
        }
    }

    fn remove_candidate(&mut self, number: u64) {
        let Some(Unproven { network: Some(network), .. }) = self.unproven.remove(&number) else {
            return;
        };
        if let Some(own) = self.by_network.get_mut(&network) {
            own.remove(&number);
            if own.is_empty() {
                self.by_network.remove(&network);
            }
        }
    }
}

impl Entry {
    /// The handle of the admitted connection.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Counts a proxied connection for its client.
    pub(super) fn count_for(&self, client: IpAddr) {
        let (limits, metrics) = (self.open.0.limits.load(), &self.open.0.metrics);
        let Some(network) = limits.counted_network(client) else { return };
        let mut state = self.open.lock();
        if !state.unproven.contains_key(&self.number) {
            return; // closed for another one
        }
        state.make_room_in(network, &limits, metrics);
        if let Some(unproven) = state.unproven.get_mut(&self.number) {
            unproven.network = Some(network);
            state.by_network.entry(network).or_default().insert(self.number);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut state = self.open.lock();
        state.connections.remove(&self.number);
        state.remove_candidate(self.number);
    }
}

impl Limits {
    /// Returns the network that connections from this address count for, together with those of the
    /// same subscriber; none if it is exempt.
    fn counted_network(&self, address: IpAddr) -> Option<IpNet> {
        (!self.is_exempt(address)).then(|| subscriber(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(connections: usize, connections_per_address: usize) -> OpenConnections {
        let exempt_networks = vec!["10.0.0.0/8".parse().unwrap()];
        let limits =
            Limits { connections, connections_per_address, exempt_networks, ..Limits::default() };
        OpenConnections::new(limits, Metrics::new().unwrap())
    }

    fn admit(open: &OpenConnections, address: &str) -> Entry {
        open.admit(address.parse().unwrap(), || None).unwrap()
    }

    fn are_aborted(entries: &[Entry]) -> Vec<bool> {
        entries.iter().map(|entry| entry.connection().is_aborted()).collect()
    }

    #[test]
    fn oldest_of_an_address_is_closed_for_its_newest() {
        let open = open(100, 3);
        let mut entries: Vec<_> = (0..3).map(|_| admit(&open, "192.0.2.1")).collect();
        let other = admit(&open, "192.0.2.2");
        entries.push(admit(&open, "192.0.2.1"));
        entries.push(admit(&open, "::ffff:192.0.2.1"));
        assert_eq!(are_aborted(&entries), [true, true, false, false, false]);
        assert!(entries[4].evicted_another && !other.connection().is_aborted());
    }

    #[test]
    fn accepted_credentials_do_not_count_for_an_address() {
        let open = open(100, 2);
        let school: Vec<_> = (0..20)
            .map(|_| {
                let entry = admit(&open, "192.0.2.1");
                entry.connection().note_credentials();
                entry
            })
            .collect();
        let silent: Vec<_> = (0..3).map(|_| admit(&open, "192.0.2.1")).collect();
        assert!(!are_aborted(&school).contains(&true));
        assert_eq!(are_aborted(&silent), [true, false, false]);
    }

    #[test]
    fn ipv6_subscriber_is_one_address() {
        let open = open(100, 1);
        let first = admit(&open, "2001:db8:0:1::1");
        let neighbour = admit(&open, "2001:db8:0:2::1");
        let second = admit(&open, "2001:db8:0:1:ffff::2");
        assert_eq!(are_aborted(&[first, neighbour, second]), [true, false, false]);
    }

    #[test]
    fn exempt_network_has_no_limit_per_address() {
        let open = open(100, 1);
        let balancer: Vec<_> = (0..50).map(|_| admit(&open, "10.0.0.1")).collect();
        assert!(!are_aborted(&balancer).contains(&true));
    }

    #[test]
    fn proxied_connections_count_for_their_clients() {
        let proxy_protocol = vec!["192.0.2.0/24".parse().unwrap()];
        let limits = Limits { connections: 100, connections_per_address: 2, ..Limits::default() };
        let limits = Limits { proxy_protocol, ..limits };
        let open = OpenConnections::new(limits, Metrics::new().unwrap());
        let balancer: Vec<_> = (0..9).map(|_| admit(&open, "192.0.2.1")).collect();
        assert!(balancer.iter().all(|entry| entry.is_proxied), "and none is closed");
        let client = "198.51.100.1".parse().unwrap();
        balancer.iter().take(4).for_each(|entry| entry.count_for(client));
        balancer[5].count_for("198.51.100.2".parse().unwrap());
        let aborted = [true, true, false, false, false, false, false, false, false];
        assert_eq!(are_aborted(&balancer), aborted);
        // One that was closed is not counted again.
        balancer[0].count_for("198.51.100.3".parse().unwrap());
        let direct = admit(&open, "198.51.100.1");
        assert!(!direct.is_proxied && balancer[2].connection().is_aborted());
        drop((balancer, direct));
        assert!(open.lock().by_network.is_empty());
    }

    #[test]
    fn full_server_closes_silent_connections_only() {
        let open = open(3, 3);
        let reader = admit(&open, "192.0.2.1");
        reader.connection().note_credentials();
        let silent = admit(&open, "192.0.2.2");
        let another = admit(&open, "192.0.2.3");
        let newest = admit(&open, "192.0.2.4");
        assert_eq!(are_aborted(&[reader, silent]), [false, true]);
        another.connection().note_credentials();
        newest.connection().note_credentials();
        let metrics = open.0.metrics.render();
        assert!(
            metrics.contains("loangate_limit_reached_total{limit=\"connections\"} 1"),
            "{metrics}"
        );
        // `reader` and `silent` are closed by now.
        let last = admit(&open, "192.0.2.5");
        last.connection().note_credentials();
        assert!(
            open.admit("192.0.2.6".parse().unwrap(), || None).is_none(),
            "all others have credentials"
        );
        drop(another);
        assert!(open.admit("192.0.2.6".parse().unwrap(), || None).is_some());
    }

    #[test]
    fn full_server_drains_an_idle_connection_for_each_new_one() {
        let open = open(4, 4);
        let readers: Vec<_> =
            (1..=4).map(|number| admit(&open, &format!("192.0.2.{number}"))).collect();
        readers.iter().for_each(|reader| reader.connection().note_credentials());
        readers[1].connection().note_established();
        readers[3].connection().note_established();
        let are_draining =
            || readers.iter().map(|reader| reader.connection().is_draining()).collect::<Vec<_>>();
        let new = admit(&open, "192.0.2.5");
        assert!(new.evicted_another);
        assert_eq!(are_draining(), [false, true, false, false], "only one");
        // The next one arrives before the first has sent its request.
        let another = admit(&open, "192.0.2.6");
        assert_eq!(are_draining(), [false, true, false, true]);
        assert!(!new.connection().is_aborted());
        new.connection().note_credentials();
        another.connection().note_credentials();
        assert!(
            open.admit("192.0.2.7".parse().unwrap(), || None).is_none(),
            "all others are in use"
        );
        readers[0].connection().note_established();
        let request = readers[0].connection().begin();
        assert!(!open.make_room(), "a request is in flight");
        drop(request);
        assert!(open.make_room() && readers[0].connection().is_draining());
        assert_eq!(are_aborted(&readers), [false; 4]);
    }

    #[test]
    fn late_new_connection_is_closed_before_an_idle_reader() {
        let open = open(2, 2);
        let reader = admit(&open, "192.0.2.1");
        reader.connection().note_credentials();
        reader.connection().note_established();
        let silent = admit(&open, "192.0.2.2");
        let made_room = open.lock().make_room(Instant::now() + REQUEST_GRACE);
        assert!(
            made_room && silent.connection().is_aborted() && !reader.connection().is_draining()
        );
    }

    #[test]
    fn refused_connection_evicts_no_reader() {
        let open = open(64, 64);
        let readers: Vec<_> = (0..64).map(|_| admit(&open, "192.0.2.1")).collect();
        readers.iter().for_each(|reader| {
            reader.connection().note_credentials();
            reader.connection().note_established();
        });
        let admitted: Vec<_> = (0..40)
            .filter_map(|_| open.admit("192.0.2.2".parse().unwrap(), || None))
            .inspect(|new| new.connection().note_credentials())
            .collect();
        let drained = readers.iter().filter(|reader| reader.connection().is_draining()).count();
        assert_eq!((admitted.len(), drained), (MAX_CLOSING, MAX_CLOSING));
    }

    #[test]
    fn search_for_an_idle_connection_is_bounded_and_resumes() {
        let many = 3 * MAX_CHECKED;
        let open = open(many, many);
        let readers: Vec<_> = (0..many).map(|_| admit(&open, "192.0.2.1")).collect();
        readers.iter().for_each(|reader| reader.connection().note_credentials());
        while open.lock().close_oldest(|_| true) {}
        readers[many - 1].connection().note_established();
        assert!(!open.make_room() && !open.make_room() && open.make_room());
    }

    #[test]
    fn closing_connections_are_bounded() {
        let open = open(4, 4);
        let address = "192.0.2.1".parse().unwrap();
        let admitted: Vec<_> =
            std::iter::from_fn(|| open.admit(address, || None)).take(1000).collect();
        assert_eq!(admitted.len(), 4 + MAX_CLOSING, "none of them is closed yet");
        drop(admitted);
        let state = open.lock();
        assert!(
            state.connections.is_empty()
                && state.unproven.is_empty()
                && state.by_network.is_empty()
        );
    }

    #[test]
    fn drain_reaches_later_connections_too() {
        let open = open(4, 4);
        let before = admit(&open, "192.0.2.1");
        open.drain();
        let after = admit(&open, "192.0.2.1");
        assert!(before.connection().is_draining() && after.connection().is_draining());
    }
}
