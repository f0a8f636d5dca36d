//! `loangate demo`: runs a Bokbasen stand-in, a small storage and a gate in one process.
//!
//! The parts talk only over HTTP, and the gate loads a normal configuration file. One directory
//! stores all files between runs, including the loans. Each run writes new tokens and a new
//! configuration.

mod browser;
mod page;
mod people;
mod surroundings;
mod walkthrough;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::ExposeSecret;

use browser::Browser;
use page::{Behind, Page};
use people::{PEOPLE, Person};
use surroundings::{refuse_borrower, start_sandbox, start_storage};

use super::signals::Signals;
use super::{CliError, init, say, token};
use crate::app;
use crate::clock::Clock;
use crate::config::{self, Config, Loaded};
use crate::loan::LibraryId;
use crate::reader::JwtSettings;
use crate::samples::{self, Collection};
use crate::sandbox;
use crate::telemetry;

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
    /// Open the demo's page in Chromium, with a temporary profile that trusts the demo's key.
    #[arg(long)]
    open: bool,
    /// Print one line of JSON once the demo is ready.
    #[arg(long)]
    json: bool,
}

/// The running parts of a demo, and what its output names.
struct Demo {
    gate: app::Running,
    sandbox: sandbox::Running,
    storage: samples::Running,
    /// Serves the web reader until it is dropped.
    _page: Page,
    tokens: Vec<String>,
    admin_token: String,
    dir: PathBuf,
    collection: Collection,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let mut signals = Signals::listen()?;
    let (json, open) = (args.json, args.open);
    let demo = Box::pin(start(args)).await?;
    let browser = if open { demo.open_page().await } else { None };
    say(&if json { demo.to_json().to_string() } else { demo.walkthrough() })?;
    tokio::select! {
        () = signals.drain() => {}
        error = demo.gate.ledger_moved() => {
            demo.gate.abort().await;
            return Err(CliError::new(error));
        }
    }
    if let Some(browser) = browser {
        browser.close().await;
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
    let page = Page::start().await.map_err(CliError::new)?;
    let loaded = configure(&dir, &args, &sandbox, storage.url(), &page)?;
    let config = loaded.config.clone();
    telemetry::init(&config.log).map_err(CliError::new)?;
    let tokens = write_tokens(&dir, &config)?;
    let admin_token = config.admin.token.expose_secret().to_owned();
    write(&dir, "admin.header", &format!("Authorization: Bearer {admin_token}\n"))?;
    let jwt = token_settings(&config)?.clone();
    let gate = app::start(&dir.join("config.toml"), loaded, clock.clone()).await?;
    let client = page::client()?;
    refuse_borrower(&sandbox, &gate, &client).await?;
    page.connect(Behind {
        admin_url: gate.admin_url.clone(),
        admin_token: admin_token.clone().into(),
        sandbox_url: sandbox.url().to_owned(),
        storage_url: storage.url().to_owned(),
        jwt,
        readers: gate.readers.clone(),
        collection: collection.clone(),
        clock,
        client,
    });
    Ok(Demo { gate, sandbox, storage, _page: page, tokens, admin_token, dir, collection })
}

/// Writes the configuration of this run and loads it like any gate.
fn configure(
    dir: &Path,
    args: &Args,
    sandbox: &sandbox::Running,
    storage: &str,
    page: &Page,
) -> Result<Loaded, CliError> {
    let text = include_str!("../init.toml")
        .replace("127.0.0.1:8443", &args.listen.to_string())
        .replace("127.0.0.1:9443", &args.admin.to_string())
        .replace("http://127.0.0.1:9100", sandbox.url())
        .replace("http://127.0.0.1:9000/", &format!("{storage}/"));
    let text = match &args.ledger {
        Some(url) => text.replace(SQLITE_URL, &toml::Value::from(url.as_str()).to_string()),
        None => text,
    };
    let (_, text) = text.split_once('\n').unwrap_or(("", &text));
    let text = format!(
        "# The demo's gate. Each start rewrites this file.\n{text}{}",
        page.configuration()
    );
    write(dir, "config.toml", &text)?;
    config::load(&dir.join("config.toml")).map_err(CliError::all)
}

/// Writes each reader's token as a header line, for `curl -H @FILE`.
fn write_tokens(dir: &Path, config: &Config) -> Result<Vec<String>, CliError> {
    let jwt = token_settings(config)?;
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

fn token_settings(config: &Config) -> Result<&JwtSettings, CliError> {
    let jwt = token::development_login(config);
    jwt.ok_or_else(|| CliError::new("the demo's readers have no tokens"))
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

impl Demo {
    fn base(&self) -> String {
        format!("https://{}", self.gate.public.first())
    }

    /// Returns the address of the web reader, with the host name of the certificate.
    fn page_url(&self) -> String {
        format!("https://localhost:{}/demo/", self.gate.public.first().port())
    }

    /// Returns what a program needs to use the demo, as JSON.
    fn to_json(&self) -> serde_json::Value {
        // A program that downloads all titles would wait minutes for a paced one.
        let titles = self.collection.titles().iter();
        let titles = titles.filter(|title| !self.collection.is_paced(title)).map(|title| {
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
            "page_url": self.page_url(),
            "admin_url": self.gate.admin_url,
            "admin_token": self.admin_token,
            "sandbox_url": self.sandbox.url(),
            "ca_cert": self.dir.join("certs/ca.pem"),
            "origin_url": self.storage.url(),
            "titles": titles.collect::<Vec<_>>(),
            "readers": readers.collect::<Vec<_>>(),
        })
    }

    /// Opens the web reader in a browser, or says why not on standard error.
    async fn open_page(&self) -> Option<Browser> {
        let opened = Browser::open(&self.page_url(), &self.dir).await;
        opened.inspect_err(|why| drop(writeln!(std::io::stderr(), "{why}"))).ok()
    }

    /// Returns the walkthrough, with the demo's addresses.
    fn walkthrough(&self) -> String {
        walkthrough::lines(&walkthrough::Endpoints {
            base: &format!("https://localhost:{}", self.gate.public.first().port()),
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
