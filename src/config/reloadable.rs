//! Which keys a running gate applies on a reload, and which only when it starts again.

/// The tables and keys that a reload applies. `app` puts each of them in use.
const RELOADABLE: &[&str] = &[
    "access_log",
    "brake",
    "cors",
    "delivery",
    "lending.client_id",
    "lending.client_secret",
    "lending.password",
    "lending.username",
    "licences",
    "limits",
    "listen.proxy_protocol",
    "log",
    "origins",
    "readers",
    "routes",
    "server.hsts",
    "tls",
];

/// Where a login at Bokbasen is sent, and how. They need a restart.
const LOGIN: &[&str] =
    &["lending.audience", "lending.auth", "lending.login_url", "lending.token_url", "lending.url"];
/// The keys of its user or client. The new ones must not be sent to the old address.
const CREDENTIALS: &[&str] =
    &["lending.client_id", "lending.client_secret", "lending.password", "lending.username"];

/// Returns whether one of the keys changes where logins at Bokbasen are sent.
pub(crate) fn changes_login<'k>(keys: impl IntoIterator<Item = &'k str>) -> bool {
    keys.into_iter().any(|key| LOGIN.contains(&key))
}

/// The networks of load balancers that send headers of the PROXY protocol.
pub(crate) const PROXIES: &str = "listen.proxy_protocol";
/// The addresses at which they do. These need a restart, and the networks with them: they would be
/// trusted at other addresses.
const PROXIED_AT: &[&str] = &["listen.public", "listen.proxy_protocol_at"];

/// Returns whether a key needs a restart because others do, of all that change.
pub(super) fn waits_for_others(key: &str, changed: &[&String]) -> bool {
    let addresses_change = changed.iter().any(|name| PROXIED_AT.contains(&name.as_str()));
    let login_changes = changes_login(changed.iter().map(|name| name.as_str()));
    key == PROXIES && addresses_change || login_changes && CREDENTIALS.contains(&key)
}

/// Returns whether a reload applies a change of this key, such as `origins[0].url`.
pub fn is_reloadable(key: &str) -> bool {
    RELOADABLE.iter().any(|reloadable| {
        let rest = key.strip_prefix(reloadable);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}
