//! Reads `[lending]`: Bokbasen's address and credentials.

use std::time::Duration;

use super::ledger::Platform;
use super::table::Table;
use super::values::{confidential_url, duration, nonzero_duration, number, one_of, text};
use crate::lending::{Auth, Settings};

/// The longest time until a sent begin takes effect and appears in listings (bokbasen-api §4,
/// assumed). 10 s while the kernel still sends, 10 s to take effect, 2 s until it is listed.
const MIN_SETTLE: Duration = Duration::from_secs(22);

/// The keys of the OAuth login only.
const OAUTH_KEYS: [&str; 4] = ["token_url", "audience", "client_id", "client_secret"];
const TICKET_KEYS: [&str; 3] = ["login_url", "username", "password"];

/// The settings of the client, and the settings of `circulation` that `[lending]` has.
#[derive(Debug)]
pub(super) struct Lending {
    pub(super) client: Option<Settings>,
    pub(super) settle: Duration,
    pub(super) availability_ttl: Duration,
    /// The most concurrent polls: a quarter of the calls, so that begins have capacity.
    pub(super) polls: usize,
    pub(super) flights: usize,
}

impl Lending {
    /// Returns what a lease of the ledger depends on.
    pub(super) fn platform(&self) -> Option<Platform> {
        let client = self.client.as_ref()?;
        // Only an address on this machine may be without TLS.
        Some(Platform { is_local: client.url.scheme() == "http", timeout: client.timeout })
    }
}

pub(super) fn lending(root: &mut Table<'_>) -> Option<Lending> {
    let mut table = root.required_table(
        "lending",
        "url, auth = \"oauth\", token_url, audience, client_id and client_secret",
    )?;
    let url = table.required("url", "url = \"https://api.loan.boknett.no\"", confidential_url);
    let auth = match table.or("auth", true, one_of(&[("oauth", true), ("ticket", false)])) {
        true => {
            reject_keys_of_other_login(&mut table, &TICKET_KEYS, "oauth", "ticket");
            oauth(&mut table)
        }
        false => {
            reject_keys_of_other_login(&mut table, &OAUTH_KEYS, "ticket", "oauth");
            ticket(&mut table)
        }
    };
    let settle = table.or("settle", Duration::from_secs(30), nonzero_duration);
    let on_this_machine = url.as_ref().is_some_and(|url| url.scheme() == "http");
    if settle < MIN_SETTLE && !on_this_machine {
        let sentence = "a begin can need 22s to take effect and be listed. With less time, a \
                        loan could be registered twice. Write \"30s\"";
        table.mistake("settle", sentence);
    }
    let concurrency = table.or("concurrency", 32, number(8, 1000));
    let timeout = table.or("timeout", Duration::from_secs(10), nonzero_duration);
    let flights = table.or("flights", 10_000, number(1, 1_000_000));
    let availability_ttl = table.or("availability_ttl", Duration::from_secs(60), duration);
    table.finish();
    let concurrency = usize::try_from(concurrency).unwrap_or(32);
    let client = url.zip(auth).map(|(url, auth)| Settings { url, auth, concurrency, timeout });
    let (polls, flights) = ((concurrency / 4).max(1), usize::try_from(flights).unwrap_or(10_000));
    Some(Lending { client, settle, availability_ttl, polls, flights })
}

fn reject_keys_of_other_login(
    table: &mut Table<'_>,
    keys: &[&'static str],
    this: &str,
    other: &str,
) {
    for key in keys.iter().filter(|key| table.has(key)).copied().collect::<Vec<_>>() {
        let sentence =
            format!("auth = \"{this}\" has no such key. Remove it, or write auth = \"{other}\"");
        table.mistake(key, sentence);
    }
}

fn oauth(table: &mut Table<'_>) -> Option<Auth> {
    let token_url = table.required(
        "token_url",
        "token_url = \"https://auth.bokbasen.io/oauth/token\"",
        confidential_url,
    );
    let audience = table.required("audience", "audience = \"https://api.bokbasen.io/loan/\"", text);
    let client_id = table.required("client_id", "the client_id that Bokbasen gave you", text);
    let client_secret =
        table.secret("client_secret", "client_secret = { env = \"BOKBASEN_CLIENT_SECRET\" }");
    Some(Auth::OAuth {
        token_url: token_url?,
        audience: audience?,
        client_id: client_id?,
        client_secret: client_secret?,
    })
}

fn ticket(table: &mut Table<'_>) -> Option<Auth> {
    let login_url = table.required(
        "login_url",
        "login_url = \"https://login.boknett.no/v1/tickets\"",
        confidential_url,
    );
    let username = table.required("username", "the username that Bokbasen gave you", text);
    let password = table.secret("password", "password = { env = \"BOKBASEN_PASSWORD\" }");
    Some(Auth::Ticket { login_url: login_url?, username: username?, password: password? })
}
