//! The control API of the sandbox that a drill uses.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use url::Url;

use crate::cli::CliError;
use crate::loan::Isbn;
use crate::loopback::is_loopback;

/// The deadline of a call.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Settings that only a sandbox has.
const SETTINGS: [&str; 4] = ["clock_skew_seconds", "down", "pending_polls", "post_bound_ms"];

/// A sandbox without faults, and the settings that it had when it was found.
pub(super) struct StagingSandbox {
    client: reqwest::Client,
    url: String,
    settings: Value,
}

impl StagingSandbox {
    /// Finds the sandbox at the address of Bokbasen's API.
    ///
    /// # Errors
    /// The address is not this machine's and was not named, is no sandbox's, or has faults already.
    pub(super) async fn find(url: &Url, named: Option<&str>) -> Result<StagingSandbox, CliError> {
        let host = url.host_str().unwrap_or_default();
        let is_other = named.is_some_and(|named| named != host);
        if is_other || (!is_loopback(url) && named.is_none()) {
            return Err(CliError::new(format!(
                "a drill needs a sandbox, and [lending] url is at {host}. If that is a sandbox, \
                 name it by --sandbox-host"
            )));
        }
        let redirects = reqwest::redirect::Policy::none();
        let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).redirect(redirects);
        let client = client.build().map_err(CliError::new)?;
        let url = url.as_str().trim_end_matches('/').to_owned();
        let found = StagingSandbox { client, url, settings: Value::Null };
        let no_sandbox = |why: String| CliError::new(format!("{} is no sandbox: {why}", found.url));
        let settings = found.read("settings").await.map_err(no_sandbox)?;
        let books = found.read("books").await.map_err(no_sandbox)?;
        let has_settings = SETTINGS.iter().all(|name| settings.get(name).is_some());
        if !has_settings || !books.get("loans").is_some_and(Value::is_array) {
            return Err(no_sandbox("it answers otherwise than one".to_owned()));
        }
        let faults = found.read("faults").await.map_err(no_sandbox)?;
        let delay = settings.get("storage_delay_ms").and_then(Value::as_u64).unwrap_or_default();
        if settings.get("down") == Some(&true.into()) || delay > 0 || faults != json!([]) {
            return Err(CliError::new(format!(
                "the sandbox at {} has faults already. Remove them: DELETE /sandbox/faults, and \
                 PUT /sandbox/settings with {{\"down\": false, \"storage_delay_ms\": 0}}",
                found.url
            )));
        }
        Ok(StagingSandbox { settings, ..found })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Returns the address below which this sandbox relays a storage, if it was given one.
    pub(super) fn storage(&self) -> String {
        format!("{}/storage", self.url)
    }

    async fn read(&self, what: &str) -> Result<Value, String> {
        let sent = self.client.get(format!("{}/sandbox/{what}", self.url)).send().await;
        let answer = sent.and_then(reqwest::Response::error_for_status);
        let answer = answer.map_err(|error| error.without_url().to_string())?;
        answer.json().await.map_err(|error| error.without_url().to_string())
    }

    async fn write(&self, method: Method, what: &str, body: &Value) -> Result<(), String> {
        let request = self.client.request(method, format!("{}/sandbox/{what}", self.url));
        let sent = request.json(body).send().await;
        let answer = sent.and_then(reqwest::Response::error_for_status);
        answer.map(drop).map_err(|error| format!("the sandbox: {}", error.without_url()))
    }

    /// Makes calls for a title misbehave. `faults` has a call and an effect for each fault, and
    /// each happens this many times.
    pub(super) async fn fail(
        &self,
        isbn: Isbn,
        times: u32,
        faults: &[(&str, Value)],
    ) -> Result<(), String> {
        let faults = faults.iter().map(|(call, effect)| {
            json!({ "call": call, "isbn": isbn.to_string(), "times": times, "effect": effect })
        });
        self.write(Method::PUT, "faults", &faults.collect()).await
    }

    /// Changes a setting.
    pub(super) async fn set(&self, name: &str, value: Value) -> Result<(), String> {
        self.write(Method::PUT, "settings", &json!({ name: value })).await
    }

    /// Makes each answer of the storage late.
    pub(super) async fn delay_storage(&self, delay: Duration) -> Result<(), String> {
        let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.set("storage_delay_ms", delay.into()).await
    }

    /// Makes every library able to lend a title.
    pub(super) async fn lend(&self, isbn: Isbn) -> Result<(), String> {
        let licence = json!({ "licenseId": format!("DRILL-{isbn}"), "type": "PACKAGE" });
        let title = json!({ "licenses": [licence] });
        self.write(Method::PUT, &format!("titles/{isbn}"), &title).await
    }

    /// Removes all faults, and restores the settings.
    pub(super) async fn restore(&self) -> Result<(), String> {
        self.write(Method::DELETE, "faults", &Value::Null).await?;
        self.write(Method::PUT, "settings", &self.settings).await
    }

    /// Returns the loans of a borrower in the books.
    pub(super) async fn loans(&self, borrower: &str) -> Result<Vec<Value>, String> {
        let books = self.read("books").await?;
        let loans = books.get("loans").and_then(Value::as_array).into_iter().flatten();
        let theirs =
            loans.filter(|loan| loan.get("borrower").and_then(Value::as_str) == Some(borrower));
        Ok(theirs.cloned().collect())
    }
}
