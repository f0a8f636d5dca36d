//! `loangate loans`: what the running gate holds, by its admin API.
//!
//! The address and the token come from the configuration.

use std::fmt::Write as _;
use std::path::PathBuf;

use reqwest::{Method, RequestBuilder, Response};
use secrecy::ExposeSecret;
use serde_json::Value;

use super::{CliError, say};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List loans, the newest first.
    List {
        #[command(flatten)]
        gate: Where,
        #[command(flatten)]
        filters: Filters,
    },
    /// Show a loan with its history.
    Show {
        #[command(flatten)]
        gate: Where,
        /// The loan's id.
        id: String,
    },
    /// End a loan: access stops at once, and Bokbasen is told.
    End {
        #[command(flatten)]
        gate: Where,
        /// The loan's id.
        id: String,
        /// Why, for its history.
        #[arg(long)]
        reason: String,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Where {
    /// The configuration of the running gate.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    /// Print what the API answers, as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Filters {
    /// Of this library (ISIL).
    #[arg(long)]
    library: Option<String>,
    /// Of this title.
    #[arg(long)]
    isbn: Option<String>,
    /// In this state.
    #[arg(long)]
    state: Option<String>,
    /// Of this borrower, by pseudonym.
    #[arg(long)]
    borrower: Option<String>,
    /// Begun since then, like 2026-01-31T00:00:00Z.
    #[arg(long)]
    since: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 100)]
    limit: u32,
}

/// The columns of the list.
const COLUMNS: [&str; 6] = ["id", "state", "isbn", "library", "begun", "due"];

pub(super) async fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::List { gate, filters } => {
            let answer = call(&gate, Method::GET, "", |request| request.query(&filters.pairs())).await?;
            let page = read(answer).await?;
            say(&if gate.json { format!("{page:#}") } else { table(&page) })
        }
        Command::Show { gate, id } => {
            let loan = read(call(&gate, Method::GET, &id, |request| request).await?).await?;
            say(&if gate.json { format!("{loan:#}") } else { shown(&loan) })
        }
        Command::End { gate, id, reason } => {
            call(&gate, Method::DELETE, &id, |request| request.query(&[("reason", reason)])).await?;
            say(&format!("ended; `loangate loans show {id}` tells when Bokbasen has acknowledged it"))
        }
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

async fn call(
    gate: &Where,
    method: Method,
    id: &str,
    with: impl FnOnce(RequestBuilder) -> RequestBuilder,
) -> Result<Response, CliError> {
    let config = super::load(&gate.config)?;
    let scheme = if config.admin.tls { "https" } else { "http" };
    let mut url = url::Url::parse(&format!("{scheme}://{}/api/v1/loans", config.admin.listen))
        .map_err(CliError::new)?;
    if let (false, Ok(mut path)) = (id.is_empty(), url.path_segments_mut()) {
        path.push(id);
    }
    let client = reqwest::Client::builder().no_proxy().build().map_err(CliError::new)?;
    let request = with(client.request(method, url)).bearer_auth(config.admin.token.expose_secret());
    let answer = request.send().await.map_err(|error| {
        let address = config.admin.listen;
        CliError::new(format!("no gate answers at {address}: {}; is it running?", error.without_url()))
    })?;
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status();
    let document: Value = answer.json().await.unwrap_or_default();
    let detail =
        document.get("detail").and_then(Value::as_str).map_or_else(|| status.to_string(), str::to_owned);
    Err(CliError::new(detail))
}

async fn read(answer: Response) -> Result<Value, CliError> {
    answer.json().await.map_err(|error| CliError::new(error.without_url()))
}

fn text<'a>(loan: &'a Value, name: &str) -> &'a str {
    loan.get(name).and_then(Value::as_str).unwrap_or("–")
}

/// The list, in columns as wide as what stands in them.
fn table(page: &Value) -> String {
    let empty = Vec::new();
    let loans = page.get("loans").and_then(Value::as_array).unwrap_or(&empty);
    let rows: Vec<[&str; 6]> = loans.iter().map(|loan| COLUMNS.map(|name| text(loan, name))).collect();
    let rows: Vec<[&str; 6]> = std::iter::once(COLUMNS).chain(rows).collect();
    let mut lines = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let widths = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            let width = widths.max().unwrap_or_default();
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

/// A loan, a line for each of its members, and its history.
fn shown(loan: &Value) -> String {
    let mut lines = String::new();
    let names = ["id", "state", "isbn", "library", "borrower", "begun", "due", "ended", "end_reason"];
    for name in names.into_iter().chain(["licence_type", "reference", "lending_id"]) {
        let _ = writeln!(lines, "{name:13} {}", text(loan, name));
    }
    for step in loan.get("history").and_then(Value::as_array).into_iter().flatten() {
        let (at, to, cause) = (text(step, "at"), text(step, "to"), text(step, "cause"));
        let _ = writeln!(lines, "{at:27} {to:10} {cause:10} {}", text(step, "detail"));
    }
    lines.trim_end().to_owned()
}
