//! One look at a gate, as JSON, as a line, and as the rows of a screen.

use humantime::format_duration;
use jiff::Timestamp;
use serde::Serialize;

use super::status::{Components, FromLedger, LastMinute, Status};
use super::window::{CallRates, Rates};
use crate::cli::output::printable;
use crate::clock;

/// What was seen.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Look {
    Gate(Box<GateLook>),
    Away(Away),
}

/// Why there is no gate to be seen.
#[derive(Debug, Serialize)]
pub(super) struct Away {
    pub(super) at: Timestamp,
    /// A sentence.
    pub(super) away: String,
}

/// What a gate is and does.
#[derive(Debug, Serialize)]
pub(super) struct GateLook {
    at: Timestamp,
    node: String,
    version: String,
    process: u32,
    started: Timestamp,
    reading: String,
    borrowing: String,
    returning: String,
    problems: u64,
    gates: u64,
    ledger_writable: bool,
    /// Absent if the ledger does not answer, as is the number of pauses.
    #[serde(skip_serializing_if = "Option::is_none")]
    loans: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pauses: Option<u64>,
    connections: u64,
    connections_limit: u64,
    streams: u64,
    ends_waiting: u64,
    /// The age of the oldest end that waits, in seconds.
    oldest_end: u64,
    /// None at the first look at a process.
    #[serde(flatten)]
    rates: Option<Rates>,
}

impl Look {
    pub(super) fn of(
        at: Timestamp,
        status: Status,
        from_ledger: FromLedger,
        rates: Option<Rates>,
    ) -> Look {
        let Status { current, last_minute, serving, .. } = status;
        let Components { reading, borrowing, returning } = serving.components;
        let LastMinute { oldest_end } = last_minute.unwrap_or_default();
        Look::Gate(Box::new(GateLook {
            at,
            node: status.node,
            version: status.version,
            process: status.process,
            started: status.started,
            reading: reading.status,
            borrowing: borrowing.status,
            returning: returning.status,
            problems: status.problems,
            gates: status.gates,
            ledger_writable: current.ledger_writable,
            loans: from_ledger.loans,
            pauses: from_ledger.pauses,
            connections: current.connections,
            connections_limit: current.connections_limit,
            streams: current.streams,
            ends_waiting: current.ends_waiting,
            oldest_end: if current.ends_waiting == 0 { 0 } else { oldest_end },
            rates,
        }))
    }

    /// Whether it has all that it can have. The first look at a process has no rates.
    pub(super) fn is_complete(&self) -> bool {
        match self {
            Look::Gate(gate) => gate.rates.is_some(),
            Look::Away(_) => true,
        }
    }

    /// Returns why there is no gate.
    pub(super) fn away(&self) -> Option<&str> {
        match self {
            Look::Gate(_) => None,
            Look::Away(Away { away, .. }) => Some(away),
        }
    }

    /// Returns a line of JSON.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns a line for a log.
    pub(super) fn line(&self) -> String {
        match self {
            Look::Gate(gate) => gate.line(),
            Look::Away(Away { at, away }) => format!("{} away: {}", time(*at), printable(away)),
        }
    }

    /// Returns the rows of a screen.
    pub(super) fn rows(&self) -> Vec<String> {
        match self {
            Look::Gate(gate) => gate.rows(),
            Look::Away(Away { at, away }) => {
                vec![
                    row("gate", &format!("away at {}; trying again", time(*at))),
                    row("why", &printable(away)),
                ]
            }
        }
    }
}

impl GateLook {
    fn line(&self) -> String {
        let Some(rates) = &self.rates else {
            return format!("{} {} is up", time(self.at), printable(&self.node));
        };
        let ledger = if self.ledger_writable { "ok" } else { "unwritable" };
        format!(
            "{} requests {}/s, {}, loans {}/min, refused {}/min, cached {}, connections {}, \
             streams {}, bokbasen {}/min, {} failed, ends {}, ledger {ledger}, problems {}",
            time(self.at),
            number(rates.requests_per_second),
            bytes(rates.bytes_per_second),
            number(rates.loans_per_minute),
            number(rates.all_refusals_per_minute()),
            share(rates.hit_rate),
            self.connections,
            self.streams,
            number(rates.lending.answered_per_minute),
            number(rates.lending.failed_per_minute),
            self.ends_waiting,
            self.problems,
        )
    }

    fn rows(&self) -> Vec<String> {
        let rates = self.rates.as_ref();
        let known = |of: &dyn Fn(&Rates) -> String| rates.map_or_else(|| "…".to_owned(), of);
        let requests = known(&|rates| {
            let (requests, sent) = (rates.requests_per_second, rates.bytes_per_second);
            format!("{} a second, {}", number(requests), bytes(sent))
        });
        let begun = known(&|rates| number(rates.loans_per_minute));
        let open = self.loans.map_or("unknown".to_owned(), |loans| loans.to_string());
        let (reading, borrowing) = (printable(&self.reading), printable(&self.borrowing));
        let mut rows = vec![
            row("gate", &self.gate()),
            row(
                "serving",
                &format!(
                    "reading {reading}, borrowing {borrowing}, returning {}; {} problems",
                    printable(&self.returning),
                    self.problems
                ),
            ),
            row("requests", &requests),
            row(
                "readers",
                &format!(
                    "{} of {} connections, {} streams",
                    self.connections, self.connections_limit, self.streams
                ),
            ),
            row("loans", &format!("{open} open, {begun} begun a minute{}", self.paused())),
            row("cache", &format!("{} decided", known(&|rates| share(rates.hit_rate)))),
            row("refused", &known(&refusals)),
            row("bokbasen", &known(&|rates| calls(rates.lending))),
            row("outbox", &self.outbox()),
            row("ledger", &self.ledger()),
        ];
        let origins = rates.into_iter().flat_map(|rates| &rates.origins);
        rows.extend(
            origins.map(|(name, rates)| {
                row("origin", &format!("{} {}", printable(name), calls(*rates)))
            }),
        );
        rows
    }

    fn gate(&self) -> String {
        let up = clock::until(self.started, self.at).as_secs();
        let up = format_duration(std::time::Duration::from_secs(up)).to_string();
        let up: Vec<&str> = up.split(' ').take(2).collect();
        format!(
            "{}, loangate {}, process {}, up {}; {}",
            printable(&self.node),
            printable(&self.version),
            self.process,
            up.join(" "),
            time(self.at)
        )
    }

    fn paused(&self) -> &'static str {
        match self.pauses {
            None | Some(0) => "",
            Some(_) => "; lending is paused",
        }
    }

    fn outbox(&self) -> String {
        let oldest = format_duration(std::time::Duration::from_secs(self.oldest_end));
        match self.ends_waiting {
            0 => "no end waits".to_owned(),
            ends if self.oldest_end == 0 => format!("{ends} ends wait"),
            ends => format!("{ends} ends wait, the oldest since {oldest}"),
        }
    }

    fn ledger(&self) -> String {
        let state = if self.ledger_writable { "can be written" } else { "cannot be written" };
        match self.gates {
            0 | 1 => format!("{state}; this gate alone uses it"),
            gates => format!("{state}; {gates} gates share it"),
        }
    }
}

fn refusals(rates: &Rates) -> String {
    let kinds = rates.refusals_per_minute.iter();
    let kinds: Vec<String> =
        kinds.map(|(kind, rate)| format!("{} {}", printable(kind), number(*rate))).collect();
    let of = if kinds.is_empty() { String::new() } else { format!(": {}", kinds.join(", ")) };
    format!("{} a minute{of}", number(rates.all_refusals_per_minute()))
}

fn calls(rates: CallRates) -> String {
    let CallRates { answered_per_minute, failed_per_minute } = rates;
    format!(
        "{} answered a minute, {} failed",
        number(answered_per_minute),
        number(failed_per_minute)
    )
}

fn row(name: &str, text: &str) -> String {
    format!("{name:<9} {text}")
}

/// Returns a rate, with a decimal only where it says something.
fn number(rate: f64) -> String {
    if rate > 0.0 && rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

fn bytes(rate: f64) -> String {
    format!("{:.1} MB/s", rate / 1e6)
}

fn share(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| format!("{:.1} %", 100.0 * rate))
}

/// Returns the time of day.
fn time(at: Timestamp) -> String {
    at.strftime("%H:%M:%SZ").to_string()
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;

    pub(in super::super) fn status() -> Status {
        let ok = json!({ "status": "ok", "since": "2027-01-15T08:00:00Z" });
        let parts = json!({ "reading": ok, "borrowing": ok, "returning": ok });
        let calls = json!({ "answered": 0, "failed": 0 });
        let status = json!({
            "node": "gate1:8443", "version": "1.2.3", "process": 7, "gates": 2, "problems": 0,
            "started": "2027-01-15T08:30:29Z", "public_url": "https://a", "admin_url": "http://b",
            "serving": { "status": "ok", "components": parts },
            "pauses": 1, "loans": 12,
            "last_minute": { "oldest_end": 90, "loans": 1.0 },
            "counts": { "loans": 0, "answered": {}, "refused": {}, "bytes": 0, "lending": calls,
                "origins": {} },
            "current": { "connections": 4, "connections_limit": 100, "streams": 3,
                "ends_waiting": 2, "ledger_writable": true },
        });
        Status::parse(status).unwrap()
    }

    fn rates() -> Rates {
        let lending = CallRates { answered_per_minute: 4.25, failed_per_minute: 0.0 };
        let files = CallRates { answered_per_minute: 100.0, failed_per_minute: 1.0 };
        Rates {
            requests_per_second: 120.4,
            bytes_per_second: 2_500_000.0,
            loans_per_minute: 0.5,
            refusals_per_minute: BTreeMap::from([
                ("loan-refused".to_owned(), 2.0),
                ("too-many-requests".to_owned(), 1.0),
            ]),
            hit_rate: Some(0.987),
            lending,
            origins: BTreeMap::from([("cdn\u{1b}".to_owned(), files)]),
        }
    }

    fn look(rates: Option<Rates>) -> Look {
        let status = status();
        let from_ledger = status.from_ledger;
        Look::of("2027-01-15T12:00:00Z".parse().unwrap(), status, from_ledger, rates)
    }

    #[test]
    fn rows_say_what_is_known() {
        assert_eq!(
            look(Some(rates())).rows(),
            [
                "gate      gate1:8443, loangate 1.2.3, process 7, up 3h 29m; 12:00:00Z",
                "serving   reading ok, borrowing ok, returning ok; 0 problems",
                "requests  120 a second, 2.5 MB/s",
                "readers   4 of 100 connections, 3 streams",
                "loans     12 open, 0.5 begun a minute; lending is paused",
                "cache     98.7 % decided",
                "refused   3.0 a minute: loan-refused 2.0, too-many-requests 1.0",
                "bokbasen  4.2 answered a minute, 0 failed",
                "outbox    2 ends wait, the oldest since 1m 30s",
                "ledger    can be written; 2 gates share it",
                "origin    cdn\\u{1b} 100 answered a minute, 1.0 failed",
            ]
        );
        let first = look(None);
        assert!(!first.is_complete() && first.rows().len() == 10, "{first:?}");
        assert!(first.rows().contains(&"requests  …".to_owned()), "{first:?}");
    }

    #[test]
    fn line_and_json_have_the_same_figures() {
        let look = look(Some(rates()));
        assert_eq!(
            look.line(),
            "12:00:00Z requests 120/s, 2.5 MB/s, loans 0.5/min, refused 3.0/min, cached 98.7 %, \
             connections 4, streams 3, bokbasen 4.2/min, 0 failed, ends 2, ledger ok, problems 0"
        );
        let json: Value = serde_json::from_str(&look.json()).unwrap();
        assert_eq!(json["requests_per_second"], 120.4);
        assert_eq!(json["refusals_per_minute"]["loan-refused"], 2.0);
        assert_eq!((&json["loans"], &json["node"]), (&12.into(), &"gate1:8443".into()));
    }

    #[test]
    fn absent_gate_is_shown_with_the_reason() {
        let at = "2027-01-15T12:00:00Z".parse().unwrap();
        let look = Look::Away(Away { at, away: "no gate\u{1b} answers".to_owned() });
        assert!(look.is_complete());
        assert_eq!(look.line(), "12:00:00Z away: no gate\\u{1b} answers");
        assert_eq!(look.rows()[1], "why       no gate\\u{1b} answers");
        let json: Value = serde_json::from_str(&look.json()).unwrap();
        assert_eq!(json["away"], "no gate\u{1b} answers");
    }
}
