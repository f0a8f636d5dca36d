//! Reports the state of the process to a service manager such as systemd, by the protocols of
//! `sd_notify(3)` and `sd_watchdog_enabled(3)`.
//!
//! `cli` reports, and `listeners` passes what this process knows on to its successor: a service
//! manager gives that only to the process that it started. Without a service manager, nothing
//! happens. This module depends on no other.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

/// A service manager that waits for reports.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServiceManager {
    /// Its socket, as in NOTIFY_SOCKET.
    socket: Option<String>,
    /// The time within which it expects signs of life, in microseconds.
    watchdog: Option<u64>,
}

impl ServiceManager {
    /// Returns the service manager that the environment describes.
    pub(crate) fn of_environment() -> ServiceManager {
        ServiceManager::of(|name| std::env::var(name).ok())
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> ServiceManager {
        // Another process may have passed its environment on.
        let is_for_this = |process: String| process.parse() == Ok(std::process::id());
        let watchdog = match variable("WATCHDOG_PID").is_none_or(is_for_this) {
            true => variable("WATCHDOG_USEC").and_then(|time| time.parse().ok()),
            false => None,
        };
        ServiceManager {
            socket: variable("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()),
            watchdog: watchdog.filter(|time| *time > 0),
        }
    }

    /// Adds what a predecessor of this process knows.
    pub(crate) fn or(self, of_predecessor: ServiceManager) -> ServiceManager {
        ServiceManager {
            socket: self.socket.or(of_predecessor.socket),
            watchdog: self.watchdog.or(of_predecessor.watchdog),
        }
    }

    /// Reports that this process is the service, and serves.
    pub(crate) fn ready(&self, status: &str) {
        let process = std::process::id();
        self.send(&format!("READY=1\nMAINPID={process}\nSTATUS={status}"));
    }

    /// Reports that the configuration was read. Another process may be the service by now.
    pub(crate) fn reloaded(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// Reports that the configuration is being read. [`ServiceManager::reloaded`] must follow.
    pub(crate) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// Reports that the service stops.
    pub(crate) fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={status}"));
    }

    /// Reports that another process is the service now. This process reports nothing more.
    pub(crate) fn succeeded_by(&self, process: u32) {
        self.send(&format!("MAINPID={process}"));
    }

    /// Reports signs of life while `is_alive` returns true; it has to do so within the time that it
    /// is given. Returns only if no service manager expects any.
    pub(crate) async fn watch<F>(self, is_alive: impl Fn(Duration) -> F)
    where
        F: Future<Output = bool>,
    {
        let Some(within) = self.watchdog.map(Duration::from_micros) else { return };
        let interval = within / 3;
        loop {
            sleep(interval).await;
            if is_alive(interval).await {
                self.send("WATCHDOG=1");
            } else {
                tracing::error!("a worker does not respond; the service manager is not notified");
            }
        }
    }

    /// Sends a report. Nothing depends on its arrival.
    fn send(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        let address = match socket.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(socket),
        };
        let sent = address.and_then(|address| {
            let sender = UnixDatagram::unbound()?;
            // A full queue must not block the runtime.
            sender.set_nonblocking(true)?;
            sender.send_to_addr(state.as_bytes(), &address)
        });
        let sent = sent.and_then(|sent| match sent == state.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::WriteZero.into()),
        });
        if let Err(error) = sent {
            tracing::warn!(%error, socket, "cannot report to the service manager");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::timeout;

    use super::*;

    fn of(variables: &[(&str, &str)]) -> ServiceManager {
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        ServiceManager::of(|name| {
            variables.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
        })
    }

    #[test]
    fn watchdog_of_another_process_is_ignored() {
        let own = std::process::id().to_string();
        for (process, time, watchdog) in [
            (own.as_str(), "3000000", Some(3_000_000)),
            ("1", "3000000", None),
            (&own, "0", None),
            (&own, "soon", None),
        ] {
            let found = of(&[("WATCHDOG_PID", process), ("WATCHDOG_USEC", time)]);
            assert_eq!(found, ServiceManager { socket: None, watchdog }, "{process} {time}");
        }
        assert_eq!(of(&[("WATCHDOG_USEC", "9")]).watchdog, Some(9));
        let successor = of(&[("NOTIFY_SOCKET", "/run/a")]);
        let predecessor = of(&[("NOTIFY_SOCKET", "/run/b"), ("WATCHDOG_USEC", "9")]);
        let expected = of(&[("NOTIFY_SOCKET", "/run/a"), ("WATCHDOG_USEC", "9")]);
        assert_eq!(successor.or(predecessor), expected);
    }

    #[tokio::test]
    async fn reports_arrive_at_files_and_abstract_names() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("notify").to_str().unwrap().to_owned();
        let name = format!("loangate-test-{}", uuid::Uuid::new_v4());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        for (socket, receiver) in [
            (file.clone(), UnixDatagram::bind(&file).unwrap()),
            (format!("@{name}"), UnixDatagram::bind_addr(&address).unwrap()),
        ] {
            let manager = of(&[("NOTIFY_SOCKET", &socket)]);
            manager.ready("serving");
            manager.succeeded_by(7);
            let mut buffer = [0; 100];
            let mut next = || {
                let length = receiver.recv(&mut buffer).unwrap();
                String::from_utf8(buffer[..length].to_vec()).unwrap()
            };
            let own = std::process::id();
            assert_eq!(next(), format!("READY=1\nMAINPID={own}\nSTATUS=serving"));
            assert_eq!(next(), "MAINPID=7");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_live_process_reports_signs_of_life() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("notify");
        let receiver = UnixDatagram::bind(&file).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let manager =
            of(&[("NOTIFY_SOCKET", file.to_str().unwrap()), ("WATCHDOG_USEC", "3000000")]);
        let checks = AtomicU32::new(0);
        let is_alive = |within| {
            assert_eq!(within, Duration::from_secs(1));
            let check = checks.fetch_add(1, Ordering::Relaxed);
            async move { check < 2 }
        };
        let _ = timeout(Duration::from_secs(20), manager.watch(is_alive)).await;
        let mut buffer = [0; 100];
        for _ in 0..2 {
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"WATCHDOG=1");
        }
        assert!(receiver.recv(&mut buffer).is_err());
        assert!(checks.load(Ordering::Relaxed) > 4);
    }
}
