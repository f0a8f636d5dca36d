//! `loangate token`: creates a reader's token, signed with the development key from `init`, or a
//! signed link.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use super::{CliError, say};
use crate::clock::{self, Clock};
use crate::config::Config;
use crate::loan::{Isbn, LibraryId};
use crate::reader::{JwtSettings, KeySource, LibraryRule, Readers, Scope};

/// The private key's file name, in the directory of the key set.
pub(super) const PRIVATE_KEY: &str = "jwt.key";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Kind {
    /// Create a reader's token, for the Authorization header. Development only: in production only
    /// the login service has the private key.
    Reader {
        #[command(flatten)]
        who: TokenArgs,
    },
    /// Create a link's token, for the query (?token=…) or the path (/~…/).
    Link {
        #[command(flatten)]
        who: TokenArgs,
        /// Title that the link opens.
        #[arg(long, conflicts_with = "prefix")]
        isbn: Option<Isbn>,
        /// Or the prefix of the paths that the link opens.
        #[arg(long, required_unless_present = "isbn")]
        prefix: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct TokenArgs {
    /// Configuration whose keys sign.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    /// Library's ISIL, such as NO-0301000.
    #[arg(long)]
    library: LibraryId,
    /// Borrower's id in the login service.
    #[arg(long)]
    borrower: String,
    /// Lifetime of the token.
    #[arg(long, default_value = "8h")]
    ttl: humantime::Duration,
}

pub(super) fn run(kind: Kind) -> Result<(), CliError> {
    match kind {
        Kind::Reader { who } => {
            let config = super::load(&who.config)?;
            check_ttl(&config, *who.ttl)?;
            let jwt = development_login(&config)
                .ok_or_else(|| CliError::new("no login service of this configuration has jwks"))?;
            say(&reader(jwt, &who.library, &who.borrower, *who.ttl)?)
        }
        Kind::Link { who, isbn, prefix } => {
            let config = super::load(&who.config)?;
            check_ttl(&config, *who.ttl)?;
            say(&link(&config, &who, isbn, prefix)?)
        }
    }
}

/// Returns the login service whose private key may be beside its key set.
pub(super) fn development_login(config: &Config) -> Option<&JwtSettings> {
    config.readers.issuers.iter().find(|service| matches!(service.keys, KeySource::File(_)))
}

fn check_ttl(config: &Config, ttl: Duration) -> Result<(), CliError> {
    let longest = config.readers.max_lifetime;
    if ttl <= longest {
        return Ok(());
    }
    let longest = humantime::format_duration(longest);
    Err(CliError::new(format!(
        "the gate refuses lifetimes over {longest} (readers.max_lifetime); write a shorter --ttl"
    )))
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
    #[serde(flatten)]
    who: BTreeMap<&'a str, &'a str>,
}

/// Creates a reader's token, signed with the private key beside the key set.
pub(super) fn reader(
    jwt: &JwtSettings,
    library: &LibraryId,
    borrower: &str,
    ttl: Duration,
) -> Result<String, CliError> {
    let KeySource::File(jwks) = &jwt.keys else {
        return Err(CliError::new("the login service has no file of keys (jwks)"));
    };
    let file = jwks.parent().unwrap_or(Path::new(".")).join(PRIVATE_KEY);
    let pem = std::fs::read(&file).map_err(|error| {
        CliError::new(format!("{} cannot be read: {error}; loangate init makes it", file.display()))
    })?;
    let key = EncodingKey::from_ed_pem(&pem).map_err(CliError::new)?;
    let now = Clock::system().now();
    let claims = Claims {
        iss: &jwt.issuer,
        aud: &jwt.audience,
        iat: now.as_second(),
        exp: clock::after(now, ttl).as_second(),
        who: library_claim(jwt, library)?
            .into_iter()
            .chain([(jwt.borrower_claim.as_str(), borrower)])
            .collect(),
    };
    let header =
        Header { kid: Some(super::init::KEY_ID.to_owned()), ..Header::new(Algorithm::EdDSA) };
    jsonwebtoken::encode(&header, &claims, &key).map_err(CliError::new)
}

/// Returns the claim by which the gate knows the library, with its value; none if it needs none.
fn library_claim<'a>(
    jwt: &'a JwtSettings,
    library: &'a LibraryId,
) -> Result<Option<(&'a str, &'a str)>, CliError> {
    let not_served =
        || CliError::new(format!("the login service has no borrowers of the library {library}"));
    match &jwt.library {
        LibraryRule::Fixed(fixed) if fixed == library => Ok(None),
        LibraryRule::Fixed(_) => Err(not_served()),
        LibraryRule::Claim(claim) => Ok(Some((claim, library.as_str()))),
        LibraryRule::Table(claim, values) => {
            let listed = values.iter().find(|(_, listed)| *listed == library);
            let (value, _) = listed.ok_or_else(not_served)?;
            Ok(Some((claim, value)))
        }
    }
}

fn link(
    config: &Config,
    who: &TokenArgs,
    isbn: Option<Isbn>,
    prefix: Option<String>,
) -> Result<String, CliError> {
    let readers = Readers::new(&config.readers, Clock::system()).map_err(CliError::new)?;
    let scope = match (isbn, prefix) {
        (Some(isbn), _) => Scope::Title(isbn),
        (None, prefix) => Scope::prefix(&prefix.unwrap_or_default()).map_err(CliError::new)?,
    };
    if readers.names_a_group(&who.borrower) {
        return Err(CliError::new(
            "links are made for borrowers without a group, and this borrower names one",
        ));
    }
    let borrower = readers.pseudonym(who.library, &who.borrower);
    let (token, _) =
        readers.mint_link(who.library, borrower, &scope, *who.ttl).ok_or_else(|| {
            CliError::new("no link can be made: the configuration has no [readers.links] keys")
        })?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_is_named_as_the_login_service_names_it() {
        let (here, other): (LibraryId, LibraryId) =
            ("NO-0301000".parse().unwrap(), "NO-1".parse().unwrap());
        let mut jwt = JwtSettings {
            keys: KeySource::Discovery,
            keep_keys: Duration::ZERO,
            algorithms: Vec::new(),
            issuer: String::new(),
            audience: String::new(),
            library: LibraryRule::Claim("isil".to_owned()),
            borrower_claim: String::new(),
            borrower_group: None,
        };
        assert_eq!(library_claim(&jwt, &here).unwrap(), Some(("isil", "NO-0301000")));
        jwt.library = LibraryRule::Fixed(here);
        assert_eq!(library_claim(&jwt, &here).unwrap(), None);
        assert!(library_claim(&jwt, &other).is_err());
        jwt.library =
            LibraryRule::Table("city".to_owned(), BTreeMap::from([("oslo".to_owned(), here)]));
        assert_eq!(library_claim(&jwt, &here).unwrap(), Some(("city", "oslo")));
        assert!(library_claim(&jwt, &other).is_err());
    }
}
