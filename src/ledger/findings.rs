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

/// Adds a sentence to a list, up to the maximum of all lists of findings. Escapes what a terminal
/// would not print as it is: a sentence may quote a damaged row.
pub(super) fn report(list: &mut Vec<String>, sentence: String) {
    let sentence = printable(sentence);
    if list.len() < MAX_FINDINGS && !list.contains(&sentence) {
        list.push(sentence);
    }
}

fn printable(sentence: String) -> String {
    let is_printable = |c: char| matches!(c, '\'' | '"' | '\\') || c.escape_debug().count() == 1;
    if sentence.chars().all(is_printable) {
        return sentence;
    }
    let mut escaped = String::with_capacity(sentence.len());
    for c in sentence.chars() {
        match is_printable(c) {
            true => escaped.push(c),
            false => escaped.extend(c.escape_debug()),
        }
    }
    escaped
}

/// A row has a name that no library can have.
pub(super) fn damaged_library(name: &str) -> String {
    format!("the name of the library {} is damaged", name.escape_debug())
}

/// A loan differs from the hash in its last step.
pub(super) fn changed_loan(id: &str) -> String {
    format!("loan {id} is not as its last step left it: its row was changed")
}

/// The history has steps of a loan that is not in the ledger.
pub(super) fn missing_loan(id: &str) -> String {
    format!("loan {id} is missing, and the history has its steps")
}

/// A loan's history does not begin with the intent or does not end in the loan's state.
pub(super) fn broken_history(id: &str) -> String {
    format!("the history of loan {id} does not lead to its state")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_print_nothing_that_a_terminal_obeys() {
        let mut found = Findings::default();
        for quoted in ["a\u{1b}[2J", "b\r\n\u{7}", "c\u{202e}\u{9b}", "Bærum's \"d\" \\"] {
            found.report(format!("the file {quoted} is damaged"));
        }
        let expected = [
            "the file a\\u{1b}[2J is damaged",
            "the file b\\r\\n\\u{7} is damaged",
            "the file c\\u{202e}\\u{9b} is damaged",
            "the file Bærum's \"d\" \\ is damaged",
        ];
        assert_eq!(found.into_sentences(), expected);
    }
}
