//! The commands that wait for a lane, in a queue for each library.
//!
//! A lane takes a library with its waiting commands, and no other lane takes that library until
//! they have their responses. So the commands of a library run in their order, and one lane at a
//! time extends its chain. Libraries take turns in the order of their arrival: one whose rows are
//! locked occupies one lane, and delays no library that another lane can serve.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::LedgerError;
use super::command::Command;
#[cfg(test)]
use super::store::DiskFault;
use crate::loan::LibraryId;
use crate::lock::lock;

/// The maximum number of commands that wait for a lane: of one library, and for each lane.
const CAPACITY: usize = 4096;
/// How long a caller waits for room among them. A database that does not respond makes none.
const SEND_DEADLINE: Duration = Duration::from_secs(2);

/// The queues of all libraries.
#[derive(Debug)]
pub(super) struct LibraryQueues {
    /// Whether one transaction may write several libraries. Then all share one queue.
    spans_libraries: bool,
    /// The maximum number of commands of a turn.
    max_turn: usize,
    /// A permit for each further command that may wait.
    room: Semaphore,
    /// A permit for each library in [`State::ready`].
    ready: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The waiting commands of each library that has one, or whose turn it is.
    waiting: HashMap<Option<LibraryId>, VecDeque<Command>>,
    /// The libraries that wait for their turn.
    ready: VecDeque<Option<LibraryId>>,
    /// The number of lanes that have not ended.
    lanes: usize,
    is_closed: bool,
    /// The fault to simulate in the next transaction.
    #[cfg(test)]
    fault: Option<DiskFault>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("ready", &self.ready).finish_non_exhaustive()
    }
}

/// What a lane takes turns from. When the last lane ends, no command can be committed, so those
/// that wait get [`LedgerError::Closed`].
pub(super) struct LaneTurns {
    queues: Arc<LibraryQueues>,
    /// Whether the connection of the lane is open.
    is_open: Arc<AtomicBool>,
}

/// Commands of one library, which no other lane takes until this is dropped.
pub(super) struct Turn {
    queues: Arc<LibraryQueues>,
    library: Option<LibraryId>,
    pub(super) commands: Vec<Command>,
}

impl LibraryQueues {
    /// Creates the queues of a store with this number of lanes, whose turns have at most `max_turn`
    /// commands.
    pub(super) fn new(spans_libraries: bool, max_turn: usize, lanes: usize) -> LibraryQueues {
        LibraryQueues {
            spans_libraries,
            max_turn,
            room: Semaphore::new(CAPACITY.saturating_mul(lanes).min(Semaphore::MAX_PERMITS)),
            ready: Semaphore::new(0),
            state: Mutex::default(),
        }
    }

    /// Adds a lane, with the flag that says whether its connection is open.
    pub(super) fn add_lane(self: &Arc<Self>, is_open: Arc<AtomicBool>) -> LaneTurns {
        lock(&self.state).lanes += 1;
        LaneTurns { queues: self.clone(), is_open }
    }

    /// Enqueues a command.
    ///
    /// # Errors
    /// [`LedgerError::Closed`] if the lanes have ended; [`LedgerError::Commit`] if too many
    /// commands wait.
    pub(super) async fn push(&self, command: Command) -> Result<(), LedgerError> {
        let room = match self.room.try_acquire() {
            Ok(room) => room,
            Err(_) => match timeout(SEND_DEADLINE, self.room.acquire()).await {
                Ok(room) => room.map_err(|_| LedgerError::Closed)?,
                Err(_) => return Err(too_many()),
            },
        };
        let library = command.library().filter(|_| !self.spans_libraries);
        let mut state = lock(&self.state);
        if state.is_closed {
            return Err(LedgerError::Closed);
        }
        let State { waiting, ready, .. } = &mut *state;
        match waiting.entry(library) {
            Entry::Vacant(vacant) => {
                vacant.insert(VecDeque::from([command]));
                ready.push_back(library);
                self.ready.add_permits(1);
            }
            // One library must not take the room of all.
            Entry::Occupied(occupied) if occupied.get().len() >= CAPACITY => {
                return Err(too_many());
            }
            Entry::Occupied(mut occupied) => occupied.get_mut().push_back(command),
        }
        room.forget();
        Ok(())
    }

    /// Rejects further commands. The lanes still take those that wait.
    pub(super) fn close(&self) {
        lock(&self.state).is_closed = true;
        self.room.close();
    }

    /// Takes the commands of the next library. The caller has consumed a permit of `ready`.
    fn take(self: &Arc<Self>) -> Option<Turn> {
        let mut state = lock(&self.state);
        let State { waiting, ready, .. } = &mut *state;
        let library = ready.pop_front()?;
        let queue = waiting.get_mut(&library)?;
        let later = queue.split_off(self.max_turn.min(queue.len()));
        let commands: Vec<Command> = std::mem::replace(queue, later).into();
        self.room.add_permits(commands.len());
        Some(Turn { queues: self.clone(), library, commands })
    }

    /// Ends the turn of a library, and schedules the next one if it has more commands.
    fn end_turn(&self, library: Option<LibraryId>) {
        let mut state = lock(&self.state);
        match state.waiting.get(&library) {
            Some(queue) if !queue.is_empty() => {
                state.ready.push_back(library);
                self.ready.add_permits(1);
            }
            _ => drop(state.waiting.remove(&library)),
        }
    }

    /// Simulates a fault in the next transaction of any lane.
    #[cfg(test)]
    pub(super) fn inject(&self, fault: DiskFault) {
        lock(&self.state).fault = Some(fault);
    }
}

impl LaneTurns {
    /// Waits for a library whose turn it is. Cancel safe.
    pub(super) async fn next(&self) -> Option<Turn> {
        self.queues.ready.acquire().await.ok()?.forget();
        self.queues.take()
    }

    /// Returns the commands of a library that waits for its turn, if one does.
    pub(super) fn try_next(&self) -> Option<Turn> {
        self.queues.ready.try_acquire().ok()?.forget();
        self.queues.take()
    }

    #[cfg(test)]
    pub(super) fn take_fault(&self) -> Option<DiskFault> {
        lock(&self.queues.state).fault.take()
    }
}

impl Drop for LaneTurns {
    fn drop(&mut self) {
        self.is_open.store(false, Ordering::Relaxed);
        if std::thread::panicking() {
            tracing::error!(
                "a task that writes the ledger has panicked; the others serve its libraries. \
                 Restart this gate soon, and report the panic"
            );
        }
        let mut state = lock(&self.queues.state);
        state.lanes = state.lanes.saturating_sub(1);
        if state.lanes > 0 {
            return;
        }
        let unserved = std::mem::take(&mut state.waiting);
        state.ready.clear();
        drop(state);
        self.queues.close();
        drop(unserved);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.queues.end_turn(self.library);
    }
}

fn too_many() -> LedgerError {
    LedgerError::Commit("too many commands wait for the ledger".to_owned())
}

#[cfg(test)]
#[path = "library_queues_tests.rs"]
mod tests;
