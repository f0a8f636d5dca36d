//! What commands print: results to standard output, errors to standard error.

use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::app::StartError;

/// The exit code of a command whose arguments are wrong, as clap has it too.
const WRONG_ARGUMENTS: u8 = 2;

/// The sentences that explain why a command failed.
#[derive(Debug)]
pub struct CliError {
    sentences: Vec<String>,
    is_of_arguments: bool,
}

impl CliError {
    pub(super) fn new(error: impl fmt::Display) -> CliError {
        CliError::all([error])
    }

    /// Creates the error of arguments that are wrong.
    pub(super) fn of_arguments(sentence: &str) -> CliError {
        CliError { is_of_arguments: true, ..CliError::new(sentence) }
    }

    pub(super) fn all<E: fmt::Display>(errors: impl IntoIterator<Item = E>) -> CliError {
        let sentences = errors.into_iter().map(|error| error.to_string()).collect();
        CliError { sentences, is_of_arguments: false }
    }

    /// Logs each sentence and returns an error with none left to print.
    pub(super) fn log(self, what: &'static str) -> CliError {
        for error in &self.sentences {
            tracing::error!(error, "{what}");
        }
        CliError { sentences: Vec::new(), ..self }
    }

    /// Prints the sentences to standard error, and returns the exit code.
    pub(super) fn print(&self, is_json: bool) -> ExitCode {
        let text = match is_json {
            true => printable_json(&json!({ "errors": self.sentences }).to_string()),
            false => self.to_string(),
        };
        if !self.sentences.is_empty() {
            let _ = writeln!(io::stderr(), "{text}");
        }
        if self.is_of_arguments { WRONG_ARGUMENTS.into() } else { ExitCode::FAILURE }
    }
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> CliError {
        CliError::all(error.into_sentences())
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable_lines(&self.sentences.join("\n")))
    }
}

/// Returns a text of somebody else for a terminal: characters that would move the cursor, or change
/// the order of others, are escaped.
pub(super) fn printable(text: &str) -> String {
    let escaped = |letter: char| match crate::language::is_unprintable(letter) {
        true => letter.escape_unicode().to_string(),
        false => letter.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// Returns lines that may have a text of somebody else, for a terminal.
fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Formats a document as JSON for people and programs.
pub(super) fn json_text(document: &Value) -> String {
    printable_json(&format!("{document:#}"))
}

/// Returns the same JSON for a terminal: what [`printable`] escapes can only be in its strings.
fn printable_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        if letter != '\n' && crate::language::is_unprintable(letter) {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            text.push(letter);
        }
    }
    text
}

/// Whether an output is a terminal on which a command may move the cursor.
pub(super) fn is_drawable(out: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let is_plain = set("NO_COLOR").is_some() || set("TERM").is_none_or(|term| term == "dumb");
    out.is_terminal() && !is_plain
}

/// Writes to standard output. A closed pipe is not an error, but a full disk is one.
pub(super) fn say(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    is_open(writeln!(out, "{text}").and_then(|()| out.flush())).map(drop)
}

/// Whether a write has found its output open. A closed pipe is not an error.
pub(super) fn is_open(written: io::Result<()>) -> Result<bool, CliError> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CliError::new(format!("the output cannot be written: {error}"))),
    }
}

/// Writes a result to standard output: with `--json` the document, and otherwise its text.
pub(super) fn show(
    is_json: bool,
    document: &Value,
    text: impl FnOnce(&Value) -> String,
) -> Result<(), CliError> {
    say(&if is_json { json_text(document) } else { printable_lines(&text(document)) })
}

/// Writes a result to standard output: with `--json` the document, and otherwise the lines.
pub(super) fn show_lines(
    is_json: bool,
    document: &Value,
    lines: &[String],
) -> Result<(), CliError> {
    match lines {
        [] if !is_json => Ok(()),
        lines => show(is_json, document, |_| lines.join("\n")),
    }
}

/// Loads a configuration, and prints its warnings to standard error.
pub(super) fn load(config: &Path) -> Result<crate::config::Config, CliError> {
    let loaded = crate::config::load(config).map_err(CliError::all)?;
    for warning in &loaded.warnings {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    Ok(loaded.config)
}
