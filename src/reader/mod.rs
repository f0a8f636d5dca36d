//! Who asks: a reader token (JWT) or a signed link becomes a library and a borrower's pseudonym.
//!
//! `server` calls [`Readers::authenticate`] as the first step of the line; `admin` and `cli` mint
//! links through it. It calls the vocabulary only and reads one file, the JWKS. It promises that a
//! credential is verified once and then found by its hash until it expires or the keys change, and
//! that a borrower's own id is gone when it returns: no log, error, cache or `Debug` has it.

mod clock_blame;
mod credential;
mod identity;
mod jwks;
mod jwt;
mod link;
mod pseudonym;
mod refusal;
mod settings;
#[cfg(test)]
mod tests;
mod token_cache;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};

use self::clock_blame::Witnesses;
use self::credential::Credential;
use self::jwt::{LEEWAY, Tokens};
use self::link::LinkKeys;
use self::pseudonym::Pseudonyms;
use self::refusal::Refusal;
use self::token_cache::{Verified, VerifiedTokens};
use crate::clock::{self, Clock};
use crate::loan::{Borrower, LibraryId};
use crate::problem::Problem;

pub use self::identity::{Reader, Scope};
pub use self::settings::{Algorithm, JwtSettings, LinkKey, Settings};

/// Readers, ready to authenticate requests. `Debug` shows no key and no reader.
pub struct Readers {
    clock: Clock,
    pseudonyms: Pseudonyms,
    witnesses: Witnesses,
    keys: ArcSwap<Keys>,
}

/// Everything that a reload replaces: the keys, and what was verified with them.
struct Keys {
    settings: Settings,
    tokens: Option<Tokens>,
    links: LinkKeys,
    verified: VerifiedTokens,
}

impl Readers {
    /// Reads the JWKS and the keys.
    ///
    /// # Errors
    /// Where the JWKS file is missing, broken or has no key for the allowed algorithms, and where a
    /// secret is shorter than 32 bytes or two link keys share an id.
    pub fn new(settings: &Settings, clock: Clock) -> Result<Readers, ReadersError> {
        Ok(Readers {
            pseudonyms: Pseudonyms::new(&settings.pseudonym_key)?,
            witnesses: Witnesses::new(),
            keys: ArcSwap::from_pointee(Keys::read(settings.clone())?),
            clock,
        })
    }

    /// Names the clock that tells whose is wrong if a credential comes from the future: a function
    /// that returns how far the gate's clock is ahead of it.
    pub fn compare_clock_with(
        &self,
        ahead: impl Fn() -> Option<SignedDuration> + Send + Sync + 'static,
    ) {
        self.witnesses.compare_with(ahead);
    }

    /// Reads the JWKS file anew and forgets every verified token. On an error all stays as it was.
    ///
    /// # Errors
    /// As [`Readers::new`].
    pub fn reload(&self) -> Result<(), ReadersError> {
        let settings = self.keys.load().settings.clone();
        self.reload_with(&settings)
    }

    /// Takes over new settings, link keys included, and forgets every verified token and link. On
    /// an error all stays as it was.
    ///
    /// # Errors
    /// As [`Readers::new`], and where the pseudonym key is another one: every reader would become a
    /// stranger.
    pub fn reload_with(&self, settings: &Settings) -> Result<(), ReadersError> {
        if Pseudonyms::new(&settings.pseudonym_key)?.fingerprint() != self.key_fingerprint() {
            return Err(ReadersError(
                "The pseudonym key has changed, which a reload cannot do: put the old one back."
                    .to_owned(),
            ));
        }
        let keys = Keys::read(settings.clone())?;
        self.keys.store(Arc::new(keys));
        Ok(())
    }

    /// Who asks: from Authorization, else the link in the query (`token`), else the path prefix
    /// token (`~…`, given by the caller without the tilde).
    ///
    /// The hot path: a verified token is found by its hash, without a signature check and without
    /// an allocation.
    ///
    /// # Errors
    /// [`Problem::RequestMalformed`] for a link that cannot be read,
    /// [`Problem::ReaderUnauthenticated`] for every other credential that is missing or not good.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
        path_token: Option<&str>,
    ) -> Result<Arc<Reader>, Problem> {
        match self.find(headers, query, path_token) {
            Ok((reader, false)) => Ok(reader),
            Ok((_, true)) => Err(Readers::expired()),
            Err(refusal) => Err(refusal.problem()),
        }
    }

    /// As [`Readers::authenticate`], for a request that continues a download: it is told apart, by
    /// true, whether the link has expired and this is its grace. Then nothing may be opened but the
    /// rest of a file that the request shows to be the one that the reader has begun, and no loan
    /// be begun; else it is refused by [`Readers::expired`].
    ///
    /// # Errors
    /// As [`Readers::authenticate`].
    pub fn authenticate_late(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
        path_token: Option<&str>,
    ) -> Result<(Arc<Reader>, bool), Problem> {
        self.find(headers, query, path_token).map_err(Refusal::problem)
    }

    /// The refusal of a link that has expired.
    pub fn expired() -> Problem {
        Refusal::LinkExpired.problem()
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
        let (reader, leeway, grace) = match credential {
            Credential::Token(token) => {
                let tokens = keys.tokens.as_ref().ok_or(Refusal::NoTokensHere)?;
                (
                    tokens.verify(token, &self.pseudonyms, &self.witnesses, now)?,
                    LEEWAY,
                    Duration::ZERO,
                )
            }
            // A link is minted and read by gates of one configuration: its end needs no leeway, as
            // a JWT's does.
            Credential::Link(token) => {
                (keys.read_link(token)?, Duration::ZERO, keys.settings.resume_grace)
            }
        };
        let until = clock::after(reader.expires, leeway);
        let late_until = clock::after(until, grace);
        if matches!(credential, Credential::Link(_)) {
            check_link_times(&reader, &self.witnesses, now, late_until)?;
        }
        check_lifetime(&reader, now, keys.settings.max_lifetime, credential)?;
        let verified = Verified { reader: Arc::new(reader), until, late_until };
        keys.verified.remember(hash, verified.clone());
        Ok(verified)
    }

    /// The pseudonym of a borrower's own id, which is not kept.
    pub fn pseudonym(&self, library: LibraryId, borrower: &str) -> Borrower {
        self.pseudonyms.of(library, borrower)
    }

    /// The longest that a token or a link may live.
    pub fn max_lifetime(&self) -> Duration {
        self.keys.load().settings.max_lifetime
    }

    /// For the ledger: a one-way fingerprint of the pseudonym key.
    pub fn key_fingerprint(&self) -> [u8; 32] {
        self.pseudonyms.fingerprint()
    }

    /// For the ledger: the key of its audit trail, one-way from the pseudonym key.
    pub fn audit_key(&self) -> [u8; 32] {
        self.pseudonyms.audit_key()
    }

    /// Mints a link token, good for `ttl` from now: text safe in a query and in a path segment, and
    /// its expiry.
    ///
    /// None where no link key is configured, for a longer life than a link may have, and for what
    /// no link may open: [`Scope::All`], or a prefix without segments or too long for a URL.
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
        let reader = Reader { library, borrower, issued: Some(now), expires, scope: scope.clone() };
        Some((self.keys.load().links.mint(&reader)?, expires))
    }

    #[cfg(test)]
    fn remembered(&self) -> usize {
        self.keys.load().verified.len()
    }
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}

impl Keys {
    fn read(settings: Settings) -> Result<Keys, ReadersError> {
        Ok(Keys {
            tokens: settings.jwt.as_ref().map(Tokens::new).transpose()?,
            links: LinkKeys::new(&settings.link_keys)?,
            verified: VerifiedTokens::new()?,
            settings,
        })
    }

    fn read_link(&self, token: &str) -> Result<Reader, Refusal> {
        if self.links.is_empty() {
            return Err(Refusal::NoLinksHere);
        }
        self.links.read(token)
    }
}

/// A credential that could outlive the memory of an end could borrow again what had ended
/// (invariant 7). Where it does not say when it was issued, that can have been now at the latest. A
/// link's grace does not count: it borrows nothing.
fn check_lifetime(
    reader: &Reader,
    now: Timestamp,
    longest: Duration,
    credential: &Credential<'_>,
) -> Result<(), Refusal> {
    let issued = reader.issued.unwrap_or(now);
    if clock::until(issued, reader.expires) <= longest {
        return Ok(());
    }
    Err(match credential {
        Credential::Token(_) => Refusal::TokenLivesTooLong,
        Credential::Link(_) => Refusal::LinkLivesTooLong,
    })
}

fn check_link_times(
    reader: &Reader,
    witnesses: &Witnesses,
    now: Timestamp,
    late_until: Timestamp,
) -> Result<(), Refusal> {
    if let Some(issued) = reader.issued.filter(|issued| *issued > clock::after(now, LEEWAY)) {
        return Err(Refusal::LinkIssuedAhead(witnesses.judge(issued, now)));
    }
    if now >= late_until {
        return Err(Refusal::LinkExpired);
    }
    Ok(())
}

/// A link bears whole seconds: cut off, so that it is never later than said.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Why the readers' keys cannot be used: a sentence with file and reason, never a key.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReadersError(pub String);
