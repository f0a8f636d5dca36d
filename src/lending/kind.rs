//! Kinds of calls to Bokbasen, each with its own limits and breaker.
//!
//! `guard` and `bulkhead` store one value per kind, so that a failing kind does not hold back the
//! others.

/// A kind of call to Bokbasen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CallKind {
    /// Begins a loan; a reader waits for it.
    Begin,
    /// Gets one loan by its id.
    Poll,
    /// Returns or cancels a loan.
    End,
    /// Lists loans or gets availability.
    Read,
}

impl CallKind {
    /// Every kind, in the order in which they get a free slot.
    pub const ALL: [CallKind; 4] = [CallKind::Begin, CallKind::Poll, CallKind::End, CallKind::Read];

    /// Returns the kind's name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            CallKind::Begin => "begin",
            CallKind::Poll => "poll",
            CallKind::End => "end",
            CallKind::Read => "read",
        }
    }
}

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
