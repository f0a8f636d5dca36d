//! What the console uses of this listener: the check of the admin token, with the delays of the
//! API, and the access trail, with its limits.

use std::sync::Arc;

use async_trait::async_trait;
use http::Extensions;

use super::client_addresses::Peer;
use super::{App, auth};
use crate::console::Host;
use crate::ledger::Access;

/// Serves the console.
pub(super) struct ConsoleHost(pub(super) Arc<App>);

#[async_trait]
impl Host for ConsoleHost {
    async fn is_token(&self, client: &Extensions, token: &str) -> bool {
        let (peer, app) = (client.get().cloned(), &self.0);
        auth::is_token(token, peer, &app.settings.token, &app.wrong_tokens).await
    }

    fn note_session(&self, client: &Extensions) {
        if let Some(peer) = client.get::<Arc<Peer>>() {
            peer.record_token();
        }
    }

    async fn record(&self, access: Access) -> bool {
        self.0.record(access).await.is_ok()
    }
}
