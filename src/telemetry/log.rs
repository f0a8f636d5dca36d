//! The process's log, on standard error.
//!
//! The command line calls [`init`] once. The level of our own target follows `LOANGATE_LOG` or the
//! configuration. All other targets log at info or above. Lines that are written for a request
//! carry its id.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format, layer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use super::{RequestId, Settings};

/// The environment variable `LOANGATE_LOG` is not a level.
#[derive(Debug, thiserror::Error)]
#[error("LOANGATE_LOG is not a level; use one of error, warn, info, debug, trace")]
pub struct LogError;

/// Starts the log. A second call changes nothing.
///
/// # Errors
/// Returns [`LogError`] if `LOANGATE_LOG` is not the name of a level.
pub fn init(settings: &Settings) -> Result<(), LogError> {
    let level = match std::env::var("LOANGATE_LOG") {
        Ok(text) => Level::from_str(&text).map_err(|_| LogError)?,
        Err(_) => settings.level,
    };
    let (targets, filter) = reload::Layer::new(filter(level));
    let (lines, format) = reload::Layer::new(lines(settings.json, std::io::stderr));
    #[cfg(feature = "otlp")]
    let lines = lines.and_then(super::otlp::LogExport);
    if tracing_subscriber::registry().with(lines.with_filter(targets)).try_init().is_ok() {
        let _ = IN_USE.set(InUse { filter, format });
    }
    Ok(())
}

/// Changes the log as a reload requires. `LOANGATE_LOG` still overrides the level.
pub(crate) fn apply(settings: &Settings) {
    let Some(in_use) = IN_USE.get() else { return };
    let level = match std::env::var("LOANGATE_LOG").map(|text| Level::from_str(&text)) {
        Ok(Ok(level)) => level,
        _ => settings.level,
    };
    // Fails only if the subscriber is gone, and then nothing is logged.
    let _ = in_use.filter.reload(filter(level));
    let _ = in_use.format.reload(lines(settings.json, std::io::stderr));
}

/// The layer that writes each event as a line.
type Lines = Box<dyn Layer<Registry> + Send + Sync>;

/// What a reload replaces.
struct InUse {
    filter: reload::Handle<Targets, Registry>,
    format: reload::Handle<Lines, Registry>,
}

static IN_USE: OnceLock<InUse> = OnceLock::new();

/// Returns the layer that writes each event as a line.
fn lines<W>(is_json: bool, writer: W) -> Lines
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = layer().with_writer(writer).with_ansi(false);
    if is_json {
        lines.json().event_format(WithRequest { format: format().json(), is_json }).boxed()
    } else {
        lines.event_format(WithRequest { format: format(), is_json }).boxed()
    }
}

fn filter(level: Level) -> Targets {
    let others = LevelFilter::from_level(level).min(LevelFilter::INFO);
    Targets::new().with_default(others).with_target("loangate", level)
}

/// Adds the id of the current request to the lines of another format.
struct WithRequest<F> {
    format: F,
    is_json: bool,
}

impl<S, N, F> FormatEvent<S, N> for WithRequest<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(id) = RequestId::current() else {
            return self.format.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        match line.strip_prefix('{').filter(|_| self.is_json) {
            Some(members) => write!(writer, "{{\"request\":\"{id}\",{members}"),
            None => writeln!(writer, "{} request={id}", line.trim_end_matches('\n')),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// The bytes that the log has written.
    #[derive(Clone, Debug, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines of two events, the first outside of a request and the second within this one.
    fn two_lines(id: RequestId, is_json: bool) -> Vec<String> {
        let written = Written::default();
        let writer = written.clone();
        let layer = lines(is_json, move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(place = "a", "before");
            id.within(|| tracing::warn!(place = "b", "within"));
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn lines_within_a_request_carry_its_id() {
        let id = RequestId::generate();
        let text = two_lines(id, false);
        assert_eq!(text.len(), 2, "{text:?}");
        assert!(!text[0].contains("request="), "{text:?}");
        assert!(text[1].ends_with(&format!("place=\"b\" request={id}")), "{text:?}");
        let json: Vec<serde_json::Value> =
            two_lines(id, true).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(json[0].get("request").is_none());
        assert_eq!(json[1]["request"], id.to_string());
        assert_eq!(json[1]["fields"]["place"], "b");
    }

    #[test]
    fn dependencies_stay_at_info() {
        let filter = filter(Level::TRACE);
        assert!(filter.would_enable("loangate::gate", &Level::TRACE));
        assert!(filter.would_enable("h2", &Level::INFO));
        assert!(!filter.would_enable("h2", &Level::DEBUG));
        assert!(!filter.would_enable("hyper::proto", &Level::TRACE));
    }
}
