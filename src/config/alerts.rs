//! Reads `[alerts]`: the webhooks that receive problems.

use secrecy::ExposeSecret;

use super::table::Table;
use super::values::confidential_url;
use crate::monitor::{Settings, SigningKey, Webhook};

/// The maximum number of webhooks. Each has a task and a connection.
const MAX_WEBHOOKS: usize = 10;

pub(super) fn alerts(root: &mut Table<'_>) -> Settings {
    let mut table = root.optional_table("alerts");
    let mut webhooks = Vec::new();
    for mut entry in table.tables("webhooks") {
        let url =
            entry.required("url", "url = \"https://alerts.example.no/loangate\"", confidential_url);
        let secret = entry.secret("secret", "secret = { file = \"certs/webhook.secret\" }");
        let key = secret.and_then(|secret| {
            let key = SigningKey::parse(secret.expose_secret());
            if key.is_none() {
                entry.mistake(
                    "secret",
                    "it is no secret of Standard Webhooks: whsec_ and 24 to 64 bytes in base 64. \
                     Make one with `echo whsec_$(openssl rand -base64 32)`",
                );
            }
            key
        });
        if webhooks.len() >= MAX_WEBHOOKS {
            entry.mistake("url", "there are more than 10 webhooks. Remove some");
        }
        entry.finish();
        webhooks.extend(url.zip(key).map(|(url, key)| Webhook { url, key }));
    }
    table.finish();
    Settings { webhooks }
}
