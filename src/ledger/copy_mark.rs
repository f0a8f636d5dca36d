//! The rows of `meta` that a copy of a ledger writes.
//!
//! `copy` writes them. Both stores read them when a gate opens the ledger and when loans are
//! pruned.

use serde::{Deserialize, Serialize};

use super::LedgerError;

/// The name of the row that a destination has until its copy is complete. No gate opens it.
pub(super) const IN_PROGRESS: &str = "copy in progress";

/// The name of the row that a source has while it is copied. Nothing is pruned. A gate that opens
/// the source removes the row, and the copy then fails.
pub(super) const BEING_COPIED: &str = "being copied";

/// The name of the row that a source has after the copy. No gate opens it.
pub(super) const MOVED: &str = "moved";

/// The beginning of the names of the rows that say where a ledger was copied from. A number
/// follows: a ledger may be copied several times.
pub(super) const COPIED_FROM: &str = "copied from ";

/// Selects the rows of [`Marks`].
pub(super) const MARKS: &str =
    "SELECT name, value FROM meta WHERE name IN ('copy in progress', 'being copied', 'moved')";

/// The value of the row of a source.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct SourceMark {
    /// The name of the copy, which the mark of the destination also has.
    pub(super) copy: String,
    /// The destination as operators know it, without a password.
    pub(super) to: String,
}

impl SourceMark {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Returns whether a row has the mark of the copy with this name. The destination may be
    /// spelled in another way each time.
    pub(super) fn is_of(value: &[u8], copy: &str) -> bool {
        serde_json::from_slice::<SourceMark>(value).is_ok_and(|mark| mark.copy == copy)
    }
}

/// Returns the destination in the value of a source's row. Another version of the program, or a
/// person, may have written it.
pub(super) fn destination_in(value: &[u8]) -> String {
    match serde_json::from_slice::<SourceMark>(value) {
        Ok(mark) => mark.to.escape_debug().to_string(),
        Err(_) => "another ledger".to_owned(),
    }
}

/// The marks of a ledger.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Marks {
    is_half_copied: bool,
    /// Where the ledger is copied to.
    being_copied_to: Option<String>,
    /// Where the ledger was moved to.
    moved_to: Option<String>,
}

impl Marks {
    /// Collects the rows of `meta` with their names.
    pub(super) fn new(rows: impl IntoIterator<Item = (String, Vec<u8>)>) -> Marks {
        let mut marks = Marks::default();
        for (name, value) in rows {
            match name.as_str() {
                IN_PROGRESS => marks.is_half_copied = true,
                BEING_COPIED => marks.being_copied_to = Some(destination_in(&value)),
                MOVED => marks.moved_to = Some(destination_in(&value)),
                _ => {}
            }
        }
        marks
    }

    /// Returns whether a copy of this ledger runs or is unfinished.
    pub(super) fn is_being_copied(&self) -> bool {
        self.being_copied_to.is_some()
    }

    /// Tests whether a gate may open the ledger.
    ///
    /// # Errors
    /// [`LedgerError::HalfCopied`] or [`LedgerError::Moved`].
    pub(super) fn allow_gate(&self) -> Result<(), LedgerError> {
        match (&self.moved_to, self.is_half_copied) {
            (_, true) => Err(LedgerError::HalfCopied),
            (Some(to), _) => Err(LedgerError::Moved { to: to.clone() }),
            (None, false) => Ok(()),
        }
    }

    /// Tests whether loans may be pruned.
    ///
    /// # Errors
    /// The errors of [`Marks::allow_gate`], and [`LedgerError::BeingCopied`].
    pub(super) fn allow_pruning(&self) -> Result<(), LedgerError> {
        self.allow_gate()?;
        match &self.being_copied_to {
            Some(to) => Err(LedgerError::BeingCopied { to: to.clone() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_names_the_rows() {
        assert_eq!(
            [IN_PROGRESS, BEING_COPIED, MOVED].map(|name| MARKS.matches(name).count()),
            [1; 3]
        );
    }

    #[test]
    fn forged_value_prints_no_control_characters() {
        let mark = SourceMark { copy: String::new(), to: "a\u{1b}[2Jb".into() };
        assert_eq!(destination_in(&mark.to_bytes()), "a\\u{1b}[2Jb");
        assert_eq!(destination_in(b"\x1b"), "another ledger");
    }
}
