//! `loangate demo`: runs a Bokbasen stand-in, a small storage and a gate in one process.
//!
//! The parts talk only over HTTP, and the gate loads a normal configuration file. One directory
//! stores all files between runs, including the loans. Each run writes new tokens and a new
//! configuration.

mod people;
mod walkthrough;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::ExposeSecret;

use people::{OVER_THE_LIMIT, PEOPLE, Person, WITHOUT_BUDGET};

use super::signals::Signals;
use super::{CliError, init, say, token};
use crate::app;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::loan::LibraryId;
use crate::samples::{self, Collection, Storage};
use crate::sandbox::{self, Library, Licence, Sandbox, World};
use crate::telemetry;

/// Default addresses of the stand-in and the storage, used if they are free.
const SANDBOX_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9100);
const STORAGE_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9000);
/// The ledger's URL in the configuration, unless the command line names another one.
const SQLITE_URL: &str = "\"sqlite:data/loangate.db\"";
/// The lifetime of the readers' tokens.
const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 3600);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where readers connect; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// Where operators connect; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:9443")]
    admin: SocketAddr,
    /// Where the Bokbasen stand-in listens; by default 127.0.0.1:9100, or a free port.
    #[arg(long)]
    sandbox: Option<SocketAddr>,
    /// Where the storage listens; by default 127.0.0.1:9000, or a free port.
    #[arg(long)]
    origin: Option<SocketAddr>,
    /// Database of the loans, such as postgres://USER@HOST/DATABASE; by default a SQLite file.
    #[arg(long, value_name = "URL")]
    ledger: Option<String>,
    /// Directory for all files of the demo.
    #[arg(long, default_value = "demo")]
    dir: PathBuf,
    /// Print one line of JSON once the demo is ready.
    #[arg(long)]
    json: bool,
}

/// The running parts of a demo, and what its output names.
struct Demo {
    gate: app::Running,
    sandbox: sandbox::Running,
    storage: samples::Running,
    tokens: Vec<String>,
    admin_token: String,
    dir: PathBuf,
    collection: Collection,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let mut signals = Signals::listen()?;
    let json = args.json;
    let demo = start(args).await?;
    say(&if json { demo.to_json().to_string() } else { demo.walkthrough() })?;
    tokio::select! {
        () = signals.drain() => {}
        error = demo.gate.ledger_moved() => {
            demo.gate.abort().await;
            return Err(CliError::new(error));
        }
    }
    tokio::select! {
        () = demo.stop() => {}
        () = signals.drain() => {}
    }
    Ok(())
}

async fn start(args: Args) -> Result<Demo, CliError> {
    fs::create_dir_all(args.dir.join("readers")).map_err(CliError::new)?;
    let dir = args.dir.canonicalize().map_err(CliError::new)?;
    init::keys(&dir)?;
    let clock = Clock::system();
    let collection = Collection::build().map_err(CliError::new)?;
    let storage = start_storage(args.origin, &collection, &clock).await?;
    let sandbox = start_sandbox(args.sandbox, &dir, &collection, &clock).await?;
    let listen = (&args.listen, &args.admin);
    let config = configure(&dir, listen, &sandbox, storage.url(), args.ledger.as_deref())?;
    telemetry::init(&config.log).map_err(CliError::new)?;
    let tokens = write_tokens(&dir, &config)?;
    let admin_token = config.admin.token.expose_secret().to_owned();
    write(&dir, "admin.header", &format!("Authorization: Bearer {admin_token}\n"))?;
    let gate = app::start(config, clock).await?;
    refuse_borrower(&sandbox, &gate).await?;
    Ok(Demo { gate, sandbox, storage, tokens, admin_token, dir, collection })
}

/// Starts the storage at the requested address, else at the default one, else at a free port.
async fn start_storage(
    requested: Option<SocketAddr>,
    collection: &Collection,
    clock: &Clock,
) -> Result<samples::Running, CliError> {
    match Storage::start(requested.unwrap_or(STORAGE_ADDRESS), collection, clock.clone()).await {
        Ok(running) => Ok(running),
        Err(_) if requested.is_none() => {
            Storage::start(free_port(), collection, clock.clone()).await.map_err(CliError::new)
        }
        Err(error) => Err(CliError::new(format!("the storage cannot listen: {error}"))),
    }
}

async fn start_sandbox(
    requested: Option<SocketAddr>,
    dir: &Path,
    collection: &Collection,
    clock: &Clock,
) -> Result<sandbox::Running, CliError> {
    let settings = |listen| sandbox::Settings {
        listen,
        dir: Some(dir.join("sandbox")),
        world: world(collection),
        ..sandbox::Settings::default()
    };
    match Sandbox::start(settings(requested.unwrap_or(SANDBOX_ADDRESS)), clock.clone()).await {
        Ok(running) => Ok(running),
        Err(sandbox::SandboxError::Listen { .. }) if requested.is_none() => {
            Sandbox::start(settings(free_port()), clock.clone()).await.map_err(CliError::new)
        }
        Err(error) => Err(CliError::new(error)),
    }
}

fn free_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// Returns the libraries and titles for the stand-in.
fn world(collection: &Collection) -> World {
    let mut isils: Vec<&str> = PEOPLE.iter().map(|person| person.library).collect();
    isils.dedup();
    let libraries = isils.iter().filter_map(|isil| {
        let refuse = (*isil == WITHOUT_BUDGET).then(|| "BUDGET_EXCEEDED".to_owned());
        Some(Library { isil: isil.parse().ok()?, refuse })
    });
    let titles = collection.titles().iter().map(|title| {
        let kind = if title.licences == 1 { "EXCLUSIVE" } else { "PACKAGE" };
        let licence = Licence {
            exclusive: title.licences == 1,
            ..Licence::new(format!("L-{}", title.isbn), kind, Some(title.licences))
        };
        sandbox::Title { isbn: title.isbn, licences: vec![licence], loan_days: 21, refuse: None }
    });
    World { libraries: libraries.collect(), titles: titles.collect(), ..World::default() }
}

/// Writes the configuration of this run and loads it like any gate.
fn configure(
    dir: &Path,
    (public, admin): (&SocketAddr, &SocketAddr),
    sandbox: &sandbox::Running,
    storage: &str,
    ledger: Option<&str>,
) -> Result<Config, CliError> {
    let text = include_str!("../init.toml")
        .replace("127.0.0.1:8443", &public.to_string())
        .replace("127.0.0.1:9443", &admin.to_string())
        .replace("http://127.0.0.1:9100", sandbox.url())
        .replace("http://127.0.0.1:9000/", &format!("{storage}/"));
    let text = match ledger {
        Some(url) => text.replace(SQLITE_URL, &toml::Value::from(url).to_string()),
        None => text,
    };
    let (_, text) = text.split_once('\n').unwrap_or(("", &text));
    let text = format!("# The demo's gate. Each start rewrites this file.\n{text}");
    write(dir, "config.toml", &text)?;
    let loaded = config::load(&dir.join("config.toml")).map_err(CliError::all)?;
    Ok(loaded.config)
}

/// Writes each reader's token as a header line, for `curl -H @FILE`.
fn write_tokens(dir: &Path, config: &Config) -> Result<Vec<String>, CliError> {
    let jwt = config
        .readers
        .jwt
        .as_ref()
        .ok_or_else(|| CliError::new("the demo's readers have no tokens"))?;
    let made = PEOPLE.iter().map(|person| {
        let token = token::reader(jwt, &library(person)?, person.name, TOKEN_LIFETIME)?;
        write(
            dir,
            &format!("readers/{}", person.name),
            &format!("Authorization: Bearer {token}\n"),
        )?;
        Ok(token)
    });
    made.collect()
}

fn library(person: &Person) -> Result<LibraryId, CliError> {
    person.library.parse().map_err(CliError::new)
}

/// Writes a file that only its owner can read, because most files contain a token.
fn write(dir: &Path, name: &str, text: &str) -> Result<(), CliError> {
    let file = dir.join(name);
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&file);
    let written = opened.and_then(|mut opened| opened.write_all(text.as_bytes()));
    written.map_err(|error| CliError::new(format!("{} cannot be written: {error}", file.display())))
}

/// Makes the stand-in refuse the reader who is over the limit.
async fn refuse_borrower(sandbox: &sandbox::Running, gate: &app::Running) -> Result<(), CliError> {
    for person in PEOPLE.iter().filter(|person| person.name == OVER_THE_LIMIT) {
        let pseudonym = gate.readers.pseudonym(library(person)?, person.name);
        let url = format!("{}/sandbox/borrowers/{pseudonym}", sandbox.url());
        let rule = serde_json::json!({ "refuse": "BORROWER_LIMIT" });
        let client = reqwest::Client::builder().no_proxy().build().map_err(CliError::new)?;
        let sent = client.put(url).json(&rule).send().await;
        sent.and_then(reqwest::Response::error_for_status)
            .map_err(|error| CliError::new(error.without_url()))?;
    }
    Ok(())
}

impl Demo {
    fn base(&self) -> String {
        format!("https://{}", self.gate.public)
    }

    /// Returns what a program needs to use the demo, as JSON.
    fn to_json(&self) -> serde_json::Value {
        let titles = self.collection.titles().iter().map(|title| {
            serde_json::json!({
                "isbn": title.isbn.to_string(),
                "kind": title.kind.name(),
                "path": title.path,
                "bytes": title.bytes,
                "licences": title.licences,
            })
        });
        let readers = PEOPLE.iter().zip(&self.tokens).filter(|(person, _)| person.is_listed);
        let readers = readers.map(|(person, token)| {
            serde_json::json!({ "name": person.name, "library": person.library, "token": token })
        });
        serde_json::json!({
            "base_url": self.base(),
            "admin_url": self.gate.admin_url,
            "admin_token": self.admin_token,
            "sandbox_url": self.sandbox.url(),
            "ca_cert": self.dir.join("certs/ca.pem"),
            "origin_url": self.storage.url(),
            "titles": titles.collect::<Vec<_>>(),
            "readers": readers.collect::<Vec<_>>(),
        })
    }

    /// Returns the walkthrough, with the demo's addresses.
    fn walkthrough(&self) -> String {
        walkthrough::lines(&walkthrough::Endpoints {
            base: &format!("https://localhost:{}", self.gate.public.port()),
            admin: &self.gate.admin_url,
            sandbox: self.sandbox.url(),
            origin: self.storage.url(),
            dir: &display_path(&self.dir),
        })
    }

    async fn stop(self) {
        self.gate.stop().await;
        self.sandbox.stop().await;
        self.storage.stop().await;
    }
}

/// Returns a directory for display, relative to the working directory if it is inside.
fn display_path(dir: &Path) -> String {
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| dir.strip_prefix(here).ok().map(Path::to_owned));
    below.unwrap_or_else(|| dir.to_owned()).display().to_string()
}
