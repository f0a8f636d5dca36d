//! Walking a TOML table: each key is asked for by name, and what was not asked for is unknown.
//!
//! The sections call it. Every mistake is noted with its line and the walk goes on, so that all are
//! found at once.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::values::{self, Secret};
use super::{Lines, Mistake, SecretFile};

/// The file that is being read, and what was found in it so far.
#[derive(Debug)]
pub(super) struct Source<'a> {
    file: &'a Path,
    text: &'a str,
    /// What an optional table has that is not written.
    empty: DeTable<'a>,
    found: RefCell<Found>,
}

#[derive(Debug, Default)]
struct Found {
    report: Report,
    /// Lines that are not TOML: what is made of them means nothing.
    broken: Vec<usize>,
    known: Vec<(String, &'static str)>,
    unknown: Vec<(usize, String, String)>,
}

/// What was found in a file.
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

    /// The line of a place in the text, counted from 1.
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or(self.text.as_bytes());
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    /// The path that a text means: relative to the file's directory.
    pub(super) fn path(&self, text: &str) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(text)
    }

    pub(super) fn not_toml(&self, error: &toml::de::Error) {
        let line = error.span().map_or(1, |span| self.line(span.start));
        let sentence = match error.message().trim_end_matches(", expected nothing") {
            "duplicate key" => {
                "the key or the table stands here a second time. Keep one of the two".to_owned()
            }
            what => format!(
                "this is not TOML: {what}. A text stands in quotes, a table's name in brackets"
            ),
        };
        let mistake = self.at(line, String::new(), sentence);
        let mut found = self.found.borrow_mut();
        found.broken.push(line);
        found.report.mistakes.push(mistake);
    }

    fn at(&self, line: usize, key: String, sentence: impl Into<String>) -> Mistake {
        Mistake { file: self.file.to_owned(), line, key, sentence: sentence.into() }
    }

    fn mistake(&self, line: usize, key: String, sentence: impl Into<String>) {
        let mistake = self.at(line, key, sentence);
        let mut found = self.found.borrow_mut();
        if !found.broken.contains(&line) {
            found.report.mistakes.push(mistake);
        }
    }

    /// Something that is not there: no mistake where a broken line may have held it.
    fn missing(&self, line: usize, key: String, sentence: String) {
        if self.found.borrow().broken.is_empty() {
            self.mistake(line, key, sentence);
        }
    }

    fn warn(&self, line: usize, key: String, sentence: &str) {
        let warning = self.at(line, key, sentence);
        self.found.borrow_mut().report.warnings.push(warning);
    }

    /// Everything that was found, in the order of the lines.
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

    /// Every key that was asked for, with its table: what the configuration knows.
    #[cfg(test)]
    pub(super) fn known(&self) -> Vec<(String, &'static str)> {
        self.found.borrow().known.clone()
    }
}

/// One table that was written, or the whole file.
#[derive(Debug)]
pub(super) struct Table<'s> {
    source: &'s Source<'s>,
    /// As it is written in a mistake: `origins[1]`.
    name: String,
    /// As it is written in the file: `origins`.
    plain: String,
    line: usize,
    entries: &'s DeTable<'s>,
    asked: Vec<&'static str>,
}

impl<'s> Table<'s> {
    pub(super) fn root(source: &'s Source<'s>, entries: &'s DeTable<'s>) -> Table<'s> {
        Table {
            source,
            name: String::new(),
            plain: String::new(),
            line: 1,
            entries,
            asked: Vec::new(),
        }
    }

    /// The line where it starts.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    pub(super) fn source(&self) -> &'s Source<'s> {
        self.source
    }

    /// What is written under a key, and its line.
    fn entry(&mut self, key: &'static str) -> Option<(usize, &'s DeValue<'s>)> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
            self.source.found.borrow_mut().known.push((self.plain.clone(), key));
        }
        let (written, value) = self.entries.iter().find(|(written, _)| written.get_ref() == key)?;
        let line = self.source.line(written.span().start);
        self.source.found.borrow_mut().report.lines.note(join(&self.name, key), line);
        Some((line, value.get_ref()))
    }

    /// The value of a key; none where it is not there, or not good.
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

    /// As [`Table::optional`], with a default.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> T {
        self.optional(key, read).unwrap_or(default)
    }

    /// As [`Table::optional`], and a mistake where it is not there; `example` is a line to write.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        if self.entry(key).is_none() {
            self.lacks(key, example);
        }
        self.optional(key, read)
    }

    fn lacks(&self, key: &str, example: &str) {
        let sentence = format!("it is missing. Write {example}");
        self.source.missing(self.line, join(&self.name, key), sentence);
    }

    /// A secret, by file or environment, or with a warning as it stands.
    pub(super) fn secret(&mut self, key: &'static str, example: &str) -> Option<SecretString> {
        let source = self.source;
        let secret = self.required(key, example, |value| values::secret(value, source))?;
        Some(self.noted(key, secret))
    }

    /// A list of secrets that are to be keys; none where it is not there.
    pub(super) fn keys(&mut self, key: &'static str) -> Vec<SecretString> {
        let source = self.source;
        let read = values::list(|value| {
            let secret = values::secret(value, source)?;
            values::long_enough(secret.inner())?;
            Ok(secret)
        });
        let secrets = self.optional(key, read).unwrap_or_default();
        secrets.into_iter().map(|secret| self.noted(key, secret)).collect()
    }

    /// Notes where a secret was found.
    fn noted(&mut self, key: &'static str, secret: Secret) -> SecretString {
        if values::has_space_around(secret.inner()) {
            self.warn(
                key,
                "the secret has white space at its beginning or end, which counts. Take it out if it \
                            got there by mistake",
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
                let sentence = "the secret itself stands in the configuration, where everyone who reads it sees it. \
                                Write { file = \"certs/…\" } or { env = \"NAME\" }";
                self.warn(key, sentence);
                secret
            }
        }
    }

    /// A path, relative to the file.
    pub(super) fn path(&mut self, key: &'static str, example: &str) -> Option<PathBuf> {
        let source = self.source;
        self.required(key, example, |value| Ok(source.path(&values::text(value)?)))
    }

    /// A table below this one; none where it is not there.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Table<'s>> {
        let (line, value) = self.entry(key)?;
        let name = join(&self.name, key);
        let plain = join(&self.plain, key);
        match value {
            DeValue::Table(entries) => {
                Some(Table { source: self.source, name, plain, line, entries, asked: Vec::new() })
            }
            other => {
                let sentence = format!("this is {}. Write a table: [{name}]", values::kind(other));
                self.source.mistake(line, name, sentence);
                None
            }
        }
    }

    /// As [`Table::table`], and an empty one where it is not there: every key has its default then.
    pub(super) fn optional_table(&mut self, key: &'static str) -> Table<'s> {
        let empty = Table {
            source: self.source,
            name: join(&self.name, key),
            plain: join(&self.plain, key),
            line: self.line,
            entries: &self.source.empty,
            asked: Vec::new(),
        };
        self.table(key).unwrap_or(empty)
    }

    /// As [`Table::table`], and a mistake where it is not there; `example` is what stands in it.
    pub(super) fn required_table(&mut self, key: &'static str, example: &str) -> Option<Table<'s>> {
        if self.entry(key).is_none() {
            self.lacks(key, &format!("the table [{}] with {example}", join(&self.plain, key)));
        }
        self.table(key)
    }

    /// The tables of a list: `[[origins]]`, or `keys = [{ … }]`.
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
        let plain = join(&self.plain, key);
        let each = list.iter().enumerate().filter_map(
            |(number, value): (usize, &'s Spanned<DeValue<'s>>)| {
                let line = self.source.line(value.span().start);
                let name = format!("{name}[{number}]");
                self.source.found.borrow_mut().report.lines.note(name.clone(), line);
                match value.get_ref() {
                    DeValue::Table(entries) => Some(Table {
                        source: self.source,
                        name,
                        plain: plain.clone(),
                        line,
                        entries,
                        asked: Vec::new(),
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

    /// Every entry of a table whose keys are names that are not known here; what cannot be read is
    /// a mistake.
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

    /// A mistake at a key of whatever name.
    pub(super) fn mistake_at(&self, name: &str, sentence: impl Into<String>) {
        let written = self.entries.keys().find(|written| written.get_ref() == name);
        let line = written.map_or(self.line, |written| self.source.line(written.span().start));
        self.source.mistake(line, join(&self.name, name), sentence);
    }

    /// Whether a key is written at all.
    pub(super) fn has(&mut self, key: &'static str) -> bool {
        self.entry(key).is_some()
    }

    /// A mistake that only several keys together show.
    pub(super) fn mistake(&mut self, key: &'static str, sentence: impl Into<String>) {
        let line = self.entry(key).map_or(self.line, |(line, _)| line);
        self.source.mistake(line, join(&self.name, key), sentence);
    }

    pub(super) fn warn(&mut self, key: &'static str, sentence: &str) {
        let line = self.entry(key).map_or(self.line, |(line, _)| line);
        self.source.warn(line, join(&self.name, key), sentence);
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self) {
        let unknown =
            self.entries.keys().filter(|key| !self.asked.contains(&key.get_ref().as_ref()));
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

/// What may have been meant by a key that does not exist: one spelt like it, the same in another
/// table, or else all that this table has.
fn suggestion(known: &[(String, &'static str)], table: &str, key: &str) -> String {
    // Without the numbers of lists: `routes[0].title` has the keys of `routes.title`.
    let plain: String = table
        .split('[')
        .map(|part| part.split_once(']').map_or(part, |(_, after)| after))
        .collect();
    let here = || known.iter().filter(|(table, _)| *table == plain).map(|(_, key)| *key);
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
