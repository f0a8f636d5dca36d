//! The kinds of calls to Bokbasen, each with limits and a breaker of its own.
//!
//! `guard`, `bulkhead` and `breaker` keep one value for each kind, so that a failing kind holds
//! back no other.

/// A kind of call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CallKind {
    /// Beginning a loan: a reader waits for it.
    Begin,
    /// Getting one loan by its id.
    Poll,
    /// Returning or cancelling a loan.
    End,
    /// Listings and availability.
    Read,
}

impl CallKind {
    /// Every kind, the one that gets a free slot first in front.
    pub const ALL: [CallKind; 4] = [CallKind::Begin, CallKind::Poll, CallKind::End, CallKind::Read];

    /// The kind's name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            CallKind::Begin => "begin",
            CallKind::Poll => "poll",
            CallKind::End => "end",
            CallKind::Read => "read",
        }
    }
}

/// One value for each kind.
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
