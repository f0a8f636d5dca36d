//! Head records: steps without a loan, in which a chain names the newest links of other chains of
//! its library.
//!
//! They reveal that the last steps of a chain were removed, or the whole chain: who removes them
//! must also remove the end of each chain that names them. An anchor is something else, it replaces
//! pruned steps of its own chain.

use uuid::Uuid;

use super::{AuditKey, AuditStep, Head};

/// The loan of such a step. No loan has this id.
pub(in crate::ledger) const NO_LOAN: Uuid = Uuid::nil();
/// The states and the cause of such a step.
pub(in crate::ledger) const HEADS: &str = "heads";

/// A chain, and its newest link.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::ledger) struct RecordedHead {
    pub(in crate::ledger) chain: Uuid,
    pub(in crate::ledger) head: Head,
}

/// Returns the detail of a step that names these links: a line for each.
pub(in crate::ledger) fn to_text(heads: &[RecordedHead]) -> String {
    heads.iter().map(|recorded| format!("{} {}", recorded.chain, recorded.head.text())).collect()
}

/// Parses the detail of a step. Returns none if it is damaged.
pub(in crate::ledger) fn from_text(text: &str) -> Option<Vec<RecordedHead>> {
    let parse = |line: &str| {
        let (chain, head) = line.split_once(' ')?;
        Some(RecordedHead { chain: chain.parse().ok()?, head: Head::from_text(head)? })
    };
    text.split_inclusive('\n').map(parse).collect()
}

/// Returns the link of a step with this detail. `at` is its time in milliseconds.
pub(in crate::ledger) fn link_after(before: &Head, at: i64, detail: &str, key: &AuditKey) -> Head {
    let loan = NO_LOAN.to_string();
    let step = AuditStep {
        loan: &loan,
        at,
        from: Some(HEADS),
        to: HEADS,
        cause: HEADS,
        detail: Some(detail),
        // As a stored step of version 2 without a row is read.
        loan_mac: Some(&[]),
    };
    before.next(&step, key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_parses_to_the_same_links() {
        let recorded = |number: i64| RecordedHead {
            chain: Uuid::from_u128(number as u128),
            head: Head { number, mac: vec![number as u8; 32] },
        };
        let heads = vec![recorded(7), recorded(8)];
        let text = to_text(&heads);
        assert_eq!(from_text(&text), Some(heads));
        assert_eq!(from_text(""), Some(Vec::new()));
        assert_eq!(from_text(&text[..text.len() - 1]), None);
        assert_eq!(from_text("x\n"), None);
    }
}
