//! The readers of the demo, and what each of them may borrow.

/// A reader in the demo.
pub(super) struct Person {
    pub(super) name: &'static str,
    pub(super) library: &'static str,
    /// Whether the JSON line lists the reader.
    pub(super) is_listed: bool,
}

/// The first reader may borrow everything, the next two nothing. The last one wants a title whose
/// only licence is taken.
pub(super) const PEOPLE: [Person; 4] = [
    Person { name: "kari", library: "NO-0301000", is_listed: true },
    Person { name: "ola", library: "NO-0301000", is_listed: true },
    Person { name: "liv", library: "NO-1103000", is_listed: true },
    Person { name: "per", library: "NO-0301000", is_listed: false },
];
/// The reader with too many loans, and the library without budget.
pub(super) const OVER_THE_LIMIT: &str = "ola";
pub(super) const WITHOUT_BUDGET: &str = "NO-1103000";
