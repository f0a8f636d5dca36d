//! Reads `[reports]`: the usage reports to Bokbasen.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use toml::de::DeValue;

use super::service::licence_type;
use super::table::Table;
use super::values::{boolean, confidential_url, list, nonzero_duration, one_of, text};
use crate::circulation::{EvidenceRule, ReportSettings, start_of_day};
use crate::lending::ReportingSettings;
use crate::loan::Progress;
use crate::loopback::is_loopback;

/// How long after its end a loan may still become due. Deliveries are counted within seconds, but
/// the ledger may be out for hours.
const GRACE: Duration = Duration::from_secs(86_400);

/// The shortest time between two runs, which is also the first wait after a report that was not
/// recorded. A shorter one would burden Bokbasen and the ledger.
const MIN_INTERVAL: Duration = Duration::from_secs(30);

/// Returns none if reports are off, or if a key that they need is missing or wrong.
pub(super) fn reports(root: &mut Table<'_>) -> Option<ReportSettings> {
    let mut table = root.optional_table("reports");
    let is_on = table.or("enabled", false, boolean);
    let required = |table: &mut Table<'_>, key| is_on || table.has(key);
    let url = required(&mut table, "url")
        .then(|| table.required("url", "url = \"https://api.bokbasen.io\"", confidential_url));
    let since = required(&mut table, "since")
        .then(|| table.required("since", "since = \"2026-10-01\", the first day", day));
    let audience = table.optional("audience", text);
    let prices = table.has("prices").then(|| table.path("prices", "prices = \"prices.csv\""));
    let sizes = table.has("sizes").then(|| table.path("sizes", "sizes = \"sizes.csv\""));
    let packages = table.or("packages", vec!["PACKAGE".to_owned()], list(licence_type));
    let per_loan = vec!["PAY_PER_LOAN".to_owned()];
    let pay_per_loan = table.or("pay_per_loan", per_loan, list(licence_type));
    let limit = table.optional("read", percent).or_else(|| Progress::of_hundredths(1000).ok());
    let rules = [
        ("progress-else-coverage", EvidenceRule::ProgressElseCoverage),
        ("progress", EvidenceRule::Progress),
        ("coverage", EvidenceRule::Coverage),
    ];
    let evidence = table.or("evidence", EvidenceRule::ProgressElseCoverage, one_of(&rules));
    let interval = table.or("interval", Duration::from_secs(300), nonzero_duration);
    // The sandbox runs on this machine.
    let is_sandbox = url.as_ref().and_then(Option::as_ref).is_some_and(is_loopback);
    if interval < MIN_INTERVAL && !is_sandbox {
        let sentence = "it is shorter than 30 s. Write one like \"5m\"; a shorter one is for a \
            sandbox on this machine only";
        table.mistake("interval", sentence.to_owned());
    }
    if let Some(both) = packages.iter().find(|name| pay_per_loan.contains(name)) {
        let sentence = format!("{both} is also a package. Write it in one of the two lists");
        table.mistake("pay_per_loan", sentence);
    }
    if is_on {
        warn_of_missing_files(&mut table, prices.is_none(), sizes.is_none(), evidence);
    }
    table.finish();
    let url = url.flatten()?;
    let since = since.flatten()?;
    let settings = ReportSettings {
        endpoint: ReportingSettings { url, audience },
        since,
        prices: prices.flatten(),
        sizes: sizes.flatten(),
        packages,
        pay_per_loan,
        limit: limit?,
        evidence,
        interval,
        grace: GRACE,
    };
    is_on.then_some(settings)
}

/// Warns of reports that wait for a person without these files.
fn warn_of_missing_files(
    table: &mut Table<'_>,
    without_prices: bool,
    without_sizes: bool,
    evidence: EvidenceRule,
) {
    if without_prices {
        table.warn(
            "enabled",
            "there is no price list, so each report waits for a person. Write \
             prices = \"prices.csv\"",
        );
    }
    if without_sizes && evidence != EvidenceRule::Progress {
        table.warn(
            "enabled",
            "the sizes of titles are not known, so a loan is due only by the \
             progress that its app reports. Write sizes = \"sizes.csv\"",
        );
    }
}

/// Reads a day, and returns its beginning in Europe/Oslo.
fn day(value: &DeValue<'_>) -> Result<Timestamp, String> {
    let text = match value {
        DeValue::Datetime(date) => date.to_string(),
        other => text(other)?,
    };
    let date: Result<Date, _> = text.parse();
    date.map(start_of_day)
        .map_err(|_| format!("{text:?} is not a day. Write one like \"2026-10-01\""))
}

/// Reads a part of a title, in percent.
fn percent(value: &DeValue<'_>) -> Result<Progress, String> {
    let wrong = || "write the percentage of a title, from 0.01 to 100, like 10".to_owned();
    let number: f64 = match value {
        DeValue::Integer(number) => number.as_str().parse().map_err(|_| wrong())?,
        DeValue::Float(number) => number.as_str().parse().map_err(|_| wrong())?,
        _ => return Err(wrong()),
    };
    let part = Progress::of(number / 100.0).map_err(|_| wrong())?;
    if part.hundredths() == 0 { Err(wrong()) } else { Ok(part) }
}
