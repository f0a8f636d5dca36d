//! The file that is read, with the lines of its keys, and all mistakes found so far.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use toml::de::DeTable;

use super::{Lines, Mistake, SecretFile};

/// The file to read, and the findings so far.
#[derive(Debug)]
pub(super) struct Source<'a> {
    file: &'a Path,
    text: &'a str,
    /// The entries of an optional table that is absent.
    empty: DeTable<'a>,
    found: RefCell<Found>,
}

#[derive(Debug, Default)]
struct Found {
    report: Report,
    /// Lines with invalid TOML. Other mistakes on these lines are not reported.
    invalid_lines: Vec<usize>,
    known: Vec<(String, &'static str)>,
    /// The keys that environment variables override, and the names of the variables.
    overrides: Vec<(String, String)>,
    unknown: Vec<(usize, String, String)>,
}

/// The findings in a file.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
    pub(super) lines: Lines,
    pub(super) secret_files: Vec<SecretFile>,
    pub(super) overrides: Vec<(String, String)>,
    pub(super) secrets: Vec<(String, SecretString)>,
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str) -> Source<'a> {
        Source { file, text, empty: DeTable::new(), found: RefCell::default() }
    }

    /// Returns the line of a byte offset, counted from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or(self.text.as_bytes());
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    /// Resolves a path relative to the file's directory.
    pub(super) fn path(&self, text: &str) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(text)
    }

    pub(super) fn not_toml(&self, error: &toml::de::Error) {
        let line = error.span().map_or(1, |span| self.line(span.start));
        let sentence = match error.message().trim_end_matches(", expected nothing") {
            "duplicate key" => "this key or table is defined twice. Keep one of the two".to_owned(),
            what => {
                format!("this is not TOML: {what}. Strings need quotes, table names need brackets")
            }
        };
        let mistake = self.at(line, String::new(), sentence);
        let mut found = self.found.borrow_mut();
        found.invalid_lines.push(line);
        found.report.mistakes.push(mistake);
    }

    fn at(&self, line: usize, key: String, sentence: impl Into<String>) -> Mistake {
        let sentence = sentence.into();
        let below = || self.variable_below(&key).filter(|_| line == 0);
        match self.variable(&key).or_else(below) {
            Some(variable) => Mistake { file: variable.into(), line: 0, key, sentence },
            None => Mistake { file: self.file.to_owned(), line, key, sentence },
        }
    }

    /// Records that a variable overrides a key.
    pub(super) fn record_override(&self, key: String, variable: &str) {
        self.found.borrow_mut().overrides.push((key, variable.to_owned()));
    }

    /// Returns the variable that overrides a key.
    pub(super) fn variable(&self, key: &str) -> Option<String> {
        variable_of(&self.found.borrow().overrides, key).map(str::to_owned)
    }

    pub(super) fn mistake(&self, line: usize, key: String, sentence: impl Into<String>) {
        let mistake = self.at(line, key, sentence);
        let mut found = self.found.borrow_mut();
        if !found.invalid_lines.contains(&line) {
            found.report.mistakes.push(mistake);
        }
    }

    /// Reports a missing key, unless a line with invalid TOML may contain it.
    pub(super) fn missing(&self, line: usize, key: String, sentence: String) {
        if self.found.borrow().invalid_lines.is_empty() {
            self.mistake(line, key, sentence);
        }
    }

    pub(super) fn warn(&self, line: usize, key: String, sentence: &str) {
        let warning = self.at(line, key, sentence);
        self.found.borrow_mut().report.warnings.push(warning);
    }

    /// Returns the entries of a table that the file does not have.
    pub(super) fn no_entries(&self) -> &DeTable<'a> {
        &self.empty
    }

    /// Records a key that a section reads.
    pub(super) fn record_known(&self, table: &str, key: &'static str) {
        self.found.borrow_mut().known.push((table.to_owned(), key));
    }

    /// Records a key that no section has read.
    pub(super) fn record_unknown(&self, line: usize, table: &str, key: &str) {
        self.found.borrow_mut().unknown.push((line, table.to_owned(), key.to_owned()));
    }

    /// Returns a variable that overrides a key in this table.
    fn variable_below(&self, table: &str) -> Option<String> {
        let found = self.found.borrow();
        let is_below = |key: &String| key.starts_with(&format!("{table}."));
        let below = found.overrides.iter().find(|(key, _)| is_below(key));
        below.map(|(_, variable)| variable.clone())
    }

    /// Records the line of a key.
    pub(super) fn record_line(&self, key: String, line: usize) {
        self.found.borrow_mut().report.lines.record(key, line);
    }

    /// Records that the value of a key is a secret.
    pub(super) fn record_secret(&self, key: String, secret: SecretString) {
        self.found.borrow_mut().report.secrets.push((key, secret));
    }

    /// Records the file that contains a secret; none for the configuration itself.
    pub(super) fn record_secret_file(&self, key: String, file: Option<PathBuf>) {
        let file = file.unwrap_or_else(|| self.file.to_owned());
        self.found.borrow_mut().report.secret_files.push(SecretFile { key, file });
    }

    /// Returns all findings, sorted by line.
    pub(super) fn finish(self) -> Report {
        let unknown = std::mem::take(&mut self.found.borrow_mut().unknown);
        for (line, table, key) in unknown {
            let sentence = {
                let found = self.found.borrow();
                suggestion(&found.known, &table, &key)
            };
            self.mistake(line, join(&table, &key), sentence);
        }
        let Found { mut report, overrides, .. } = self.found.into_inner();
        report.overrides = overrides;
        report.mistakes.sort_by_key(|mistake| mistake.line);
        report.warnings.sort_by_key(|warning| warning.line);
        report
    }

    /// Returns every known key with its table, which is every key that a section has read.
    #[cfg(test)]
    pub(super) fn known(&self) -> Vec<(String, &'static str)> {
        self.found.borrow().known.clone()
    }
}

/// Returns the variable that overrides a key or a table that contains it.
pub(super) fn variable_of<'o>(overrides: &'o [(String, String)], key: &str) -> Option<&'o str> {
    let is_within = |name: &String| {
        let rest = key.strip_prefix(name.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    overrides.iter().find(|(name, _)| is_within(name)).map(|(_, variable)| variable.as_str())
}

/// Returns the name of a key with its table.
pub(super) fn join(table: &str, key: &str) -> String {
    match (table, key) {
        ("", key) => key.to_owned(),
        (table, "") => table.to_owned(),
        (table, key) => format!("{table}.{key}"),
    }
}

/// Suggests a replacement for an unknown key: a similar key of this table, the same key in another
/// table, or else all keys of this table.
fn suggestion(known: &[(String, &'static str)], table: &str, key: &str) -> String {
    // Strips list indices: `routes[0].title` has the keys of `routes.title`.
    let schema_name: String = table
        .split('[')
        .map(|part| part.split_once(']').map_or(part, |(_, after)| after))
        .collect();
    let here = || known.iter().filter(|(table, _)| *table == schema_name).map(|(_, key)| *key);
    let near = here()
        .map(|known| (strsim::damerau_levenshtein(known, key), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .min();
    if let Some((_, near)) = near {
        let near = if table.is_empty() { format!("[{near}]") } else { near.to_owned() };
        return format!("there is no such key. Write {near}");
    }
    if let Some((other, _)) = known.iter().find(|(_, known)| *known == key) {
        let place = if other.is_empty() { format!("[{key}]") } else { format!("[{other}]") };
        return format!("there is no such key here. It belongs to {place}");
    }
    let mut keys: Vec<&str> = here().collect();
    keys.sort_unstable();
    keys.dedup();
    format!("there is no such key. This table has {}", keys.join(", "))
}
