//! Where the admin listener of a running gate is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::overrides::Override;
use super::socket_path::socket_path;
use super::source::Source;
use super::table::Table;
use super::values::{address, boolean};
use super::{Mistake, service, text_of};
use crate::admin;

/// The address of the admin listener, as a client on the same machine connects to it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AdminAddress {
    /// The address; loopback if the gate listens on every address.
    pub address: SocketAddr,
    /// Whether it serves HTTPS there.
    pub tls: bool,
    /// Its Unix socket, if it has one.
    pub socket: Option<PathBuf>,
}

impl AdminAddress {
    /// Returns the address in a configuration.
    pub(crate) fn of(settings: &admin::Settings) -> AdminAddress {
        AdminAddress {
            address: reachable(settings.listen),
            tls: settings.tls,
            socket: settings.socket.clone(),
        }
    }
}

/// Reads the address of the admin listener, and nothing else of the configuration: a running gate
/// does not fail because somebody saved a mistake in another key.
///
/// # Errors
/// Returns the mistakes if the file has no such address.
pub fn admin_address(file: &Path) -> Result<AdminAddress, Vec<Mistake>> {
    let text = text_of(file)?;
    read(file, &text, &Override::all(std::env::vars_os()))
}

fn read(file: &Path, text: &str, overrides: &[Override]) -> Result<AdminAddress, Vec<Mistake>> {
    let mistakes = match read_text(file, text, overrides) {
        Ok(found) => return Ok(found),
        Err(mistakes) => mistakes,
    };
    // A line that is no TOML may hide the table that follows.
    read_text(file, &tables_alone(text), overrides).map_err(|_| mistakes)
}

/// Returns the lines of the tables that have the address.
fn tables_alone(text: &str) -> String {
    let mut is_wanted = false;
    let wanted = text.lines().filter(|line| {
        if line.starts_with('[') {
            is_wanted = line.starts_with("[listen]") || line.starts_with("[admin]");
        }
        is_wanted
    });
    wanted.flat_map(|line| [line, "\n"]).collect()
}

fn read_text(
    file: &Path,
    text: &str,
    overrides: &[Override],
) -> Result<AdminAddress, Vec<Mistake>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut document = document.into_inner();
    let source = Source::new(file, text);
    errors.iter().for_each(|error| source.not_toml(error));
    overrides.iter().for_each(|variable| variable.apply(&mut document, &source));
    let mut root = Table::root(&source, &document);
    let mut listen = root.optional_table("listen");
    let admin = listen.required("admin", "admin = \"127.0.0.1:9443\"", address);
    // A mistake in it is one of the file, and not of the running gate.
    let socket = listen.optional("admin_socket", |value| socket_path(value, &source, ""));
    let mut table = root.optional_table("admin");
    let has_own = ["certificate", "client_ca"].into_iter().any(|key| table.has(key));
    let tls = table.or("tls", false, boolean) || has_own;
    match admin {
        Some(listen) => {
            let tls = tls || service::needs_tls(listen);
            Ok(AdminAddress { address: reachable(listen), tls, socket })
        }
        None => Err(source.finish().mistakes),
    }
}

/// Returns the address that a client connects to. "Every address" is none.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, variables: &[(&str, &str)]) -> Result<(String, bool), String> {
        let variables = variables.iter().map(|(name, text)| ((*name).into(), (*text).into()));
        match read(Path::new("gate.toml"), text, &Override::all(variables)) {
            Ok(found) => Ok((found.address.to_string(), found.tls)),
            Err(mistakes) => Err(mistakes.iter().map(|mistake| format!("{mistake}\n")).collect()),
        }
    }

    #[test]
    fn mistakes_elsewhere_do_not_matter() {
        let listen = "[listen]\npublic = 7\nadmin = \"127.0.0.1:9443\"\nextra = 1\n";
        for (before, after) in [
            ("", ""),
            ("[tls]\nkey = nothing\n", ""),
            ("", "[tls]\nkey\n"),
            ("", "[tls\n"),
            ("", "\"\"\""),
            ("[tls]\nkey\n", ""),
            ("nonsense\n", ""),
        ] {
            let text = format!("{before}{listen}{after}");
            assert_eq!(found(&text, &[]), Ok(("127.0.0.1:9443".to_owned(), false)), "{text}");
        }
    }

    #[test]
    fn every_address_is_reached_by_loopback_with_tls() {
        for (listen, address) in [
            ("0.0.0.0:9443", "127.0.0.1:9443"),
            ("[::]:9443", "[::1]:9443"),
            ("10.0.0.7:9443", "10.0.0.7:9443"),
        ] {
            let text = format!("[listen]\nadmin = \"{listen}\"\n");
            assert_eq!(found(&text, &[]), Ok((address.to_owned(), true)));
        }
    }

    #[test]
    fn variables_override_the_file() {
        let text = "[listen]\nadmin = \"127.0.0.1:9443\"\n";
        let variables =
            [("LOANGATE__LISTEN__ADMIN", "127.0.0.1:7"), ("LOANGATE__ADMIN__TLS", "true")];
        assert_eq!(found(text, &variables), Ok(("127.0.0.1:7".to_owned(), true)));
    }

    #[test]
    fn unix_socket_is_beside_the_file() {
        let socket = |text: &str, variables: &[(&str, &str)]| {
            let variables = variables.iter().map(|(name, text)| ((*name).into(), (*text).into()));
            let found = read(Path::new("/etc/gate.toml"), text, &Override::all(variables));
            found.unwrap().socket.map(|path| path.display().to_string())
        };
        let listen = "[listen]\nadmin = \"127.0.0.1:9443\"\n";
        let with = |line: &str| format!("{listen}{line}\n[tls]\nkey\n");
        let found = socket(&with("admin_socket = \"run/admin.sock\""), &[]);
        assert_eq!(found.as_deref(), Some("/etc/run/admin.sock"));
        let variable = ("LOANGATE__LISTEN__ADMIN_SOCKET", "/run/loangate/admin.sock");
        assert_eq!(socket(listen, &[variable]).as_deref(), Some("/run/loangate/admin.sock"));
        for none in ["", "admin_socket = 7", "admin_socket = \"\""] {
            assert_eq!(socket(&with(none), &[]), None, "{none}");
        }
    }

    #[test]
    fn missing_address_is_a_mistake_with_its_place() {
        let mistakes = found("[listen]\nadmin = \"nowhere\"\n", &[]).unwrap_err();
        assert!(mistakes.starts_with("gate.toml:2: listen.admin: "), "{mistakes}");
        let mistakes = found("[listen]\n", &[]).unwrap_err();
        assert!(mistakes.contains("listen.admin: it is missing"), "{mistakes}");
        let mistakes = found("[listen\n", &[]).unwrap_err();
        assert!(mistakes.contains("this is not TOML"), "{mistakes}");
    }
}
