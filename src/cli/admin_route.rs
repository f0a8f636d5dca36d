//! How a command reaches the admin listener of a running gate: by its Unix socket, or by TCP.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{ClientBuilder, StatusCode};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::CliError;
use crate::config::AdminAddress;
use crate::durable_file::directory_of;
use crate::http_calls::innermost;

/// How long a full accept queue may keep a connection waiting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The file with the names of the users of this machine.
const USERS: &str = "/etc/passwd";

/// The way to an admin listener.
#[derive(Clone, Debug)]
pub(super) enum AdminRoute {
    Tcp {
        address: SocketAddr,
        tls: bool,
    },
    /// A Unix socket, by its path. It serves plain HTTP, and only its user can open it.
    Socket(PathBuf),
}

impl AdminRoute {
    /// Returns the Unix socket, if there is one and `tcp` does not exclude it.
    pub(super) fn of(gate: AdminAddress, tcp: bool) -> AdminRoute {
        match gate.socket {
            Some(path) if !tcp => AdminRoute::Socket(path),
            _ => AdminRoute::Tcp { address: gate.address, tls: gate.tls },
        }
    }

    /// Whether it is a Unix socket.
    pub(super) fn is_socket(&self) -> bool {
        matches!(self, AdminRoute::Socket(_))
    }

    /// Returns the URL of the listener, without a trailing slash.
    pub(super) fn url(&self) -> String {
        match self {
            AdminRoute::Tcp { address, tls: true } => format!("https://{address}"),
            AdminRoute::Tcp { address, tls: false } => format!("http://{address}"),
            AdminRoute::Socket(_) => "http://localhost".to_owned(),
        }
    }

    /// Whether it is a Unix socket that this user cannot connect to.
    pub(super) async fn is_closed(&self) -> bool {
        match self {
            AdminRoute::Tcp { .. } => false,
            AdminRoute::Socket(path) => {
                let connected = timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await;
                connected.is_ok_and(|connected| connected.is_err())
            }
        }
    }

    /// Refuses a Unix socket at which another user than the gate's could listen: that user would
    /// get the token.
    ///
    /// # Errors
    /// Returns a sentence that says what to do.
    pub(super) fn require_trusted(&self) -> Result<(), CliError> {
        let AdminRoute::Socket(path) = self else { return Ok(()) };
        let directory = directory_of(path);
        // Without them, the connection fails and says why.
        let Ok((socket, found)) =
            path.symlink_metadata().and_then(|socket| Ok((socket, directory.metadata()?)))
        else {
            return Ok(());
        };
        let is_private = found.mode() & 0o022 == 0 && [0, socket.uid()].contains(&found.uid());
        match is_private {
            true => Ok(()),
            false => Err(CliError::new(format!(
                "other users than the gate's can write to the directory {}, so the token is not \
                 sent to the socket there. Allow only the user of the gate, or use --tcp",
                directory.display()
            ))),
        }
    }

    /// Makes a client connect to the socket, whatever its URL is.
    pub(super) fn apply(&self, client: ClientBuilder) -> ClientBuilder {
        match self {
            AdminRoute::Tcp { .. } => client,
            AdminRoute::Socket(path) => client.unix_socket(path.clone()),
        }
    }

    /// Says that what answered is no gate.
    pub(super) fn no_gate(&self, status: StatusCode) -> String {
        format!("what answers at {self} is no gate: {status}")
    }

    /// Says why no gate answered.
    pub(super) fn unanswered(&self, error: &reqwest::Error) -> String {
        let why = innermost(error);
        let AdminRoute::Socket(path) = self else {
            return format!("no gate answers at {self}: {why}");
        };
        match kind_of(error) {
            Some(ErrorKind::PermissionDenied) => denied(path),
            Some(ErrorKind::NotFound) => format!("no gate answers at {self}: {why} (see --tcp)"),
            _ => format!("no gate answers at {self}: {why}"),
        }
    }
}

impl fmt::Display for AdminRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdminRoute::Tcp { address, .. } => address.fmt(f),
            AdminRoute::Socket(path) => path.display().fmt(f),
        }
    }
}

/// Returns the kind of the error of the operating system that is the cause.
fn kind_of(error: &reqwest::Error) -> Option<ErrorKind> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    let mut kind = None;
    while let Some(error) = cause {
        kind = error.downcast_ref::<io::Error>().map(io::Error::kind).or(kind);
        cause = error.source();
    }
    kind
}

/// Says who may open a socket.
fn denied(path: &Path) -> String {
    // The directory may hide it.
    let owner = path.ancestors().find_map(|path| path.metadata().ok()).map(|found| found.uid());
    let user = owner.map(|id| name_of(id).unwrap_or_else(|| format!("#{id}")));
    let user = user.unwrap_or_else(|| "root".to_owned());
    format!(
        "this user may not open {}. Run the command as the user of the gate or as root, such as \
         `sudo -u '{user}' loangate …`, or call listen.admin by --tcp",
        path.display()
    )
}

/// Returns the name of a user of this machine.
fn name_of(id: u32) -> Option<String> {
    let users = std::fs::read_to_string(USERS).ok()?;
    let mut rows = users.lines().map(|line| line.split(':'));
    let id = id.to_string();
    rows.find_map(|mut fields| {
        let (name, _, user) = (fields.next()?, fields.next()?, fields.next()?);
        (user == id).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn gate() -> AdminAddress {
        AdminAddress {
            address: "127.0.0.1:9443".parse().unwrap(),
            tls: true,
            socket: Some("/run/loangate/admin.sock".into()),
        }
    }

    #[test]
    fn unix_socket_is_used_unless_tcp_is_wanted() {
        let route = AdminRoute::of(gate(), false);
        assert_eq!((route.url().as_str(), route.is_socket()), ("http://localhost", true));
        assert_eq!(route.to_string(), "/run/loangate/admin.sock");
        for (gate, tcp) in [(gate(), true), (AdminAddress { socket: None, ..gate() }, false)] {
            let route = AdminRoute::of(gate, tcp);
            assert_eq!(
                (route.url().as_str(), route.is_socket()),
                ("https://127.0.0.1:9443", false)
            );
        }
    }

    #[test]
    fn owner_of_a_socket_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let said = denied(&directory.path().join("missing/admin.sock"));
        let user = rustix::process::geteuid().as_raw();
        let user = name_of(user).unwrap_or_else(|| format!("#{user}"));
        assert!(said.contains(&format!("sudo -u '{user}' loangate")), "{said}");
        assert_eq!(name_of(0).as_deref(), Some("root"));
    }

    #[test]
    fn token_goes_to_no_directory_of_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let route = AdminRoute::Socket(path);
        for (mode, is_trusted) in [(0o700, true), (0o755, true), (0o775, false), (0o1777, false)] {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(directory.path(), permissions).unwrap();
            assert_eq!(route.require_trusted().is_ok(), is_trusted, "{mode:o}");
        }
        let missing = AdminRoute::Socket(directory.path().join("missing.sock"));
        assert!(missing.require_trusted().is_ok(), "nobody listens there");
    }
}
