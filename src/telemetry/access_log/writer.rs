//! The thread that writes lines.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use super::output::Output;
use super::{AccessField, AccessLine, AccessSettings};
use crate::telemetry::{LogLimit, Metrics};

/// The lines of one write.
const BATCH: usize = 256;
/// How long an output that has failed is left alone.
const PAUSE: Duration = Duration::from_secs(1);

static FAILURES: LogLimit = LogLimit::per_minute();

/// What is in the queue.
#[derive(Debug)]
pub(super) enum Item {
    Line(AccessLine),
    /// Is told when all lines before it are written.
    Flush(SyncSender<()>),
}

/// Writes lines until all senders are gone.
#[derive(Debug)]
pub(super) struct Writer {
    output: Output,
    is_text: bool,
    fields: Vec<AccessField>,
    reopen: Arc<AtomicBool>,
    metrics: Metrics,
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
        Writer { output, is_text, fields, reopen, metrics, failed: None }
    }

    /// Starts the thread.
    pub(super) fn start(self, items: Receiver<Item>) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        thread.spawn(move || self.run(&items)).map(|_| ())
    }

    fn run(mut self, items: &Receiver<Item>) {
        let mut text = Vec::new();
        while let Ok(first) = items.recv() {
            let (mut lines, mut flushed) = (0, Vec::new());
            text.clear();
            for item in std::iter::once(first).chain(items.try_iter()).take(BATCH) {
                match item {
                    Item::Line(line) => {
                        line.append(&self.fields, self.is_text, &mut text);
                        lines += 1;
                    }
                    Item::Flush(written) => flushed.push(written),
                }
            }
            self.write(&text, lines);
            for written in flushed {
                let _ = written.try_send(());
            }
        }
    }

    fn write(&mut self, text: &[u8], lines: u64) {
        if lines == 0 {
            return;
        }
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
            self.output.write(b"\n")?;
        } else if is_asked && let Err(error) = self.output.open_again() {
            // The file that was moved away takes the lines, so that none is lost.
            tracing::error!(%error, "the access log cannot be opened again; check its directory");
        }
        self.output.write(text)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;
    use std::sync::mpsc::sync_channel;

    use super::super::line::tests::line;
    use super::*;

    fn writer(output: Output) -> Writer {
        let fields = vec![AccessField::Status, AccessField::Bytes];
        let settings = AccessSettings { is_text: true, fields, ..AccessSettings::default() };
        Writer::new(output, &settings, Arc::default(), Metrics::new().unwrap())
    }

    /// Starts a writer, and returns what adds this many lines and waits until they are written.
    fn started(writer: Writer) -> impl Fn(usize) {
        let (queue, items) = sync_channel(1000);
        writer.start(items).unwrap();
        move |lines| {
            (0..lines).for_each(|_| queue.send(Item::Line(line())).unwrap());
            let (written, wait) = sync_channel(1);
            queue.send(Item::Flush(written)).unwrap();
            wait.recv_timeout(Duration::from_secs(60)).unwrap();
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
    fn log_daemon_gets_a_datagram_for_each_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        started(writer(Output::syslog(&path).unwrap()))(2);
        let expected = format!("<30>loangate[{}]: status=206 bytes=1000", std::process::id());
        for _ in 0..2 {
            let mut datagram = [0; 200];
            let length = daemon.recv(&mut datagram).unwrap();
            assert_eq!(String::from_utf8_lossy(&datagram[..length]), expected);
        }
    }

    #[test]
    fn output_that_failed_is_opened_again_and_the_lost_lines_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let mut writer = writer(Output::syslog(&path).unwrap());
        drop(daemon);
        std::fs::remove_file(&path).unwrap();
        let lost = |writer: &Writer| {
            let text = writer.metrics.render();
            let line = text.lines().find(|line| line.starts_with("loangate_access_lines_lost"));
            line.unwrap().rsplit(' ').next().unwrap().to_owned()
        };
        writer.write(b"a\n", 1);
        let daemon = UnixDatagram::bind(&path).unwrap();
        writer.write(b"b\n", 1);
        assert_eq!(lost(&writer), "2", "it is left alone for a second");
        writer.failed = Instant::now().checked_sub(PAUSE);
        writer.write(b"c\n", 1);
        let mut datagram = [0; 200];
        let length = daemon.recv(&mut datagram).unwrap();
        assert!(datagram[..length].ends_with(b": c"));
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
    }
}
