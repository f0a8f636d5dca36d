//! Locks a mutex. Every module may call it.
//!
//! A mutex is poisoned when a thread panics while it holds the lock. That must not stop everything
//! that shares the mutex: the gate restarts a task that panicked, and a connection whose task
//! panicked is closed. So poisoning is ignored, in this one place.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, also after a panic of another holder.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
