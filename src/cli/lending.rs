//! `loangate lending`: pauses and resumes lending at a running gate, and lists the pauses.

use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::admin_client::{GateArgs, call, read};
use super::{CliError, printable, show};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List what is paused, since when, by whom, and why.
    List {
        #[command(flatten)]
        gate: GateArgs,
    },
    /// Begin no loan until lending is resumed. Loans that have begun go on, and ends are sent.
    Pause {
        #[command(flatten)]
        gate: GateArgs,
        #[command(flatten)]
        which: Which,
        /// Reason, for those who ask.
        #[arg(long)]
        reason: String,
    },
    /// Begin loans again.
    Resume {
        #[command(flatten)]
        gate: GateArgs,
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// Only this library (ISIL).
    #[arg(long)]
    library: Option<String>,
    /// All libraries.
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(command: Command) -> Result<(), CliError> {
    let (gate, response) = match command {
        Command::List { gate } => {
            let response = call(&gate, Method::GET, &["lending"], |request| request).await?;
            (gate, response)
        }
        Command::Pause { gate, which, reason } => {
            let Which { library, all } = which;
            let body = json!({ "library": library, "all": all, "reason": reason });
            let response = send(&gate, "pause", &body).await?;
            (gate, response)
        }
        Command::Resume { gate, which } => {
            let Which { library, all } = which;
            let response =
                send(&gate, "resume", &json!({ "library": library, "all": all })).await?;
            (gate, response)
        }
    };
    let pauses = read(response, &["pauses"]).await?;
    show(gate.json, &pauses, lines)
}

async fn send(gate: &GateArgs, action: &str, body: &Value) -> Result<Response, CliError> {
    call(gate, Method::POST, &["lending", action], |request| request.json(body)).await
}

fn lines(pauses: &Value) -> String {
    let list = pauses.get("pauses").and_then(Value::as_array).into_iter().flatten();
    let lines: Vec<String> = list.map(line).collect();
    match lines.is_empty() {
        true => "lending is not paused".to_owned(),
        false => lines.join("\n"),
    }
}

fn line(pause: &Value) -> String {
    let text = |name| pause.get(name).and_then(Value::as_str).map(printable);
    let library = text("library").unwrap_or_else(|| "all libraries".to_owned());
    let (since, who) = (text("since").unwrap_or_default(), text("who").unwrap_or_default());
    let why = text("why").map(|why| format!(": {why}")).unwrap_or_default();
    format!("{library} paused since {since} by {who}{why}")
}
