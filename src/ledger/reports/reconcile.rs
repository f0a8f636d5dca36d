//! What `loangate ledger reconcile` changes in the books of reports, in both stores.
//!
//! A ledger that lost its newest steps, as a restored backup has, does not know what was sent in
//! the lost time. So what would be sent next goes to a person. The time is stored, too: a loan from
//! before it may have been reported in the lost time, and become due once more.

use jiff::Timestamp;

use crate::ledger::LedgerError;
use crate::ledger::states::timestamp;

/// The name of the row of `meta` with the time of the last reconciliation: milliseconds, as eight
/// bytes in big-endian order.
pub(in crate::ledger) const RECONCILED: &str = "reconciled";

/// Records the time. Both stores read parameters of this form.
pub(in crate::ledger) const RECORD: &str = "INSERT INTO meta (name, value) VALUES ($1, $2) \
     ON CONFLICT (name) DO UPDATE SET value = excluded.value";

/// Passes every report that is not sent yet to a person. The audit trail has no step of it, since
/// the command has no chain: the note says what happened.
pub(in crate::ledger) const PASS_ON: &str = "UPDATE reports SET state = 'unknown', changed = $1, \
     due_since = coalesce(due_since, measured), note = 'it was ' || state || ' when the ledger was \
     reconciled after a loss of steps, so it may have been sent' \
     WHERE state IN ('due', 'unpriced', 'unmeasured')";

/// Reads the value of the row.
pub(in crate::ledger) fn reconciled_at(value: &[u8]) -> Result<Timestamp, LedgerError> {
    let damaged = |why: &str| LedgerError::damaged("? (the time of its reconciliation)", &why);
    let millis = value.try_into().map(i64::from_be_bytes).map_err(|_| damaged("it has no time"))?;
    timestamp(millis).map_err(|error| damaged(&error.to_string()))
}
