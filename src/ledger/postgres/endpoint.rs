//! A PostgreSQL database, ready to connect to: the parts of its URL, completed from the
//! environment and the password file as libpq does.
//!
//! `settings` reads endpoints, and `connect` uses them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::connection_url::{ConnectionUrl, EXAMPLE, parse_hosts, parse_port};
use super::password_file;

/// The port of PostgreSQL.
const DEFAULT_PORT: u16 = 5432;
/// The default `connect_timeout`. A request waits at most 2 s, but a busy server may need longer,
/// and the connection then serves the next request.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The start of a PEM certificate (RFC 7468).
const PEM: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// A database with several hosts.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) tls: Tls,
    pub(super) application_name: String,
    /// The time to connect, for all hosts together.
    pub(super) connect_timeout: Duration,
}

/// A server of a database.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// A name, an address, or the directory of a Unix socket.
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) password: Option<SecretString>,
}

/// How connections over TCP are encrypted.
#[derive(Clone, Eq, PartialEq)]
pub(super) enum Tls {
    /// Not at all. Every host is on this machine.
    Disabled,
    /// With TLS. The certificate must be valid for the host name and issued by one of these PEM
    /// certificates; by a CA that this machine trusts if there are none.
    VerifyFull(Option<Vec<u8>>),
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Tls::Disabled => "Disabled",
            Tls::VerifyFull(None) => "VerifyFull(system roots)",
            Tls::VerifyFull(Some(_)) => "VerifyFull(sslrootcert)",
        })
    }
}

/// Where an endpoint is read from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// Returns an environment variable.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// Resolves a path in the URL.
    pub path: &'a dyn Fn(&str) -> PathBuf,
    /// `[ledger] password`.
    pub password: Option<&'a SecretString>,
}

impl std::fmt::Debug for Sources<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

/// An endpoint, with what the operator should know about its password.
#[derive(Debug)]
pub struct ReadEndpoint {
    /// Where to connect, and as whom.
    pub endpoint: Endpoint,
    /// Whether the URL itself contains the password.
    pub has_password_in_url: bool,
    /// Sentences about an ignored password file.
    pub warnings: Vec<String>,
}

impl Endpoint {
    /// Reads a URL, and completes it from the environment and the password file.
    ///
    /// # Errors
    /// Returns what is wrong and what to write instead. The sentence contains no password.
    pub fn read(text: &str, sources: Sources<'_>) -> Result<ReadEndpoint, String> {
        let mut url: ConnectionUrl = text.parse()?;
        let environment = |name: &str| (sources.environment)(name).filter(|text| !text.is_empty());
        let hosts = hosts(&url, &environment)?;
        let tls = tls(&url, &hosts, &environment, sources.path)?;
        let user = url.user.take().or_else(|| environment("PGUSER")).ok_or_else(|| {
            format!("it names no user. Write {EXAMPLE}, or set PGUSER before the start")
        })?;
        let database =
            url.database.take().or_else(|| environment("PGDATABASE")).unwrap_or(user.clone());
        if url.password.is_some() && sources.password.is_some() {
            return Err("it contains a password, and password is set too. Remove the one in the \
                        URL"
            .to_owned());
        }
        let has_password_in_url = url.password.is_some();
        let mut warnings = Vec::new();
        let password = url.password.take().or_else(|| sources.password.cloned());
        let password = password.or_else(|| environment("PGPASSWORD").map(SecretString::from));
        let password_file = match password {
            Some(_) => None,
            None => read_password_file(&url, &environment, sources.path, &mut warnings),
        };
        let find = |name: &str, port| {
            let text = password_file.as_ref()?;
            password_file::find(text, name, port, &database, &user)
        };
        let hosts = hosts.into_iter().map(|(name, port)| {
            let password = password.clone().or_else(|| find(&name, port));
            Host { name, port, password }
        });
        let endpoint = Endpoint {
            hosts: hosts.collect(),
            tls,
            application_name: url.application_name.unwrap_or_else(|| "loangate".to_owned()),
            connect_timeout: url.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            user,
            database,
        };
        Ok(ReadEndpoint { endpoint, has_password_in_url, warnings })
    }
}

impl Endpoint {
    /// Returns whether this is the same database on the same hosts, for the same user.
    pub fn has_hosts_of(&self, other: &Endpoint) -> bool {
        let places = |endpoint: &Endpoint| {
            let hosts = endpoint.hosts.iter();
            hosts.map(|host| (host.name.clone(), host.port)).collect::<Vec<_>>()
        };
        places(self) == places(other)
            && (&self.database, &self.user) == (&other.database, &other.user)
    }
}

impl Host {
    /// Returns whether this host is a Unix socket, which needs no TLS.
    pub(super) fn is_socket(&self) -> bool {
        self.name.starts_with('/')
    }
}

/// Names the database and its hosts for operators.
impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hosts: Vec<_> = self.hosts.iter().map(Host::to_string).collect();
        write!(f, "the database {} on {}", self.database, hosts.join(", "))
    }
}

/// The host and its port, as in a URL.
impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]:{}", self.name, self.port),
            false => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

fn is_local(name: &str) -> bool {
    let is_loopback = |address: IpAddr| address.is_loopback();
    name.starts_with('/') || name == "localhost" || name.parse().is_ok_and(is_loopback)
}

/// Returns the hosts of the URL or `PGHOST`. `PGPORT` has one port for all, or one for each.
fn hosts(
    url: &ConnectionUrl,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<(String, u16)>, String> {
    let mut hosts = url.hosts.clone();
    if hosts.is_empty() {
        let text = environment("PGHOST").ok_or_else(|| {
            format!("it names no host. Write {EXAMPLE}, or set PGHOST before the start")
        })?;
        // Unlike a URL, this variable has no ports, so an address needs no brackets.
        let bare = text.split(',').map(|host| match host.contains(':') {
            true => format!("[{host}]"),
            false => host.to_owned(),
        });
        let all: Vec<String> = bare.collect();
        hosts = parse_hosts(&all.join(",")).map_err(|error| format!("PGHOST: {error}"))?;
    }
    let ports = environment("PGPORT").unwrap_or_default();
    let ports = ports.split(',').filter(|port| !port.is_empty()).map(parse_port);
    let ports =
        ports.collect::<Result<Vec<u16>, _>>().map_err(|error| format!("PGPORT: {error}"))?;
    let default = |number: usize| match ports.as_slice() {
        [] => DEFAULT_PORT,
        [one] => *one,
        several => several.get(number).copied().unwrap_or(DEFAULT_PORT),
    };
    let numbered = hosts.into_iter().enumerate();
    Ok(numbered.map(|(number, (name, port))| (name, port.unwrap_or(default(number)))).collect())
}

/// Returns how to encrypt. Accepts only full verification, or plaintext within this machine.
fn tls(
    url: &ConnectionUrl,
    hosts: &[(String, u16)],
    environment: &dyn Fn(&str) -> Option<String>,
    path: &dyn Fn(&str) -> PathBuf,
) -> Result<Tls, String> {
    let mode = url.ssl_mode.clone().or_else(|| environment("PGSSLMODE"));
    match mode.as_deref() {
        None | Some("verify-full") => {}
        Some("disable") => {
            return match hosts.iter().find(|(name, _)| !is_local(name)) {
                None => Ok(Tls::Disabled),
                Some((name, _)) => Err(format!(
                    "sslmode=disable would send passwords and loans to {name} in the clear. Remove \
                     it; only connections within this machine may be without TLS"
                )),
            };
        }
        Some("allow" | "prefer" | "require" | "verify-ca") => {
            return Err("sslmode, or PGSSLMODE, does not verify who the server is. Write \
                        sslmode=verify-full, and sslrootcert= with the server's CA"
                .to_owned());
        }
        Some(_) => {
            return Err("sslmode, or PGSSLMODE, is not known. Write sslmode=verify-full, or \
                        sslmode=disable within this machine"
                .to_owned());
        }
    }
    let file = match &url.ssl_root_cert {
        Some(file) if file != "system" => path(file),
        Some(_) => return Ok(Tls::VerifyFull(None)),
        None => match environment("PGSSLROOTCERT").filter(|file| file != "system") {
            Some(file) => PathBuf::from(file),
            None => return Ok(Tls::VerifyFull(None)),
        },
    };
    read_root_certificates(&file).map(|roots| Tls::VerifyFull(Some(roots)))
}

fn read_root_certificates(file: &Path) -> Result<Vec<u8>, String> {
    let shown = file.display();
    let pem = std::fs::read(file).map_err(|error| {
        format!("the sslrootcert {shown} cannot be read: {error}. Name the PEM file of the CA")
    })?;
    match pem.windows(PEM.len()).any(|window| window == PEM) {
        true => Ok(pem),
        false => Err(format!("the sslrootcert {shown} has no certificate. Name the CA's PEM file")),
    }
}

/// Reads the password file that the URL or the environment names, or else `~/.pgpass`.
fn read_password_file(
    url: &ConnectionUrl,
    environment: &dyn Fn(&str) -> Option<String>,
    path: &dyn Fn(&str) -> PathBuf,
    warnings: &mut Vec<String>,
) -> Option<secrecy::zeroize::Zeroizing<String>> {
    let named = url.password_file.as_deref().map(path);
    let named = named.or_else(|| environment("PGPASSFILE").map(PathBuf::from));
    let is_named = named.is_some();
    let file = named.or_else(|| Some(PathBuf::from(environment("HOME")?).join(".pgpass")))?;
    match password_file::read(&file) {
        Ok(Some(text)) => return Some(text),
        Ok(None) if is_named => {
            warnings.push(format!("the password file {} does not exist", file.display()));
        }
        Ok(None) => {}
        Err(sentence) => warnings.push(sentence),
    }
    None
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
