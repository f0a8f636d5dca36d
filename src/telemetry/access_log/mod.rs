//! The access log: one line for each answered request, apart from the process's own log.
//!
//! `app` opens it from the configuration, and again at each reload. A request that ends puts its
//! [`AccessLine`] into a bounded queue, and a thread of its own writes it, so that a full disk or a
//! slow reader of standard output costs no request more than a failed push: a line without room is
//! lost, and counted. Without an access log of its own, lines go to the process's log.

mod field;
mod line;
mod output;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

pub(crate) use field::AccessField;
pub(super) use line::{AccessLine, micros};
use output::Output;
use writer::{GATHER, Writer};

use super::Metrics;
use crate::durable_file::directory_of;

/// The lines that wait for the writer: those of a second at full speed.
const QUEUE: usize = 16_384;

/// Where the lines of requests are written.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) enum AccessOutput {
    /// To the process's log, at level info.
    #[default]
    Log,
    /// Nowhere.
    Off,
    /// To standard output.
    Stdout,
    /// To the system's log daemon.
    Syslog,
    /// To the end of this file.
    File(PathBuf),
}

/// Which lines are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AccessFilter {
    /// Whether responses of the classes 1xx to 5xx are logged.
    pub classes: [bool; 5],
    /// The part of the responses below 400 that is logged, from 0 to 1. Others are all logged.
    pub sample: f64,
}

impl Default for AccessFilter {
    fn default() -> AccessFilter {
        AccessFilter { classes: [true; 5], sample: 1.0 }
    }
}

impl AccessFilter {
    /// Returns whether a response with this status is logged. Draws, if only a part is.
    fn admits(&self, status: u16) -> bool {
        let class = usize::from(status / 100).checked_sub(1);
        let is_chosen = class.and_then(|class| self.classes.get(class)).is_none_or(|it| *it);
        is_chosen && (status >= 400 || self.sample >= 1.0 || fastrand::f64() < self.sample)
    }
}

/// The keys of `[access_log]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct AccessSettings {
    /// Where lines are written.
    pub output: AccessOutput,
    /// Whether a line is text with `key=value` pairs instead of a JSON object.
    pub is_text: bool,
    /// The fields of a line, in order.
    pub fields: Vec<AccessField>,
    /// Which lines are written.
    pub filter: AccessFilter,
}

/// The access log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {place} for the access log: {source}")]
pub(crate) struct AccessLogError {
    place: String,
    source: std::io::Error,
}

/// The access log in use. None stands for the process's log, with every line.
static IN_USE: ArcSwapOption<InUse> = ArcSwapOption::const_empty();

#[derive(Debug)]
struct InUse {
    settings: AccessSettings,
    /// None if the lines go to the process's log, or nowhere.
    queue: Option<Queue>,
    /// Requests the writer to open its output again.
    reopen: Arc<AtomicBool>,
    metrics: Metrics,
}

/// The lines of a writer.
#[derive(Debug)]
struct Queue {
    lines: SyncSender<AccessLine>,
    /// How many lines were pushed, and how many of them the writer is done with.
    pushed: AtomicU64,
    done: Arc<AtomicU64>,
}

/// An access log that can be written, before it is in use.
pub(crate) struct NewAccessLog(Arc<InUse>);

/// Opens the access log of these settings.
///
/// # Errors
/// Returns [`AccessLogError`] if it cannot be opened. The one in use stays.
pub(crate) fn open(
    settings: &AccessSettings,
    metrics: &Metrics,
) -> Result<NewAccessLog, AccessLogError> {
    if let Some(in_use) = IN_USE.load_full().filter(|in_use| in_use.settings == *settings) {
        return Ok(NewAccessLog(in_use));
    }
    let reopen = Arc::new(AtomicBool::new(false));
    let queue = match Output::open(&settings.output)? {
        Some(output) => {
            let writer = Writer::new(output, settings, reopen.clone(), metrics.clone());
            let (queue, waiting) = Queue::of(&writer, QUEUE);
            writer
                .start(waiting)
                .map_err(|source| AccessLogError { place: "a thread".to_owned(), source })?;
            Some(queue)
        }
        None => None,
    };
    let (settings, metrics) = (settings.clone(), metrics.clone());
    Ok(NewAccessLog(Arc::new(InUse { settings, queue, reopen, metrics })))
}

impl NewAccessLog {
    /// Puts it in use for requests that end later.
    pub(crate) fn apply(self) {
        IN_USE.store(Some(self.0));
    }
}

/// Opens the file again before the next line, as rotation by another program needs it.
pub(crate) fn reopen() {
    if let Some(in_use) = IN_USE.load().as_ref() {
        in_use.reopen.store(true, Ordering::Release);
    }
}

/// Checks what [`open`] needs, without making a file.
///
/// # Errors
/// Returns [`AccessLogError`] if the log daemon or the directory of the file is not there.
pub(crate) fn check(output: &AccessOutput) -> Result<(), AccessLogError> {
    let AccessOutput::File(path) = output else {
        return Output::open(output).map(|_| ());
    };
    let found = std::fs::read_dir(directory_of(path)).map(|_| ());
    let found = found.and_then(|()| match path.is_dir() {
        true => Err(std::io::ErrorKind::IsADirectory.into()),
        false => Ok(()),
    });
    found.map_err(|source| AccessLogError { place: path.display().to_string(), source })
}

/// Waits until what is in the queue is written, for this time at most. Blocks.
pub(crate) fn flush(limit: Duration) {
    let in_use = IN_USE.load();
    let Some(queue) = in_use.as_ref().and_then(|in_use| in_use.queue.as_ref()) else { return };
    let left = queue.flush(limit);
    if left > 0 {
        tracing::warn!(left, "lines of the access log were not written before the end");
    }
}

impl Queue {
    /// Creates the queue of a writer, which gets its lines from the receiver.
    fn of(writer: &Writer, size: usize) -> (Queue, Receiver<AccessLine>) {
        let (lines, waiting) = sync_channel(size);
        (Queue { lines, pushed: AtomicU64::new(0), done: writer.done() }, waiting)
    }

    /// Adds a line, unless the queue is full or the writer has ended. Returns whether it did.
    fn push(&self, line: AccessLine) -> bool {
        let is_pushed = self.lines.try_send(line).is_ok();
        if is_pushed {
            self.pushed.fetch_add(1, Ordering::Release);
        }
        is_pushed
    }

    /// Returns the number of lines that are not written within this time.
    fn flush(&self, limit: Duration) -> u64 {
        let (pushed, until) = (self.pushed.load(Ordering::Acquire), Instant::now() + limit);
        loop {
            let left = pushed.saturating_sub(self.done.load(Ordering::Acquire));
            if left == 0 || Instant::now() >= until {
                return left;
            }
            std::thread::park_timeout(GATHER);
        }
    }
}

/// Returns whether lines are written at all, and so need their fields.
pub(super) fn is_enabled(is_log_enabled: bool) -> bool {
    match IN_USE.load().as_ref().map(|in_use| &in_use.settings.output) {
        None | Some(AccessOutput::Log) => is_log_enabled,
        Some(AccessOutput::Off) => false,
        Some(AccessOutput::Stdout | AccessOutput::Syslog | AccessOutput::File(_)) => true,
    }
}

/// Hands a line to the writer. Returns it if it belongs into the process's log.
pub(super) fn write(line: AccessLine) -> Option<AccessLine> {
    let in_use = IN_USE.load();
    let Some(in_use) = in_use.as_ref() else { return Some(line) };
    if !in_use.settings.filter.admits(line.status()) {
        return None;
    }
    let Some(queue) = &in_use.queue else {
        return (in_use.settings.output == AccessOutput::Log).then_some(line);
    };
    if !queue.push(line) {
        in_use.metrics.access_lines_lost(1);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_and_share_choose_the_lines() {
        let classes = [false, true, false, true, true];
        let filter = AccessFilter { classes, sample: 0.0 };
        assert!(!filter.admits(200) && !filter.admits(304), "none of the sample");
        assert!(filter.admits(404) && filter.admits(503), "all errors");
        let filter = AccessFilter { classes, sample: 1.0 };
        assert!(filter.admits(206) && !filter.admits(301));
        let filter = AccessFilter { classes: [true; 5], sample: 0.5 };
        let admitted = (0..10_000).filter(|_| filter.admits(200)).count();
        assert!((4000..6000).contains(&admitted), "{admitted}");
    }
}
