//! The state of one lane of the executor that outlives its connections.
//!
//! A lane writes all loans of its libraries, over one connection at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use uuid::Uuid;

use super::standing::Standing;
use super::transaction::PROBE_NAME;
use crate::ledger::audit::AuditKey;
use crate::ledger::audit::chain_heads::ChainHeads;
use crate::loan::LibraryId;
use crate::lock::lock;

/// What the connections of a lane share.
pub(super) struct Lane {
    /// The name of the chains of this process, a new one at each start.
    pub(super) chain: Uuid,
    pub(super) audit_key: AuditKey,
    pub(super) heads: Arc<ChainHeads>,
    pub(super) standing: Arc<Standing>,
    /// The name of the row that tests writes. Lanes that shared one would wait for each other.
    pub(super) probe: String,
    /// The last transaction of each library whose commit was requested, by its number in the chain.
    requested: Mutex<HashMap<LibraryId, i64>>,
}

impl Lane {
    /// Creates the state of the lane with this number.
    pub(super) fn new(
        number: u32,
        chain: Uuid,
        audit_key: AuditKey,
        heads: Arc<ChainHeads>,
        standing: Arc<Standing>,
    ) -> Lane {
        let probe = format!("{PROBE_NAME}{chain} {number}");
        Lane { chain, audit_key, heads, standing, probe, requested: Mutex::default() }
    }

    /// Records that the commit of this transaction is requested.
    pub(super) fn remember(&self, library: LibraryId, batch: i64) {
        lock(&self.requested).insert(library, batch);
    }

    /// Returns the last transaction whose commit was requested.
    pub(super) fn last_requested(&self, library: LibraryId) -> Option<i64> {
        lock(&self.requested).get(&library).copied()
    }

    /// Returns every library that the lane may have written.
    pub(super) fn libraries(&self) -> Vec<LibraryId> {
        lock(&self.requested).keys().copied().collect()
    }
}
