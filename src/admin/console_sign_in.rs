//! The sign-in of the console with the admin token, with the delays of the API.

use std::sync::Arc;

use async_trait::async_trait;
use http::Extensions;

use super::client_addresses::Peer;
use super::{App, auth};
use crate::console::TokenCheck;

/// Checks tokens for the console.
pub(super) struct ConsoleSignIn(pub(super) Arc<App>);

#[async_trait]
impl TokenCheck for ConsoleSignIn {
    async fn is_token(&self, client: &Extensions, token: &str) -> bool {
        let (peer, app) = (client.get().cloned(), &self.0);
        auth::is_token(token, peer, &app.settings.token, &app.wrong_tokens).await
    }

    fn note_session(&self, client: &Extensions) {
        if let Some(peer) = client.get::<Arc<Peer>>() {
            peer.record_token();
        }
    }
}
