//! Kinds of calls to Bokbasen, each with its own limits and breaker.
//!
//! `guard` and `bulkhead` store one value per kind, so that a failing kind does not hold back the
//! others.

pub use crate::telemetry::CallKind;

/// One value per kind.
#[derive(Clone, Debug, Default)]
pub(super) struct PerKind<T> {
    pub(super) begin: T,
    pub(super) poll: T,
    pub(super) end: T,
    pub(super) read: T,
}

impl<T> PerKind<T> {
    pub(super) fn of(&self, kind: CallKind) -> &T {
        match kind {
            CallKind::Begin => &self.begin,
            CallKind::Poll => &self.poll,
            CallKind::End => &self.end,
            CallKind::Read => &self.read,
        }
    }

    pub(super) fn of_mut(&mut self, kind: CallKind) -> &mut T {
        match kind {
            CallKind::Begin => &mut self.begin,
            CallKind::Poll => &mut self.poll,
            CallKind::End => &mut self.end,
            CallKind::Read => &mut self.read,
        }
    }
}
