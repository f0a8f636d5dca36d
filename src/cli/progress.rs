//! The progress of long work, on standard error: a line that is drawn again on a terminal, and
//! otherwise a line every ten seconds. With `--json` there is none.
//!
//! A thread writes it, so a terminal or pipe that stalls or is closed does not delay the work.

use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use humantime::format_duration;

use super::output::is_drawable;

/// The interval between drawings on a terminal.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(200);
/// The interval between lines elsewhere, where each line stays.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// The stages that wait for the thread; further ones are dropped.
const MAX_WAITING: usize = 16;
/// The longest wait for the last drawing.
const LAST_DRAWING: Duration = Duration::from_secs(1);
/// The maximum width of a drawn line: a longer one wraps, and is not drawn over.
const MAX_WIDTH: usize = 79;
/// The steps of the animation.
const FRAMES: [char; 4] = ['|', '/', '-', '\\'];
/// Moves to the start of the line, and clears it.
const CLEAR: &str = "\r\x1b[K";

/// The progress of a command. Dropping it removes the line from the terminal.
pub(super) struct Progress {
    stages: Option<SyncSender<Stage>>,
    /// Disconnected when the thread has ended.
    ended: Option<Receiver<()>>,
}

struct Stage {
    text: String,
    /// Written at once, also where lines stay.
    is_new: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Style {
    Terminal,
    Lines,
}

/// Does long work, and shows for how long.
pub(super) async fn during<T>(what: &str, is_json: bool, work: impl Future<Output = T>) -> T {
    showing(|_| what.to_owned(), is_json, work).await
}

/// Does long work, and shows what `state` returns meanwhile.
pub(super) async fn showing<T>(
    state: impl Fn(Duration) -> String,
    is_json: bool,
    work: impl Future<Output = T>,
) -> T {
    let (progress, began) = (Progress::start(is_json), Instant::now());
    // Boxed: some work connects, which takes much memory.
    let mut work = Box::pin(work);
    loop {
        progress.set(state(began.elapsed()), false);
        if let Ok(result) = tokio::time::timeout(TERMINAL_INTERVAL, &mut work).await {
            return result;
        }
    }
}

/// Returns how long the rest of the work takes at the speed so far, as the end of a sentence; empty
/// while nobody knows.
pub(super) fn time_left(done: u64, total: u64, elapsed: Duration) -> String {
    let left = total.saturating_sub(done) as f64 / done as f64;
    let left = Duration::try_from_secs_f64(elapsed.as_secs_f64() * left);
    left.map_or_else(|_| String::new(), |left| seconds_left(left.as_secs()))
}

/// Returns the seconds that work still takes as the end of a sentence; empty for none.
pub(super) fn seconds_left(seconds: u64) -> String {
    match seconds {
        0 => String::new(),
        seconds => format!(", {} left", format_duration(Duration::from_secs(seconds))),
    }
}

impl Progress {
    /// Starts to show progress; does nothing with `is_json`.
    pub(super) fn start(is_json: bool) -> Progress {
        match is_json {
            true => Progress { stages: None, ended: None },
            false => Progress::start_on(std::io::stderr(), Style::of_standard_error()),
        }
    }

    fn start_on(out: impl Write + Send + 'static, style: Style) -> Progress {
        let (stages, received) = sync_channel(MAX_WAITING);
        let (alive, ended) = channel();
        let thread = move || {
            // An output that is closed shows nothing more.
            let _ = write(out, style, &received);
            drop(alive);
        };
        // Without a thread, the work has no progress.
        let _ = std::thread::Builder::new().name("progress".to_owned()).spawn(thread);
        Progress { stages: Some(stages), ended: Some(ended) }
    }

    /// Sets what the command does now. A new stage is written at once.
    pub(super) fn set(&self, text: String, is_new: bool) {
        if let Some(stages) = &self.stages {
            let _ = stages.try_send(Stage { text, is_new });
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stages = None;
        if let Some(ended) = &self.ended {
            let _ = ended.recv_timeout(LAST_DRAWING);
        }
    }
}

impl Style {
    fn of_standard_error() -> Style {
        match is_drawable(&std::io::stderr()) {
            true => Style::Terminal,
            false => Style::Lines,
        }
    }

    fn interval(self) -> Duration {
        match self {
            Style::Terminal => TERMINAL_INTERVAL,
            Style::Lines => LOG_INTERVAL,
        }
    }
}

/// Writes stages until there is no sender.
fn write(mut out: impl Write, style: Style, stages: &Receiver<Stage>) -> std::io::Result<()> {
    let started = Instant::now();
    let (mut text, mut written, mut frames) = (String::new(), started, FRAMES.iter().cycle());
    let mut is_drawn = false;
    loop {
        let wait = style.interval().saturating_sub(written.elapsed());
        let is_due = match stages.recv_timeout(wait) {
            Ok(stage) => {
                text = stage.text;
                stage.is_new || written.elapsed() >= style.interval()
            }
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        if !is_due || text.is_empty() {
            continue;
        }
        let elapsed = format_duration(Duration::from_secs(started.elapsed().as_secs()));
        if style == Style::Terminal {
            let frame = frames.next().copied().unwrap_or_default();
            let line = format!("{frame} {text} ({elapsed})");
            let line: String = line.chars().take(MAX_WIDTH).collect();
            write!(out, "{CLEAR}{line}")?;
            is_drawn = true;
        } else {
            writeln!(out, "{text} ({elapsed})")?;
        }
        out.flush()?;
        written = Instant::now();
    }
    if is_drawn {
        write!(out, "{CLEAR}")?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Sender;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn rest_takes_as_long_as_what_is_done() {
        let second = Duration::from_secs(1);
        assert_eq!(time_left(10, 40, 20 * second), ", 1m left");
        assert_eq!(time_left(40, 40, 20 * second), "");
        assert_eq!(time_left(50, 40, 20 * second), "", "an estimate may be too low");
        assert_eq!(time_left(0, 40, 20 * second), "", "nobody knows");
        assert_eq!(time_left(1, u64::MAX, Duration::MAX), "");
        assert_eq!(time_left(0, 0, second), "");
    }

    /// A terminal that is stopped: it reads nothing until the test ends.
    struct Stopped {
        writes: Sender<()>,
        released: Receiver<()>,
    }

    impl Write for Stopped {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.writes.send(());
            let _ = self.released.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn stopped_terminal_does_not_delay_the_work() {
        let ((writes, written), (release, released)) = (channel(), channel());
        let progress = Progress::start_on(Stopped { writes, released }, Style::Terminal);
        progress.set("works".to_owned(), true);
        written.recv_timeout(PATIENCE).unwrap();
        let (done, work) = channel();
        std::thread::spawn(move || {
            for number in 0..MAX_WAITING * 10 {
                progress.set(number.to_string(), true);
            }
            drop(progress);
            let _ = done.send(());
        });
        work.recv_timeout(PATIENCE).unwrap();
        drop(release);
    }

    #[test]
    fn closed_output_ends_the_progress_only() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let progress = Progress::start_on(writer, Style::Lines);
        progress.set("works".to_owned(), true);
        let ended = progress.ended.as_ref().unwrap().recv_timeout(PATIENCE);
        assert_eq!(ended, Err(RecvTimeoutError::Disconnected));
        progress.set("works on".to_owned(), true);
    }

    #[test]
    fn lines_stay_and_stages_are_not_repeated() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let progress = Progress::start_on(writer, Style::Lines);
        for (text, is_new) in [("quiet", false), ("first", true), ("first on", false)] {
            progress.set(text.to_owned(), is_new);
        }
        drop(progress);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert!(text.starts_with("first (") && text.lines().count() == 1, "{text}");
    }
}
