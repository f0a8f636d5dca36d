//! Reader authentication: maps a reader token (JWT) or a signed link to a library and a borrower's
//! pseudonym.
//!
//! `server` calls [`Readers::authenticate`] first for every request; `admin` and `cli` mint links.
//! It depends only on shared types, and gets the keys of login services from files or by HTTPS. It
//! guarantees two things:
//!
//! - A credential is verified once, then found by its hash until it expires or the keys change.
//! - The borrower's own id never leaves it: no log, error, cache or `Debug` output contains it.

mod claims;
mod clock_blame;
mod clock_sentences;
mod credential;
mod credential_times;
mod fetched_keys;
mod identity;
mod jwks;
mod jwt;
mod key_lifetime;
mod key_refresh;
mod link;
mod login_service;
mod provider;
mod provider_http;
mod pseudonym;
mod refusal;
mod reload;
mod settings;
#[cfg(test)]
mod tests;
mod token_cache;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use self::clock_blame::ClockEvidence;
use self::credential::Credential;
use self::credential_times::{check_lifetime, check_link_times, whole_seconds};
use self::jwt::{LEEWAY, Tokens};
use self::link::LinkKeys;
use self::pseudonym::Pseudonyms;
use self::refusal::{LinkFault, Refusal};
use self::token_cache::{Verified, VerifiedTokens};
use crate::clock::{self, Clock};
use crate::loan::{Borrower, LibraryId};
use crate::lock::lock;
use crate::problem::Problem;

pub(crate) use self::credential_times::is_issued_ahead;
pub(crate) use self::fetched_keys::KeyTrouble;
pub use self::identity::{Reader, Scope};
pub(crate) use self::jwks::VerifyKey;
pub(crate) use self::login_service::try_fetch;
pub(crate) use self::provider::metadata_url;
pub(crate) use self::provider_http::{ResponseError, provider_client, send};
pub use self::settings::{Algorithm, JwtSettings, KeySource, LibraryRule, LinkKey, Settings};

/// Authenticator of readers' requests. `Debug` shows no key and no reader.
pub struct Readers {
    clock: Clock,
    pseudonyms: Pseudonyms,
    clock_evidence: ClockEvidence,
    keys: ArcSwap<Keys>,
    /// Held while `keys` is replaced. The longest `max_lifetime` since the start.
    changing: Mutex<Duration>,
    /// Wakes the task that fetches keys, after a reload.
    reloaded: Notify,
}

/// The state that a reload replaces: the keys, and the credentials verified with them.
pub(crate) struct Keys {
    settings: Arc<Settings>,
    tokens: Arc<Tokens>,
    links: Arc<LinkKeys>,
    verified: VerifiedTokens,
}

impl Readers {
    /// Reads the JWKS files and the keys of links. It fetches nothing.
    ///
    /// # Errors
    /// If a JWKS file is missing or broken, or has no key for the allowed algorithms. If a secret
    /// is shorter than 32 bytes, or two link keys share an id.
    pub fn new(settings: &Settings, clock: Clock) -> Result<Readers, ReadersError> {
        Ok(Readers {
            pseudonyms: Pseudonyms::new(&settings.pseudonym_key)?,
            clock_evidence: ClockEvidence::new(),
            keys: ArcSwap::from_pointee(Keys::read(settings.clone(), None)?),
            changing: Mutex::new(settings.max_lifetime),
            reloaded: Notify::new(),
            clock,
        })
    }

    /// Sets the reference clock that shows whose clock is wrong if a credential was issued in the
    /// future. `ahead` returns how far the gate's clock is ahead of the reference.
    pub fn compare_clock_with(
        &self,
        ahead: impl Fn() -> Option<SignedDuration> + Send + Sync + 'static,
    ) {
        self.clock_evidence.compare_with(ahead);
    }

    /// Authenticates a request by its Authorization header, else by the link in the query
    /// (`token`), else by the link token in the path (`~…`, passed without the tilde).
    ///
    /// Hot path: a verified token is found by its hash, without a signature check or an allocation.
    ///
    /// # Errors
    /// [`Problem::RequestMalformed`] for an unreadable link. [`Problem::LoginUnavailable`] if a
    /// token's key is not known, and a fetch may find it. [`Problem::ReaderUnauthenticated`] for
    /// any other missing or invalid credential.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
        path_token: Option<&str>,
    ) -> Result<Arc<Reader>, Problem> {
        match self.find(headers, query, path_token) {
            Ok((reader, false)) => Ok(reader),
            Ok((_, true)) => Err(Readers::expired_link_problem()),
            Err(refusal) => Err(refusal.problem()),
        }
    }

    /// As [`Readers::authenticate`], for a request that continues a download. Returns true if the
    /// link has expired but is within its grace period. Then the caller may only serve the rest of
    /// the file that the reader has begun to download, and must not begin a loan. It refuses
    /// anything else with [`Readers::expired_link_problem`].
    ///
    /// # Errors
    /// The problems of [`Readers::authenticate`].
    pub fn authenticate_with_grace(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
        path_token: Option<&str>,
    ) -> Result<(Arc<Reader>, bool), Problem> {
        self.find(headers, query, path_token).map_err(Refusal::problem)
    }

    /// Returns the problem for an expired link.
    pub fn expired_link_problem() -> Problem {
        Refusal::Link(LinkFault::Expired).problem()
    }

    fn find(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
        path_token: Option<&str>,
    ) -> Result<(Arc<Reader>, bool), Refusal> {
        let now = self.clock.now();
        let credential = credential::find(headers, query, path_token)?;
        let verified = self.verified(&credential, now)?;
        Ok((verified.reader, now >= verified.until))
    }

    fn verified(&self, credential: &Credential<'_>, now: Timestamp) -> Result<Verified, Refusal> {
        let keys = self.keys.load();
        let hash = keys.verified.hash(credential.text());
        if let Some(verified) = keys.verified.get(&hash, now) {
            return Ok(verified);
        }
        let (mut reader, key, leeway, grace) = match credential {
            Credential::Token(token) => {
                let time = (&self.clock, now);
                let (pseudonyms, evidence) = (&self.pseudonyms, &self.clock_evidence);
                let (reader, key) = keys.tokens.verify(token, pseudonyms, evidence, time)?;
                (reader, Some(key), LEEWAY, Duration::ZERO)
            }
            // Gates with one configuration mint and read links, so their expiry needs no leeway.
            Credential::Link(token) => {
                (keys.read_link(token)?, None, Duration::ZERO, keys.settings.resume_grace)
            }
        };
        let until = clock::after(reader.expires, leeway);
        let grace_until = clock::after(until, grace);
        if matches!(credential, Credential::Link(_)) {
            check_link_times(&reader, &self.clock_evidence, now, grace_until)?;
        }
        check_lifetime(&reader, now, keys.settings.max_lifetime, credential)?;
        // The issuer's clock may be ahead. A credential that was seen before an end is not later.
        reader.issued_ahead = reader.issued.is_some_and(|issued| issued > now);
        reader.issued = reader.issued.map(|issued| issued.min(now));
        let verified = Verified { reader: Arc::new(reader), until, grace_until };
        keys.verified.insert(hash, verified.clone(), key);
        Ok(verified)
    }

    /// Returns the pseudonym of a borrower's own id in the default group; the id itself is not
    /// stored.
    pub fn pseudonym(&self, library: LibraryId, borrower: &str) -> Borrower {
        self.pseudonyms.of(None, library, borrower)
    }

    /// Returns the pseudonym of a borrower whom staff look up: by the id, or by the name of a
    /// configured group, a slash and the id. Never for a credential: a borrower may choose an id
    /// that looks like one of a group.
    pub fn pseudonym_to_look_up(&self, library: LibraryId, text: &str) -> Borrower {
        let keys = self.keys.load();
        let groups = keys.settings.issuers.iter().filter_map(|it| it.borrower_group.as_deref());
        let in_group = |group| Some((group, text.strip_prefix(group)?.strip_prefix('/')?));
        match groups.filter_map(in_group).next() {
            Some((group, borrower)) => self.pseudonyms.of(Some(group), library, borrower),
            None => self.pseudonyms.of(None, library, text),
        }
    }

    /// Returns the longest lifetime of a token or a link.
    pub fn max_lifetime(&self) -> Duration {
        self.keys.load().settings.max_lifetime
    }

    /// Returns the longest life of a credential that this process has accepted, also before a
    /// reload.
    pub fn longest_lifetime(&self) -> Duration {
        *lock(&self.changing)
    }

    /// Returns a one-way fingerprint of the pseudonym key, for the ledger.
    pub fn key_fingerprint(&self) -> [u8; 32] {
        self.pseudonyms.fingerprint()
    }

    /// Returns the key of the ledger's audit trail, derived one-way from the pseudonym key.
    pub fn audit_key(&self) -> [u8; 32] {
        self.pseudonyms.audit_key()
    }

    /// Mints a link token that is valid for `ttl` from now, and returns it with its expiry. The
    /// token is safe in a query and in a path segment.
    ///
    /// None if no link key is configured, if `ttl` exceeds the longest lifetime, or if no link can
    /// have the scope: [`Scope::All`], or a prefix without segments or too long for a URL.
    pub fn mint_link(
        &self,
        library: LibraryId,
        borrower: Borrower,
        scope: &Scope,
        ttl: Duration,
    ) -> Option<(String, Timestamp)> {
        if ttl > self.max_lifetime() {
            return None;
        }
        let now = whole_seconds(self.clock.now());
        let expires = whole_seconds(clock::after(now, ttl));
        let (issued, scope) = (Some(now), scope.clone());
        let reader = Reader { library, borrower, issued, issued_ahead: false, expires, scope };
        Some((self.keys.load().links.mint(&reader)?, expires))
    }

    /// Returns whether these settings have the pseudonym key in use.
    pub(crate) fn has_pseudonym_key_of(&self, settings: &Settings) -> bool {
        let other = Pseudonyms::new(&settings.pseudonym_key);
        other.is_ok_and(|other| other.fingerprint() == self.key_fingerprint())
    }

    /// Returns whether a text has the form by which staff look up a borrower of a group. A
    /// credential for it would be one of another person.
    pub fn names_a_group(&self, text: &str) -> bool {
        let keys = self.keys.load();
        let mut groups = keys.settings.issuers.iter().filter_map(|it| it.borrower_group.as_deref());
        groups.any(|group| text.strip_prefix(group).is_some_and(|rest| rest.starts_with('/')))
    }

    #[cfg(test)]
    fn cached_count(&self) -> u64 {
        self.keys.load().verified.len()
    }
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads the files. Keys that `old` has fetched are taken over.
    fn read(settings: Settings, old: Option<&Keys>) -> Result<Keys, ReadersError> {
        let old = old.map(|old| &*old.tokens);
        Ok(Keys {
            tokens: Arc::new(Tokens::new(&settings.issuers, old)?),
            links: Arc::new(LinkKeys::new(&settings.link_keys)?),
            verified: VerifiedTokens::new()?,
            settings: Arc::new(settings),
        })
    }

    /// Returns the same keys with another cache.
    fn with_verified(&self, verified: VerifiedTokens) -> Keys {
        let Keys { settings, tokens, links, .. } = self;
        Keys { settings: settings.clone(), tokens: tokens.clone(), links: links.clone(), verified }
    }

    fn read_link(&self, token: &str) -> Result<Reader, Refusal> {
        if self.links.is_empty() {
            return Err(Refusal::LinksDisabled);
        }
        self.links.read(token)
    }
}

/// The reason why the readers' keys are unusable: a sentence with file and cause, never a key.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReadersError(pub String);
