//! Parses `postgres://` URLs with several hosts, which neither the crate `url` nor sqlx does.
//!
//! `endpoint` calls it. No sentence of this module quotes a part of the URL that can be a password.

use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use secrecy::SecretString;

/// An example for sentences.
pub(super) const EXAMPLE: &str = "\"postgres://loangate@db.example.no/loangate\"";

/// The longest `connect_timeout`. Requests get a response much earlier.
const MAX_CONNECT_TIMEOUT: u64 = 60;

/// The parts that a URL names, decoded. Absent parts come from the environment or a default.
#[derive(Debug, Default)]
pub(super) struct ConnectionUrl {
    pub(super) user: Option<String>,
    pub(super) password: Option<SecretString>,
    /// The hosts in the order of the URL, each with its port. A host that starts with a slash is
    /// the directory of a Unix socket.
    pub(super) hosts: Vec<(String, Option<u16>)>,
    pub(super) database: Option<String>,
    pub(super) ssl_mode: Option<String>,
    pub(super) ssl_root_cert: Option<String>,
    pub(super) application_name: Option<String>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) password_file: Option<String>,
}

impl FromStr for ConnectionUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<ConnectionUrl, String> {
        let after_scheme = text
            .strip_prefix("postgres://")
            .or_else(|| text.strip_prefix("postgresql://"))
            .ok_or_else(|| format!("it does not start with postgres://. Write {EXAMPLE}"))?;
        let (authority, rest) =
            after_scheme.split_at(after_scheme.find(['/', '?', '#']).unwrap_or(after_scheme.len()));
        if rest.contains('@') && !authority.contains('@') {
            // Otherwise a part of the password would count as a host.
            return Err("the user or the password contains one of / ? # @ unencoded. Write %2F, \
                        %3F, %23 and %40 in their place"
                .to_owned());
        }
        if rest.contains('#') {
            return Err("it has a fragment, from # on. Remove it, or write %23".to_owned());
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut url = ConnectionUrl::default();
        let hosts = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => {
                url.set_credentials(credentials)?;
                hosts
            }
            None => authority,
        };
        url.hosts = parse_hosts(hosts)?;
        url.database = Some(decode(path.strip_prefix('/').unwrap_or(path), "the database")?)
            .filter(|name| !name.is_empty());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            url.set_parameter(key, decode(value, key)?)?;
        }
        Ok(url)
    }
}

impl ConnectionUrl {
    fn set_credentials(&mut self, text: &str) -> Result<(), String> {
        let (user, password) = match text.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (text, None),
        };
        self.user = Some(decode(user, "the user")?).filter(|user| !user.is_empty());
        if let Some(password) = password.filter(|password| !password.is_empty()) {
            self.password = Some(decode(password, "the password")?.into());
        }
        Ok(())
    }

    fn set_parameter(&mut self, key: &str, value: String) -> Result<(), String> {
        let slot = match key {
            "sslmode" => &mut self.ssl_mode,
            "sslrootcert" => &mut self.ssl_root_cert,
            "application_name" => &mut self.application_name,
            "passfile" => &mut self.password_file,
            "connect_timeout" => {
                let seconds = value.parse().ok();
                let seconds = seconds.filter(|seconds| (1..=MAX_CONNECT_TIMEOUT).contains(seconds));
                let sentence = format!(
                    "connect_timeout is a number of seconds from 1 to {MAX_CONNECT_TIMEOUT}"
                );
                self.connect_timeout = Some(Duration::from_secs(seconds.ok_or(sentence)?));
                return Ok(());
            }
            other => return Err(unknown_parameter(other)),
        };
        *slot = Some(value).filter(|value| !value.is_empty());
        Ok(())
    }
}

/// Returns the sentence about a parameter that is not supported.
fn unknown_parameter(key: &str) -> String {
    const KNOWN: &str = "sslmode, sslrootcert, application_name, connect_timeout and passfile";
    match key {
        "host" | "port" | "user" | "dbname" => {
            format!("it has {key} as a parameter. Write it in its place, as in {EXAMPLE}")
        }
        "password" => "it has the password as a parameter. Remove it, and write password = \
                       { file = \"certs/ledger.password\" } below url"
            .to_owned(),
        "target_session_attrs" => "target_session_attrs is not needed: the gate uses the first \
                                   host that accepts writes. Remove it"
            .to_owned(),
        "sslcert" | "sslkey" => format!(
            "{key} is not supported: this version has no client certificates. Use a password"
        ),
        // A key may be the tail of a password with an unencoded question mark.
        _ => format!("it has a parameter that is not supported. The known ones are {KNOWN}"),
    }
}

/// Parses a list of hosts, as in a URL or `PGHOST`: `a:5432,[::1]:5433,b`.
pub(super) fn parse_hosts(text: &str) -> Result<Vec<(String, Option<u16>)>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',').map(parse_host).collect()
}

fn parse_host(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(bracketed) => {
            let (address, after) = bracketed.split_once(']').ok_or_else(|| {
                "a host starts with [ and has no ]. Write an IPv6 address like [::1]".to_owned()
            })?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err("the address in [ ] is no IPv6 address. Write one like [::1]".into());
            }
            match after.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None if after.is_empty() => (address, None),
                None => return Err("after ] only a port may follow. Write [::1]:5432".into()),
            }
        }
        None => match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("an IPv6 address needs brackets. Write it like [::1]:5432".to_owned());
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let host = decode(host, "a host")?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    if host.is_empty() {
        return Err(format!("a host is empty. Write {EXAMPLE}"));
    }
    if !host.starts_with('/') && !host.bytes().all(is_name) {
        return Err(format!("a host has a character that no host name has. Write {EXAMPLE}"));
    }
    let port = port.filter(|port| !port.is_empty()).map(parse_port).transpose()?;
    Ok((host, port))
}

/// Returns an error that says what to write, also for port 0.
pub(super) fn parse_port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| "a port is no number from 1 to 65535. Write one like 5432".to_owned())
}

/// Decodes `%40` and the like. Unlike in a form, a plus sign means itself.
fn decode(text: &str, what: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.ok().filter(|decoded| !decoded.contains('\0'));
    decoded
        .map(|decoded| decoded.into_owned())
        .ok_or_else(|| format!("{what} is not UTF-8 after percent-decoding. Correct its % codes"))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn parse(text: &str) -> ConnectionUrl {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn mistake(text: &str) -> String {
        text.parse::<ConnectionUrl>().unwrap_err()
    }

    fn host(name: &str, port: impl Into<Option<u16>>) -> (String, Option<u16>) {
        (name.to_owned(), port.into())
    }

    #[test]
    fn every_part_is_parsed() {
        let url = parse(
            "postgresql://lo%40n:p%2Fs%3As@a.example.no:6000,b,[::1]:5433/lo%20ans?sslmode=disable\
             &sslrootcert=certs/db.pem&application_name=gate+1&connect_timeout=5&passfile=a%26b",
        );
        assert_eq!(url.user.as_deref(), Some("lo@n"));
        assert_eq!(url.password.unwrap().expose_secret(), "p/s:s");
        let hosts = [host("a.example.no", 6000), host("b", None), host("::1", 5433)];
        assert_eq!(url.hosts, hosts);
        assert_eq!(url.database.as_deref(), Some("lo ans"));
        assert_eq!(url.ssl_mode.as_deref(), Some("disable"));
        assert_eq!(url.ssl_root_cert.as_deref(), Some("certs/db.pem"));
        assert_eq!(url.application_name.as_deref(), Some("gate+1"));
        assert_eq!(url.connect_timeout, Some(Duration::from_secs(5)));
        assert_eq!(url.password_file.as_deref(), Some("a&b"));
    }

    #[test]
    fn missing_parts_are_none() {
        for text in ["postgres://", "postgres:///", "postgres://?", "postgresql:///?"] {
            let url = parse(text);
            assert!(url.user.is_none() && url.password.is_none() && url.database.is_none());
            assert!(url.hosts.is_empty(), "{text}");
        }
        let url = parse("postgres://loangate@db");
        assert_eq!((url.user.as_deref(), url.hosts), (Some("loangate"), vec![host("db", None)]));
        assert!(url.password.is_none() && url.database.is_none());
        assert!(parse("postgres://u:@db/x").password.is_none());
        assert_eq!(parse("postgres://db:/x").hosts, [host("db", None)]);
        assert_eq!(parse("postgres://db?sslmode=").ssl_mode, None);
    }

    #[test]
    fn unix_sockets_and_ipv6_addresses_are_hosts() {
        let url = parse("postgres://u@%2Frun%2Fpostgresql:5433,[fe80::1]/x");
        assert_eq!(url.hosts, [host("/run/postgresql", 5433), host("fe80::1", None)]);
    }

    #[test]
    fn password_may_contain_an_at_sign() {
        let url = parse("postgres://u:a@b:c@db/x");
        assert_eq!(url.password.unwrap().expose_secret(), "a@b:c");
        assert_eq!(url.hosts, [host("db", None)]);
    }

    #[test]
    fn mistakes_have_a_sentence_without_the_password() {
        for (text, expected) in [
            ("mysql://db/x", "does not start with postgres://"),
            ("postgres://u:se/cret@db/x", "one of / ? # @ unencoded"),
            ("postgres://u:se#cret@db/x", "one of / ? # @ unencoded"),
            ("postgres://u:secret%ff@db/x", "the password is not UTF-8"),
            ("postgres://u:secret@db/x#secret", "a fragment"),
            ("postgres://u:secret@::1/x", "needs brackets"),
            ("postgres://u:secret@[::1/x", "has no ]"),
            ("postgres://u:secret@[db]/x", "no IPv6 address"),
            ("postgres://u:secret@[::1]5432/x", "only a port may follow"),
            ("postgres://u:secret@db:0/x", "a port is no number"),
            ("postgres://u:secret@db:70000/x", "a port is no number"),
            ("postgres://secret:secret/x", "a port is no number"),
            ("postgres://a,,b/x", "a host is empty"),
            ("postgres://a b/x", "no host name has"),
            ("postgres://u@db/x?secret=1", "parameter that is not supported"),
            ("postgres://u@db/x?password=secret", "the password as a parameter"),
            ("postgres://u@db/x?host=a", "host as a parameter"),
            ("postgres://u@db/x?target_session_attrs=any", "is not needed"),
            ("postgres://u@db/x?sslkey=a", "no client certificates"),
            ("postgres://u@db/x?connect_timeout=0", "from 1 to 60"),
        ] {
            let sentence = mistake(text);
            assert!(sentence.contains(expected), "{text}: {sentence}");
            assert!(!sentence.contains("secret"), "{text}: {sentence}");
        }
    }

    #[test]
    fn debug_hides_the_password() {
        assert!(!format!("{:?}", parse("postgres://u:secret@db/x")).contains("secret"));
    }
}
