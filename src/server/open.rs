//! The open connections of a worker, to be told when the gate drains.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::connection::Connection;

/// One worker's open connections.
#[derive(Debug, Default)]
pub(super) struct Open(Mutex<Listed>);

#[derive(Debug, Default)]
struct Listed {
    draining: bool,
    last: u64,
    connections: HashMap<u64, Connection>,
}

impl Open {
    /// Lists a connection for as long as what this gives is held.
    pub(super) fn enter(&self, connection: &Connection) -> Entry<'_> {
        let mut listed = self.lock();
        if listed.draining {
            connection.drain();
        }
        listed.last += 1;
        let number = listed.last;
        listed.connections.insert(number, connection.clone());
        Entry { open: self, number }
    }

    /// Drains all that are listed, and those that will be.
    pub(super) fn drain(&self) {
        let mut listed = self.lock();
        listed.draining = true;
        listed.connections.values().for_each(Connection::drain);
    }

    fn lock(&self) -> MutexGuard<'_, Listed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place on the list.
pub(super) struct Entry<'a> {
    open: &'a Open,
    number: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.open.lock().connections.remove(&self.number);
    }
}
