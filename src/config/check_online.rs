//! The network part of `loangate check --online`: tests whether every configured service responds.
//!
//! `check` calls it. All tests run concurrently, each with a timeout, and change nothing.

use std::time::Duration;

use futures_util::future::{join_all, join5};
use jiff::SignedDuration;
use tokio::time::timeout;

use super::Loaded;
use crate::acme;
use crate::buffer_budget::Buffers;
use crate::clock::Clock;
use crate::ledger::{DatabaseFinding, StoreSettings, check_database};
use crate::lending::{Bokbasen, CallError, Reporting};
use crate::origin::{Origin, Outcome};
use crate::reader;
use crate::telemetry::Metrics;

/// The largest clock difference that Bokbasen accepts (page "Authentication Service").
const MAX_SKEW: SignedDuration = SignedDuration::from_mins(15);
/// The clock difference that causes a warning. Reader tokens tolerate this much.
const NOTABLE_SKEW: SignedDuration = SignedDuration::from_secs(60);
/// The `Date` header has whole seconds, so a difference of one second is within its precision.
const DATE_PRECISION: SignedDuration = SignedDuration::from_secs(1);
/// The timeout of the login and one call together.
const MAX_WAIT: Duration = Duration::from_secs(40);

/// The findings, each problem with the key that it is about.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Sentences about what works, one for each service.
    pub(super) good: Vec<String>,
    /// Problems that may keep the gate from working.
    pub(super) warnings: Vec<(String, String)>,
    /// Problems that keep the gate from working.
    pub(super) mistakes: Vec<(String, String)>,
}

/// Tests Bokbasen, every address of every origin, the ledger's database, and every login service.
pub(super) async fn run(loaded: &Loaded) -> Found {
    let Ok(metrics) = Metrics::new() else { return Found::default() };
    let (mut found, origins, database, login_services, authority) = join5(
        lending(loaded, metrics.clone()),
        origins(loaded, metrics.clone()),
        database(loaded),
        login_services(loaded),
        certificate_authority(loaded),
    )
    .await;
    let reporting = reporting(loaded, metrics).await;
    for other in origins.into_iter().chain([database, reporting, login_services, authority]) {
        found.good.extend(other.good);
        found.warnings.extend(other.warnings);
        found.mistakes.extend(other.mistakes);
    }
    found
}

/// Tests the database of the ledger. `check` has already tested a file.
async fn database(loaded: &Loaded) -> Found {
    let mut found = Found::default();
    let StoreSettings::Postgres(settings) = &loaded.config.ledger.store else { return found };
    let findings = check_database(settings).await;
    for (key, findings) in
        [("ledger.url", findings.url), ("ledger.direct_url", findings.direct_url)]
    {
        for finding in findings {
            match finding {
                DatabaseFinding::Good(sentence) => found.good.push(format!("ledger: {sentence}")),
                DatabaseFinding::Doubtful(sentence) => {
                    found.warnings.push((key.to_owned(), sentence));
                }
                DatabaseFinding::Failed(sentence) => {
                    found.mistakes.push((key.to_owned(), sentence));
                }
            }
        }
    }
    found
}

/// Fetches the directory of the certificate authority. Nothing is ordered as a test.
async fn certificate_authority(loaded: &Loaded) -> Found {
    let mut found = Found::default();
    let Some(settings) = &loaded.config.acme else { return found };
    match acme::check_directory(settings).await {
        Ok(()) => {
            found.good.push(format!("certificate authority {}: responds", settings.directory))
        }
        Err(why) => found.mistakes.push((
            "tls.acme.directory".to_owned(),
            format!("no certificate can be ordered: {why}"),
        )),
    }
    found
}

/// Fetches the keys of every login service that has no file of them.
async fn login_services(loaded: &Loaded) -> Found {
    let mut found = Found::default();
    let services = &loaded.config.readers.issuers;
    let fetched = join_all(services.iter().map(reader::try_fetch)).await;
    for (number, (service, fetched)) in services.iter().zip(fetched).enumerate() {
        let issuer = &service.issuer;
        let sentence = match fetched {
            None => continue,
            Some(Ok(keys)) if keys > 0 => {
                found.good.push(format!("login service {issuer}: usable keys: {keys}"));
                continue;
            }
            Some(Ok(_)) => {
                let allowed = &service.algorithms;
                format!("{issuer} has no key for the allowed algorithms {allowed:?}. Allow its own")
            }
            Some(Err(why)) => {
                format!("the keys of {issuer} cannot be fetched: {why}. Check the address")
            }
        };
        let key = loaded.login_service_key(number);
        let key = match service.keys {
            reader::KeySource::Url(_) => format!("{key}.jwks_url"),
            _ => format!("{key}.issuer"),
        };
        found.mistakes.push((key, sentence));
    }
    found
}

async fn lending(loaded: &Loaded, metrics: Metrics) -> Found {
    let mut found = Found::default();
    let bokbasen = match Bokbasen::new(&loaded.config.lending, Clock::system(), metrics) {
        Ok(bokbasen) => bokbasen,
        Err(error) => {
            found.mistakes.push(("lending.url".to_owned(), error.to_string()));
            return found;
        }
    };
    if timeout(MAX_WAIT, try_lending(&bokbasen, &mut found)).await.is_err() {
        let seconds = MAX_WAIT.as_secs();
        found.mistakes.push((
            "lending.url".to_owned(),
            format!("Bokbasen did not answer within {seconds} s"),
        ));
    }
    found
}

/// Tests the login of the Reporting API. A report is never sent as a test.
async fn reporting(loaded: &Loaded, metrics: Metrics) -> Found {
    let mut found = Found::default();
    let Some(reports) = &loaded.config.reports else { return found };
    let (endpoint, lending) = (&reports.endpoint, &loaded.config.lending);
    let client = match Reporting::new(endpoint, lending, &Clock::system(), metrics) {
        Ok(client) => client,
        Err(error) => {
            found.mistakes.push(("reports.url".to_owned(), error.to_string()));
            return found;
        }
    };
    match timeout(MAX_WAIT, client.try_login()).await {
        Ok(Ok(())) => found.good.push("the login for usage reports works".to_owned()),
        Ok(Err(error)) => {
            found.mistakes.push(("reports.audience".to_owned(), error.to_string()));
        }
        Err(_) => {
            let seconds = MAX_WAIT.as_secs();
            let sentence = format!("the login did not answer within {seconds} s");
            found.mistakes.push(("reports.audience".to_owned(), sentence));
        }
    }
    found
}

async fn try_lending(bokbasen: &Bokbasen, found: &mut Found) {
    match bokbasen.try_login().await {
        Ok(()) => found.good.push("Bokbasen's login works".to_owned()),
        Err(error) => {
            found.mistakes.push(("lending.auth".to_owned(), reason(bokbasen, &error.to_string())));
            return;
        }
    }
    match bokbasen.try_call().await {
        Ok(()) => found.good.push("Bokbasen's API accepts the token".to_owned()),
        Err(error) => {
            let hint = match error {
                CallError::Rejected { status: 404, .. } => {
                    ". Is it the address of the API, without a path such as /v1?"
                }
                _ => "",
            };
            let sentence =
                format!("{}{hint}", reason(bokbasen, &error.to_string()).trim_end_matches('.'));
            found.mistakes.push(("lending.url".to_owned(), sentence));
        }
    }
    match bokbasen.clock_ahead() {
        Some(ahead) => clock(ahead, found),
        None => found.warnings.push((
            "lending.url".to_owned(),
            "no response from Bokbasen had a Date header, so the clocks were not compared"
                .to_owned(),
        )),
    }
    bokbasen.close().await;
}

/// Adds advice to an error, if there is any.
fn reason(bokbasen: &Bokbasen, error: &str) -> String {
    match bokbasen.last_trouble() {
        Some(trouble) => format!("{} ({error})", trouble.sentence().trim_end_matches('.')),
        None => error.to_owned(),
    }
}

/// Reports the difference between the clocks, even if it is zero.
fn clock(ahead: SignedDuration, found: &mut Found) {
    let seconds = ahead.abs().as_secs();
    let side = if ahead.is_negative() { "behind" } else { "ahead of" };
    let sentence = format!("this machine's clock is {seconds} s {side} Bokbasen's");
    if ahead.abs() > MAX_SKEW {
        let why = "Bokbasen refuses calls from more than 15 minutes away. Set the clock by NTP";
        found.mistakes.push(("lending.url".to_owned(), format!("{sentence}. {why}")));
    } else if ahead.abs() > NOTABLE_SKEW {
        let why = "Loans would end at a different time than at Bokbasen. Set the clock by NTP";
        found.warnings.push(("lending.url".to_owned(), format!("{sentence}. {why}")));
    } else if ahead.abs() > DATE_PRECISION {
        found.good.push(sentence);
    } else {
        found.good.push("this machine's clock agrees with Bokbasen's to a second".to_owned());
    }
}

async fn origins(loaded: &Loaded, metrics: Metrics) -> Vec<Found> {
    let origins = loaded.config.origins.iter().enumerate();
    join_all(origins.map(|(number, settings)| {
        let buffers = Buffers::new(loaded.config.server.buffers);
        let origin = Origin::new(settings, &buffers, metrics.clone());
        async move {
            let mut found = Found::default();
            // `check` has already reported origins that cannot be built.
            let Ok(origin) = origin else { return found };
            let key = format!("origins[{number}].url");
            for probed in origin.probe().await {
                let (name, address) = (&settings.name, &probed.address);
                match probed.outcome {
                    Outcome::Reached(finding) => {
                        found.good.push(format!("origin {name}: {address}: {finding}"))
                    }
                    Outcome::Doubtful(finding) => {
                        found.warnings.push((key.clone(), format!("{address}: {finding}")))
                    }
                    Outcome::Failed(finding) => {
                        found.mistakes.push((key.clone(), format!("{address}: {finding}")))
                    }
                }
            }
            found
        }
    }))
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_is_reported_in_both_directions() {
        let report = |seconds| {
            let mut found = Found::default();
            clock(SignedDuration::from_secs(seconds), &mut found);
            let pairs =
                found.warnings.iter().chain(&found.mistakes).map(|(_, sentence)| sentence.clone());
            let all: Vec<String> = found.good.iter().cloned().chain(pairs).collect();
            (found.good.len(), found.warnings.len(), found.mistakes.len(), all.concat())
        };
        assert_eq!(
            report(0),
            (1, 0, 0, "this machine's clock agrees with Bokbasen's to a second".to_owned())
        );
        assert_eq!(report(-1).0, 1);
        assert_eq!(
            report(30),
            (1, 0, 0, "this machine's clock is 30 s ahead of Bokbasen's".to_owned())
        );
        let (_, warnings, _, text) = report(-90);
        assert!(warnings == 1 && text.contains("90 s behind Bokbasen's"), "{text}");
        let (_, _, mistakes, text) = report(901);
        assert!(
            mistakes == 1 && text.contains("901 s ahead of Bokbasen's. Bokbasen refuses calls"),
            "{text}"
        );
    }
}
