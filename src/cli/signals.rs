//! Signal handling: the first SIGTERM or SIGINT drains, a second one stops at once, SIGHUP reloads.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::CliError;

/// What a signal requests.
pub(super) enum SignalAction {
    Drain,
    Reload,
}

/// The signals that a long-running command handles.
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

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> SignalAction {
        tokio::select! {
            _ = self.terminate.recv() => SignalAction::Drain,
            _ = self.interrupt.recv() => SignalAction::Drain,
            _ = self.hang_up.recv() => SignalAction::Reload,
        }
    }

    /// Waits for a signal to drain, and ignores reloads.
    pub(super) async fn drain(&mut self) {
        while let SignalAction::Reload = self.next().await {}
    }
}
