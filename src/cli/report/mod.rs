//! `loangate report`: the usage reports of a month, and the resolution of those that a person must
//! look at, through the admin API of a running gate.

mod html;
mod sheets;
mod statement;
mod table;

use std::io::Write as _;
use std::path::PathBuf;

use jiff::civil::Date;
use reqwest::Method;
use serde_json::Value;

use super::admin_client::{GateArgs, call, read};
use super::client_tls::ClientTls;
use super::{CliError, say, show};
use statement::{Line, Statement};

/// The number of reports in one request.
const PAGE: &str = "1000";

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Month in Europe/Oslo, like 2026-10.
    #[arg(long, value_parser = month)]
    month: Option<String>,
    /// Only of this library (ISIL).
    #[arg(long)]
    library: Option<String>,
    /// Form of the output. `html` is a statement to print, a page for each library.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// File to write; required for xlsx. Never overwrites one.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Language of the statement.
    #[arg(long, value_enum, default_value_t = Language::En)]
    lang: Language,
    /// Configuration of the running gate.
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    #[command(flatten)]
    tls: ClientTls,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Settle a report that a person must look at, after asking Bokbasen.
    Resolve {
        #[command(flatten)]
        gate: GateArgs,
        /// Id of the loan that made the report due.
        loan: String,
        /// `reported`: Bokbasen has it; `not-reported`: it is not sent; `due`: send it again, which
        /// is allowed only if Bokbasen rejected it.
        #[arg(long = "as", value_parser = ["reported", "not-reported", "due"])]
        state: String,
        /// Reason, for the books and the loan's history.
        #[arg(long)]
        reason: String,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Format {
    Table,
    Csv,
    Json,
    Xlsx,
    Html,
}

/// The language of a statement.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Language {
    /// English.
    En,
    /// Norwegian bokmål.
    Nb,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    if let Some(Command::Resolve { gate, loan, state, reason }) = args.command {
        return resolve(&gate, &loan, &state, &reason).await;
    }
    let Some(month) = args.month else {
        return Err(CliError::of_arguments("name the month: --month 2026-10"));
    };
    if args.format == Format::Xlsx && args.output.is_none() {
        return Err(CliError::of_arguments("name the file to write: --output report.xlsx"));
    }
    let gate = GateArgs::of(args.config, args.tls);
    let library = args.library.as_deref();
    let of_month = [("month", month.as_str())];
    let reports = lines(&gate, library, &of_month).await?;
    let open = lines(&gate, library, &[("for_a_person", "true")]).await?;
    let statement = Statement::new(month, reports, open);
    let bytes = match args.format {
        Format::Table => table::of(&statement).into_bytes(),
        Format::Csv => sheets::csv(&statement)?,
        Format::Json => format!("{:#}\n", statement.to_json()).into_bytes(),
        Format::Xlsx => sheets::workbook(&statement)?,
        Format::Html => html::of(&statement, args.lang).into_bytes(),
    };
    match args.output {
        Some(file) => write_new(&file, &bytes),
        None => say(String::from_utf8_lossy(&bytes).trim_end()),
    }
}

/// Writes a file that only its owner can read, and overwrites none.
fn write_new(file: &std::path::Path, bytes: &[u8]) -> Result<(), CliError> {
    use std::os::unix::fs::OpenOptionsExt;
    let shown = file.display();
    let failed = |error: std::io::Error| {
        CliError::new(format!("cannot write {shown}: {error}. Name another file"))
    };
    let created = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    created.map_err(failed)?.write_all(bytes).map_err(failed)?;
    say(&format!("wrote {shown}"))
}

/// Returns all reports that a filter selects, page by page.
async fn lines(
    gate: &GateArgs,
    library: Option<&str>,
    filter: &[(&str, &str)],
) -> Result<Vec<Line>, CliError> {
    let mut lines = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut query: Vec<(&str, &str)> = filter.to_vec();
        query.push(("limit", PAGE));
        query.extend(library.map(|library| ("library", library)));
        query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let response =
            call(gate, Method::GET, &["reports"], |request| request.query(&query)).await?;
        let mut page = read(response, &["reports"]).await?;
        let reports = page.get_mut("reports").map(Value::take).unwrap_or_default();
        let reports: Vec<Line> = serde_json::from_value(reports).map_err(CliError::new)?;
        lines.extend(reports);
        match page.get("next").and_then(Value::as_str) {
            Some(next) => cursor = Some(next.to_owned()),
            None => return Ok(lines),
        }
    }
}

async fn resolve(gate: &GateArgs, loan: &str, state: &str, reason: &str) -> Result<(), CliError> {
    let body = serde_json::json!({ "as": state, "reason": reason });
    let segments = ["reports", loan];
    let resolved = call(gate, Method::POST, &segments, |request| request.json(&body)).await?;
    let report = read(resolved, &["loan"]).await?;
    show(gate.json, &report, |_| format!("the report of loan {loan} is now {state}"))
}

/// Checks a month like `2026-10`.
fn month(text: &str) -> Result<String, String> {
    let is_month = text.len() == 7 && format!("{text}-01").parse::<Date>().is_ok();
    if is_month { Ok(text.to_owned()) } else { Err("write a month like 2026-10".to_owned()) }
}
