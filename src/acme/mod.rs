//! Orders the certificate of the public listener from a certificate authority, by ACME (RFC 8555).
//!
//! `app` starts [`Orders`], which keeps the certificate in a data directory that several gates may
//! share. `server` loads it from there as any other certificate, and answers the challenges that
//! are in that directory. A certificate in use stays in use, whatever an order does.
//!
//! - `orders` keeps the certificate up to date.
//! - `turn` decides when to order; one gate of those that share the directory does at a time.
//! - `order` runs one order, from the account to the certificate.
//! - `account` finds or creates the account.
//! - `client` sends its requests: bounded in size and time, and only to the authority.
//! - `attempts` bounds how often orders are begun, also over restarts.
//! - `stored` decides whether the stored certificate must be replaced, and checks a new one.
//! - `renewal_info` knows when the authority wants a certificate to be renewed.
//! - `data_directory` reads and writes the files.

mod account;
mod attempts;
mod client;
mod data_directory;
mod order;
mod orders;
mod renewal_info;
mod stored;
mod turn;

use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

pub(crate) use client::check_directory;
use data_directory::DataDirectory;
pub(crate) use orders::Orders;

/// The bytes of a digest that tell files apart.
const NAME_LEN: usize = 8;
/// The directory with the answers to challenges.
const CHALLENGES: &str = "challenges";

/// The keys of `[tls.acme]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The directory URL of the certificate authority.
    pub directory: Url,
    /// The DNS names of the certificate, in lower case, without wildcards.
    pub names: Vec<String>,
    /// Where the authority may send mail about the account, as `mailto:` URLs.
    pub contact: Vec<String>,
    /// The directory of the account's key, the certificate and the challenges.
    pub data: PathBuf,
    /// The roots of the authority's own TLS certificate, as a file in PEM; those of the system if
    /// there is none.
    pub ca: Option<PathBuf>,
    /// The account that the operator has with the authority already.
    pub external_account: Option<ExternalAccount>,
}

/// An account outside of ACME to which the ACME account belongs (RFC 8555 §7.3.4).
#[derive(Clone, Debug)]
pub struct ExternalAccount {
    /// The id of its key.
    pub key_id: String,
    /// The key in base64url, as the authority gives it.
    pub hmac_key: SecretString,
}

impl PartialEq for ExternalAccount {
    fn eq(&self, other: &ExternalAccount) -> bool {
        self.key_id == other.key_id
            && self.hmac_key.expose_secret() == other.hmac_key.expose_secret()
    }
}

impl Settings {
    /// Returns the file of the certificate, with its chain and its key. Gates that order other
    /// certificates may share the data directory, so its name differs from theirs.
    pub fn certificate_file(&self) -> PathBuf {
        self.data.join(format!("certificate-{}.pem", short_digest(&self.ordered())))
    }

    /// Returns the directory of challenges in a data directory.
    pub fn challenges(data: &Path) -> PathBuf {
        data.join(CHALLENGES)
    }

    /// Checks the data directory, if it exists.
    ///
    /// # Errors
    /// Why it cannot be used, as a sentence.
    pub(crate) fn check_data(&self) -> Result<(), String> {
        DataDirectory::check(&self.data).map_err(|error| error.to_string())
    }

    /// Checks the roots of the authority, if the settings name a file.
    ///
    /// # Errors
    /// Why they cannot be used, as a sentence.
    pub(crate) fn check_ca(&self) -> Result<(), String> {
        client::check_roots(self)
    }

    /// Returns the host of the authority, for sentences.
    fn authority(&self) -> &str {
        self.directory.host_str().unwrap_or_default()
    }

    /// Returns what is ordered: a change of it is another order.
    fn ordered(&self) -> String {
        let mut names = self.names.clone();
        names.sort();
        format!("{} {}", self.directory, names.join(" "))
    }
}

/// Returns a part of a name of a file that tells texts apart.
fn short_digest(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    HEXLOWER.encode(digest.as_ref().get(..NAME_LEN).unwrap_or_default())
}
