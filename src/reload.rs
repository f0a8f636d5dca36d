//! Reloading: how a part of the gate takes a new version while requests are served.
//!
//! A part that can be reloaded implements [`Reload`], and `app` reloads all of them. [`Current`]
//! holds the version in use, and [`Reloading`] lets `admin` ask for a reload. It depends on no
//! other module.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use serde::Serialize;
use utoipa::ToSchema;

/// A part that can be reloaded while requests are served.
pub(crate) trait Reload {
    /// What the configuration says about the part.
    type Settings;
    /// A validated version that is not in use yet.
    type Version;
    /// A mistake in the settings or the files of the part.
    type Error: fmt::Display;

    /// Reads a new version and validates it. Changes nothing.
    ///
    /// # Errors
    /// Every mistake that was found; at least one.
    fn validate(&self, settings: &Self::Settings) -> Result<Self::Version, Vec<Self::Error>>;

    /// Puts a validated version in use for later requests.
    fn apply(&self, version: Self::Version);
}

/// The version of a part that is in use. Clones share it.
pub(crate) struct Current<T>(Arc<ArcSwap<T>>);

impl<T> Current<T> {
    pub(crate) fn new(version: T) -> Current<T> {
        Current(Arc::new(ArcSwap::from_pointee(version)))
    }

    /// Returns the version in use. It stays as it is, also after a reload.
    pub(crate) fn get(&self) -> Arc<T> {
        self.0.load_full()
    }

    /// Puts a version in use for those who get it later.
    pub(crate) fn replace(&self, version: T) {
        self.0.store(Arc::new(version));
    }
}

impl<T> Clone for Current<T> {
    fn clone(&self) -> Current<T> {
        Current(self.0.clone())
    }
}

impl<T: fmt::Debug> fmt::Debug for Current<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Current").field(&self.0.load()).finish()
    }
}

/// Reloads the configuration, for those who may ask for it.
pub(crate) type Reloading =
    Arc<dyn Fn() -> BoxFuture<'static, Result<Reloaded, NotReloaded>> + Send + Sync>;

/// A key whose value differs between two configurations.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct ChangedKey {
    /// The key with its tables, such as `lending.timeout`.
    #[schema(example = "routes[0].path")]
    pub key: String,
    /// Its value in the first configuration, as in the file; none if it is not set there. Contains
    /// no secret, so both values may look the same.
    pub old: Option<String>,
    /// Its value in the second configuration.
    pub new: Option<String>,
    /// Whether a running gate applies it only when it starts again.
    pub needs_restart: bool,
}

/// What a reload has changed.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Reloaded {
    /// The keys that differ from the configuration that was in use, and are now in use.
    pub(crate) changed: Vec<ChangedKey>,
    /// The keys that differ from the configuration in use, and need a restart.
    pub(crate) needs_restart: Vec<ChangedKey>,
}

/// Why nothing was reloaded.
#[derive(Clone, Debug)]
pub(crate) enum NotReloaded {
    /// Another reload is under way.
    UnderWay,
    /// The configuration has mistakes, at least one.
    Wrong(Vec<WrongKey>),
}

/// A mistake in the configuration or in a file that it names.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct WrongKey {
    /// The file, or the environment variable.
    pub(crate) file: String,
    /// The line, counted from 1; zero for a variable.
    pub(crate) line: usize,
    /// The key with its tables; empty if it belongs to none.
    pub(crate) key: String,
    /// What is wrong, and what to write instead.
    pub(crate) sentence: String,
}
