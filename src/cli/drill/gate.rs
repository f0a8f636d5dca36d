//! The staging gate of a drill, and the invented readers who use it by signed links.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use reqwest::{Certificate, Method, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::Args;
use super::answers::{check_accepted, refusal_of};
use super::sandbox::StagingSandbox;
use crate::catalog::{Catalog, Target};
use crate::cli::CliError;
use crate::cli::admin_route::AdminRoute;
use crate::cli::client_tls::ClientTls;
use crate::clock::Clock;
use crate::config::{AdminAddress, Config};
use crate::loan::{Isbn, LibraryId};
use crate::lock::lock;
use crate::origin::Where;
use crate::path::RequestPath;
use crate::reader::{Readers, Scope};

/// The deadline of a response's head. A gate answers within its `gate.patience`.
const TIMEOUT: Duration = Duration::from_secs(60);
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(150);
/// The lifetime of a link.
const LINK_LIFETIME: Duration = Duration::from_secs(1800);
/// A title that no publisher has, so that Bokbasen itself would lend nothing.
const INVENTED: &str = "9788299999984";
/// The smallest file for the checks: larger than all buffers between the storage and a reader.
const MIN_FILE_SIZE: u64 = 16 << 20;

pub(super) struct StagingGate {
    client: reqwest::Client,
    admin_client: reqwest::Client,
    base: String,
    admin: String,
    admin_token: SecretString,
    readers: Readers,
    library: LibraryId,
    path: String,
    pub(super) isbn: Isbn,
    patience: Duration,
    /// How long the gate waits for the storage, if that is relayed by the sandbox.
    pub(super) first_byte: Option<Duration>,
    /// The invented readers, by pseudonym.
    borrowers: Mutex<Vec<String>>,
}

/// An invented reader.
pub(super) struct DrillReader {
    pub(super) borrower: String,
    url: String,
}

impl StagingGate {
    pub(super) fn of(
        args: &Args,
        config: &Config,
        sandbox: &StagingSandbox,
    ) -> Result<StagingGate, CliError> {
        let isbn = isbn_of(&args.path, config)?;
        let readers = Readers::new(&config.readers, Clock::system()).map_err(CliError::new)?;
        let beside = config.server.certificate.certificate.parent().unwrap_or(Path::new("."));
        let ca = args.ca.clone().unwrap_or_else(|| beside.join("ca.pem"));
        let mut client = client().http1_only().read_timeout(TIMEOUT);
        if args.ca.is_some() || ca.is_file() {
            let pem = std::fs::read(&ca).map_err(|error| {
                CliError::new(format!("{} cannot be read: {error}", ca.display()))
            })?;
            let trusted = Certificate::from_pem_bundle(&pem).map_err(CliError::new)?;
            client = client.tls_certs_only(trusted);
        }
        let port = config.server.listen.first().port();
        let tcp = args.admin.is_some() || args.tls.wants_tcp();
        let route = AdminRoute::of(AdminAddress::of(&config.admin), tcp);
        route.require_trusted()?;
        let url = |written: &Option<String>, default: String| {
            written.clone().unwrap_or(default).trim_end_matches('/').to_owned()
        };
        Ok(StagingGate {
            client: client.build().map_err(CliError::new)?,
            admin_client: client_with_deadline(&args.tls, &route)?,
            base: url(&args.url, format!("https://localhost:{port}")),
            admin: url(&args.admin, route.url()),
            admin_token: config.admin.token.clone(),
            readers,
            library: args.library,
            path: args.path.clone(),
            isbn,
            patience: args.patience.saturating_add(config.circulation.settle),
            first_byte: first_byte(config, &sandbox.storage()),
            borrowers: Mutex::default(),
        })
    }

    /// Invents a reader, with a link to the title.
    pub(super) fn reader(&self) -> Result<DrillReader, String> {
        self.reader_of(self.isbn)
    }

    fn reader_of(&self, isbn: Isbn) -> Result<DrillReader, String> {
        let name = format!("drill-{}", Uuid::new_v4().simple());
        let borrower = self.readers.pseudonym(self.library, &name);
        let scope = Scope::Title(isbn);
        let link = self.readers.mint_link(self.library, borrower, &scope, LINK_LIFETIME);
        let (token, _) = link.ok_or("the configuration has no [readers.links] keys")?;
        let path = self.path.replace(&self.isbn.to_string(), &isbn.to_string());
        let borrower = borrower.to_string();
        lock(&self.borrowers).push(borrower.clone());
        Ok(DrillReader { borrower, url: format!("{}{path}?token={token}", self.base) })
    }

    pub(super) fn borrowers(&self) -> Vec<String> {
        lock(&self.borrowers).clone()
    }

    /// Begins a loan of an invented title, and waits until it is in the sandbox's books.
    ///
    /// # Errors
    /// The running gate does not answer, or registers loans elsewhere than at the sandbox.
    pub(super) async fn prove_sandbox(&self, sandbox: &StagingSandbox) -> Result<(), CliError> {
        let isbn = INVENTED.parse().map_err(CliError::new)?;
        sandbox.lend(isbn).await.map_err(CliError::new)?;
        let reader = self.reader_of(isbn).map_err(CliError::new)?;
        let answer = self.get(&reader).await.map_err(CliError::new)?;
        let what = "the loan of an invented title";
        let is_booked = async || Ok(!sandbox.loans(&reader.borrower).await?.is_empty());
        self.until(what, is_booked).await.map_err(|why| {
            let status = answer.status().as_u16();
            CliError::new(format!(
                "the running gate does not use the sandbox at {}: it answered {status}, and {why}. \
                 Check that the gate runs with this configuration, and has the library and a route \
                 for the path",
                sandbox.url()
            ))
        })
    }

    /// Checks that the gate serves the file to an invented reader, and that it is large enough.
    ///
    /// # Errors
    /// It is not served, or its size is too small for the checks.
    pub(super) async fn prove_file(&self) -> Result<(), CliError> {
        let reader = self.reader().map_err(CliError::new)?;
        let answer = self.get(&reader).await.map_err(CliError::new)?;
        let range = answer.headers().get(http::header::CONTENT_RANGE).cloned();
        let (status, refusal) = refusal_of(answer).await.map_err(CliError::new)?;
        if status != StatusCode::PARTIAL_CONTENT {
            return Err(CliError::new(format!(
                "the gate answered {status} for --path {}: {refusal}. Name a file that the \
                 storage has",
                self.path
            )));
        }
        let size = range.as_ref().and_then(|range| range.to_str().ok()?.rsplit('/').next());
        match size.and_then(|size| size.parse::<u64>().ok()) {
            Some(MIN_FILE_SIZE..) => self.end(&reader.borrower).await.map_err(CliError::new),
            _ => Err(CliError::new(format!(
                "the file at --path {} has less than 16 MiB, so that no fault can meet it while \
                 it is sent. Name a larger one",
                self.path
            ))),
        }
    }

    /// Requests the first bytes of the reader's file.
    pub(super) async fn get(&self, reader: &DrillReader) -> Result<Response, String> {
        self.send(reader, "bytes=0-99").await
    }

    /// Requests the reader's whole file.
    pub(super) async fn get_whole(&self, reader: &DrillReader) -> Result<Response, String> {
        self.send(reader, "bytes=0-").await
    }

    async fn send(&self, reader: &DrillReader, range: &str) -> Result<Response, String> {
        let sent = self.client.get(&reader.url).header(http::header::RANGE, range).send();
        let answer = tokio::time::timeout(TIMEOUT, sent).await;
        let answer = answer.map_err(|_| "the gate did not answer in time".to_owned())?;
        answer.map_err(|error| format!("the gate did not answer: {}", error.without_url()))
    }

    /// Requests the file until it is served, and checks that its loan is accepted then.
    pub(super) async fn until_served(
        &self,
        reader: &DrillReader,
        sandbox: &StagingSandbox,
    ) -> Result<(), String> {
        let deadline = Instant::now() + self.patience;
        loop {
            let (status, refusal) = refusal_of(self.get(reader).await?).await?;
            if status.is_success() {
                return check_accepted(reader, sandbox).await;
            }
            if status != StatusCode::SERVICE_UNAVAILABLE || Instant::now() > deadline {
                return Err(format!("a reader was not served: {status} {refusal}"));
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until a condition holds.
    pub(super) async fn until(
        &self,
        what: &str,
        mut holds: impl AsyncFnMut() -> Result<bool, String>,
    ) -> Result<(), String> {
        let deadline = Instant::now() + self.patience;
        while !holds().await? {
            if Instant::now() > deadline {
                return Err(format!("{what} was not there within {:?}", self.patience));
            }
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Returns the gate's own loans of a borrower.
    pub(super) async fn loans(&self, borrower: &str) -> Result<Vec<Value>, String> {
        let query = [("library", self.library.as_str()), ("borrower", borrower)];
        let request = self.admin(Method::GET, "/api/v1/loans").query(&query);
        let answer = request.send().await.and_then(Response::error_for_status);
        let answer = answer.map_err(admin_failed)?;
        let mut list: Value = answer.json().await.map_err(admin_failed)?;
        let loans = list.get_mut("loans").map(Value::take).unwrap_or_default();
        serde_json::from_value(loans).map_err(|error| error.to_string())
    }

    /// Ends the live loans of a reader.
    pub(super) async fn end(&self, borrower: &str) -> Result<(), String> {
        for loan in self.loans(borrower).await? {
            let text = |name: &str| loan.get(name).and_then(Value::as_str).unwrap_or_default();
            if matches!(text("state"), "ended" | "refused" | "ending") {
                continue;
            }
            let path = format!("/api/v1/loans/{}", text("id"));
            let request = self.admin(Method::DELETE, &path).query(&[("reason", "drill")]);
            let ended = request.send().await.and_then(Response::error_for_status);
            ended.map_err(admin_failed)?;
        }
        Ok(())
    }

    fn admin(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.admin_client.request(method, format!("{}{path}", self.admin));
        request.bearer_auth(self.admin_token.expose_secret())
    }
}

/// Returns the longest time that the gate waits for files below an address, if any are there.
fn first_byte(config: &Config, address: &str) -> Option<Duration> {
    let is_there = |place: &Where| match place {
        Where::Http(url) => match url.as_str().strip_prefix(address) {
            Some(rest) => rest.is_empty() || rest.starts_with('/'),
            None => false,
        },
        _ => false,
    };
    let relayed = config.origins.iter().filter(|origin| origin.places.iter().any(is_there));
    relayed.map(|origin| origin.first_byte).max()
}

fn client() -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none())
}

fn client_with_deadline(tls: &ClientTls, route: &AdminRoute) -> Result<reqwest::Client, CliError> {
    route.apply(tls.apply(client().timeout(TIMEOUT))?).build().map_err(CliError::new)
}

fn admin_failed(error: reqwest::Error) -> String {
    format!("the admin API: {}", error.without_url())
}

/// Returns the title of the path, which must name it.
fn isbn_of(path: &str, config: &Config) -> Result<Isbn, CliError> {
    let catalog = Catalog::new(&config.catalog).map_err(CliError::all)?;
    let parsed = RequestPath::parse(path).map_err(CliError::new)?;
    match catalog.resolve(&parsed) {
        Ok(Target::Loanable { titles, .. }) if path.contains(&titles.first().to_string()) => {
            Ok(titles.first())
        }
        _ => Err(CliError::new(
            "--path is no file of a title that it names. Write one like \
             /files/9788299999038/audio.mp3",
        )),
    }
}
