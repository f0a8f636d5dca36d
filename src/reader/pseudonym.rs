//! Borrowers' own ids become pseudonyms here, at the door, and go no further.
//!
//! `reader/mod.rs` calls it for every token that it verifies, and the admin API through it for
//! every link. A pseudonym is 128 bits of HMAC-SHA256 over the library and the id: the same person
//! has another one at another library and under another key, and nobody without the key can find
//! the id again.

use aws_lc_rs::hmac;
use secrecy::{ExposeSecret, SecretString};

use super::ReadersError;
use crate::loan::{Borrower, LibraryId};

/// What is hashed says what it is for, so that no two uses of the key can meet.
const PSEUDONYM: &[u8] = b"loangate borrower pseudonym 1\0";
const AUDIT: &[u8] = b"loangate audit trail 1";
const FINGERPRINT: &[u8] = b"loangate pseudonym key fingerprint 1\0";

/// The shortest secret of any kind, in bytes: as long as the hash (RFC 2104 §3).
pub(super) const MIN_SECRET: usize = 32;

/// The key of pseudonyms. `Debug` shows the algorithm and nothing else.
#[derive(Debug)]
pub(super) struct Pseudonyms {
    key: hmac::Key,
}

impl Pseudonyms {
    pub(super) fn new(secret: &SecretString) -> Result<Pseudonyms, ReadersError> {
        let secret = secret.expose_secret().as_bytes();
        if secret.len() < MIN_SECRET {
            return Err(ReadersError(format!(
                "The pseudonym key has {} bytes and must have at least {MIN_SECRET}: make one with `loangate init`.",
                secret.len()
            )));
        }
        Ok(Pseudonyms { key: hmac::Key::new(hmac::HMAC_SHA256, secret) })
    }

    /// The pseudonym of a borrower. The library's length stands before it, so that no two pairs
    /// read alike.
    pub(super) fn of(&self, library: LibraryId, borrower: &str) -> Borrower {
        let library = library.as_str().as_bytes();
        let mut context = hmac::Context::with_key(&self.key);
        context.update(PSEUDONYM);
        context.update(&(library.len() as u64).to_be_bytes());
        context.update(library);
        context.update(borrower.as_bytes());
        Borrower::from_bytes(first(context.sign().as_ref()))
    }

    /// The key of the ledger's audit trail, which tells nothing of this one.
    pub(super) fn audit_key(&self) -> [u8; 32] {
        first(hmac::sign(&self.key, AUDIT).as_ref())
    }

    /// Tells two keys apart and gives away neither.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        first(hmac::sign(&self.key, FINGERPRINT).as_ref())
    }
}

/// The first `N` bytes of a tag or hash, which has 32.
pub(super) fn first<const N: usize>(tag: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    for (slot, byte) in bytes.iter_mut().zip(tag) {
        *slot = *byte;
    }
    bytes
}
