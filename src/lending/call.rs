//! A call to Bokbasen's API: what is sent, and whether it may be sent again.
//!
//! The methods of `Bokbasen` create calls, and `transport` sends them.

use http::Method;
use serde::Serialize;

use super::breaker::Subject;
use super::kind::CallKind;
use super::send_guard::SendGuard;
use super::wire::{Path, Query};
use crate::telemetry::LendingCall;

/// One call to the API.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) kind: CallKind,
    pub(super) subject: Subject,
    pub(super) operation: LendingCall,
    pub(super) method: Method,
    pub(super) path: Path,
    pub(super) query: Query,
    pub(super) body: Option<Vec<u8>>,
    pub(super) repeatable: bool,
    /// The check before the first byte of a call that is sent once.
    pub(super) guard: Option<SendGuard>,
}

/// The kind of a call, which selects its limits and breaker, and its subject.
pub(super) type CallScope = (CallKind, Subject);

impl Call {
    /// Returns a call that is sent once.
    pub(super) fn once(
        scope: CallScope,
        operation: LendingCall,
        method: Method,
        path: Path,
    ) -> Call {
        let (kind, subject) = scope;
        Call {
            kind,
            subject,
            operation,
            method,
            path,
            query: Vec::new(),
            body: None,
            repeatable: false,
            guard: None,
        }
    }

    /// Returns a call that may be retried.
    pub(super) fn repeatable(
        scope: CallScope,
        operation: LendingCall,
        method: Method,
        path: Path,
    ) -> Call {
        Call { repeatable: true, ..Call::once(scope, operation, method, path) }
    }

    /// Checks before the first byte whether the call may be sent.
    pub(super) fn guarded(self, guard: SendGuard) -> Call {
        Call { guard: Some(guard), ..self }
    }

    /// Returns whether its check has withheld the call.
    pub(super) fn is_withheld(&self) -> bool {
        self.guard.as_ref().is_some_and(SendGuard::is_withheld)
    }

    pub(super) fn query(self, query: Query) -> Call {
        Call { query, ..self }
    }

    pub(super) fn body(self, body: &impl Serialize) -> Call {
        Call { body: serde_json::to_vec(body).ok(), ..self }
    }
}
