//! `loangate status`: one look at a running gate.

use humantime::format_duration;
use jiff::Timestamp;
use serde_json::Value;

use super::admin_client::{AdminClient, CHECK_PEER, GateArgs, read};
use super::{CliError, printable, show};
use crate::clock::{self, Clock};

/// Prints what the gate is and does. Fails if it serves no reader.
pub(super) async fn run(gate: GateArgs) -> Result<(), CliError> {
    let response = AdminClient::new(&gate)?.status(true).await?;
    let status = read(response, &["serving"]).await?;
    let now = Clock::system().machine_now();
    show(gate.json, &status, |status| screen(status, now))?;
    serves(&status)
}

/// Fails unless the gate says that it serves readers.
fn serves(status: &Value) -> Result<(), CliError> {
    match text(status, "/serving/status").as_str() {
        "down" => Err(CliError::new("the gate serves no reader; `loangate problems` says why")),
        "" => Err(CliError::new(format!(
            "the answer does not say whether readers are served. {CHECK_PEER}"
        ))),
        _ => Ok(()),
    }
}

/// The rows: a name, and what is to be said of it.
fn screen(status: &Value, now: Timestamp) -> String {
    let rows = [
        ("gate", gate(status, now)),
        ("listeners", listeners(status)),
        ("serving", serving(status)),
        ("loans", loans(status)),
        ("readers", readers(status)),
        ("bokbasen", bokbasen(status)),
        ("origins", origins(status)),
        ("ledger", ledger(status)),
        ("tls", certificate(status, now)),
        ("problems", problems(status)),
    ];
    let lines: Vec<String> = rows.iter().map(|(name, row)| format!("{name:<10} {row}")).collect();
    lines.join("\n")
}

fn gate(status: &Value, now: Timestamp) -> String {
    let started: Option<Timestamp> = text(status, "/started").parse().ok();
    let up = started.map(|started| format!(", up {}", whole(clock::until(started, now))));
    format!(
        "{}, loangate {}, process {}{}",
        text(status, "/node"),
        text(status, "/version"),
        number(status, "/process"),
        up.unwrap_or_default()
    )
}

fn listeners(status: &Value) -> String {
    let addresses = status.pointer("/public_addresses").and_then(Value::as_array);
    let addresses = addresses.into_iter().flatten().filter_map(Value::as_str).map(printable);
    // The URL has the port of the first one.
    let several = match addresses.collect::<Vec<String>>().as_slice() {
        [] | [_] => String::new(),
        several => format!(" (at {})", several.join(" and ")),
    };
    let (readers, admin) = (text(status, "/public_url"), text(status, "/admin_url"));
    format!("readers {readers}{several}, admin {admin}")
}

fn serving(status: &Value) -> String {
    let of = |part: &str| text(status, &format!("/serving/components/{part}/status"));
    let (reading, borrowing, returning) = (of("reading"), of("borrowing"), of("returning"));
    format!("reading {reading}, borrowing {borrowing}, returning {returning}")
}

fn loans(status: &Value) -> String {
    let open = match status.pointer("/loans").and_then(Value::as_u64) {
        Some(open) => format!("{open} open"),
        None => "unknown, since the ledger does not answer".to_owned(),
    };
    let begun = rate(status, "/last_minute/loans").map(|begun| format!(", {begun} begun a minute"));
    let paused = match number(status, "/pauses") {
        0 => "",
        _ => "; lending is paused (`loangate lending list`)",
    };
    format!("{open}{}{paused}", begun.unwrap_or_default())
}

fn readers(status: &Value) -> String {
    let Some(requests) = rate(status, "/last_minute/requests") else {
        return "the gate has just started".to_owned();
    };
    let refused = rate(status, "/last_minute/refusals").unwrap_or_default();
    let hits = status.pointer("/last_minute/hit_rate").and_then(Value::as_f64);
    let hits = hits.map(|hits| format!(", {:.1} % decided by the cache", 100.0 * hits));
    let rate = status.pointer("/last_minute/bytes_per_second").and_then(Value::as_f64);
    format!(
        "{requests} requests a minute, {refused} refused{}; {} streams, {:.1} MB/s",
        hits.unwrap_or_default(),
        number(status, "/last_minute/streams"),
        rate.unwrap_or_default() / 1e6
    )
}

fn bokbasen(status: &Value) -> String {
    let ends = number(status, "/last_minute/ends_waiting");
    let oldest = std::time::Duration::from_secs(number(status, "/last_minute/oldest_end"));
    let oldest = match ends {
        0 => String::new(),
        _ => format!(", the oldest since {}", format_duration(oldest)),
    };
    let calls = calls(status.pointer("/last_minute/lending"));
    format!("{calls}; {ends} ends wait{oldest}")
}

fn origins(status: &Value) -> String {
    let origins = status.pointer("/last_minute/origins").and_then(Value::as_object);
    let origins = origins.into_iter().flatten();
    let rows: Vec<String> = origins
        .map(|(name, counts)| format!("{} {}", printable(name), calls(Some(counts))))
        .collect();
    if rows.is_empty() { "no requests yet".to_owned() } else { rows.join("; ") }
}

fn ledger(status: &Value) -> String {
    match number(status, "/gates") {
        0 | 1 => "this gate alone uses it".to_owned(),
        gates => format!("{gates} gates share it"),
    }
}

fn certificate(status: &Value, now: Timestamp) -> String {
    let expires = text(status, "/certificate_expires");
    match expires.parse::<Timestamp>() {
        Ok(at) if at <= now => format!("the certificate has expired: {expires}"),
        Ok(at) => {
            let days = clock::until(now, at).as_secs() / 86_400;
            format!("the certificate expires in {days} days, at {expires}")
        }
        Err(_) => "no certificate".to_owned(),
    }
}

fn problems(status: &Value) -> String {
    match number(status, "/problems") {
        0 => "none".to_owned(),
        problems => format!("{problems}; `loangate problems` lists them"),
    }
}

fn calls(counts: Option<&Value>) -> String {
    let of = |name| rate(counts.unwrap_or(&Value::Null), name).unwrap_or_else(|| "0".to_owned());
    format!("{} answered a minute, {} failed", of("/answered"), of("/failed"))
}

/// Returns a rate, with a decimal only where it says something.
fn rate(status: &Value, pointer: &str) -> Option<String> {
    let rate = status.pointer(pointer)?.as_f64()?;
    Some(if rate > 0.0 && rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") })
}

fn number(status: &Value, pointer: &str) -> u64 {
    status.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

fn text(status: &Value, pointer: &str) -> String {
    status.pointer(pointer).and_then(Value::as_str).map(printable).unwrap_or_default()
}

/// Returns a time in its two largest units.
fn whole(time: std::time::Duration) -> String {
    let formatted = format_duration(std::time::Duration::from_secs(time.as_secs())).to_string();
    formatted.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_gate_that_says_so_serves_readers() {
        let of = |serving: Value| serves(&json!({ "serving": serving }));
        for (status, is_good) in [("ok", true), ("degraded", true), ("down", false), ("", false)] {
            assert_eq!(of(json!({ "status": status })).is_ok(), is_good, "{status}");
        }
        assert!(of(json!({})).is_err() && serves(&json!([])).is_err());
    }

    #[test]
    fn screen_says_what_is_known() {
        let now: Timestamp = "2027-01-15T12:00:00Z".parse().unwrap();
        let ok = json!({ "status": "ok" });
        let status = json!({
            "node": "gate1:8443", "version": "1.2.3", "process": 7,
            "started": "2027-01-15T08:30:29Z", "public_url": "https://a", "admin_url": "http://b",
            "public_addresses": ["127.0.0.1:1", "[::1]:1"],
            "serving": { "status": "ok",
                "components": { "reading": ok, "borrowing": ok, "returning": ok } },
            "problems": 0, "pauses": 1, "loans": 12, "gates": 2,
            "certificate_expires": "2027-01-20T12:00:00Z",
            "last_minute": { "loans": 0.5, "requests": 120.4, "refusals": 0, "hit_rate": 0.987,
                "bytes_per_second": 2_500_000.0, "streams": 3, "ends_waiting": 2, "oldest_end": 90,
                "lending": { "answered": 4.25, "failed": 0 },
                "origins": { "cdn\u{1b}": { "answered": 100, "failed": 1 } } },
        });
        let screen = screen(&status, now);
        for line in [
            "gate       gate1:8443, loangate 1.2.3, process 7, up 3h 29m",
            "listeners  readers https://a (at 127.0.0.1:1 and [::1]:1), admin http://b",
            "loans      12 open, 0.5 begun a minute; lending is paused (`loangate lending list`)",
            "readers    120 requests a minute, 0 refused, 98.7 % decided by the cache; 3 streams, \
             2.5 MB/s",
            "bokbasen   4.2 answered a minute, 0 failed; 2 ends wait, the oldest since 1m 30s",
            "origins    cdn\\u{1b} 100 answered a minute, 1.0 failed",
            "ledger     2 gates share it",
            "tls        the certificate expires in 5 days, at 2027-01-20T12:00:00Z",
            "problems   none",
        ] {
            assert!(screen.lines().any(|shown| shown == line), "{line}\nis not in\n{screen}");
        }
        assert_eq!(self::screen(&json!({}), now).lines().count(), 10, "without anything known");
    }
}
