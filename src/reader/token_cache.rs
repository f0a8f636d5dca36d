//! The tokens and links that were verified, by the hash of their text.
//!
//! `reader/mod.rs` asks it before it checks a signature, and remembers here what passed. Refusals
//! are not kept: there is no end of bad tokens. Each hit compares the credential's end with the
//! project's clock. The memory is bounded by the number of entries; one that has ended gives way
//! where it is asked for again, or to others.

use std::sync::Arc;

use aws_lc_rs::rand;
use jiff::Timestamp;
use quick_cache::UnitWeighter;
use quick_cache::sync::Cache;
use siphasher::sip128::SipHasher24;

use super::{Reader, ReadersError};

/// How many credentials are remembered: some 20 MB, and more readers than one gate serves at a
/// time.
const CAPACITY: u64 = 50_000;
/// For how many there is room at once; more is made as they come.
const ROOM: usize = 1000;

/// The hash of a credential's text under the cache's own key.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub(super) struct TokenHash(u128);

/// A reader, and when the credential is no longer taken.
#[derive(Clone)]
pub(super) struct Verified {
    pub(super) reader: Arc<Reader>,
    /// Its expiry, with the leeway that a token has.
    pub(super) until: Timestamp,
    /// The end of a link's grace; of a token, its expiry.
    pub(super) late_until: Timestamp,
}

/// The cache. A change of keys brings a new one, so that what was verified under the old keys, even
/// while they changed, is forgotten with them.
pub(super) struct VerifiedTokens {
    cache: Cache<TokenHash, Verified>,
    /// SipHash-2-4 with 128 bits, under a secret key that nobody else has: without it, a text that
    /// shares another's entry is found by trying 2^128 / [`CAPACITY`] of them at the gate. SHA-256
    /// would need no key, and costs five times as much where a processor has no instructions for
    /// it.
    hasher: SipHasher24,
}

impl VerifiedTokens {
    pub(super) fn new() -> Result<VerifiedTokens, ReadersError> {
        let mut key = [0; 16];
        rand::fill(&mut key)
            .map_err(|_| ReadersError("This machine gives no random numbers.".to_owned()))?;
        let cache = Cache::with_weighter(ROOM, CAPACITY, UnitWeighter);
        Ok(VerifiedTokens { cache, hasher: SipHasher24::new_with_key(&key) })
    }

    pub(super) fn hash(&self, token: &str) -> TokenHash {
        TokenHash(self.hasher.hash(token.as_bytes()).as_u128())
    }

    /// The reader of a token that is still good at `now`, or in its grace.
    pub(super) fn get(&self, hash: &TokenHash, now: Timestamp) -> Option<Verified> {
        let verified = self.cache.get(hash)?;
        if now < verified.late_until {
            return Some(verified);
        }
        self.cache.remove(hash);
        None
    }

    pub(super) fn remember(&self, hash: TokenHash, verified: Verified) {
        self.cache.insert(hash, verified);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.cache.len()
    }
}
