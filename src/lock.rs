//! Locks a mutex. Every module may call it.
//!
//! A mutex is poisoned when a thread panics while it holds the lock. The gate restarts a task that
//! panicked, and the data behind each of its mutexes is valid after every statement. So poisoning
//! is ignored, in this one place.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, also after a panic of another holder.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
