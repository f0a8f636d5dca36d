//! The events that wait for a webhook: of each problem, the newest one only.

use std::sync::Mutex;

use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::super::tracker::Change;
use crate::lock::lock;

/// The maximum number of waiting events. There are not more problems at once.
const MAX_EVENTS: usize = 100;

/// An event to deliver, and its id, which is the same for each attempt.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) id: String,
    pub(super) change: Change,
    /// When it was added.
    pub(super) added: Instant,
    /// The number of failed attempts.
    failures: u32,
}

impl Event {
    fn is_about_same(&self, other: &Change) -> bool {
        let (ours, theirs) = (&self.change.problem, &other.problem);
        (ours.code, &ours.subject) == (theirs.code, &theirs.subject)
    }
}

/// The waiting events, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    events: Mutex<Vec<Event>>,
    added: Notify,
}

impl Queue {
    /// Adds an event in place of an older one about the same problem.
    pub(super) fn add(&self, change: Change) {
        let mut events = lock(&self.events);
        events.retain(|event| !event.is_about_same(&change));
        if events.len() >= MAX_EVENTS {
            // The newest state counts.
            events.remove(0);
        }
        let id = format!("msg_{}", Uuid::new_v4().simple());
        events.push(Event { id, change, added: Instant::now(), failures: 0 });
        drop(events);
        self.added.notify_one();
    }

    /// Waits for an event: of those that failed the least, the oldest. So one that a receiver never
    /// accepts delays no other. It stays in the queue until [`Queue::remove`]. Cancel safe.
    pub(super) async fn next(&self) -> Event {
        loop {
            let event = lock(&self.events).iter().min_by_key(|event| event.failures).cloned();
            match event {
                Some(event) => return event,
                None => self.added.notified().await,
            }
        }
    }

    /// Waits until an event is added. Cancel safe.
    pub(super) async fn until_added(&self) {
        self.added.notified().await;
    }

    /// Records a failed attempt. Does nothing if a newer event has replaced this one.
    pub(super) fn record_failure(&self, event: &Event) {
        for waiting in lock(&self.events).iter_mut().filter(|waiting| waiting.id == event.id) {
            waiting.failures = waiting.failures.saturating_add(1);
        }
    }

    /// Returns the number of waiting events.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.events).len()
    }

    /// Removes an event that was delivered or given up.
    pub(super) fn remove(&self, event: &Event) {
        lock(&self.events).retain(|waiting| waiting.id != event.id);
    }
}
