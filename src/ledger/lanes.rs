//! The lanes of the executor: each commits the commands of some libraries, over a connection of its
//! own. A ledger with one writer has one lane.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::LedgerError;
use super::audit::HeadRecorder;
use super::command::{Command, Message};
use super::executor::{Executor, ExecutorContext};
use super::store::LedgerStore;
use super::write_connection::WriteConnection;
use crate::loan::LibraryId;

/// The maximum number of commands that wait for an executor.
const QUEUE_CAPACITY: usize = 4096;
/// How long a caller waits for room among them. A lane whose database does not respond takes none.
const SEND_DEADLINE: Duration = Duration::from_secs(2);

/// How long callers wait for a lane. A disk has no deadline here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deadlines {
    /// For a write on a reader's request.
    pub(super) reader_write: Option<Duration>,
    /// For the last commands. A database that does not respond must not keep a process from ending.
    pub(super) close: Option<Duration>,
}

/// The queues of the lanes.
#[derive(Clone, Debug)]
pub(super) struct Lanes(Arc<[LaneQueue]>);

#[derive(Debug)]
struct LaneQueue {
    commands: mpsc::Sender<Message>,
    /// Whether the connection of the lane is open.
    is_open: Arc<AtomicBool>,
}

impl Lanes {
    /// Starts an executor for each store with its open connection.
    pub(super) fn start<S: LedgerStore + 'static>(
        context: &Arc<ExecutorContext>,
        stores: impl IntoIterator<Item = (S, S::Connection, HeadRecorder)>,
    ) -> Lanes {
        let start = |(store, connection, head)| {
            let (commands, waiting) = mpsc::channel(QUEUE_CAPACITY);
            let connection = WriteConnection::new(store, connection);
            let is_open = connection.is_open();
            tokio::spawn(Executor::new(context.clone(), connection, head).run(waiting));
            LaneQueue { commands, is_open }
        };
        Lanes(stores.into_iter().map(start).collect())
    }

    /// Enqueues a command in the lane of its library.
    ///
    /// # Errors
    /// [`LedgerError::Closed`] if the executor has ended; [`LedgerError::Commit`] if too many
    /// commands wait for it.
    pub(super) async fn send(&self, command: Command) -> Result<(), LedgerError> {
        let number = self.number(command.library()).ok_or(LedgerError::Closed)?;
        self.send_to(number, command).await
    }

    /// Enqueues a command in the lane with this number.
    ///
    /// # Errors
    /// As [`Lanes::send`].
    pub(super) async fn send_to(&self, lane: usize, command: Command) -> Result<(), LedgerError> {
        let lane = &self.0.get(lane).ok_or(LedgerError::Closed)?.commands;
        let message = Message::Run(Box::new(command));
        lane.send_timeout(message, SEND_DEADLINE).await.map_err(|error| match error {
            SendTimeoutError::Closed(_) => LedgerError::Closed,
            SendTimeoutError::Timeout(_) => {
                LedgerError::Commit("too many commands wait for the ledger".to_owned())
            }
        })
    }

    /// Commits the queued commands and ends the executors, within this deadline.
    pub(super) async fn close(&self, deadline: Option<Duration>) {
        let close = async |lane: &mpsc::Sender<Message>| {
            let (responder, response) = oneshot::channel();
            if lane.send(Message::Close(responder)).await.is_ok() {
                let _ = response.await;
            }
        };
        let closed = join_all(self.0.iter().map(|lane| close(&lane.commands)));
        if within(deadline, closed).await.is_none() {
            tracing::error!("timed out while writing the last commands to the ledger");
        }
    }

    /// Returns the lanes to test: each whose connection is closed, and the one whose turn it is.
    pub(super) fn to_test(&self, turn: usize) -> Vec<usize> {
        let turn = turn.checked_rem(self.0.len());
        let is_closed = |lane: &LaneQueue| !lane.is_open.load(Ordering::Relaxed);
        let lanes = self.0.iter().enumerate();
        let tested = lanes.filter(|(number, lane)| Some(*number) == turn || is_closed(lane));
        tested.map(|(number, _)| number).collect()
    }

    /// Returns the queue of a library's lane.
    #[cfg(test)]
    pub(super) fn lane(&self, library: Option<LibraryId>) -> Option<&mpsc::Sender<Message>> {
        self.0.get(self.number(library)?).map(|lane| &lane.commands)
    }

    /// Returns the number of a library's lane. Commands without a library have the first.
    fn number(&self, library: Option<LibraryId>) -> Option<usize> {
        let hash = |library| BuildHasherDefault::<DefaultHasher>::default().hash_one(library);
        let number = library.map_or(0, hash).checked_rem(self.0.len() as u64)?;
        usize::try_from(number).ok()
    }
}

/// Returns the result of a future; none if the deadline passes first.
pub(super) async fn within<T>(
    deadline: Option<Duration>,
    future: impl Future<Output = T>,
) -> Option<T> {
    match deadline {
        None => Some(future.await),
        Some(deadline) => timeout(deadline, future).await.ok(),
    }
}
