//! Environment variables that override keys of the file, such as `LOANGATE__SERVER__DRAIN=90s`.
//!
//! A name has the tables and the key, joined by two underscores. An element of a list of tables is
//! named by its number, from 0: `LOANGATE__ORIGINS__0__URL`. `load` puts the values into the parsed
//! file before any table is read. So each value passes the same checks as a value in the file.

use std::ffi::OsString;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::source::{Source, join};

const PREFIX: &str = "LOANGATE__";
const SEPARATOR: &str = "__";

/// A variable that overrides a key.
#[derive(Debug)]
pub(super) struct Override {
    variable: String,
    /// None if the value is not UTF-8.
    text: Option<String>,
}

impl Override {
    /// Returns the variables whose names have the prefix, sorted by name.
    pub(super) fn all(
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Vec<Override> {
        let with_prefix = environment.into_iter().filter_map(|(name, text)| {
            let variable = name.into_string().ok().filter(|name| name.starts_with(PREFIX))?;
            Some(Override { variable, text: text.into_string().ok() })
        });
        let mut all: Vec<Override> = with_prefix.collect();
        all.sort_by(|one, other| one.variable.cmp(&other.variable));
        all
    }

    /// Puts the value into the document, or reports a mistake.
    pub(super) fn apply<'s>(&'s self, document: &mut DeTable<'s>, source: &Source<'s>) {
        let name = self.variable.strip_prefix(PREFIX).unwrap_or_default().to_ascii_lowercase();
        let parts: Vec<&str> = name.split(SEPARATOR).collect();
        let key = full_key(&parts);
        source.record_override(key.clone(), &self.variable);
        let put = match (&self.text, parts.split_last()) {
            (Some(text), Some((last, tables))) if parts.iter().all(|part| !part.is_empty()) => {
                put(document, tables, last, text)
            }
            (None, _) => Err("the value of the variable is not UTF-8".to_owned()),
            _ => {
                Err("the variable names no key. Write one like LOANGATE__SERVER__DRAIN".to_owned())
            }
        };
        if let Err(sentence) = put {
            source.mistake(0, key, sentence);
        }
    }
}

/// Returns the name of a key as in mistakes, such as `origins[0].url`.
fn full_key(parts: &[&str]) -> String {
    parts.iter().fold(String::new(), |key, part| match part.parse::<usize>() {
        Ok(number) => format!("{key}[{number}]"),
        Err(_) => join(&key, part),
    })
}

/// Puts a value into the table that is reached through these tables and list elements.
fn put<'s>(
    mut table: &mut DeTable<'s>,
    tables: &[&str],
    key: &str,
    text: &'s str,
) -> Result<(), String> {
    let mut tables = tables.iter();
    while let Some(name) = tables.next() {
        let entry = entry(table, name, || DeValue::Table(DeTable::new()));
        table = match entry.get_mut() {
            DeValue::Table(inner) => inner,
            DeValue::Array(list) => {
                let length = list.len();
                let number = tables.next().and_then(|number| number.parse::<usize>().ok());
                let element = number.and_then(|number| list.get_mut(number));
                match element.map(Spanned::get_mut) {
                    Some(DeValue::Table(inner)) => inner,
                    _ => {
                        return Err(format!(
                            "{name} is a list with {length} entries. Name one of them by its \
                             number, counted from 0"
                        ));
                    }
                }
            }
            _ => return Err(format!("{name} is no table in the file")),
        };
    }
    let entry = entry(table, key, || DeValue::Boolean(false));
    let was_set_as_text = matches!(entry.get_ref(), DeValue::String(_));
    *entry = Spanned::new(0..0, value(text, was_set_as_text));
    Ok(())
}

/// Returns the entry of a key, which is added if it is absent.
fn entry<'t, 's>(
    table: &'t mut DeTable<'s>,
    key: &str,
    absent: impl FnOnce() -> DeValue<'s>,
) -> &'t mut Spanned<DeValue<'s>> {
    let found = table.keys().find(|written| written.get_ref() == key).cloned();
    let key = found.unwrap_or_else(|| Spanned::new(0..0, key.to_owned().into()));
    table.entry(key).or_insert_with(|| Spanned::new(0..0, absent()))
}

/// Reads a value as TOML where that is unambiguous, and else as text: `90s` needs no quotes.
fn value(text: &str, is_text: bool) -> DeValue<'_> {
    match DeValue::parse(text).map(Spanned::into_inner) {
        Ok(value @ (DeValue::String(_) | DeValue::Array(_) | DeValue::Table(_))) => value,
        Ok(value @ (DeValue::Integer(_) | DeValue::Boolean(_))) if !is_text => value,
        _ => DeValue::String(text.into()),
    }
}
