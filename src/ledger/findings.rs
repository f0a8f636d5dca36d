//! What the checks of a ledger report, as sentences. Both stores use the same ones.

/// The maximum number of reported findings: a broken disk causes more than anyone reads.
const MAX_FINDINGS: usize = 100;

/// A bounded list of sentences.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<String>);

impl Findings {
    /// Adds a sentence, up to a maximum. A repeated sentence is added once.
    pub(super) fn report(&mut self, sentence: String) {
        report(&mut self.0, sentence);
    }

    pub(super) fn into_sentences(self) -> Vec<String> {
        self.0
    }
}

/// Adds a sentence to a list, up to the maximum of all lists of findings.
pub(super) fn report(list: &mut Vec<String>, sentence: String) {
    if list.len() < MAX_FINDINGS && !list.contains(&sentence) {
        list.push(sentence);
    }
}

/// A loan differs from the hash in its last step.
pub(super) fn changed_loan(id: &str) -> String {
    format!("loan {id} is not as its last step left it: its row was changed")
}

/// A loan's history does not begin with the intent or does not end in the loan's state.
pub(super) fn broken_history(id: &str) -> String {
    format!("the history of loan {id} does not lead to its state")
}
