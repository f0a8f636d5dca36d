//! Minting and verification of signed links.
//!
//! `reader/mod.rs` calls it. A link token is base64url without a dot, so it is never a JWT. It
//! encodes a version, the key's id, the library, the pseudonym, the scope, the issue time, the
//! expiry, and an HMAC-SHA256 over all of these. URLs are shared and logged, so a link contains the
//! pseudonym and never the borrower's own id. Until the signature is verified, only the version and
//! the key's id are read. The caller checks the times afterwards.

use aws_lc_rs::hmac;
use data_encoding::BASE64URL_NOPAD;
use jiff::Timestamp;
use secrecy::ExposeSecret;

use super::credential::MAX_LINK;
use super::pseudonym::MIN_SECRET;
use super::refusal::{LinkFault, Refusal};
use super::{LinkKey, Reader, ReadersError, Scope};
use crate::loan::{Borrower, Isbn, LibraryId};

/// Domain separation: a prefix of the signed bytes, so that a signature from another use of the key
/// is never valid for a link.
const DOMAIN: &[u8] = b"loangate signed link 1\0";
const VERSION: u8 = 1;
const TITLE_SCOPE: u8 = 1;
const PREFIX_SCOPE: u8 = 2;
/// The length of an HMAC-SHA256 tag, in bytes.
const MAC_LENGTH: usize = 32;
/// The longest key id, in bytes.
const MAX_ID: usize = 64;

/// The link keys in the order of the configuration; the first one signs.
pub(super) struct LinkKeys {
    keys: Vec<(String, hmac::Key)>,
}

impl LinkKeys {
    pub(super) fn new(configured: &[LinkKey]) -> Result<LinkKeys, ReadersError> {
        let mut keys: Vec<(String, hmac::Key)> = Vec::with_capacity(configured.len());
        for LinkKey { id, secret } in configured {
            if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(|byte| byte.is_ascii_graphic())
            {
                return Err(ReadersError(format!(
                    "The id of a link key must be 1 to {MAX_ID} visible ASCII characters, and \
                     {id:?} is not."
                )));
            }
            if keys.iter().any(|(other, _)| other == id) {
                return Err(ReadersError(format!(
                    "Two link keys have the id {id:?}: give each its own."
                )));
            }
            let secret = secret.expose_secret().as_bytes();
            if secret.len() < MIN_SECRET {
                return Err(ReadersError(format!(
                    "The link key {id:?} has {} bytes and must have at least {MIN_SECRET}.",
                    secret.len()
                )));
            }
            keys.push((id.clone(), hmac::Key::new(hmac::HMAC_SHA256, secret)));
        }
        Ok(LinkKeys { keys })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Mints a link token. None without a key, or if no link can have the scope:
    /// [`Scope::All`], or a prefix that is too long.
    pub(super) fn mint(&self, reader: &Reader) -> Option<String> {
        let (id, key) = self.keys.first()?;
        let mut body = vec![VERSION];
        put_text(&mut body, id)?;
        put_text(&mut body, reader.library.as_str())?;
        body.extend(reader.borrower.as_bytes());
        match &reader.scope {
            Scope::All => return None,
            Scope::Title(isbn) => {
                body.push(TITLE_SCOPE);
                body.extend(isbn.number().to_be_bytes());
            }
            Scope::Prefix(segments) => {
                body.push(PREFIX_SCOPE);
                put_prefix(&mut body, segments)?;
            }
        }
        body.extend(reader.issued?.as_second().to_be_bytes());
        body.extend(reader.expires.as_second().to_be_bytes());
        let mac = hmac::sign(key, &[DOMAIN, &body].concat());
        body.extend(mac.as_ref());
        let token = BASE64URL_NOPAD.encode(&body);
        (token.len() <= MAX_LINK).then_some(token)
    }

    /// Verifies the signature of a link and returns its reader. The caller checks the times.
    pub(super) fn read(&self, token: &str) -> Result<Reader, Refusal> {
        let signed = BASE64URL_NOPAD
            .decode(token.as_bytes())
            .map_err(|_| Refusal::Link(LinkFault::Malformed))?;
        let (body, mac) =
            signed.split_last_chunk::<MAC_LENGTH>().ok_or(Refusal::Link(LinkFault::Malformed))?;
        let mut fields = Fields(body);
        if fields.byte()? != VERSION {
            return Err(Refusal::Link(LinkFault::Malformed));
        }
        let id = fields.text()?;
        let (_, key) =
            self.keys.iter().find(|(known, _)| known == id).ok_or(Refusal::Link(LinkFault::Key))?;
        hmac::verify(key, &[DOMAIN, body].concat(), mac)
            .map_err(|_| Refusal::Link(LinkFault::Forged))?;
        fields.reader()
    }
}

fn put_text(body: &mut Vec<u8>, text: &str) -> Option<()> {
    body.push(u8::try_from(text.len()).ok()?);
    body.extend(text.as_bytes());
    Some(())
}

/// Writes the number of segments, then each with its length: at most 255 of at most 255 bytes.
fn put_prefix(body: &mut Vec<u8>, segments: &[String]) -> Option<()> {
    if segments.is_empty() {
        return None;
    }
    body.push(u8::try_from(segments.len()).ok()?);
    segments.iter().try_for_each(|segment| put_text(body, segment))
}

/// Reader of the fields in a link's body, in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn byte(&mut self) -> Result<u8, Refusal> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (bytes, rest) =
            self.0.split_first_chunk::<N>().ok_or(Refusal::Link(LinkFault::Malformed))?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn text(&mut self) -> Result<&'a str, Refusal> {
        let length = usize::from(self.byte()?);
        let (bytes, rest) =
            self.0.split_at_checked(length).ok_or(Refusal::Link(LinkFault::Malformed))?;
        self.0 = rest;
        std::str::from_utf8(bytes).map_err(|_| Refusal::Link(LinkFault::Malformed))
    }

    fn time(&mut self) -> Result<Timestamp, Refusal> {
        let second = i64::from_be_bytes(self.array()?);
        Timestamp::from_second(second).map_err(|_| Refusal::Link(LinkFault::Malformed))
    }

    fn scope(&mut self) -> Result<Scope, Refusal> {
        match self.byte()? {
            TITLE_SCOPE => {
                let number = u64::from_be_bytes(self.array()?);
                let isbn: Isbn =
                    number.to_string().parse().map_err(|_| Refusal::Link(LinkFault::Malformed))?;
                Ok(Scope::Title(isbn))
            }
            PREFIX_SCOPE => {
                let count = self.byte()?;
                let segments =
                    (0..count).map(|_| self.text().map(str::to_owned)).collect::<Result<_, _>>()?;
                Ok(Scope::Prefix(segments))
            }
            _ => Err(Refusal::Link(LinkFault::Malformed)),
        }
    }

    /// Parses all fields after the key's id.
    fn reader(mut self) -> Result<Reader, Refusal> {
        let library: LibraryId =
            self.text()?.parse().map_err(|_| Refusal::Link(LinkFault::Malformed))?;
        let borrower = Borrower::from_bytes(self.array()?);
        let scope = self.scope()?;
        let issued = self.time()?;
        let expires = self.time()?;
        if !self.0.is_empty() {
            return Err(Refusal::Link(LinkFault::Malformed));
        }
        Ok(Reader { library, borrower, issued: Some(issued), issued_ahead: false, expires, scope })
    }
}
