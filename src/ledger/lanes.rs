//! The lanes of the executor: each commits the commands of one library at a time, over a connection
//! of its own. A ledger with one writer has one lane.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::LedgerError;
use super::audit::HeadRecorder;
use super::command::{Command, Message};
use super::executor::{Executor, ExecutorContext};
use super::library_queues::LibraryQueues;
#[cfg(test)]
use super::store::DiskFault;
use super::store::LedgerStore;
use super::write_connection::WriteConnection;

/// The maximum number of messages to one lane that wait: write tests, and the end.
const MESSAGES: usize = 16;

/// How long callers wait for a lane. A disk has no deadline here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deadlines {
    /// For a write on a reader's request.
    pub(super) reader_write: Option<Duration>,
    /// For the last commands. A database that does not respond must not keep a process from ending.
    pub(super) close: Option<Duration>,
}

/// The lanes, and the queues that they share.
#[derive(Clone, Debug)]
pub(super) struct Lanes {
    queues: Arc<LibraryQueues>,
    lanes: Arc<[Lane]>,
}

#[derive(Debug)]
struct Lane {
    messages: mpsc::Sender<Message>,
    /// Whether the connection of the lane is open.
    is_open: Arc<AtomicBool>,
}

impl Lanes {
    /// Starts an executor for each store with its open connection.
    pub(super) fn start<S: LedgerStore + 'static>(
        context: &Arc<ExecutorContext>,
        stores: impl IntoIterator<Item = (S, S::Connection, HeadRecorder)>,
    ) -> Lanes {
        let connect =
            |(store, connection, head)| (WriteConnection::<S>::new(store, connection), head);
        let stores: Vec<_> = stores.into_iter().map(connect).collect();
        let queues = LibraryQueues::new(S::SPANS_LIBRARIES, S::MAX_COMMANDS, stores.len());
        let queues = Arc::new(queues);
        let are_open: Arc<[_]> =
            stores.iter().map(|(connection, _)| connection.is_open()).collect();
        let start = |(connection, head): (WriteConnection<S>, HeadRecorder)| {
            let (messages, received) = mpsc::channel(MESSAGES);
            let is_open = connection.is_open();
            let turns = queues.add_lane(is_open.clone());
            let executor =
                Executor::new(context.clone(), connection, head, turns, are_open.clone());
            tokio::spawn(executor.run(received));
            Lane { messages, is_open }
        };
        let lanes = stores.into_iter().map(start).collect();
        Lanes { queues, lanes }
    }

    /// Enqueues a command of a library.
    ///
    /// # Errors
    /// As [`LibraryQueues::push`].
    pub(super) async fn send(&self, command: Command) -> Result<(), LedgerError> {
        self.queues.push(command).await
    }

    /// Sends a command without a library to the lane with this number.
    ///
    /// # Errors
    /// [`LedgerError::Closed`] if the lane has ended.
    pub(super) async fn send_to(&self, lane: usize, command: Command) -> Result<(), LedgerError> {
        let lane = &self.lanes.get(lane).ok_or(LedgerError::Closed)?.messages;
        lane.send(Message::Run(Box::new(command))).await.map_err(|_| LedgerError::Closed)
    }

    /// Commits the queued commands and ends the executors. Returns false if that takes longer than
    /// this deadline.
    pub(super) async fn close(&self, deadline: Option<Duration>) -> bool {
        self.queues.close();
        let close = async |lane: &mpsc::Sender<Message>| {
            let (responder, response) = oneshot::channel();
            if lane.send(Message::Close(responder)).await.is_ok() {
                let _ = response.await;
            }
        };
        let closed = join_all(self.lanes.iter().map(|lane| close(&lane.messages)));
        let is_closed = within(deadline, closed).await.is_some();
        if !is_closed {
            tracing::error!("timed out while writing the last commands to the ledger");
        }
        is_closed
    }

    /// Returns the lanes to test: each whose connection is closed, and the one whose turn it is. A
    /// lane that has ended is left out while there are others, which serve its libraries.
    pub(super) fn to_test(&self, turn: usize) -> Vec<usize> {
        let lanes: Vec<(usize, &Lane)> = self.lanes.iter().enumerate().collect();
        let live = lanes.iter().filter(|(_, lane)| !lane.messages.is_closed()).copied();
        let live: Vec<(usize, &Lane)> = live.collect();
        let lanes = if live.is_empty() { lanes } else { live };
        let turn = turn.checked_rem(lanes.len());
        let is_closed = |lane: &Lane| !lane.is_open.load(Ordering::Relaxed);
        let places = lanes.into_iter().enumerate();
        let tested = places.filter(|(place, (_, lane))| Some(*place) == turn || is_closed(lane));
        tested.map(|(_, (number, _))| number).collect()
    }

    /// Simulates a fault in the next transaction of any lane.
    #[cfg(test)]
    pub(super) fn inject(&self, fault: DiskFault) {
        self.queues.inject(fault);
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
