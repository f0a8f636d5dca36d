//! Tests of handovers between gates with different public addresses.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::super::ListenError;
use super::tests::{Gate, TIMEOUT, acquire, addresses, settings, start};
use crate::listeners::Addresses;
use crate::public_addresses::PublicAddresses;

/// Returns addresses with these public ones, of which each `PORT` is a free port.
fn listed(own: &Addresses, public: &[&str]) -> Addresses {
    let port = own.public.first().port().to_string();
    let list = public.iter().map(|address| address.replace("PORT", &port).parse().unwrap());
    let public = PublicAddresses::from_list(list.collect()).unwrap();
    Addresses { public, admin: own.admin }
}

fn at(own: &Addresses, ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), own.public.first().port())
}

/// Whether the gate accepts a connection to this address.
async fn is_served(gate: &Gate, address: SocketAddr) -> bool {
    let Ok(client) = TcpStream::connect(address).await else { return false };
    assert!(gate.accept(), "a connection to {address}");
    drop(client);
    true
}

#[tokio::test]
async fn successor_adds_and_drops_addresses() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory.path().join("handover"), TIMEOUT);
    let own = addresses();
    let (one, other) = (at(&own, "127.0.0.1"), at(&own, "127.0.0.2"));
    let first = start(&settings, &listed(&own, &["127.0.0.1:PORT"]), async {}).await.unwrap();
    let waiting = TcpStream::connect(one).await.unwrap();
    let both = listed(&own, &["127.0.0.2:PORT", "127.0.0.1:PORT"]);
    let second = start(&settings, &both, async {}).await.unwrap();
    assert!(first.has_handed_over());
    assert_eq!((&second.public, second.sockets.len()), (&both.public, 4));
    drop(first);
    assert!(second.accept(), "the connection that the first gate had not accepted");
    drop(waiting);
    assert!(is_served(&second, one).await && is_served(&second, other).await);

    let waiting = TcpStream::connect(one).await.unwrap();
    let third = start(&settings, &listed(&own, &["127.0.0.2:PORT"]), async {}).await.unwrap();
    assert!(second.has_handed_over() && !third.accept());
    assert!(second.accept(), "the connection to the dropped address");
    drop((waiting, second));
    assert!(!is_served(&third, one).await, "no gate has the dropped address");
    assert!(is_served(&third, other).await);
}

/// The address that both have is not the first of either.
#[tokio::test]
async fn one_public_address_in_common_is_enough() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory.path().join("handover"), TIMEOUT);
    let (own, moved) = (addresses(), addresses());
    let both = listed(&own, &["127.0.0.2:PORT", "127.0.0.1:PORT"]);
    let old = start(&settings, &both, async {}).await.unwrap();
    let public = [at(&own, "127.0.0.3"), at(&own, "127.0.0.1")];
    let public = PublicAddresses::from_list(public.to_vec()).unwrap();
    let new = Addresses { public, admin: moved.admin };
    let new = start(&settings, &new, async {}).await.unwrap();
    assert!(old.has_handed_over() && new.sockets.len() == 4);
}

#[tokio::test]
async fn wildcards_of_both_families_change_without_a_restart() {
    const BOTH: &[&str] = &["0.0.0.0:PORT", "[::]:PORT"];
    for (old, new, sockets) in [
        (BOTH, BOTH, 4),
        (&["[::]:PORT", "0.0.0.0:PORT"], BOTH, 4),
        (&["0.0.0.0:PORT"], BOTH, 4),
        (BOTH, &["[::]:PORT"], 4),
        // The sockets of `[::]` receive IPv4, too.
        (&["[::]:PORT"], BOTH, 2),
        (&["0.0.0.0:PORT"], &["[::]:PORT"], 4),
        (BOTH, &["0.0.0.0:PORT"], 2),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(&directory.path().join("handover"), TIMEOUT);
        let own = addresses();
        let first = start(&settings, &listed(&own, old), async {}).await.unwrap();
        let waiting = TcpStream::connect(at(&own, "127.0.0.1")).await.unwrap();
        let second = start(&settings, &listed(&own, new), async {}).await.unwrap();
        drop(first);
        assert!(second.accept(), "{old:?} {new:?}: the connection that was not accepted");
        drop(waiting);
        assert_eq!(second.sockets.len(), sockets, "{old:?} {new:?}");
        assert!(is_served(&second, at(&own, "127.0.0.1")).await, "{old:?} {new:?}");
        let is_ipv6 = new.contains(&"[::]:PORT");
        assert_eq!(is_served(&second, at(&own, "::1")).await, is_ipv6, "{old:?} {new:?}");
    }
}

/// Sockets that receive more or less than the configuration says are not used instead.
#[tokio::test]
async fn other_sockets_of_the_port_are_no_substitute() {
    for (old, new) in [
        (&["[::]:PORT"] as &[_], &["0.0.0.0:PORT"] as &[_]),
        (&["[::]:PORT"], &["127.0.0.1:PORT", "[::]:PORT"]),
        (&["127.0.0.1:PORT", "[::]:PORT"], &["[::]:PORT"]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(&directory.path().join("handover"), TIMEOUT);
        let own = addresses();
        let first = start(&settings, &listed(&own, old), async {}).await.unwrap();
        let mut listeners = acquire(&settings, &listed(&own, new)).await.unwrap();
        tokio::time::pause();
        let error = listeners.open(2).await.unwrap_err();
        tokio::time::resume();
        assert!(matches!(error, ListenError::Public { .. }), "{old:?} {new:?}: {error}");
        assert!(error.to_string().contains("in use"), "{old:?} {new:?}: {error}");
        assert!(!first.has_handed_over() && is_served(&first, at(&own, "127.0.0.1")).await);
    }
}
