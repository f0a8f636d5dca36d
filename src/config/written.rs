//! The keys that a configuration sets: what differs between two of them, and their text.
//!
//! They include the keys that environment variables override. A secret is compared by its value,
//! and never shown.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use toml::de::{DeTable, DeValue};

use super::reloadable::{is_reloadable, waits_for_others};
use super::source::{join, variable_of};
use crate::reload::ChangedKey;

/// What stands for a secret in the text of a configuration.
const MASK: &str = "\"…\"";

/// The keys that a configuration sets, with their values.
#[derive(Clone, Debug, Default)]
pub struct Written {
    tables: Vec<WrittenTable>,
    /// The keys that environment variables override, and the names of the variables.
    overrides: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
struct WrittenTable {
    /// The line that begins it, such as `[[origins]]`; empty for the top.
    header: String,
    /// Its name with list indices.
    name: String,
    keys: Vec<(String, WrittenValue)>,
}

#[derive(Clone, Debug)]
struct WrittenValue {
    /// As in the file, on one line. Contains no secret.
    text: String,
    secrets: Vec<SecretString>,
}

impl PartialEq for WrittenValue {
    fn eq(&self, other: &WrittenValue) -> bool {
        let exposed = |value: &WrittenValue| -> Vec<String> {
            value.secrets.iter().map(|secret| secret.expose_secret().to_owned()).collect()
        };
        self.text == other.text && exposed(self) == exposed(other)
    }
}

impl Written {
    /// Returns the keys of a document. `secrets` are the keys with secrets, and their values.
    pub(super) fn new(
        document: &DeTable<'_>,
        secrets: Vec<(String, SecretString)>,
        overrides: Vec<(String, String)>,
    ) -> Written {
        let mut written = Written { tables: Vec::new(), overrides };
        let mut by_key: BTreeMap<String, Vec<SecretString>> = BTreeMap::new();
        for (key, secret) in secrets {
            by_key.entry(key).or_default().push(secret);
        }
        written.add(document, String::new(), "", "", &by_key);
        written
    }

    /// Adds a table with the tables in it. `schema_name` is its name without list indices.
    fn add(
        &mut self,
        table: &DeTable<'_>,
        header: String,
        name: &str,
        schema_name: &str,
        secrets: &BTreeMap<String, Vec<SecretString>>,
    ) {
        let mut entries: Vec<_> = table.iter().collect();
        // Those of variables come first: they have no place in the file.
        entries.sort_by_key(|(key, _)| key.span().start);
        let (mut keys, mut inner) = (Vec::new(), Vec::new());
        for (key, value) in entries {
            let full = join(name, key.get_ref());
            let schema_name = join(schema_name, &quoted_key(key.get_ref()));
            let of_key = secrets.get(&full);
            match (value.get_ref(), of_key) {
                (value, Some(secrets)) => {
                    let text = masked(value);
                    let value = WrittenValue { text, secrets: secrets.clone() };
                    keys.push((key.get_ref().to_string(), value));
                }
                (DeValue::Table(table), None) => {
                    inner.push((table, format!("[{schema_name}]"), full, schema_name));
                }
                (DeValue::Array(list), None) if is_of_tables(list) => {
                    let tables = list.iter().enumerate().filter_map(|(number, element)| {
                        let DeValue::Table(table) = element.get_ref() else { return None };
                        let header = format!("[[{schema_name}]]");
                        Some((table, header, format!("{full}[{number}]"), schema_name.clone()))
                    });
                    inner.extend(tables);
                }
                (value, None) => {
                    let value = WrittenValue { text: text_of(value), secrets: Vec::new() };
                    keys.push((key.get_ref().to_string(), value));
                }
            }
        }
        self.tables.push(WrittenTable { header, name: name.to_owned(), keys });
        for (table, header, name, schema_name) in inner {
            self.add(table, header, &name, &schema_name, secrets);
        }
    }

    /// Returns the keys whose values differ in `new`, by their names.
    pub fn changes(&self, new: &Written) -> Vec<ChangedKey> {
        let (old, new) = (self.by_name(), new.by_name());
        let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
        names.sort();
        names.dedup();
        let changed = names.into_iter().filter(|name| old.get(*name) != new.get(*name));
        let changed: Vec<&String> = changed.collect();
        let text = |value: Option<&&WrittenValue>| value.map(|value| value.text.clone());
        changed
            .iter()
            .map(|name| ChangedKey {
                key: (*name).clone(),
                old: text(old.get(*name)),
                new: text(new.get(*name)),
                needs_restart: !is_reloadable(name) || waits_for_others(name, &changed),
            })
            .collect()
    }

    /// Returns what a gate with this configuration uses after a reload of `new`: the values of this
    /// one for the keys whose change needs a restart, and the new ones of the others.
    pub fn reloaded(&self, mut new: Written, changes: &[ChangedKey]) -> Written {
        for changed in changes.iter().filter(|changed| changed.needs_restart) {
            for table in &mut new.tables {
                table.keys.retain(|(key, _)| join(&table.name, key) != changed.key);
            }
            for table in &self.tables {
                let kept = table.keys.iter().find(|(key, _)| join(&table.name, key) == changed.key);
                let Some(kept) = kept.cloned() else { continue };
                match new.tables.iter_mut().find(|new| new.name == table.name) {
                    Some(new) => new.keys.push(kept),
                    None => new.tables.push(WrittenTable { keys: vec![kept], ..table.clone() }),
                }
            }
        }
        new
    }

    /// Returns the environment variable that overrides a key.
    pub fn variable(&self, key: &str) -> Option<&str> {
        variable_of(&self.overrides, key)
    }

    fn by_name(&self) -> BTreeMap<String, &WrittenValue> {
        let tables = self.tables.iter();
        let keys = tables.flat_map(|table| {
            table.keys.iter().map(|(key, value)| (join(&table.name, key), value))
        });
        keys.collect()
    }

    /// Returns the configuration as TOML, without secrets. A comment names the variable that
    /// overrides a key.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for table in self
            .tables
            .iter()
            .filter(|table| !table.keys.is_empty() || table.header.starts_with("[["))
        {
            if !table.header.is_empty() {
                let gap = if text.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}{}\n", table.header));
            }
            for (key, value) in &table.keys {
                text.push_str(&format!("{} = {}", quoted_key(key), value.text));
                if let Some(variable) = self.variable(&join(&table.name, key)) {
                    text.push_str(&format!("  # {variable}"));
                }
                text.push('\n');
            }
        }
        text
    }
}

fn is_of_tables(list: &[toml::Spanned<DeValue<'_>>]) -> bool {
    let is_table =
        |element: &toml::Spanned<DeValue<'_>>| matches!(element.get_ref(), DeValue::Table(_));
    !list.is_empty() && list.iter().all(is_table)
}

/// Returns the text of a key that contains a secret: where the secret is, but not the secret.
fn masked(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Table(_) => text_of(value),
        DeValue::Array(list) => {
            let list: Vec<String> = list.iter().map(|element| masked(element.get_ref())).collect();
            format!("[{}]", list.join(", "))
        }
        _ => MASK.to_owned(),
    }
}

fn text_of(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) => {
            let parsed = i64::from_str_radix(number.as_str(), number.radix());
            parsed.map_or_else(|_| number.as_str().to_owned(), |number| number.to_string())
        }
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(list) => {
            let list: Vec<String> = list.iter().map(|element| text_of(element.get_ref())).collect();
            format!("[{}]", list.join(", "))
        }
        DeValue::Table(table) => {
            let pair = |(key, value): (&toml::Spanned<_>, &toml::Spanned<_>)| {
                let key: &std::borrow::Cow<'_, str> = key.get_ref();
                format!("{} = {}", quoted_key(key), text_of(value.get_ref()))
            };
            let pairs: Vec<String> = table.iter().map(pair).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
    }
}

/// Returns a text in quotes. The escapes of JSON are valid in TOML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn quoted_key(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    match !key.is_empty() && key.bytes().all(is_bare) {
        true => key.to_owned(),
        false => quoted(key),
    }
}
