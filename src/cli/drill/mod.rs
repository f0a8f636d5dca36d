//! `loangate drill`: makes a sandbox misbehave while a staging gate serves invented readers, and
//! checks what they got and what the books have afterwards.
//!
//! It refuses to run unless Bokbasen's address in the configuration is a sandbox's, and a loan of
//! an invented title that the running gate begins appears in that sandbox's books. So no licence of
//! a real library is ever spent. It also refuses a configuration that sends usage reports elsewhere
//! than to that sandbox. The sandbox's faults and settings are restored at the end, also
//! after an interruption.

mod answers;
mod books;
mod checks;
mod gate;
mod sandbox;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use url::Url;

use gate::StagingGate;
use sandbox::StagingSandbox;

use super::client_tls::ClientTls;
use super::signals::Signals;
use super::{CliError, say};
use crate::loan::LibraryId;

const INTERRUPTED: &str = "interrupted; the sandbox's faults are removed. Loans of the invented \
                           readers may be live until they are due";
/// How long the faults may take to be removed.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration of the running staging gate.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    /// Path of a file of at least 16 MiB, with the ISBN of its title in it, such as
    /// /files/9788299999038/audio.mp3.
    #[arg(long)]
    path: String,
    /// Library whose invented readers borrow, by its ISIL.
    #[arg(long, default_value = "NO-0301000")]
    library: LibraryId,
    /// Address of the gate; by default localhost with the port of the configuration.
    #[arg(long)]
    url: Option<String>,
    /// Address of the admin API; by default that of the configuration.
    #[arg(long)]
    admin: Option<String>,
    /// Certificates to trust, as a PEM file; by default ca.pem beside the gate's certificate.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Host of the sandbox, if it is not this machine. It must be that of `[lending] url`.
    #[arg(long)]
    sandbox_host: Option<String>,
    /// How long to wait for what must happen, besides `lending.settle`.
    #[arg(long, default_value = "60s")]
    patience: humantime::Duration,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tls: ClientTls,
}

/// What one check found.
struct CheckOutcome {
    check: &'static str,
    took: Duration,
    verdict: Verdict,
}

enum Verdict {
    Passed,
    /// It failed, for this reason.
    Failed(String),
    /// It could not run, for this reason.
    Skipped(String),
}

impl CheckOutcome {
    fn has_failed(&self) -> bool {
        matches!(self.verdict, Verdict::Failed(_))
    }
}

impl From<Result<(), String>> for Verdict {
    fn from(result: Result<(), String>) -> Verdict {
        result.map_or_else(Verdict::Failed, |()| Verdict::Passed)
    }
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let mut signals = Signals::listen()?;
    let config = super::load(&args.config)?;
    let sandbox = StagingSandbox::find(&config.lending.url, args.sandbox_host.as_deref()).await?;
    let reporting = config.reports.as_ref().map(|reports| &reports.endpoint.url);
    refuse_real_reports(reporting, &config.lending.url)?;
    let gate = StagingGate::of(&args, &config, &sandbox)?;
    let mut outcomes = Vec::new();
    let drilled = tokio::select! {
        drilled = drill(&gate, &sandbox, args.json, &mut outcomes) => drilled,
        () = signals.drain() => Err(CliError::new(INTERRUPTED)),
    };
    let restored = tokio::time::timeout(RESTORE_TIMEOUT, sandbox.restore()).await;
    let mut errors: Vec<CliError> = drilled.err().into_iter().collect();
    if !matches!(restored, Ok(Ok(()))) {
        let url = sandbox.url();
        errors.push(CliError::new(format!(
            "the sandbox at {url} may have faults or settings of the drill. Send DELETE to \
             {url}/sandbox/faults, and PUT the settings to {url}/sandbox/settings"
        )));
    }
    if !errors.is_empty() {
        return Err(CliError::all(errors));
    }
    if args.json {
        say(&as_json(&outcomes))?;
    }
    let failed = outcomes.iter().filter(|outcome| outcome.has_failed()).count();
    if failed == 0 {
        return Ok(());
    }
    Err(CliError::new(format!("{failed} of {} checks failed", outcomes.len())))
}

/// Refuses to lend where usage reports are sent to another address than that of the sandbox: those
/// of the drill would be invoiced.
fn refuse_real_reports(reports: Option<&Url>, sandbox: &Url) -> Result<(), CliError> {
    let base = |url: &Url| url.as_str().trim_end_matches('/').to_owned();
    match reports {
        Some(url) if base(url) != base(sandbox) => Err(CliError::new(format!(
            "a drill would send usage reports to {url}, and [lending] url is the sandbox \
             {sandbox}. Write the same address in [reports] url, or turn the reports off"
        ))),
        _ => Ok(()),
    }
}

async fn drill(
    gate: &StagingGate,
    sandbox: &StagingSandbox,
    is_json: bool,
    outcomes: &mut Vec<CheckOutcome>,
) -> Result<(), CliError> {
    let mut add = |check, began: Instant, verdict| {
        let outcome = CheckOutcome { check, took: began.elapsed(), verdict };
        // A check may take a minute, so each line is printed at once.
        let said = if is_json { Ok(()) } else { say(&line(&outcome)) };
        outcomes.push(outcome);
        said
    };
    gate.prove_sandbox(sandbox).await?;
    gate.prove_file().await?;
    for (check, run) in checks::ALL {
        let began = Instant::now();
        let verdict = if check == checks::SLOW_STORAGE && gate.first_byte.is_none() {
            Verdict::Skipped(format!(
                "no url of [[origins]] is below {}. Start the sandbox with --storage",
                sandbox.storage()
            ))
        } else {
            run(gate, sandbox).await.into()
        };
        sandbox.restore().await.map_err(CliError::new)?;
        add(check, began, verdict)?;
    }
    let began = Instant::now();
    let verdict = books::balance(gate, sandbox).await.into();
    add("books", began, verdict)
}

fn line(CheckOutcome { check, took, verdict }: &CheckOutcome) -> String {
    let (verdict, why) = match verdict {
        Verdict::Passed => ("pass", ""),
        Verdict::Failed(why) => ("FAIL", why.as_str()),
        Verdict::Skipped(why) => ("skip", why.as_str()),
    };
    format!("{verdict}  {check:32} {:6.1} s  {why}", took.as_secs_f64()).trim_end().to_owned()
}

fn as_json(outcomes: &[CheckOutcome]) -> String {
    let checks = outcomes.iter().map(|CheckOutcome { check, took, verdict }| {
        let seconds = took.as_secs_f64();
        let (passed, why) = match verdict {
            Verdict::Passed => (Some(true), None),
            Verdict::Failed(why) => (Some(false), Some(why)),
            Verdict::Skipped(why) => (None, Some(why)),
        };
        json!({ "check": check, "passed": passed, "seconds": seconds, "why": why })
    });
    let passed = !outcomes.iter().any(CheckOutcome::has_failed);
    json!({ "passed": passed, "checks": checks.collect::<Vec<_>>() }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_sent_only_to_the_sandbox() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        let sandbox = url("http://127.0.0.1:9000");
        assert!(refuse_real_reports(None, &sandbox).is_ok(), "reports are off");
        assert!(refuse_real_reports(Some(&url("http://127.0.0.1:9000/")), &sandbox).is_ok());
        for other in ["https://api.bokbasen.io", "http://127.0.0.1:9001", "http://127.0.0.1:9000/x"]
        {
            let refused = refuse_real_reports(Some(&url(other)), &sandbox).unwrap_err();
            assert!(refused.to_string().contains(other), "{refused}");
        }
    }
}
