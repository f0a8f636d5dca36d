//! Pseudonyms for borrowers' own ids. No other part of the gate sees the ids.
//!
//! `reader/mod.rs` calls it for every token that it verifies, and for every link that the admin API
//! mints. A pseudonym is 128 bits of HMAC-SHA256 over the library and the id. The same person has
//! different pseudonyms at different libraries and under different keys. A group of borrower ids
//! other than the default one is hashed, too: the same id in two groups is two persons. Without the
//! key, the id cannot be recovered.

use aws_lc_rs::hmac;
use secrecy::{ExposeSecret, SecretString};

use super::ReadersError;
use crate::loan::{Borrower, LibraryId};

/// Domain separation: each use of the key hashes its own prefix, so that no two uses collide.
const PSEUDONYM: &[u8] = b"loangate borrower pseudonym 1\0";
const PSEUDONYM_IN_GROUP: &[u8] = b"loangate borrower pseudonym in group 1\0";
const AUDIT: &[u8] = b"loangate audit trail 1";
const FINGERPRINT: &[u8] = b"loangate pseudonym key fingerprint 1\0";

/// The minimum length of every secret, in bytes: the length of the hash (RFC 2104 §3).
pub(super) const MIN_SECRET: usize = 32;

/// The pseudonym key. `Debug` shows only the algorithm.
#[derive(Debug)]
pub(super) struct Pseudonyms {
    key: hmac::Key,
}

impl Pseudonyms {
    pub(super) fn new(secret: &SecretString) -> Result<Pseudonyms, ReadersError> {
        let secret = secret.expose_secret().as_bytes();
        if secret.len() < MIN_SECRET {
            return Err(ReadersError(format!(
                "The pseudonym key has {} bytes and must have at least {MIN_SECRET}: make one \
                 with `loangate init`.",
                secret.len()
            )));
        }
        Ok(Pseudonyms { key: hmac::Key::new(hmac::HMAC_SHA256, secret) })
    }

    /// Returns the pseudonym of a borrower, whose id is of this group. The length of each part is
    /// hashed before it, so that no two borrowers hash the same bytes.
    pub(super) fn of(&self, group: Option<&str>, library: LibraryId, borrower: &str) -> Borrower {
        let mut context = hmac::Context::with_key(&self.key);
        match group {
            None => context.update(PSEUDONYM),
            Some(group) => {
                context.update(PSEUDONYM_IN_GROUP);
                update_with_length(&mut context, group);
            }
        }
        update_with_length(&mut context, library.as_str());
        context.update(borrower.as_bytes());
        Borrower::from_bytes(first(context.sign().as_ref()))
    }

    /// Returns the key of the ledger's audit trail. It reveals nothing about the pseudonym key.
    pub(super) fn audit_key(&self) -> [u8; 32] {
        first(hmac::sign(&self.key, AUDIT).as_ref())
    }

    /// Returns a fingerprint that distinguishes keys without revealing them.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        first(hmac::sign(&self.key, FINGERPRINT).as_ref())
    }
}

fn update_with_length(context: &mut hmac::Context, part: &str) {
    context.update(&(part.len() as u64).to_be_bytes());
    context.update(part.as_bytes());
}

/// Returns the first `N` bytes of a 32-byte tag or hash.
pub(super) fn first<const N: usize>(tag: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    for (slot, byte) in bytes.iter_mut().zip(tag) {
        *slot = *byte;
    }
    bytes
}
