//! The limit of how many codes are exchanged at once, in all and for each client's address.
//!
//! Anybody can begin a sign-in and return with an invented code. So one address gets only some of
//! the permits, and few places to wait. Its slow exchanges delay its own others.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::lock::lock;

/// The most codes that are exchanged at once, in all and for one address.
const MAX_EXCHANGES: usize = 8;
const MAX_EXCHANGES_OF_ADDRESS: usize = 2;
/// The most callbacks that exchange or wait, in all and for one address.
const MAX_CALLBACKS: usize = 48;
const MAX_CALLBACKS_OF_ADDRESS: usize = 6;
/// How long a callback waits for a permit.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// The permits of exchanges.
pub(super) struct Exchanges {
    permits: Semaphore,
    /// The addresses with callbacks that exchange or wait. Only the total limits apply to unknown
    /// addresses, which are none.
    queues: Mutex<HashMap<Option<IpAddr>, Queue>>,
}

/// The callbacks of an address.
struct Queue {
    callbacks: usize,
    permits: Arc<Semaphore>,
}

/// A place in the queue of an address, until it is dropped.
struct Place<'a> {
    exchanges: &'a Exchanges,
    address: Option<IpAddr>,
    permits: Arc<Semaphore>,
}

/// The permission to exchange a code, until it is dropped.
pub(super) struct ExchangePermit<'a> {
    _all: SemaphorePermit<'a>,
    _of_address: OwnedSemaphorePermit,
    _place: Place<'a>,
}

impl Default for Exchanges {
    fn default() -> Exchanges {
        Exchanges { permits: Semaphore::new(MAX_EXCHANGES), queues: Mutex::default() }
    }
}

impl Exchanges {
    /// Waits for a permit; none if too many callbacks wait, or for too long.
    pub(super) async fn acquire(&self, address: Option<IpAddr>) -> Option<ExchangePermit<'_>> {
        let place = self.enter(address)?;
        let permits = async {
            // First, so that an address that waits for itself holds no permit of all.
            let of_address = place.permits.clone().acquire_owned().await.ok()?;
            Some((self.permits.acquire().await.ok()?, of_address))
        };
        let (all, of_address) = timeout(MAX_WAIT, permits).await.ok()??;
        Some(ExchangePermit { _all: all, _of_address: of_address, _place: place })
    }

    fn enter(&self, address: Option<IpAddr>) -> Option<Place<'_>> {
        let (most, at_once) = match address {
            Some(_) => (MAX_CALLBACKS_OF_ADDRESS, MAX_EXCHANGES_OF_ADDRESS),
            None => (MAX_CALLBACKS, MAX_EXCHANGES),
        };
        let mut queues = lock(&self.queues);
        let total: usize = queues.values().map(|queue| queue.callbacks).sum();
        if total >= MAX_CALLBACKS {
            return None;
        }
        let queue = queues
            .entry(address)
            .or_insert_with(|| Queue { callbacks: 0, permits: Arc::new(Semaphore::new(at_once)) });
        if queue.callbacks >= most {
            return None;
        }
        queue.callbacks += 1;
        Some(Place { exchanges: self, address, permits: queue.permits.clone() })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut queue) = lock(&self.exchanges.queues).entry(self.address) {
            queue.get_mut().callbacks -= 1;
            if queue.get().callbacks == 0 {
                queue.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    fn address(number: u8) -> Option<IpAddr> {
        Some([10, 0, 0, number].into())
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_cannot_take_all_permits() {
        let exchanges = Exchanges::default();
        let flood = join_all((0..100).map(|_| exchanges.acquire(address(1)))).await;
        let flood: Vec<_> = flood.into_iter().flatten().collect();
        assert_eq!(flood.len(), MAX_EXCHANGES_OF_ADDRESS);
        assert!(exchanges.acquire(address(2)).await.is_some());
        drop(flood);
        assert!(exchanges.acquire(address(1)).await.is_some());
        assert!(lock(&exchanges.queues).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn callback_waits_a_while_for_a_permit() {
        let exchanges = Exchanges::default();
        let running = join_all((0..8).map(|number| exchanges.acquire(address(number)))).await;
        let late = async {
            tokio::time::sleep(MAX_WAIT - Duration::from_secs(1)).await;
            drop(running);
        };
        let (permit, ()) = tokio::join!(exchanges.acquire(address(9)), late);
        assert!(permit.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn number_of_waiting_callbacks_is_bounded() {
        let exchanges = Exchanges::default();
        let began = tokio::time::Instant::now();
        for one in [None, address(1)] {
            let callbacks: Vec<_> = (0..200_u8).map(|number| one.or(address(number))).collect();
            let callbacks = callbacks.into_iter().map(|address| exchanges.acquire(address));
            let granted = join_all(callbacks).await.into_iter().flatten().count();
            assert!(granted <= MAX_EXCHANGES, "{granted}");
        }
        assert_eq!(began.elapsed(), MAX_WAIT * 2, "all wait at once");
        let unknown = join_all((0..100).map(|_| exchanges.acquire(None))).await;
        assert_eq!(unknown.iter().flatten().count(), MAX_EXCHANGES);
    }
}
