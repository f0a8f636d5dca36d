//! Walks a TOML table. Callers read each key by name, and keys that no caller reads are unknown.
//!
//! The section files call it. It records each mistake with its line and continues, so that one run
//! finds all of them.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::values::{self, Secret};
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
    unknown: Vec<(usize, String, String)>,
}

/// The findings in a file.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
    pub(super) lines: Lines,
    pub(super) secret_files: Vec<SecretFile>,
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str) -> Source<'a> {
        Source { file, text, empty: DeTable::new(), found: RefCell::default() }
    }

    /// Returns the line of a byte offset, counted from 1.
    fn line(&self, at: usize) -> usize {
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
        Mistake { file: self.file.to_owned(), line, key, sentence: sentence.into() }
    }

    fn mistake(&self, line: usize, key: String, sentence: impl Into<String>) {
        let mistake = self.at(line, key, sentence);
        let mut found = self.found.borrow_mut();
        if !found.invalid_lines.contains(&line) {
            found.report.mistakes.push(mistake);
        }
    }

    /// Reports a missing key, unless a line with invalid TOML may contain it.
    fn missing(&self, line: usize, key: String, sentence: String) {
        if self.found.borrow().invalid_lines.is_empty() {
            self.mistake(line, key, sentence);
        }
    }

    fn warn(&self, line: usize, key: String, sentence: &str) {
        let warning = self.at(line, key, sentence);
        self.found.borrow_mut().report.warnings.push(warning);
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
        let mut report = self.found.into_inner().report;
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

/// A table in the file, or the whole file.
#[derive(Debug)]
pub(super) struct Table<'s> {
    source: &'s Source<'s>,
    /// The name in mistakes, such as `origins[1]`.
    name: String,
    /// The name without list indices, such as `origins`.
    schema_name: String,
    line: usize,
    entries: &'s DeTable<'s>,
    read_keys: Vec<&'static str>,
}

impl<'s> Table<'s> {
    pub(super) fn root(source: &'s Source<'s>, entries: &'s DeTable<'s>) -> Table<'s> {
        Table {
            source,
            name: String::new(),
            schema_name: String::new(),
            line: 1,
            entries,
            read_keys: Vec::new(),
        }
    }

    /// Returns the line where the table starts.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    pub(super) fn source(&self) -> &'s Source<'s> {
        self.source
    }

    /// Returns the value of a key, and its line.
    fn entry(&mut self, key: &'static str) -> Option<(usize, &'s DeValue<'s>)> {
        if !self.read_keys.contains(&key) {
            self.read_keys.push(key);
            self.source.found.borrow_mut().known.push((self.schema_name.clone(), key));
        }
        let (written, value) = self.entries.iter().find(|(written, _)| written.get_ref() == key)?;
        let line = self.source.line(written.span().start);
        self.source.found.borrow_mut().report.lines.record(join(&self.name, key), line);
        Some((line, value.get_ref()))
    }

    /// Reads a key. Returns none if it is absent or invalid.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        let (line, value) = self.entry(key)?;
        match read(value) {
            Ok(value) => Some(value),
            Err(sentence) => {
                self.source.mistake(line, join(&self.name, key), sentence);
                None
            }
        }
    }

    /// Reads a key as [`Table::optional`] does, with a default.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> T {
        self.optional(key, read).unwrap_or(default)
    }

    /// Reads a key as [`Table::optional`] does, and reports it if it is absent. `example` is a line
    /// to write in its place.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        if self.entry(key).is_none() {
            self.report_missing(key, example);
        }
        self.optional(key, read)
    }

    fn report_missing(&self, key: &str, example: &str) {
        let sentence = format!("it is missing. Write {example}");
        self.source.missing(self.line, join(&self.name, key), sentence);
    }

    /// Reads a secret from a file, the environment or, with a warning, the configuration itself.
    pub(super) fn secret(&mut self, key: &'static str, example: &str) -> Option<SecretString> {
        let source = self.source;
        let secret = self.required(key, example, |value| values::secret(value, source))?;
        Some(self.record_secret(key, secret))
    }

    /// Reads a list of secrets that serve as keys, empty if absent.
    pub(super) fn keys(&mut self, key: &'static str) -> Vec<SecretString> {
        let source = self.source;
        let read = values::list(|value| {
            let secret = values::secret(value, source)?;
            values::long_enough(secret.inner())?;
            Ok(secret)
        });
        let secrets = self.optional(key, read).unwrap_or_default();
        secrets.into_iter().map(|secret| self.record_secret(key, secret)).collect()
    }

    /// Records the file of a secret, and warns about a secret in the configuration.
    fn record_secret(&mut self, key: &'static str, secret: Secret) -> SecretString {
        if values::has_outer_whitespace(secret.inner()) {
            self.warn(
                key,
                "the secret starts or ends with white space, which counts as a part of it. Remove \
                 it if it got there by mistake",
            );
        }
        let note = |file| {
            let found = SecretFile { key: join(&self.name, key), file };
            self.source.found.borrow_mut().report.secret_files.push(found);
        };
        match secret {
            Secret::Environment(secret) => secret,
            Secret::File(secret, file) => {
                note(file);
                secret
            }
            Secret::Literal(secret) => {
                note(self.source.file.to_owned());
                let sentence = "the configuration contains the secret itself, visible to all who \
                                can read the file. Write { file = \"certs/…\" } or { env = \
                                \"NAME\" }";
                self.warn(key, sentence);
                secret
            }
        }
    }

    /// Reads a path, relative to the file.
    pub(super) fn path(&mut self, key: &'static str, example: &str) -> Option<PathBuf> {
        let source = self.source;
        self.required(key, example, |value| Ok(source.path(&values::text(value)?)))
    }

    /// Reads a subtable. Returns none if it is absent.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Table<'s>> {
        let (line, value) = self.entry(key)?;
        let name = join(&self.name, key);
        let schema_name = join(&self.schema_name, key);
        match value {
            DeValue::Table(entries) => Some(Table {
                source: self.source,
                name,
                schema_name,
                line,
                entries,
                read_keys: Vec::new(),
            }),
            other => {
                let sentence = format!("this is {}. Write a table: [{name}]", values::kind(other));
                self.source.mistake(line, name, sentence);
                None
            }
        }
    }

    /// Reads a subtable as [`Table::table`] does. If it is absent, returns an empty one, so that
    /// every key has its default.
    pub(super) fn optional_table(&mut self, key: &'static str) -> Table<'s> {
        let empty = Table {
            source: self.source,
            name: join(&self.name, key),
            schema_name: join(&self.schema_name, key),
            line: self.line,
            entries: &self.source.empty,
            read_keys: Vec::new(),
        };
        self.table(key).unwrap_or(empty)
    }

    /// Reads a subtable as [`Table::table`] does, and reports it if it is absent. `example` shows
    /// what it may contain.
    pub(super) fn required_table(&mut self, key: &'static str, example: &str) -> Option<Table<'s>> {
        if self.entry(key).is_none() {
            self.report_missing(
                key,
                &format!("the table [{}] with {example}", join(&self.schema_name, key)),
            );
        }
        self.table(key)
    }

    /// Reads a list of tables: `[[origins]]`, or `keys = [{ … }]`.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Table<'s>> {
        let Some((line, value)) = self.entry(key) else {
            return Vec::new();
        };
        let name = join(&self.name, key);
        let DeValue::Array(list) = value else {
            let sentence =
                format!("this is {}. Write a list of tables: [[{name}]]", values::kind(value));
            self.source.mistake(line, name, sentence);
            return Vec::new();
        };
        let schema_name = join(&self.schema_name, key);
        let each = list.iter().enumerate().filter_map(
            |(number, value): (usize, &'s Spanned<DeValue<'s>>)| {
                let line = self.source.line(value.span().start);
                let name = format!("{name}[{number}]");
                self.source.found.borrow_mut().report.lines.record(name.clone(), line);
                match value.get_ref() {
                    DeValue::Table(entries) => Some(Table {
                        source: self.source,
                        name,
                        schema_name: schema_name.clone(),
                        line,
                        entries,
                        read_keys: Vec::new(),
                    }),
                    other => {
                        let sentence = format!("this is {}. Write a table", values::kind(other));
                        self.source.mistake(line, name, sentence);
                        None
                    }
                }
            },
        );
        each.collect()
    }

    /// Reads every entry of a table with arbitrary keys, and reports invalid ones.
    pub(super) fn all<T>(
        &self,
        read: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> Vec<(String, T)> {
        let mut all = Vec::with_capacity(self.entries.len());
        for (key, value) in self.entries {
            let name = key.get_ref().to_string();
            match read(value.get_ref()) {
                Ok(value) => all.push((name, value)),
                Err(sentence) => self.mistake_at(&name, sentence),
            }
        }
        all
    }

    /// Reports a mistake at a key with an arbitrary name.
    pub(super) fn mistake_at(&self, name: &str, sentence: impl Into<String>) {
        let written = self.entries.keys().find(|written| written.get_ref() == name);
        let line = written.map_or(self.line, |written| self.source.line(written.span().start));
        self.source.mistake(line, join(&self.name, name), sentence);
    }

    /// Whether the file has the key.
    pub(super) fn has(&mut self, key: &'static str) -> bool {
        self.entry(key).is_some()
    }

    /// Reports a mistake that involves several keys.
    pub(super) fn mistake(&mut self, key: &'static str, sentence: impl Into<String>) {
        let line = self.entry(key).map_or(self.line, |(line, _)| line);
        self.source.mistake(line, join(&self.name, key), sentence);
    }

    pub(super) fn warn(&mut self, key: &'static str, sentence: &str) {
        let line = self.entry(key).map_or(self.line, |(line, _)| line);
        self.source.warn(line, join(&self.name, key), sentence);
    }

    /// Records every key that no section has read.
    pub(super) fn finish(self) {
        let unknown =
            self.entries.keys().filter(|key| !self.read_keys.contains(&key.get_ref().as_ref()));
        for key in unknown {
            let line = self.source.line(key.span().start);
            let entry = (line, self.name.clone(), key.get_ref().to_string());
            self.source.found.borrow_mut().unknown.push(entry);
        }
    }
}

fn join(table: &str, key: &str) -> String {
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
