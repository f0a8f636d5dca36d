//! `loangate demo`: Bokbasen's stand-in, a small storage and the gate before it, in one process.
//!
//! They speak only HTTP to each other, and the gate is configured by a file as any other. All that
//! is made lies in one directory and is kept between runs, loans included; tokens and the
//! configuration are written anew.

mod walkthrough;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::ExposeSecret;

use super::signals::Signals;
use super::{CliError, init, say, serve, token};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::loan::LibraryId;
use crate::samples::{self, Collection, Storage};
use crate::sandbox::{self, Library, Licence, Sandbox, World};
use crate::telemetry;

/// Where Bokbasen's stand-in and the storage listen, where these are free.
const SANDBOX: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9100);
const STORAGE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9000);
/// How long the readers' tokens are good for.
const TOKENS: Duration = Duration::from_secs(12 * 3600);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where readers connect; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// Where operators connect.
    #[arg(long, default_value = "127.0.0.1:9443")]
    admin: SocketAddr,
    /// Where Bokbasen's stand-in listens; without it 127.0.0.1:9100, or a free port.
    #[arg(long)]
    sandbox: Option<SocketAddr>,
    /// Where the storage listens; without it 127.0.0.1:9000, or a free port.
    #[arg(long)]
    origin: Option<SocketAddr>,
    /// Where everything that it makes is kept.
    #[arg(long, default_value = "demo")]
    dir: PathBuf,
    /// Print one line of JSON when it is ready.
    #[arg(long)]
    json: bool,
}

/// A reader of the demo.
struct Person {
    name: &'static str,
    library: &'static str,
    /// Whether the reader is one of those whom the JSON line tells of.
    told: bool,
}

/// The first may borrow everything, the next two nothing; the last one comes too late for a title
/// whose only licence is taken.
const PEOPLE: [Person; 4] = [
    Person { name: "kari", library: "NO-0301000", told: true },
    Person { name: "ola", library: "NO-0301000", told: true },
    Person { name: "liv", library: "NO-1103000", told: true },
    Person { name: "per", library: "NO-0301000", told: false },
];
/// Who has too many loans already, and whose library has spent its budget.
const OVER_THE_LIMIT: &str = "ola";
const WITHOUT_BUDGET: &str = "NO-1103000";

/// A demo that runs.
struct Demo {
    gate: serve::Running,
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
    say(&if json { demo.described().to_string() } else { demo.told() })?;
    signals.drain().await;
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
    let config = configure(&dir, &args.listen, &args.admin, &sandbox, storage.url())?;
    telemetry::init(&config.log).map_err(CliError::new)?;
    let tokens = write_tokens(&dir, &config)?;
    let admin_token = config.admin.token.expose_secret().to_owned();
    write(&dir, "admin.header", &format!("Authorization: Bearer {admin_token}\n"))?;
    let gate = serve::start(config, clock).await?;
    refuse_borrower(&sandbox, &gate).await?;
    Ok(Demo { gate, sandbox, storage, tokens, admin_token, dir, collection })
}

/// At the address that was asked for, or else at the usual one, or at a free port where that is
/// taken.
async fn start_storage(
    asked: Option<SocketAddr>,
    collection: &Collection,
    clock: &Clock,
) -> Result<samples::Running, CliError> {
    match Storage::start(asked.unwrap_or(STORAGE), collection, clock.clone()).await {
        Ok(running) => Ok(running),
        Err(_) if asked.is_none() => {
            Storage::start(free(), collection, clock.clone()).await.map_err(CliError::new)
        }
        Err(error) => Err(CliError::new(format!("the storage cannot listen: {error}"))),
    }
}

async fn start_sandbox(
    asked: Option<SocketAddr>,
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
    match Sandbox::start(settings(asked.unwrap_or(SANDBOX)), clock.clone()).await {
        Ok(running) => Ok(running),
        Err(sandbox::SandboxError::Listen { .. }) if asked.is_none() => {
            Sandbox::start(settings(free()), clock.clone()).await.map_err(CliError::new)
        }
        Err(error) => Err(CliError::new(error)),
    }
}

fn free() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// What Bokbasen's stand-in knows of libraries and titles.
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

/// Writes the configuration of this run, and reads it back as any gate does.
fn configure(
    dir: &Path,
    public: &SocketAddr,
    admin: &SocketAddr,
    sandbox: &sandbox::Running,
    storage: &str,
) -> Result<Config, CliError> {
    let text = include_str!("../init.toml")
        .replace("127.0.0.1:8443", &public.to_string())
        .replace("127.0.0.1:9443", &admin.to_string())
        .replace("http://127.0.0.1:9100", sandbox.url())
        .replace("http://127.0.0.1:9000/", &format!("{storage}/"));
    let (_, text) = text.split_once('\n').unwrap_or(("", &text));
    let text = format!("# The demo's gate; written anew at each start.\n{text}");
    write(dir, "config.toml", &text)?;
    let loaded = config::load(&dir.join("config.toml")).map_err(CliError::all)?;
    Ok(loaded.config)
}

/// A token for each reader, as the field that a request carries: `curl -H @FILE`.
fn write_tokens(dir: &Path, config: &Config) -> Result<Vec<String>, CliError> {
    let jwt = config
        .readers
        .jwt
        .as_ref()
        .ok_or_else(|| CliError::new("the demo's readers have no tokens"))?;
    let made = PEOPLE.iter().map(|person| {
        let token = token::reader(jwt, &library(person)?, person.name, TOKENS)?;
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

/// Writes a file for its owner alone: most of them hold a token.
fn write(dir: &Path, name: &str, text: &str) -> Result<(), CliError> {
    let file = dir.join(name);
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&file);
    let written = opened.and_then(|mut opened| opened.write_all(text.as_bytes()));
    written.map_err(|error| CliError::new(format!("{} cannot be written: {error}", file.display())))
}

/// Tells Bokbasen's stand-in by whose pseudonym the reader over the limit is known.
async fn refuse_borrower(
    sandbox: &sandbox::Running,
    gate: &serve::Running,
) -> Result<(), CliError> {
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

    /// What a program needs to use it.
    fn described(&self) -> serde_json::Value {
        let titles = self.collection.titles().iter().map(|title| {
            serde_json::json!({
                "isbn": title.isbn.to_string(),
                "kind": title.kind.name(),
                "path": title.path,
                "bytes": title.bytes,
                "licences": title.licences,
            })
        });
        let readers = PEOPLE.iter().zip(&self.tokens).filter(|(person, _)| person.told);
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

    /// What to try, for a person.
    fn told(&self) -> String {
        walkthrough::lines(&walkthrough::Places {
            base: &format!("https://localhost:{}", self.gate.public.port()),
            admin: &self.gate.admin_url,
            sandbox: self.sandbox.url(),
            origin: self.storage.url(),
            dir: &shown(&self.dir),
        })
    }

    async fn stop(self) {
        self.gate.stop().await;
        self.sandbox.stop().await;
        self.storage.stop().await;
    }
}

/// A directory as it is best typed: relative where it lies below where we are.
fn shown(dir: &Path) -> String {
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| dir.strip_prefix(here).ok().map(Path::to_owned));
    below.unwrap_or_else(|| dir.to_owned()).display().to_string()
}
