//! Walks a TOML table. Callers read each key by name, and keys that no caller reads are unknown.
//!
//! The section files call it. It records each mistake with its line and continues, so that one run
//! finds all of them.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::source::{Source, join};
use super::values;

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

    /// Returns the name of a key in mistakes, such as `origins[1].name`.
    pub(super) fn full_key(&self, key: &str) -> String {
        join(&self.name, key)
    }

    /// Returns the value of a key, and its line.
    fn entry(&mut self, key: &'static str) -> Option<(usize, &'s DeValue<'s>)> {
        if !self.read_keys.contains(&key) {
            self.read_keys.push(key);
            self.source.record_known(&self.schema_name, key);
        }
        let (written, value) = self.entries.iter().find(|(written, _)| written.get_ref() == key)?;
        let line = self.source.line(written.span().start);
        self.source.record_line(self.full_key(key), line);
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
                self.source.mistake(line, self.full_key(key), sentence);
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
        self.source.missing(self.line, self.full_key(key), sentence);
    }

    /// Reads a path, relative to the file.
    pub(super) fn path(&mut self, key: &'static str, example: &str) -> Option<PathBuf> {
        let source = self.source;
        self.required(key, example, |value| Ok(source.path(&values::text(value)?)))
    }

    /// Reads a subtable. Returns none if it is absent.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Table<'s>> {
        let (line, value) = self.entry(key)?;
        let name = self.full_key(key);
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
            name: self.full_key(key),
            schema_name: join(&self.schema_name, key),
            line: self.line,
            entries: self.source.no_entries(),
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
        let name = self.full_key(key);
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
                self.source.record_line(name.clone(), line);
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
        self.source.mistake(line, self.full_key(name), sentence);
    }

    /// Whether the file has the key.
    pub(super) fn has(&mut self, key: &'static str) -> bool {
        self.entry(key).is_some()
    }

    /// Reports a mistake that involves several keys.
    pub(super) fn mistake(&mut self, key: &'static str, sentence: impl Into<String>) {
        let line = self.entry(key).map_or(self.line, |(line, _)| line);
        self.source.mistake(line, self.full_key(key), sentence);
    }

    pub(super) fn warn(&mut self, key: &'static str, sentence: &str) {
        let line = self.entry(key).map_or(self.line, |(line, _)| line);
        self.source.warn(line, self.full_key(key), sentence);
    }

    /// Records every key that no section has read.
    pub(super) fn finish(self) {
        let unknown =
            self.entries.keys().filter(|key| !self.read_keys.contains(&key.get_ref().as_ref()));
        for key in unknown {
            // One that a variable has added has no place in the file.
            let line = match key.span() {
                span if span.is_empty() => 0,
                span => self.source.line(span.start),
            };
            self.source.record_unknown(line, &self.name, key.get_ref());
        }
    }
}
