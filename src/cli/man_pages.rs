//! `loangate man`: writes the manual pages, one for each command, for packages.

use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use jiff::Timestamp;

use super::{Cli, CliError};
use crate::clock::Clock;

/// Writes the pages. Their date is that of SOURCE_DATE_EPOCH, if it is set, and otherwise today.
pub(super) fn run(dir: &Path) -> Result<(), CliError> {
    let shown = dir.display();
    let failed = |error| CliError::new(format!("cannot write the pages to {shown}: {error}"));
    fs::create_dir_all(dir).map_err(failed)?;
    let date = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().ok().and_then(|second| Timestamp::from_second(second).ok()),
        Err(_) => Some(Clock::system().now()),
    };
    let date =
        date.ok_or_else(|| CliError::new("SOURCE_DATE_EPOCH is no number of seconds since 1970"))?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    write(&command, &date.strftime("%Y-%m-%d").to_string(), dir).map_err(failed)
}

/// Writes the page of a command, and those below it.
fn write(command: &Command, date: &str, dir: &Path) -> std::io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write(below, date, dir)?;
    }
    let source = concat!("loangate ", env!("CARGO_PKG_VERSION"));
    let page = Man::new(command.clone()).date(date).source(source).manual("loangate");
    let mut text = Vec::new();
    page.render(&mut text)?;
    fs::write(dir.join(page.get_filename()), without_double_breaks(&String::from_utf8_lossy(&text)))
}

/// Returns a page without the line breaks beside an empty line, of which linters warn.
fn without_double_breaks(page: &str) -> String {
    let lines: Vec<&str> = page.lines().collect();
    let is_empty = |number: Option<usize>| {
        number.and_then(|number| lines.get(number)).is_some_and(|line| line.is_empty())
    };
    let kept = lines.iter().enumerate().filter(|(number, line)| {
        let beside = is_empty(number.checked_sub(1)) || is_empty(number.checked_add(1));
        **line != ".br" || !beside
    });
    kept.flat_map(|(_, line)| [line, "\n"]).collect()
}
