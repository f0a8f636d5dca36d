//! The tokens and links that were verified, by the hash of their text.
//!
//! `reader/mod.rs` asks it before it checks a signature, and remembers here what passed. Refusals are not kept:
//! there is no end of bad tokens. Each hit compares the credential's end with the project's clock. The memory is
//! bounded by the number of entries; one that has ended gives way where it is asked for again, or to others.

use std::sync::Arc;

use aws_lc_rs::digest;
use jiff::Timestamp;
use quick_cache::UnitWeighter;
use quick_cache::sync::Cache;

use super::Reader;
use super::pseudonym::first;

/// How many credentials are remembered: some 20 MB, and more readers than one gate serves at a time.
const CAPACITY: u64 = 50_000;
/// For how many there is room at once; more is made as they come.
const ROOM: usize = 1000;

/// The hash of a credential's text: SHA-256, so that nobody can make two that share an entry.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub(super) struct TokenHash([u8; 32]);

impl TokenHash {
    pub(super) fn of(token: &str) -> TokenHash {
        TokenHash(first(digest::digest(&digest::SHA256, token.as_bytes()).as_ref()))
    }
}

/// A reader, and when the credential is no longer taken.
#[derive(Clone)]
pub(super) struct Verified {
    pub(super) reader: Arc<Reader>,
    /// Its expiry, with the leeway that a token has.
    pub(super) until: Timestamp,
    /// The end of a link's grace; of a token, its expiry.
    pub(super) late_until: Timestamp,
}

/// The cache. A change of keys brings a new one, so that what was verified under the old keys, even while they
/// changed, is forgotten with them.
pub(super) struct VerifiedTokens {
    cache: Cache<TokenHash, Verified>,
}

impl VerifiedTokens {
    pub(super) fn new() -> VerifiedTokens {
        VerifiedTokens { cache: Cache::with_weighter(ROOM, CAPACITY, UnitWeighter) }
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
