//! Which keys a running gate applies on a reload, and which only when it starts again.

/// The tables and keys that a reload applies. `app` puts each of them in use.
const RELOADABLE: &[&str] = &[
    "brake",
    "cors",
    "delivery",
    "lending.client_id",
    "lending.client_secret",
    "lending.password",
    "lending.username",
    "licences",
    "limits",
    "log",
    "origins",
    "readers",
    "routes",
    "server.drain",
    "server.hsts",
    "tls",
];

/// Returns whether a reload applies a change of this key, such as `origins[0].url`.
pub fn is_reloadable(key: &str) -> bool {
    RELOADABLE.iter().any(|reloadable| {
        let rest = key.strip_prefix(reloadable);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}
