//! `loangate check`: reports every mistake in a configuration, with its line; prints one, or
//! compares two.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{CliError, json_text, say};
use crate::config::{self, Loaded, Mistake};
use crate::reload::ChangedKey;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration to check.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    /// Test the network too: Bokbasen's login, API and clock, every address of every origin, the
    /// ledger's database, and the keys of every login service.
    #[arg(long)]
    online: bool,
    /// Print the configuration as the gate would use it, with the values of environment variables
    /// and without secrets.
    #[arg(long, conflicts_with_all = ["online", "diff"])]
    print: bool,
    /// Compare two configurations: what a reload would change, and what would need a restart.
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"])]
    #[arg(conflicts_with_all = ["config", "online"])]
    diff: Option<Vec<PathBuf>>,
    /// Print the result as JSON.
    #[arg(long, conflicts_with = "print")]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    match args.diff.as_deref() {
        Some([old, new]) => return diff(old, new, args.json),
        _ if args.print => return say(load(&args.config)?.written.to_toml().trim_end()),
        _ => {}
    }
    let checked = config::check(&args.config, args.online).await;
    if args.json {
        let file = args.config.display().to_string();
        let texts = |list: &[Mistake]| list.iter().map(Mistake::to_string).collect::<Vec<_>>();
        let (mistakes, warnings) = (texts(&checked.mistakes), texts(&checked.warnings));
        let ok = if args.online { checked.found.as_slice() } else { &[] };
        let document =
            json!({ "file": file, "mistakes": mistakes, "ok": ok, "warnings": warnings });
        say(&json_text(&document))?;
        return if mistakes.is_empty() { Ok(()) } else { Err(CliError::all(mistakes)) };
    }
    let mut text = String::new();
    for found in checked.found.iter().filter(|_| args.online) {
        let _ = writeln!(text, "ok: {found}");
    }
    for warning in &checked.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    if checked.mistakes.is_empty() {
        let _ = write!(text, "{} is good", args.config.display());
        return say(&text);
    }
    if !text.is_empty() {
        say(text.trim_end())?;
    }
    Err(CliError::all(checked.mistakes))
}

fn load(file: &Path) -> Result<Loaded, CliError> {
    config::load(file).map_err(CliError::all)
}

/// Prints how two configurations differ.
fn diff(old: &Path, new: &Path, is_json: bool) -> Result<(), CliError> {
    let changes = load(old)?.written.changes(&load(new)?.written);
    if is_json {
        let text = serde_json::to_string_pretty(&changes).map_err(CliError::new)?;
        return say(&text);
    }
    if changes.is_empty() {
        return say("The configurations set the same keys to the same values.");
    }
    let (restart, reload): (Vec<_>, Vec<_>) =
        changes.iter().partition(|changed| changed.needs_restart);
    let mut text = String::new();
    for (title, changes) in [("A reload changes:", reload), ("These need a restart:", restart)] {
        if !changes.is_empty() {
            let _ = writeln!(text, "{title}");
            changes.iter().for_each(|changed| {
                let _ = writeln!(text, "  {}", line(changed));
            });
        }
    }
    say(text.trim_end())
}

/// Returns the line of a changed key, such as `server.drain: "60s" -> "90s"`.
fn line(changed: &ChangedKey) -> String {
    let ChangedKey { key, old, new, .. } = changed;
    match (old, new) {
        (Some(old), Some(new)) if old == new => format!("{key}: another secret"),
        (Some(old), Some(new)) => format!("{key}: {old} -> {new}"),
        (None, Some(new)) => format!("{key}: set to {new}"),
        (Some(old), None) => format!("{key}: {old} is removed, so the default applies"),
        (None, None) => key.clone(),
    }
}
