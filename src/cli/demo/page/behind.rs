//! What is behind the page: the gate's admin API, the books of Bokbasen's stand-in, and the
//! storage's log. Each is read over HTTP, within a deadline and a size.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use crate::cli::CliError;
use crate::cli::demo::people::{PEOPLE, Person};
use crate::clock::Clock;
use crate::loan::LibraryId;
use crate::reader::{JwtSettings, Readers};
use crate::samples::{Collection, Title};

/// The deadline of a call.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest response that is read, in bytes.
const MAX_RESPONSE: u64 = 4 * 1024 * 1024;
/// The most of a reader's loans in Bokbasen's books, and of the storage's requests, to show.
const MAX_BOOKED: usize = 12;
const MAX_STORED: usize = 60;
const MAX_REQUESTS: usize = 6;

/// The running parts of the demo, as far as the page needs them.
pub(in crate::cli::demo) struct Behind {
    pub(in crate::cli::demo) admin_url: String,
    pub(in crate::cli::demo) admin_token: SecretString,
    pub(in crate::cli::demo) sandbox_url: String,
    pub(in crate::cli::demo) storage_url: String,
    pub(in crate::cli::demo) jwt: JwtSettings,
    pub(in crate::cli::demo) readers: Arc<Readers>,
    pub(in crate::cli::demo) collection: Collection,
    pub(in crate::cli::demo) clock: Clock,
    pub(in crate::cli::demo) client: reqwest::Client,
}

impl fmt::Debug for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behind").field("admin_url", &self.admin_url).finish_non_exhaustive()
    }
}

/// Returns a client for the parts of the demo.
pub(in crate::cli::demo) fn client() -> Result<reqwest::Client, CliError> {
    reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build().map_err(CliError::new)
}

impl Behind {
    pub(super) fn library(&self, person: &Person) -> Result<LibraryId, CliError> {
        person.library.parse().map_err(CliError::new)
    }

    /// Returns what every part has of a reader and a title.
    pub(super) async fn live(
        &self,
        person: &Person,
        title: &Title,
        issued: Timestamp,
    ) -> Result<Value, String> {
        let library = self.library(person).map_err(|error| error.to_string())?;
        let borrower = self.readers.pseudonym(library, person.name).to_string();
        let question = json!({
            "path": title.path,
            "library": person.library,
            "borrower": person.name,
            "issued": issued,
        });
        let (explanation, loan, books, storage, streams) = tokio::join!(
            self.explain(&question),
            self.loan(person, title, &borrower),
            self.books(&borrower),
            self.storage(title),
            self.streams(),
        );
        Ok(json!({
            "explanation": explanation?,
            "loan": loan?,
            "books": books?,
            "storage": storage?,
            "streams": streams,
        }))
    }

    /// Returns the path of a request that one of the demo's readers made.
    pub(super) async fn recorded(&self, id: &str) -> Result<Value, String> {
        let explained = self.explain(&json!({ "request": id })).await?;
        let request = |name: &str| explained.get("request")?.get(name)?.as_str();
        let is_theirs = PEOPLE.iter().any(|person| {
            let Ok(library) = self.library(person) else { return false };
            let borrower = self.readers.pseudonym(library, person.name).to_string();
            request("borrower") == Some(&borrower) && request("library") == Some(person.library)
        });
        if is_theirs { Ok(explained) } else { Err("No reader of the demo made it.".to_owned()) }
    }

    fn admin(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.admin_url));
        request.bearer_auth(self.admin_token.expose_secret())
    }

    async fn explain(&self, question: &Value) -> Result<Value, String> {
        let request = self.admin(reqwest::Method::POST, "/api/v1/explain").json(question);
        read(request).await
    }

    /// Returns the reader's newest loan of the title with its history, or null.
    async fn loan(&self, person: &Person, title: &Title, borrower: &str) -> Result<Value, String> {
        let isbn = title.isbn.to_string();
        let query =
            [("library", person.library), ("borrower", borrower), ("isbn", &isbn), ("limit", "1")];
        let list = self.admin(reqwest::Method::GET, "/api/v1/loans").query(&query);
        let list = read(list).await?;
        let id = list.pointer("/loans/0/id").and_then(Value::as_str);
        match id {
            Some(id) => {
                read(self.admin(reqwest::Method::GET, &format!("/api/v1/loans/{id}"))).await
            }
            None => Ok(Value::Null),
        }
    }

    /// Returns the reader's loans in Bokbasen's books, the newest first.
    async fn books(&self, borrower: &str) -> Result<Vec<Value>, String> {
        let books = read(self.client.get(format!("{}/sandbox/books", self.sandbox_url))).await?;
        let loans = books.get("loans").and_then(Value::as_array).into_iter().flatten().rev();
        let theirs =
            loans.filter(|loan| loan.get("borrower").and_then(Value::as_str) == Some(borrower));
        Ok(theirs.take(MAX_BOOKED).cloned().collect())
    }

    /// Returns the last requests of the gate for the title's file, the newest first.
    async fn storage(&self, title: &Title) -> Result<Vec<Value>, String> {
        let url = format!("{}/_requests?newest={MAX_STORED}", self.storage_url);
        let requests = read(self.client.get(url)).await?;
        let path = title.path.trim_start_matches("/files");
        let text = |of: &Value, name: &str| of.get(name).and_then(Value::as_str) == Some(path);
        let requests = requests.as_array().into_iter().flatten().rev();
        Ok(requests.filter(|one| text(one, "path")).take(MAX_REQUESTS).cloned().collect())
    }

    /// Returns the number of files that the gate is sending, or null.
    async fn streams(&self) -> Option<u64> {
        let sent = self.admin(reqwest::Method::GET, "/metrics").send().await.ok()?;
        let text = sent.text().await.ok()?;
        let lines = text.lines().filter_map(|line| line.strip_prefix("loangate_streams"));
        let lines = lines.filter(|rest| rest.starts_with([' ', '{']));
        let values = lines.filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok());
        Some(values.sum())
    }
}

/// Sends a request and reads the JSON of its response.
async fn read(request: reqwest::RequestBuilder) -> Result<Value, String> {
    let failed = |error: reqwest::Error| {
        tracing::warn!(error = %error.without_url(), "the page cannot read a part of the demo");
        "A part of the demo does not answer.".to_owned()
    };
    let response = request.send().await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(format!("A part of the demo answered {}.", response.status().as_u16()));
    }
    if response.content_length().is_none_or(|length| length > MAX_RESPONSE) {
        return Err(
            "The demo's books have grown too long to show. Delete its directory.".to_owned()
        );
    }
    response.json().await.map_err(failed)
}
