//! Reads secrets, and records the files that contain them.

use secrecy::SecretString;

use super::table::Table;
use super::values::{self, Secret};

impl Table<'_> {
    /// Reads a secret from a file, the environment or, with a warning, the configuration itself.
    pub(super) fn secret(&mut self, key: &'static str, example: &str) -> Option<SecretString> {
        let source = self.source();
        let secret = self.required(key, example, |value| values::secret(value, source))?;
        Some(self.record_secret(key, secret))
    }

    /// Reads a secret as [`Table::secret`] does. Returns none if it is absent.
    pub(super) fn optional_secret(&mut self, key: &'static str) -> Option<SecretString> {
        let source = self.source();
        let secret = self.optional(key, |value| values::secret(value, source))?;
        Some(self.record_secret(key, secret))
    }

    /// Records that the value of a key contains a secret, and warns about it.
    pub(super) fn record_literal_secret(&mut self, key: &'static str) {
        self.source().record_secret_file(self.full_key(key), None);
        if let Some(text) = self.optional(key, values::text) {
            self.source().record_secret(self.full_key(key), text.into());
        }
        self.warn(
            key,
            "the configuration contains the secret itself, visible to all who can read the file. \
             Remove it, and write password = { file = \"certs/ledger.password\" }",
        );
    }

    /// Reads a list of secrets that serve as keys, empty if absent.
    pub(super) fn keys(&mut self, key: &'static str) -> Vec<SecretString> {
        let source = self.source();
        let read = values::list(|value| {
            let secret = values::secret(value, source)?;
            values::long_enough(secret.inner())?;
            Ok(secret)
        });
        let secrets = self.optional(key, read).unwrap_or_default();
        secrets.into_iter().map(|secret| self.record_secret(key, secret)).collect()
    }

    /// Records the file of a secret, and warns about a secret in the configuration.
    fn record_secret(&mut self, key: &'static str, secret: Secret) -> SecretString {
        if values::has_outer_whitespace(secret.inner()) {
            self.warn(
                key,
                "the secret starts or ends with white space, which counts as a part of it. Remove \
                 it if it got there by mistake",
            );
        }
        let (name, source) = (self.full_key(key), self.source());
        source.record_secret(name.clone(), secret.inner().clone());
        // A variable that overrides the key is as good a place as one that the file names.
        let is_overridden = source.variable(&name).is_some();
        let note = |file| source.record_secret_file(name.clone(), file);
        match secret {
            Secret::Environment(secret) => secret,
            Secret::File(secret, file) => {
                note(Some(file));
                secret
            }
            Secret::Literal(secret) if is_overridden => secret,
            Secret::Literal(secret) => {
                note(None);
                let sentence = "the configuration contains the secret itself, visible to all who \
                                can read the file. Write { file = \"certs/…\" } or { env = \
                                \"NAME\" }";
                self.warn(key, sentence);
                secret
            }
        }
    }
}
