//! Reload of the keys of readers, for [`Readers`].

use std::sync::Arc;

use super::{JwtSettings, Keys, Readers, ReadersError, Settings};
use crate::lock::lock;
use crate::reload::Reload;

impl Readers {
    /// Reads the keys for a reload. What makes a pseudonym must not change: every reader would get
    /// another one, and begin a second loan of each title.
    fn read_keys(&self, settings: &Settings) -> Result<Keys, ReadersError> {
        if !self.has_pseudonym_key_of(settings) {
            return Err(ReadersError(
                "The pseudonym key has changed, which a reload cannot do: put the old one back."
                    .to_owned(),
            ));
        }
        let (old, new) = (self.keys.load(), &settings.issuers);
        for old in &old.settings.issuers {
            let new = new.iter().find(|new| new.issuer == old.issuer);
            if new.is_some_and(|new| !names_the_same_borrowers(old, new)) {
                return Err(ReadersError(format!(
                    "The group or the claim of borrowers of {} has changed, so that its readers \
                     would be other persons and borrow each title again. Put the old ones back, \
                     or restart the gate if that is meant.",
                    old.issuer
                )));
            }
        }
        Keys::read(settings.clone(), Some(&self.keys.load()))
    }
}

/// Whether a reader has the same pseudonym by both settings of a login service.
fn names_the_same_borrowers(one: &JwtSettings, other: &JwtSettings) -> bool {
    (&one.borrower_group, &one.borrower_claim) == (&other.borrower_group, &other.borrower_claim)
}

/// A reload reads the JWKS files and the link keys, and drops every verified token and link. Keys
/// that were fetched stay, if they are still from the same issuer and address.
impl Reload for Readers {
    type Settings = Settings;
    type Version = Keys;
    type Error = ReadersError;

    fn validate(&self, settings: &Settings) -> Result<Keys, Vec<ReadersError>> {
        self.read_keys(settings).map_err(|error| vec![error])
    }

    fn apply(&self, keys: Keys) {
        {
            let mut longest = lock(&self.changing);
            *longest = longest.max(keys.settings.max_lifetime);
            self.keys.store(Arc::new(keys));
        }
        self.reloaded.notify_one();
    }
}
