//! Waiting for the end: the first SIGTERM or SIGINT drains, a second one stops at once; SIGHUP
//! reloads.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::CliError;

/// What somebody wants of the process.
pub(super) enum Wish {
    Drain,
    Reload,
}

/// The signals that a long-running command listens to.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Signals, CliError> {
        let listen = |kind| signal(kind).map_err(CliError::new);
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// The next wish.
    pub(super) async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Drain,
            _ = self.interrupt.recv() => Wish::Drain,
            _ = self.hang_up.recv() => Wish::Reload,
        }
    }

    /// Waits for a wish to drain; reloads mean nothing here.
    pub(super) async fn drain(&mut self) {
        while let Wish::Reload = self.next().await {}
    }
}
