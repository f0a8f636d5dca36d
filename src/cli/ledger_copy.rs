//! `loangate ledger copy`: moves a ledger between SQLite and PostgreSQL while no gate runs.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{CliError, say};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::ledger::{self, Copied, CopiedTo, CopyProgress, Keys, StoreSettings};

/// The interval between lines of progress on a terminal, which replace each other.
const TERMINAL_INTERVAL: Duration = Duration::from_secs(1);
/// The interval elsewhere, where each line stays.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

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
        return release(&from, destination, &keys).await;
    }
    let Some(to) = to else { return Err(CliError::new("--to is missing; name the new ledger")) };
    let mut reporter = Reporter::default();
    let mut report = |progress| reporter.report(progress);
    let copied = ledger::copy(&from, &to, &keys, Clock::system().now(), &mut report).await;
    reporter.end();
    let Copied { counts, covered, origin } = copied.map_err(CliError::new)?;
    for (rows, count) in counts {
        say(&format!("{count} {rows}"))?;
    }
    if covered > 0 {
        say(&format!("{covered} loans had no hash of their row and now have one"))?;
    }
    say(&format!("the destination is complete and equal, {origin}"))?;
    say("next: set [ledger] url to the destination; gates refuse the source from now on")
}

/// Lets gates use a source again.
async fn release(from: &StoreSettings, to: CopiedTo<'_>, keys: &Keys) -> Result<(), CliError> {
    let (is_lost, now) = (matches!(to, CopiedTo::Lost), Clock::system().machine_now());
    let next = match from {
        StoreSettings::Sqlite(_) => "; run `loangate loans balance` when a gate runs",
        StoreSettings::Postgres(_) => {
            ", and gates begin no loan: follow \"At night\" in docs/cluster.md"
        }
    };
    // Boxed: connecting takes much memory, which a caller's future would reserve.
    let released = Box::pin(ledger::release_source(from, to, keys, now)).await;
    match released.map_err(CliError::new)? {
        Some(to) if is_lost => say(&format!(
            "gates may use {from} again, and none uses {to}. It may lack the newest loans, so its \
             usage reports that are not sent yet are listed for a person{next}"
        )),
        Some(to) => say(&format!("gates may use {from} again, and none uses {to}")),
        None => say(&format!("{from} has no mark of a copy, so there is nothing to release")),
    }
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

/// Prints where a ledger was copied from, if it was.
pub(super) async fn say_origins(
    store: &StoreSettings,
    key: &ledger::AuditKey,
) -> Result<(), CliError> {
    for origin in ledger::copied_from(store, key).await.map_err(CliError::new)? {
        say(&origin.to_string())?;
    }
    Ok(())
}

/// Prints progress to standard error, about once a second.
#[derive(Default)]
struct Reporter {
    last: Option<(Instant, std::mem::Discriminant<CopyProgress>)>,
}

impl Reporter {
    fn report(&mut self, progress: CopyProgress) {
        let mut out = std::io::stderr().lock();
        let is_terminal = out.is_terminal();
        let interval = if is_terminal { TERMINAL_INTERVAL } else { LOG_INTERVAL };
        let stage = std::mem::discriminant(&progress);
        let is_shown = |(at, shown): (Instant, _)| shown == stage && at.elapsed() < interval;
        if self.last.is_some_and(is_shown) {
            return;
        }
        self.last = Some((Instant::now(), stage));
        let _ = match is_terminal {
            true => write!(out, "\r\x1b[K{progress}"),
            false => writeln!(out, "{progress}"),
        };
        let _ = out.flush();
    }

    /// Ends the line.
    fn end(&self) {
        let mut out = std::io::stderr().lock();
        if self.last.is_some() && out.is_terminal() {
            let _ = writeln!(out);
        }
    }
}
