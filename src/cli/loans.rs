//! `loangate loans`: shows and ends the loans of a running gate, through its admin API.

use std::fmt::Write as _;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::admin_client::{CHECK_PEER, GateArgs, call, read, read_list};
use super::{CliError, balance, printable, show};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List loans, the newest first.
    List {
        #[command(flatten)]
        gate: GateArgs,
        #[command(flatten)]
        filters: Filters,
    },
    /// Show a loan with its history.
    Show {
        #[command(flatten)]
        gate: GateArgs,
        /// Id of the loan.
        id: String,
    },
    /// End a loan: access stops at once, and Bokbasen gets the return.
    End {
        #[command(flatten)]
        gate: GateArgs,
        /// Id of the loan.
        id: String,
        /// Reason, for the loan's history.
        #[arg(long)]
        reason: String,
    },
    /// Compare the ledger with Bokbasen's loans, repair what a rule allows, and report; exit with 1
    /// if a person must check something.
    Balance {
        #[command(flatten)]
        gate: GateArgs,
        /// Also compare loans begun since this time, like 2026-01-31T00:00:00Z, if earlier than the
        /// default.
        #[arg(long)]
        since: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Filters {
    /// Only of this library (ISIL).
    #[arg(long)]
    library: Option<String>,
    /// Only of this title (ISBN).
    #[arg(long)]
    isbn: Option<String>,
    /// Only in this state.
    #[arg(long)]
    state: Option<String>,
    /// Only of this borrower, by pseudonym.
    #[arg(long)]
    borrower: Option<String>,
    /// Only begun since this time, like 2026-01-31T00:00:00Z.
    #[arg(long)]
    since: Option<String>,
    /// Maximum number of loans.
    #[arg(long, default_value_t = 100)]
    limit: u32,
}

const COLUMNS: [&str; 6] = ["id", "state", "isbn", "library", "begun", "due"];

pub(super) async fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::List { gate, filters } => {
            let response =
                call(&gate, Method::GET, &["loans"], |request| request.query(&filters.pairs()))
                    .await?;
            let page = read_list(response, "loans", &["id", "state", "isbn", "library"]).await?;
            show(gate.json, &page, loan_table)
        }
        Command::Show { gate, id } => {
            let response = call(&gate, Method::GET, &["loans", &id], |request| request).await?;
            let loan = read(response, &["id", "state"]).await?;
            show(gate.json, &loan, loan_text)
        }
        Command::End { gate, id, reason } => {
            let response = call(&gate, Method::DELETE, &["loans", &id], |request| {
                request.query(&[("reason", reason)])
            })
            .await?;
            if response.status() != StatusCode::ACCEPTED {
                let status = response.status();
                return Err(CliError::new(format!("the response is {status}. {CHECK_PEER}")));
            }
            show(gate.json, &json!({ "ended": id }), |_| {
                format!(
                    "the loan gives no access; `loangate loans show {id}` shows whether Bokbasen \
                     has acknowledged an end"
                )
            })
        }
        Command::Balance { gate, since } => balance::run(&gate, since).await,
    }
}

impl Filters {
    fn pairs(&self) -> Vec<(&'static str, String)> {
        let given = [
            ("library", &self.library),
            ("isbn", &self.isbn),
            ("state", &self.state),
            ("borrower", &self.borrower),
            ("since", &self.since),
        ];
        let mut pairs: Vec<_> =
            given.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect();
        pairs.push(("limit", self.limit.to_string()));
        pairs
    }
}

/// Returns a member that is a text, for one line of a terminal.
pub(super) fn text(loan: &Value, name: &str) -> String {
    printable(loan.get(name).and_then(Value::as_str).unwrap_or("–"))
}

/// Formats the list in aligned columns.
fn loan_table(page: &Value) -> String {
    let empty = Vec::new();
    let loans = page.get("loans").and_then(Value::as_array).unwrap_or(&empty);
    let names = COLUMNS.map(str::to_owned);
    let rows = loans.iter().map(|loan| COLUMNS.map(|name| text(loan, name)));
    let rows: Vec<[String; 6]> = std::iter::once(names).chain(rows).collect();
    let mut widths = [0; 6];
    for row in &rows {
        widths
            .iter_mut()
            .zip(row)
            .for_each(|(width, cell)| *width = cell.chars().count().max(*width));
    }
    let mut lines = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(lines, "{cell:width$}  ");
        }
        lines.truncate(lines.trim_end().len());
        lines.push('\n');
    }
    if page.get("next").is_some() {
        lines.push_str("… and more: raise --limit, or filter\n");
    }
    lines.trim_end().to_owned()
}

/// Formats a loan: a line per member, then its history.
fn loan_text(loan: &Value) -> String {
    let mut lines = String::new();
    let names =
        ["id", "state", "isbn", "library", "borrower", "begun", "due", "ended", "end_reason"];
    for name in names.into_iter().chain(["licence_type", "reference", "lending_id"]) {
        let _ = writeln!(lines, "{name:13} {}", text(loan, name));
    }
    for (file, tally) in loan.get("delivered").and_then(Value::as_object).into_iter().flatten() {
        let bytes = tally.get("bytes").and_then(Value::as_u64).unwrap_or_default();
        let ranges = tally.get("ranges").and_then(Value::as_array).map_or(0, Vec::len);
        let _ = writeln!(
            lines,
            "{:13} {}: {bytes} bytes, ranges: {ranges}",
            "delivered",
            printable(file)
        );
    }
    for step in loan.get("history").and_then(Value::as_array).into_iter().flatten() {
        let (at, to, cause) = (text(step, "at"), text(step, "to"), text(step, "cause"));
        let _ = writeln!(lines, "{at:27} {to:10} {cause:10} {}", text(step, "detail"));
    }
    lines.trim_end().to_owned()
}
