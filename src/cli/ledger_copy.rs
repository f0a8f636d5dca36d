//! `loangate ledger copy`: moves a ledger between SQLite and PostgreSQL while no gate runs.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::progress::{Progress, seconds_left};
use super::{CliError, show_lines};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::ledger::{self, Copied, CopiedTo, CopyProgress, Keys, StoreSettings};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The ledger to copy: sqlite:PATH or postgres://USER@HOST/DATABASE.
    #[arg(long, value_name = "URL")]
    from: String,
    /// The new ledger, of the other kind: a new file or an empty database.
    #[arg(long, value_name = "URL", required_unless_present = "release_source")]
    to: Option<String>,
    /// Copy nothing, but let gates use the ledger of --from again after a copy. --to names the new
    /// ledger, which no gate may have used, and which no gate opens afterwards.
    #[arg(long)]
    release_source: bool,
    /// With --release-source: the new ledger does not exist any more.
    #[arg(long, requires = "release_source", conflicts_with = "to")]
    destination_is_lost: bool,
    /// Configuration with the pseudonym key, and with the password of a database that its [ledger]
    /// names.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let config = super::load(&args.config)?;
    let store = |option: &str, url: &str| read_url(option, url, &config, &args.config);
    let from = store("--from", &args.from)?;
    let keys = super::ledger::keys(&config)?;
    let to = args.to.map(|to| store("--to", &to)).transpose()?;
    if args.release_source {
        let destination = match (&to, args.destination_is_lost) {
            (Some(to), _) => CopiedTo::Store(to),
            (None, true) => CopiedTo::Lost,
            (None, false) => CopiedTo::Unnamed,
        };
        return release(&from, destination, &keys, args.json).await;
    }
    let Some(to) = to else {
        return Err(CliError::of_arguments("--to is missing; name the new ledger"));
    };
    let mut reporter = Reporter { progress: Progress::start(args.json), stage: None };
    let mut report = |progress| reporter.report(progress);
    let copied = ledger::copy(&from, &to, &keys, Clock::system().now(), &mut report).await;
    drop(reporter);
    let Copied { counts, covered, origin } = copied.map_err(CliError::new)?;
    let document = json!({ "rows": counts, "covered": covered, "origin": origin });
    let mut lines: Vec<_> = counts.iter().map(|(rows, count)| format!("{count} {rows}")).collect();
    if covered > 0 {
        lines.push(format!("{covered} loans had no hash of their row and now have one"));
    }
    lines.push(format!("the destination is complete and equal, {origin}"));
    lines.push(
        "next: set [ledger] url to the destination; gates refuse the source from now on".to_owned(),
    );
    show_lines(args.json, &document, &lines)
}

/// Lets gates use a source again.
async fn release(
    from: &StoreSettings,
    to: CopiedTo<'_>,
    keys: &Keys,
    is_json: bool,
) -> Result<(), CliError> {
    let (is_lost, now) = (matches!(to, CopiedTo::Lost), Clock::system().machine_now());
    let next = match from {
        StoreSettings::Sqlite(_) => "; run `loangate loans balance` when a gate runs",
        StoreSettings::Postgres(_) => {
            ", and gates begin no loan: follow \"At night\" in docs/cluster.md"
        }
    };
    // Boxed: connecting takes much memory, which a caller's future would reserve.
    let released = Box::pin(ledger::release_source(from, to, keys, now)).await;
    let released = released.map_err(CliError::new)?;
    let document = json!({ "released": released.is_some() });
    let line = match released {
        Some(to) if is_lost => format!(
            "gates may use {from} again, and none uses {to}. It may lack the newest loans, so its \
             usage reports that are not sent yet are listed for a person{next}"
        ),
        Some(to) => format!("gates may use {from} again, and none uses {to}"),
        None => format!("{from} has no mark of a copy, so there is nothing to release"),
    };
    show_lines(is_json, &document, &[line])
}

fn read_url(
    option: &str,
    url: &str,
    config: &Config,
    file: &Path,
) -> Result<StoreSettings, CliError> {
    let (store, warnings) = config::ledger_of_url(url, config, file)
        .map_err(|error| CliError::new(format!("{option}: {error}")))?;
    for warning in warnings {
        let _ = writeln!(std::io::stderr(), "warning: {option}: {warning}");
    }
    Ok(store)
}

/// Shows the progress of a copy, with the time that is left where the number of rows is known.
struct Reporter {
    progress: Progress,
    stage: Option<std::mem::Discriminant<CopyProgress>>,
}

impl Reporter {
    fn report(&mut self, progress: CopyProgress) {
        let stage = Some(std::mem::discriminant(&progress));
        let is_new = std::mem::replace(&mut self.stage, stage) != stage;
        self.progress.set(format!("{progress}{}", left(&progress)), is_new);
    }
}

/// Returns the time that the rows of a table still take.
fn left(progress: &CopyProgress) -> String {
    let CopyProgress::Copying { done, total, per_second, .. } = progress else {
        return String::new();
    };
    total.saturating_sub(*done).checked_div(*per_second).map_or_else(String::new, seconds_left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_shown_where_it_is_known() {
        let copying = |done, per_second| CopyProgress::Copying {
            rows: "loans",
            done,
            total: 10_000,
            per_second,
        };
        assert_eq!(left(&copying(1_000, 100)), ", 1m 30s left");
        for progress in [copying(1_000, 0), copying(10_000, 100), CopyProgress::Comparing] {
            assert_eq!(left(&progress), "", "{progress}");
        }
    }
}
