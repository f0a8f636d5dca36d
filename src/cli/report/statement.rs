//! The content of a monthly report, which every form of output shows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::spreadsheet::nok;

/// A usage report, as the admin API shows it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Line {
    pub(super) loan: String,
    pub(super) library: String,
    pub(super) model: String,
    pub(super) isbn: String,
    pub(super) licence_id: Option<String>,
    pub(super) licence_type: String,
    pub(super) date: String,
    /// In NOK, with two decimals.
    pub(super) price: Option<String>,
    pub(super) state: String,
    pub(super) for_a_person: bool,
    pub(super) evidence: String,
    pub(super) read: Option<f64>,
    pub(super) covered: Option<u64>,
    pub(super) size: Option<u64>,
    pub(super) sent: Option<String>,
    pub(super) note: Option<String>,
}

/// The names of the columns of [`Line::cells`].
pub(super) const COLUMNS: [&str; 12] = [
    "date",
    "library",
    "model",
    "isbn",
    "licence_type",
    "licence_id",
    "price_nok",
    "state",
    "read_percent",
    "evidence",
    "loan",
    "note",
];

impl Line {
    /// Returns the price in øre.
    pub(super) fn price(&self) -> Option<u64> {
        let (whole, part) = self.price.as_deref()?.split_once('.')?;
        Some(whole.parse::<u64>().ok()?.saturating_mul(100) + part.parse::<u64>().ok()?)
    }

    /// Returns the part that was read, in percent, rounded down to hundredths.
    pub(super) fn percent(&self) -> Option<String> {
        self.read.map(|read| format!("{:.2}", (read * 10_000.0 + 1e-6).floor() / 100.0))
    }

    /// Returns the texts of the columns.
    pub(super) fn cells(&self) -> [String; 12] {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        [
            self.date.clone(),
            self.library.clone(),
            self.model.clone(),
            self.isbn.clone(),
            self.licence_type.clone(),
            text(&self.licence_id),
            text(&self.price),
            self.state.clone(),
            self.percent().unwrap_or_default(),
            self.evidence.clone(),
            self.loan.clone(),
            text(&self.note),
        ]
    }

    fn is_reported(&self) -> bool {
        self.state == "reported"
    }
}

/// The number and the price of reports.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Total {
    pub(super) count: u64,
    /// In øre.
    pub(super) price: u64,
}

impl Total {
    fn add(&mut self, line: &Line) {
        self.count += 1;
        self.price = self.price.saturating_add(line.price().unwrap_or_default());
    }
}

/// The reports of a month.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) month: String,
    pub(super) lines: Vec<Line>,
    /// Reports of other months that a person must still look at.
    pub(super) earlier: Vec<Line>,
}

impl Statement {
    /// `open` are the reports of all months that a person must look at.
    pub(super) fn new(month: String, lines: Vec<Line>, open: Vec<Line>) -> Statement {
        let is_of_month = |line: &Line| line.date.starts_with(&format!("{month}-"));
        let earlier = open.into_iter().filter(|line| !is_of_month(line)).collect();
        Statement { month, lines, earlier }
    }

    /// Returns the reports that Bokbasen has recorded.
    pub(super) fn reported(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.is_reported())
    }

    /// Returns the reports that a person must look at, with those of other months.
    pub(super) fn corrections(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.for_a_person).chain(&self.earlier)
    }

    /// Returns the totals of what is reported, by library and model.
    pub(super) fn totals(&self) -> BTreeMap<(&str, &str), Total> {
        let mut totals: BTreeMap<(&str, &str), Total> = BTreeMap::new();
        for line in self.reported() {
            totals.entry((&line.library, &line.model)).or_default().add(line);
        }
        totals
    }

    /// Returns a statement of each library, in the order of their names.
    pub(super) fn by_library(&self) -> BTreeMap<&str, Statement> {
        let mut all: BTreeMap<&str, Statement> = BTreeMap::new();
        let empty =
            || Statement { month: self.month.clone(), lines: Vec::new(), earlier: Vec::new() };
        for line in &self.lines {
            all.entry(&line.library).or_insert_with(empty).lines.push(line.clone());
        }
        for line in &self.earlier {
            all.entry(&line.library).or_insert_with(empty).earlier.push(line.clone());
        }
        all
    }

    pub(super) fn to_json(&self) -> Value {
        let totals = self.totals();
        let totals = totals.iter().map(|((library, model), total)| {
            json!({
                "library": library,
                "model": model,
                "count": total.count,
                "price": nok(total.price),
            })
        });
        json!({
            "month": self.month,
            "totals": totals.collect::<Vec<_>>(),
            "reports": self.lines,
            "corrections": self.corrections().collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn line(date: &str, state: &str, price: Option<&str>) -> Line {
        Line {
            loan: "0190-loan".to_owned(),
            library: "NO-0301000".to_owned(),
            model: "PAY_PER_LOAN".to_owned(),
            isbn: "9788299999014".to_owned(),
            licence_id: Some("=cmd|' /C calc'!A0".to_owned()),
            licence_type: "PAY_PER_LOAN".to_owned(),
            date: date.to_owned(),
            price: price.map(str::to_owned),
            state: state.to_owned(),
            for_a_person: !matches!(state, "reported" | "not-reported" | "due" | "sending"),
            evidence: "progress".to_owned(),
            read: Some(0.1),
            covered: None,
            size: None,
            sent: None,
            note: Some("<b>+1</b>".to_owned()),
        }
    }

    pub(in super::super) fn statement() -> Statement {
        let lines = vec![
            line("2026-10-01", "reported", Some("29.90")),
            line("2026-10-31", "reported", Some("0.15")),
            line("2026-10-31", "unknown", Some("29.90")),
            line("2026-10-31", "due", Some("29.90")),
        ];
        let open = vec![
            line("2026-10-31", "unknown", Some("29.90")),
            line("2026-09-30", "unpriced", None),
        ];
        Statement::new("2026-10".to_owned(), lines, open)
    }

    #[test]
    fn only_reported_lines_count_and_each_correction_is_listed_once() {
        let statement = statement();
        let totals = statement.totals();
        let total = totals[&("NO-0301000", "PAY_PER_LOAN")];
        assert_eq!(total, Total { count: 2, price: 3005 });
        let corrections: Vec<_> = statement.corrections().map(|line| line.date.as_str()).collect();
        assert_eq!(corrections, ["2026-10-31", "2026-09-30"]);
        assert_eq!(statement.to_json()["totals"][0]["price"], "30.05");
    }
}
