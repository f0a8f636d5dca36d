//! `loangate privacy`: exports and erases what the ledger has about one person, through the admin
//! API of a running gate.

use std::collections::HashSet;
use std::io::BufRead as _;

use reqwest::Method;
use serde_json::{Value, json};

use super::admin_client::{CHECK_PEER, GateArgs, call, read};
use super::{CliError, json_text, say, show};

/// The longest id, in bytes.
const MAX_ID: usize = 256;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print all loans of a person with their histories, as JSON.
    Export {
        #[command(flatten)]
        gate: GateArgs,
        #[command(flatten)]
        person: Person,
    },
    /// Replace the person's pseudonym in all loans that have ended by random values; exit with 1
    /// if loans are left that cannot be erased yet.
    Erase {
        #[command(flatten)]
        gate: GateArgs,
        #[command(flatten)]
        person: Person,
        /// Reason, for the access trail, such as the number of the case. It must not name the
        /// person.
        #[arg(long)]
        reason: String,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Person {
    /// The library (ISIL).
    #[arg(long)]
    library: String,
    /// The person's own id at the library; - reads it from standard input, so that no list of
    /// processes shows it.
    #[arg(long)]
    borrower: String,
}

pub(super) async fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Export { gate, person } => export(&gate, person).await,
        Command::Erase { gate, person, reason } => erase(&gate, person, &reason).await,
    }
}

impl Person {
    fn id(&self) -> Result<String, CliError> {
        if self.borrower != "-" {
            return Ok(self.borrower.clone());
        }
        let mut line = String::new();
        let mut input = std::io::Read::take(std::io::stdin().lock(), MAX_ID as u64 + 2);
        input.read_line(&mut line).map_err(CliError::new)?;
        match line.trim_end_matches(['\r', '\n']) {
            "" => Err(CliError::new("standard input has no id; write one line with the id")),
            id => Ok(id.to_owned()),
        }
    }
}

/// Prints one document with the loans of all pages.
async fn export(gate: &GateArgs, person: Person) -> Result<(), CliError> {
    let (id, mut cursor, mut loans) = (person.id()?, Value::Null, Vec::new());
    let mut cursors = HashSet::new();
    loop {
        let body = json!({ "library": person.library, "borrower": id, "cursor": cursor });
        let mut page = send(gate, "export", &body, &["library", "borrower", "loans"]).await?;
        let of_page = page.get_mut("loans").map(Value::take).unwrap_or_default();
        let Value::Array(of_page) = of_page else {
            return Err(CliError::new(format!("the response has no list of loans. {CHECK_PEER}")));
        };
        cursor = page.get("next").cloned().unwrap_or_default();
        // A page that continues has loans, and another one after it.
        let continues = cursor
            .as_str()
            .is_some_and(|next| cursors.insert(next.to_owned()) && !of_page.is_empty());
        if !cursor.is_null() && !continues {
            return Err(CliError::new(format!("the response names no next page. {CHECK_PEER}")));
        }
        loans.extend(of_page);
        if cursor.is_null() {
            if let Some(page) = page.as_object_mut() {
                page.insert("loans".to_owned(), Value::Array(loans));
            }
            return say(&json_text(&page));
        }
    }
}

async fn erase(gate: &GateArgs, person: Person, reason: &str) -> Result<(), CliError> {
    let body = json!({ "library": person.library, "borrower": person.id()?, "reason": reason });
    let erasure = send(gate, "erase", &body, &["erased", "left"]).await?;
    let left = erasure.get("left").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    show(gate.json, &erasure, |erasure| {
        let erased = erasure.get("erased").and_then(Value::as_u64).unwrap_or_default();
        let mut lines = vec![format!("erased the person from {erased} loans")];
        if erasure.get("log_has_traces").and_then(Value::as_bool) == Some(true) {
            lines.push("the log of the ledger is emptied within minutes".to_owned());
        }
        lines.extend(left.iter().map(left_line));
        lines.join("\n")
    })?;
    match left.len() {
        0 => Ok(()),
        left => Err(CliError::new(format!(
            "{left} loans still have the pseudonym; end those that run, and repeat the command \
             when the others can be erased"
        ))),
    }
}

fn left_line(loan: &Value) -> String {
    let text = |key: &str| loan.get(key).and_then(Value::as_str).unwrap_or_default();
    match text("from") {
        "" => format!(
            "{}  {}: it has not ended, or Bokbasen does not know",
            text("id"),
            text("state")
        ),
        from => format!("{}  {}: can be erased from {from}", text("id"), text("state")),
    }
}

/// Sends what to do. The response has these members.
async fn send(
    gate: &GateArgs,
    action: &str,
    body: &Value,
    members: &[&str],
) -> Result<Value, CliError> {
    let path = ["privacy", action];
    read(call(gate, Method::POST, &path, |request| request.json(body)).await?, members).await
}
