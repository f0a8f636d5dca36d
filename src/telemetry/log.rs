//! The process's log, on standard error.
//!
//! The command line calls [`init`] once. The level of our own target follows `LOANGATE_LOG` or the
//! configuration. All other targets log at info or above.

use std::str::FromStr;

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use super::Settings;

/// The environment variable `LOANGATE_LOG` is not a level.
#[derive(Debug, thiserror::Error)]
#[error("LOANGATE_LOG is not a level; use one of error, warn, info, debug, trace")]
pub struct LogError;

/// Starts the log. A second call changes nothing.
///
/// # Errors
/// [`LogError`] if `LOANGATE_LOG` is set to something else than a level.
pub fn init(settings: &Settings) -> Result<(), LogError> {
    let level = match std::env::var("LOANGATE_LOG") {
        Ok(text) => Level::from_str(&text).map_err(|_| LogError)?,
        Err(_) => settings.level,
    };
    let targets = filter(level);
    let layer = if settings.json {
        fmt::layer().json().with_writer(std::io::stderr).boxed()
    } else {
        fmt::layer().with_writer(std::io::stderr).with_ansi(false).boxed()
    };
    let _ = tracing_subscriber::registry().with(layer.with_filter(targets)).try_init();
    Ok(())
}

fn filter(level: Level) -> Targets {
    let others = LevelFilter::from_level(level).min(LevelFilter::INFO);
    Targets::new().with_default(others).with_target("loangate", level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_stay_at_info() {
        let filter = filter(Level::TRACE);
        assert!(filter.would_enable("loangate::gate", &Level::TRACE));
        assert!(filter.would_enable("h2", &Level::INFO));
        assert!(!filter.would_enable("h2", &Level::DEBUG));
        assert!(!filter.would_enable("hyper::proto", &Level::TRACE));
    }
}
