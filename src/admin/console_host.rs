//! What the console uses of this listener: the check of the admin token, with the delays of the
//! API, and the access trail, with its limits.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use http::Extensions;

use super::client_addresses::Client;
use super::{App, Parts, auth};
use crate::console::{self, Host};
use crate::ledger::Access;

/// Serves the console.
pub(super) struct ConsoleHost(pub(super) Arc<App>);

#[async_trait]
impl Host for ConsoleHost {
    async fn is_token(&self, client: &Extensions, token: &str) -> bool {
        let (client, app) = (client.get().cloned(), &self.0);
        auth::is_token(token, client, &app.settings.token, &app.wrong_tokens).await
    }

    fn address(&self, client: &Extensions) -> Option<IpAddr> {
        let client = client.get::<Client>()?;
        // Behind a proxy that ends TLS, the peer is the proxy.
        let has_tls = self.0.settings.tls && !client.is_local();
        let is_direct = has_tls || !is_url_https(&self.0);
        (is_direct || client.is_forwarded()).then(|| client.address())
    }

    fn note_session(&self, client: &Extensions, session: u64) {
        if let Some(client) = client.get::<Client>() {
            client.record_session(session);
        }
    }

    async fn record(&self, access: Access) -> bool {
        self.0.record(access).await.is_ok()
    }
}

/// Returns whether browsers reach the console by HTTPS, as `[console] url` says. A proxy may end
/// TLS.
fn is_url_https(app: &App) -> bool {
    app.parts.console.url.as_ref().is_some_and(|url| url.scheme() == "https")
}

/// Returns what the console uses.
pub(super) fn parts(app: &Arc<App>) -> console::Parts {
    let Parts { ledger, gate, circulation, readers, requests, explainer, clock, monitor, .. } =
        &app.parts;
    console::Parts {
        ledger: ledger.clone(),
        gate: gate.clone(),
        circulation: circulation.clone(),
        readers: readers.clone(),
        requests: requests.clone(),
        explainer: explainer.clone(),
        monitor: monitor.clone(),
        clock: clock.clone(),
        has_prices: app.parts.has_prices,
        public_base: app.parts.public_base.clone(),
        tls: app.settings.tls || is_url_https(app),
        settings: app.parts.console.clone(),
        low_priority: app.parts.low_priority.clone(),
        host: Box::new(ConsoleHost(app.clone())),
    }
}
