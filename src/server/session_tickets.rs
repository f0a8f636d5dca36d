//! TLS session tickets: a returning reader resumes its session at any node, even after a restart.
//!
//! rustls calls it for each handshake. Nodes that share `tls.ticket_keys` open each other's
//! tickets. A new key is derived from each secret every six hours, and tickets expire with their
//! key. The nodes need no communication for this. Without `tls.ticket_keys` the process uses random
//! keys.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac;
use rustls::server::ProducesTickets;
use secrecy::{ExposeSecret, SecretString};

use crate::clock::Clock;

/// How long a key seals tickets, in seconds. It opens them for one more period, so a ticket is
/// valid for one to two periods.
const PERIOD: u32 = 6 * 60 * 60;
/// The labels separate the uses of a secret: no two derived values can be equal.
const KEY_LABEL: &[u8] = b"loangate session ticket key 1\0";
const NAME_LABEL: &[u8] = b"loangate session ticket key name 1\0";
/// The length of a key name (RFC 5077 §4), in bytes.
const NAME_LEN: usize = 16;
/// The longest accepted ticket, in bytes. The gate's own have about 300.
const MAX_TICKET: usize = 4096;

type Name = [u8; NAME_LEN];

/// Seals and opens the session tickets of the server.
pub(super) struct Tickets {
    clock: Clock,
    /// The configured keys, which several nodes share.
    shared: ArcSwapOption<Shared>,
    /// Random keys, used if none are configured.
    own: Arc<dyn ProducesTickets>,
}

impl Tickets {
    /// Creates tickets with these keys: the first seals, and all open.
    pub(super) fn new(keys: &[SecretString], clock: Clock) -> Result<Tickets, rustls::Error> {
        let tickets = Tickets {
            clock,
            shared: ArcSwapOption::empty(),
            own: rustls::crypto::aws_lc_rs::Ticketer::new()?,
        };
        tickets.replace(tickets.derive(keys)?);
        Ok(tickets)
    }

    /// Derives ticket keys from these secrets, and does not use them yet.
    pub(super) fn derive(&self, keys: &[SecretString]) -> Result<TicketKeys, rustls::Error> {
        if keys.is_empty() {
            return Ok(TicketKeys(None));
        }
        let shared = Shared::new(keys, self.period())
            .map_err(|_| rustls::Error::General("no ticket key".to_owned()))?;
        Ok(TicketKeys(Some(Arc::new(shared))))
    }

    /// From now on, encrypts and accepts tickets with these keys.
    pub(super) fn replace(&self, keys: TicketKeys) {
        self.shared.store(keys.0);
    }

    /// The number of the current period, counted from the Unix epoch.
    fn period(&self) -> i64 {
        self.clock.now().as_second().div_euclid(i64::from(PERIOD))
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        match &*self.shared.load() {
            Some(_) => PERIOD,
            None => self.own.lifetime(),
        }
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        match &*self.shared.load() {
            Some(shared) => shared.at(self.period())?.seal(plain),
            None => self.own.encrypt(plain),
        }
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        match &*self.shared.load() {
            Some(shared) => shared.at(self.period())?.open(ticket),
            None => self.own.decrypt(ticket),
        }
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

/// Derived keys that are not in use yet; none means the random keys of the process.
pub(super) struct TicketKeys(Option<Arc<Shared>>);

/// The configured secrets, and the keys derived for the current period.
struct Shared {
    secrets: Vec<hmac::Key>,
    current: ArcSwap<Keys>,
}

impl Shared {
    fn new(secrets: &[SecretString], period: i64) -> Result<Shared, Unspecified> {
        let secrets: Vec<hmac::Key> = secrets
            .iter()
            .map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes()))
            .collect();
        let current = ArcSwap::from_pointee(Keys::derive(&secrets, period)?);
        Ok(Shared { secrets, current })
    }

    /// Returns the keys of a period, and derives them if another period's are cached.
    fn at(&self, period: i64) -> Option<Arc<Keys>> {
        let now = self.current.load_full();
        if now.period == period {
            return Some(now);
        }
        let derived = Arc::new(Keys::derive(&self.secrets, period).ok()?);
        self.current.store(derived.clone());
        Some(derived)
    }
}

/// The keys of one period.
struct Keys {
    period: i64,
    /// The keys with their names. The first seals. Each secret has the key of this period, of the
    /// previous one and of the next one, since another node's clock may be ahead.
    keys: Vec<(Name, RandomizedNonceKey)>,
}

impl Keys {
    fn derive(secrets: &[hmac::Key], period: i64) -> Result<Keys, Unspecified> {
        let periods = [0, -1, 1].map(|away| period.saturating_add(away));
        let all = secrets.iter().flat_map(|secret| periods.map(|period| (secret, period)));
        let keys: Result<Vec<_>, Unspecified> = all
            .map(|(secret, period)| {
                let name = derive_tag(secret, NAME_LABEL, period);
                let key = RandomizedNonceKey::new(
                    &AES_256_GCM,
                    derive_tag(secret, KEY_LABEL, period).as_ref(),
                )?;
                Ok((*name.as_ref().first_chunk().ok_or(Unspecified)?, key))
            })
            .collect();
        Ok(Keys { period, keys: keys? })
    }

    /// Returns a ticket: the key's name, a nonce, the ciphertext and its tag.
    fn seal(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let (name, key) = self.keys.first()?;
        let mut sealed = plain.to_vec();
        let nonce = key.seal_in_place_append_tag(Aad::from(name), &mut sealed).ok()?;
        Some([name, nonce.as_ref().as_slice(), &sealed].concat())
    }

    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        if ticket.len() > MAX_TICKET {
            return None;
        }
        let (name, rest) = ticket.split_first_chunk::<NAME_LEN>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let (name, key) = self.keys.iter().find(|(known, _)| known == name)?;
        let mut opened = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key.open_in_place(nonce, Aad::from(name), &mut opened).ok()?.len();
        opened.truncate(length);
        Some(opened)
    }
}

fn derive_tag(secret: &hmac::Key, label: &[u8], period: i64) -> hmac::Tag {
    let mut context = hmac::Context::with_key(secret);
    context.update(label);
    context.update(&period.to_be_bytes());
    context.sign()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn secret(text: &str) -> SecretString {
        SecretString::from(format!("{text}: a ticket key of more than thirty-two bytes"))
    }

    fn tickets(keys: &[&str], clock: &Clock) -> Tickets {
        let keys: Vec<SecretString> = keys.iter().map(|key| secret(key)).collect();
        Tickets::new(&keys, clock.clone()).unwrap()
    }

    fn clock() -> Clock {
        Clock::movable("2026-11-25T12:00:00Z".parse().unwrap()) // the start of a period
    }

    #[test]
    fn only_nodes_with_the_key_open_a_ticket() {
        let clock = clock();
        let (one, other) = (tickets(&["a"], &clock), tickets(&["b", "a"], &clock));
        let ticket = one.encrypt(b"a session").unwrap();
        assert_eq!(other.decrypt(&ticket).unwrap(), b"a session");
        assert_eq!(one.decrypt(&other.encrypt(b"a session").unwrap()), None, "the first key seals");
        assert_eq!(tickets(&[], &clock).decrypt(&ticket), None);
        assert_ne!(ticket, one.encrypt(b"a session").unwrap(), "each ticket is unique");
    }

    #[test]
    fn ticket_is_valid_for_six_to_twelve_hours() {
        for minutes_in in [0, 1, 200, 359] {
            let clock = clock();
            let tickets = tickets(&["a"], &clock);
            clock.advance(Duration::from_secs(60 * minutes_in));
            let ticket = tickets.encrypt(b"a session").unwrap();
            clock.advance(Duration::from_secs(6 * 60 * 60));
            assert!(
                tickets.decrypt(&ticket).is_some(),
                "sealed {minutes_in} minutes into a period"
            );
            clock.advance(Duration::from_secs(6 * 60 * 60));
            assert!(
                tickets.decrypt(&ticket).is_none(),
                "sealed {minutes_in} minutes into a period"
            );
        }
    }

    #[test]
    fn node_with_a_slow_clock_opens_tickets_of_the_next_period() {
        let (behind, ahead) = (clock(), clock());
        ahead.advance(Duration::from_secs(u64::from(PERIOD)));
        let ticket = tickets(&["a"], &ahead).encrypt(b"a session").unwrap();
        assert!(tickets(&["a"], &behind).decrypt(&ticket).is_some());
    }

    #[test]
    fn changed_keys_apply_at_once() {
        let clock = clock();
        let tickets = tickets(&["a"], &clock);
        let ticket = tickets.encrypt(b"a session").unwrap();
        tickets.replace(tickets.derive(&[secret("b"), secret("a")]).unwrap());
        assert!(tickets.decrypt(&ticket).is_some(), "the old key still opens");
        tickets.replace(tickets.derive(&[secret("b")]).unwrap());
        assert!(tickets.decrypt(&ticket).is_none());
        assert_eq!(format!("{tickets:?}"), "Tickets");
    }

    proptest! {
        #[test]
        fn only_a_complete_ticket_is_opened(
            plain in prop::collection::vec(any::<u8>(), 0..500),
            at in any::<prop::sample::Index>(),
            change in 1..=255_u8,
            noise in prop::collection::vec(any::<u8>(), 0..5000),
        ) {
            let tickets = tickets(&["a", "b"], &clock());
            let mut ticket = tickets.encrypt(&plain).unwrap();
            prop_assert_eq!(tickets.decrypt(&ticket), Some(plain));
            let at = at.index(ticket.len());
            prop_assert_eq!(tickets.decrypt(&ticket[..at]), None);
            ticket[at] ^= change;
            prop_assert_eq!(tickets.decrypt(&ticket), None);
            prop_assert_eq!(tickets.decrypt(&noise), None);
        }
    }
}
