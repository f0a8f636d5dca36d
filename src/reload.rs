//! Reloading: how a part of the gate takes a new version while requests are served.
//!
//! A part that can be reloaded implements [`Reload`], and `app` reloads all of them. It depends on
//! no other module.

use std::fmt::Display;

/// A part that can be reloaded while requests are served.
pub(crate) trait Reload {
    /// What the configuration says about the part.
    type Settings;
    /// A validated version that is not in use yet.
    type Version;
    /// A mistake in the settings or the files of the part.
    type Error: Display;

    /// The log line for each mistake.
    const KEPT: &str;

    /// Reads a new version and validates it. Changes nothing.
    ///
    /// # Errors
    /// Every mistake that was found; at least one. The old version stays in use.
    fn validate(&self, settings: &Self::Settings) -> Result<Self::Version, Vec<Self::Error>>;

    /// Puts a validated version in use for later requests, and logs that.
    fn apply(&self, version: Self::Version);
}
