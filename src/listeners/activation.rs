//! The listening sockets of a service manager, by the protocol of `sd_listen_fds(3)`.

use std::os::fd::OwnedFd;

use listenfd::ListenFd;

use super::{ADMIN, Addresses, HandoverError, NamedSocket, PUBLIC};
use crate::public_addresses::PublicAddresses;

/// The most sockets that a service manager passes.
const MAX_SOCKETS: usize = 64;

/// The sockets that the service manager passed to this process, before they are assigned to the
/// addresses of a configuration.
#[derive(Debug, Default)]
pub(crate) struct Activated(Vec<NamedSocket>);

/// Why the sockets of the service manager cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActivationError {
    /// LISTEN_FDS is not a number, or too large.
    #[error("LISTEN_FDS={0} is not a number of sockets, {MAX_SOCKETS} at most")]
    Count(String),
    /// The number of names is another one.
    #[error("LISTEN_FDNAMES={names} has not {count} names")]
    Names {
        /// The value.
        names: String,
        /// The value of LISTEN_FDS.
        count: usize,
    },
    /// A file descriptor is not such a socket.
    #[error("the service manager passed {name:?}, which is not a TCP socket that listens")]
    NoListener {
        /// The name of the socket.
        name: String,
    },
    /// A socket would never be accepted from.
    #[error(
        "the service manager passed the socket {name:?} at {at}, but listen.public is {public} and \
         listen.admin is {admin}. Write the same addresses in the socket unit and the configuration"
    )]
    Unused {
        /// The name of the socket.
        name: String,
        /// Its address.
        at: std::net::SocketAddr,
        /// The configured addresses of readers.
        public: Box<PublicAddresses>,
        /// The configured address of operators.
        admin: std::net::SocketAddr,
    },
}

impl Activated {
    /// Takes the sockets from the environment. Call it once, before other threads run: it removes
    /// the variables.
    ///
    /// # Errors
    /// Returns an [`ActivationError`] if something else than listening TCP sockets was passed.
    pub(crate) fn take() -> Result<Activated, ActivationError> {
        let variable = |name: &str| std::env::var(name).ok();
        let (Some(count), Some(process)) = (variable("LISTEN_FDS"), variable("LISTEN_PID")) else {
            return Ok(Activated::default());
        };
        // Inherited from a parent for which they were meant.
        if process.parse() != Ok(std::process::id()) {
            return Ok(Activated::default());
        }
        let names = names(&count, variable("LISTEN_FDNAMES"))?;
        let mut passed = ListenFd::from_env();
        let take = |(index, name): (usize, String)| match passed.take_tcp_listener(index) {
            Ok(Some(socket)) => {
                let socket = NamedSocket { name, socket: OwnedFd::from(socket) };
                match socket.is_listening() {
                    true => Ok(socket),
                    false => Err(ActivationError::NoListener { name: socket.name }),
                }
            }
            Ok(None) | Err(_) => Err(ActivationError::NoListener { name }),
        };
        names.into_iter().enumerate().map(take).collect::<Result<_, _>>().map(Activated)
    }

    /// Names each socket after the address that it has. One that is named after another is refused.
    pub(super) fn assign(self, addresses: &Addresses) -> Result<Vec<NamedSocket>, HandoverError> {
        let assigned = self.0.into_iter().map(|socket| assign(socket, addresses));
        assigned.collect::<Result<_, _>>().map_err(HandoverError::Activation)
    }
}

/// Returns the name of each socket; empty without names.
fn names(count: &str, names: Option<String>) -> Result<Vec<String>, ActivationError> {
    let number = count.parse().ok().filter(|number| *number <= MAX_SOCKETS);
    let number = number.ok_or_else(|| ActivationError::Count(count.to_owned()))?;
    let Some(names) = names else { return Ok(vec![String::new(); number]) };
    let split: Vec<String> = names.split(':').map(str::to_owned).collect();
    match split.len() == number {
        true => Ok(split),
        false => Err(ActivationError::Names { names, count: number }),
    }
}

fn assign(socket: NamedSocket, addresses: &Addresses) -> Result<NamedSocket, ActivationError> {
    let Addresses { public, admin } = addresses;
    let NamedSocket { name, .. } = &socket;
    let Ok(at) = socket.address() else {
        return Err(ActivationError::NoListener { name: name.clone() });
    };
    let of = if name != ADMIN && public.of_socket(at).is_some() {
        PUBLIC
    } else if name != PUBLIC && socket.is_at(*admin) {
        ADMIN
    } else {
        let (public, admin) = (Box::new(public.clone()), *admin);
        return Err(ActivationError::Unused { name: name.clone(), at, public, admin });
    };
    Ok(NamedSocket { name: of.to_owned(), socket: socket.socket })
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use super::*;

    #[test]
    fn wrong_numbers_of_names_are_refused() {
        assert_eq!(names("0", None).unwrap(), [""; 0]);
        assert_eq!(names("2", None).unwrap(), ["", ""]);
        assert_eq!(names("2", Some("public:admin".to_owned())).unwrap(), ["public", "admin"]);
        for (count, listed) in [("x", None), ("-1", None), ("65", None), ("", None)] {
            assert!(matches!(names(count, listed), Err(ActivationError::Count(_))), "{count}");
        }
        for (count, listed) in [("1", "public:admin"), ("3", "public:admin"), ("0", "public")] {
            let listed = Some(listed.to_owned());
            assert!(matches!(names(count, listed), Err(ActivationError::Names { .. })), "{count}");
        }
    }

    fn socket(name: &str) -> (NamedSocket, SocketAddr) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (NamedSocket { name: name.to_owned(), socket: socket.into() }, address)
    }

    #[test]
    fn sockets_are_assigned_by_their_addresses() {
        let elsewhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
        for (name, is_public, assigned) in [
            ("", true, Some(PUBLIC)),
            ("loangate.socket", false, Some(ADMIN)),
            (PUBLIC, true, Some(PUBLIC)),
            (ADMIN, true, None),
            (PUBLIC, false, None),
        ] {
            let (socket, at) = socket(name);
            let (public, admin) = if is_public { (at, elsewhere) } else { (elsewhere, at) };
            let public = PublicAddresses::from(SocketAddr::from(([127, 0, 0, 2], 1))).with(public);
            let result = Activated(vec![socket]).assign(&Addresses { public, admin });
            let names = result.ok().map(|sockets| sockets[0].name.clone());
            assert_eq!(names.as_deref(), assigned, "{name:?}");
        }
        let (unknown, _) = socket("");
        let addresses = Addresses { public: elsewhere.into(), admin: elsewhere };
        let error = Activated(vec![unknown]).assign(&addresses).unwrap_err();
        assert!(error.to_string().contains("Write the same addresses"), "{error}");
    }
}
