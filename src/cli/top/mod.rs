//! `loangate top`: what a running gate does, again each second.
//!
//! - `status` reads the gate's status, and `window` calculates rates from the last ones.
//! - `look` is one look, as text or JSON, and `screen` draws it.

mod look;
mod screen;
mod status;
mod window;

use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::CliError;
use super::admin_client::{AdminClient, GateArgs, read};
use super::client_tls::ClientTls;
use super::output::is_open;
use super::signals::Signals;
use crate::clock::Clock;
use look::{Away, Look};
use screen::{Form, Screen};
use status::{FromLedger, Status};
use window::Window;

/// The deadline of a call.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often the gate counts loans in its ledger.
const LEDGER_INTERVAL: Duration = Duration::from_secs(10);
/// The shortest and the longest time between two looks.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(3600);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration of the running gate.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    /// Time between two looks.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = pause)]
    interval: Duration,
    /// End after this number of looks; fail if no gate answered at the last one.
    #[arg(long, value_name = "NUMBER")]
    count: Option<NonZero<u64>>,
    /// Print a line of JSON for each look.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tls: ClientTls,
}

fn pause(text: &str) -> Result<Duration, String> {
    let pause = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match (MIN_INTERVAL..=MAX_INTERVAL).contains(&pause) {
        true => Ok(pause),
        false => Err("write a time from 100ms to 1h".to_owned()),
    }
}

/// Shows the gate until a signal ends it, or until it has looked often enough.
pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let mut signals = Signals::listen()?;
    let client = AdminClient::new(&GateArgs::of(args.config, args.tls))?;
    let form = Form::of_standard_output(args.json);
    let mut screen = Screen::new(form);
    let ended = tokio::select! {
        ended = watch(&client, &mut screen, args.interval, args.count) => ended,
        // Also when the terminal is closed.
        _ = signals.next() => Ok(()),
    };
    screen.restore().await;
    ended
}

/// Looks at the gate again and again.
async fn watch(
    client: &AdminClient,
    screen: &mut Screen,
    pause: Duration,
    count: Option<NonZero<u64>>,
) -> Result<(), CliError> {
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watcher = Watcher::default();
    let mut shown = 0;
    loop {
        ticks.tick().await;
        let look = watcher.look(client).await;
        if !is_open(screen.show(&look).await)? {
            return Ok(());
        }
        shown += u64::from(look.is_complete());
        match (look, count) {
            (look, Some(count)) if shown >= count.get() => {
                return look.away().map_or(Ok(()), |why| Err(CliError::new(why)));
            }
            _ => {}
        }
    }
}

/// Remembers the last looks.
#[derive(Default)]
struct Watcher {
    window: Window,
    /// What was last read from the ledger, and when.
    from_ledger: Option<(Instant, FromLedger)>,
}

impl Watcher {
    async fn look(&mut self, client: &AdminClient) -> Look {
        let asked = Instant::now();
        let is_recent = |at: &Instant| asked.duration_since(*at) < LEDGER_INTERVAL;
        let known = self.from_ledger.take().filter(|(at, _)| is_recent(at));
        let status = timeout(TIMEOUT, status_of(client, known.is_none())).await;
        let at = Clock::system().now();
        let status = status.unwrap_or_else(|_| {
            let seconds = TIMEOUT.as_secs();
            Err(CliError::new(format!("the gate did not answer within {seconds} seconds")))
        });
        match status {
            Ok(status) => {
                let (since, from_ledger) = known.unwrap_or((asked, status.from_ledger));
                self.from_ledger = Some((since, from_ledger));
                let rates = self.window.add(Instant::now(), &status);
                Look::of(at, status, from_ledger, rates)
            }
            Err(why) => Look::Away(Away { at, away: why.to_string().replace('\n', " ") }),
        }
    }
}

/// Reads the status of the gate.
async fn status_of(client: &AdminClient, with_ledger: bool) -> Result<Status, CliError> {
    Status::parse(read(client.status(with_ledger).await?, &[]).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_has_bounds() {
        assert_eq!(pause("1s"), Ok(Duration::from_secs(1)));
        for wrong in ["0s", "99ms", "2h", "1", "-1s", ""] {
            assert!(pause(wrong).is_err(), "{wrong}");
        }
    }
}
