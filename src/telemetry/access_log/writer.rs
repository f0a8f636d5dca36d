//! The thread that writes lines.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::output::Output;
use super::{AccessField, AccessLine, AccessSettings};
use crate::telemetry::{LogLimit, Metrics};

/// The lines of one write.
const BATCH: u64 = 256;
/// How long lines gather before they are written, so that not each wakes the thread.
pub(super) const GATHER: Duration = Duration::from_millis(10);
/// How long an output that has failed is left alone.
const PAUSE: Duration = Duration::from_secs(1);

static FAILURES: LogLimit = LogLimit::per_minute();

/// Writes lines until all senders are gone.
#[derive(Debug)]
pub(super) struct Writer {
    output: Output,
    is_text: bool,
    fields: Vec<AccessField>,
    reopen: Arc<AtomicBool>,
    metrics: Metrics,
    /// The lines that were written or are lost.
    done: Arc<AtomicU64>,
    /// When the output failed, if it was not written since.
    failed: Option<Instant>,
}

impl Writer {
    pub(super) fn new(
        output: Output,
        settings: &AccessSettings,
        reopen: Arc<AtomicBool>,
        metrics: Metrics,
    ) -> Writer {
        let (is_text, fields) = (settings.is_text, settings.fields.clone());
        Writer { output, is_text, fields, reopen, metrics, done: Arc::default(), failed: None }
    }

    /// Counts the lines that were written or are lost.
    pub(super) fn done(&self) -> Arc<AtomicU64> {
        self.done.clone()
    }

    /// Starts the thread.
    pub(super) fn start(self, lines: Receiver<AccessLine>) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        thread.spawn(move || self.run(&lines)).map(|_| ())
    }

    fn run(mut self, lines: &Receiver<AccessLine>) {
        let mut text = Vec::new();
        while let Ok(first) = lines.recv() {
            let mut count = 1;
            text.clear();
            first.append(&self.fields, self.is_text, &mut text);
            while count < BATCH
                && let Ok(line) = lines.try_recv()
            {
                line.append(&self.fields, self.is_text, &mut text);
                count += 1;
            }
            self.write(&text, count);
            self.done.fetch_add(count, Ordering::Release);
            if count < BATCH {
                std::thread::park_timeout(GATHER);
            }
        }
    }

    fn write(&mut self, text: &[u8], lines: u64) {
        if self.failed.is_some_and(|failed| failed.elapsed() < PAUSE) {
            return self.metrics.access_lines_lost(lines);
        }
        match self.try_write(text) {
            Ok(()) => self.failed = None,
            Err(error) => {
                self.failed = Some(Instant::now());
                self.metrics.access_lines_lost(lines);
                if let Some(left_out) = FAILURES.permit("write") {
                    tracing::error!(
                        %error,
                        left_out,
                        "the access log cannot be written, and lines of it are lost; check its \
                         disk or its daemon"
                    );
                }
            }
        }
    }

    fn try_write(&mut self, text: &[u8]) -> io::Result<()> {
        let is_asked = self.reopen.swap(false, Ordering::AcqRel);
        if self.failed.is_some() {
            self.output.open_again()?;
            // The last write may have ended within a line.
            if self.output.ends_within_a_line()? {
                self.output.write(b"\n")?;
            }
        } else if is_asked && let Err(error) = self.output.open_again() {
            // The file that was moved away takes the lines until then, so that none is lost.
            self.reopen.store(true, Ordering::Release);
            if let Some(left_out) = FAILURES.permit("open") {
                tracing::error!(
                    %error,
                    left_out,
                    "the access log cannot be opened again; check its directory"
                );
            }
        }
        self.output.write(text)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::path::{Path, PathBuf};

    use tempfile::TempDir;

    use super::super::Queue;
    use super::super::line::tests::line;
    use super::*;

    fn writer(output: Output) -> Writer {
        let fields = vec![AccessField::Status, AccessField::Bytes];
        let settings = AccessSettings { is_text: true, fields, ..AccessSettings::default() };
        Writer::new(output, &settings, Arc::default(), Metrics::new().unwrap())
    }

    /// A log daemon with its socket.
    struct Daemon {
        directory: TempDir,
        socket: Option<UnixDatagram>,
    }

    impl Daemon {
        fn start() -> Daemon {
            let mut daemon = Daemon { directory: tempfile::tempdir().unwrap(), socket: None };
            daemon.start_again();
            daemon
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("log")
        }

        fn stop(&mut self) {
            self.socket = None;
            std::fs::remove_file(self.path()).unwrap();
        }

        fn start_again(&mut self) {
            self.socket = Some(UnixDatagram::bind(self.path()).unwrap());
        }

        /// Returns the next line that it gets.
        fn next(&self) -> String {
            let mut datagram = [0; 200];
            let length = self.socket.as_ref().unwrap().recv(&mut datagram).unwrap();
            String::from_utf8(datagram[..length].to_vec()).unwrap()
        }
    }

    /// Starts a writer, and returns what adds this many lines and waits until they are written.
    fn started(writer: Writer) -> impl Fn(usize) {
        let (queue, waiting) = Queue::of(&writer, 1000);
        writer.start(waiting).unwrap();
        move |count| {
            (0..count).for_each(|_| assert!(queue.push(line())));
            assert_eq!(queue.flush(Duration::from_secs(60)), 0);
        }
    }

    #[test]
    fn flush_returns_after_all_lines_before_it_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("log");
        let write = started(writer(Output::file(&file).unwrap()));
        for round in 1..=3 {
            write(700);
            let text = std::fs::read_to_string(&file).unwrap();
            assert_eq!(text, "status=206 bytes=1000\n".repeat(700 * round));
        }
    }

    #[test]
    fn full_queue_is_flushed_too_and_a_stalled_output_for_the_limit_only() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("log");
        let writer = writer(Output::file(&file).unwrap());
        let (queue, waiting) = Queue::of(&writer, 3);
        (0..3).for_each(|_| assert!(queue.push(line())));
        assert!(!queue.push(line()));
        assert_eq!(queue.flush(Duration::from_millis(1)), 3);
        writer.start(waiting).unwrap();
        assert_eq!(queue.flush(Duration::from_secs(60)), 0);
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 3);
    }

    #[test]
    fn restarted_daemon_loses_no_line() {
        let mut daemon = Daemon::start();
        let mut writer = writer(Output::syslog(&daemon.path()).unwrap());
        daemon.stop();
        daemon.start_again();
        writer.write(b"a\nb\n", 2);
        for line in ["a", "b"] {
            assert!(daemon.next().ends_with(line));
        }
    }

    #[test]
    fn log_daemon_gets_a_datagram_for_each_line() {
        let daemon = Daemon::start();
        started(writer(Output::syslog(&daemon.path()).unwrap()))(2);
        let expected = format!("<30>loangate[{}]: status=206 bytes=1000", std::process::id());
        for _ in 0..2 {
            assert_eq!(daemon.next(), expected);
        }
    }

    #[test]
    fn output_that_failed_is_opened_again_and_the_lost_lines_are_counted() {
        let mut daemon = Daemon::start();
        let mut writer = writer(Output::syslog(&daemon.path()).unwrap());
        daemon.stop();
        let lost = |writer: &Writer| {
            let text = writer.metrics.render();
            let line = text.lines().find(|line| line.starts_with("loangate_access_lines_lost"));
            line.unwrap().rsplit(' ').next().unwrap().to_owned()
        };
        writer.write(b"a\n", 1);
        daemon.start_again();
        writer.write(b"b\n", 1);
        assert_eq!(lost(&writer), "2", "it is left alone for a second");
        writer.failed = Instant::now().checked_sub(PAUSE);
        writer.write(b"c\n", 1);
        assert!(daemon.next().ends_with(": c"));
        assert_eq!(lost(&writer), "2");
    }

    #[test]
    fn line_after_a_full_disk_begins_on_a_line_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("log");
        std::fs::write(&file, "status=2").unwrap();
        let full = Output::file(Path::new("/dev/full")).unwrap();
        let mut writer = writer(full);
        writer.write(b"06\n", 1);
        assert!(writer.failed.is_some());
        writer.output = Output::file(&file).unwrap();
        writer.failed = Instant::now().checked_sub(PAUSE);
        writer.write(b"status=200\n", 1);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "status=2\nstatus=200\n");
        // No empty line where the last one is whole.
        writer.failed = Instant::now().checked_sub(PAUSE);
        writer.write(b"status=201\n", 1);
        assert!(std::fs::read_to_string(&file).unwrap().ends_with("0\nstatus=201\n"));
    }
}
