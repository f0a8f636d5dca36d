//! Reads `[access_log]`: where the lines of requests are written, which ones, and with what.

use toml::de::DeValue;

use super::table::Table;
use super::values::{self, fraction, list, one_of};
use crate::telemetry::access_log::{AccessField, AccessFilter, AccessOutput, AccessSettings};

/// Reads the table.
pub(super) fn access_log(root: &mut Table<'_>) -> AccessSettings {
    let mut table = root.optional_table("access_log");
    let source = table.source();
    let output = table.or("to", AccessOutput::Log, |value| {
        let text = values::text(value)?;
        Ok(match text.as_str() {
            "log" => AccessOutput::Log,
            "off" => AccessOutput::Off,
            "stdout" => AccessOutput::Stdout,
            "syslog" => AccessOutput::Syslog,
            path if path.contains('/') => AccessOutput::File(source.path(path)),
            other => {
                return Err(format!(
                    "{other:?} is not known. Write \"log\", \"off\", \"stdout\", \"syslog\", or a \
                     path with a slash, such as \"./access.log\""
                ));
            }
        })
    });
    if matches!(output, AccessOutput::Log | AccessOutput::Off) {
        for key in ["format", "fields"] {
            if table.has(key) {
                let sentence = "it has no effect without an access log of its own. Write to = \
                                \"stdout\", \"syslog\" or a path, or remove it";
                table.mistake(key, sentence);
            }
        }
    }
    let is_text = table.or("format", false, one_of(&[("json", false), ("text", true)]));
    let fields = table.or("fields", AccessField::usual(), fields);
    let classes = table.or("statuses", [true; 5], classes);
    let sample = table.or("sample", 1.0, fraction);
    if fields.contains(&AccessField::Client) && fields.contains(&AccessField::Isbn) {
        let sentence = "with isbn and client, the log says what a household reads. Leave one out, \
                        or keep the log for a short time";
        table.warn("fields", sentence);
    }
    table.finish();
    AccessSettings { output, is_text, fields, filter: AccessFilter { classes, sample } }
}

fn fields(value: &DeValue<'_>) -> Result<Vec<AccessField>, String> {
    let fields = list(one_of(&AccessField::ALL))(value)?;
    let has_twice = |(position, field)| fields.iter().take(position).any(|before| before == field);
    if fields.is_empty() {
        return Err("the list is empty. Name a field, or write to = \"off\"".to_owned());
    }
    match fields.iter().enumerate().any(has_twice) {
        true => Err("a field is listed twice. Remove one".to_owned()),
        false => Ok(fields),
    }
}

/// Reads classes of statuses, such as `["4xx", "5xx"]`.
fn classes(value: &DeValue<'_>) -> Result<[bool; 5], String> {
    let names = [("1xx", 0), ("2xx", 1), ("3xx", 2), ("4xx", 3), ("5xx", 4)];
    let listed: Vec<usize> = list(one_of(&names))(value)?;
    if listed.is_empty() {
        return Err("the list is empty. Name a class, or write to = \"off\"".to_owned());
    }
    Ok([0, 1, 2, 3, 4].map(|class| listed.contains(&class)))
}
