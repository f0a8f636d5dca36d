//! The built program as a process: starts it, sends signals, reads its memory use, and kills it.
//!
//! No function blocks the test's runtime for long, since the sandbox and the origin run on it.
//! Dropping the handle kills the process. If the test fails, the log is printed.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

/// Timeout for a start, and for an end that nothing delays.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `loangate serve` process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) child: Child,
    /// The JSON line that the process printed when it was ready.
    pub(crate) ready: Value,
    /// Time from the start until the ready line.
    pub(crate) took: Duration,
    /// File of its standard error.
    pub(crate) log: PathBuf,
    /// Kept open, so that a later write to standard output does not fail.
    _stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts `loangate serve` with this configuration. `ready` has `base_url` and `admin_url`.
    pub(crate) async fn serve(config: &Path) -> Process {
        let mut command = program("serve");
        command.arg("--config").arg(config);
        Process::start(command, config.with_file_name("serve.log")).await
    }

    /// Like [`Process::serve`], under a wrapper that runs its arguments, such as a debugger.
    pub(crate) async fn serve_within(mut wrapper: Command, config: &Path) -> Process {
        wrapper.arg(env!("CARGO_BIN_EXE_loangate")).arg("serve").arg("--config").arg(config);
        Process::start(wrapper, config.with_file_name("serve.log")).await
    }

    /// Like [`Process::serve`], with another version of the program.
    pub(crate) async fn serve_by(other: &OsStr, config: &Path) -> Process {
        let mut command = Command::new(other);
        command.arg("serve").arg("--config").arg(config);
        Process::start(command, config.with_file_name("serve.log")).await
    }

    /// Like [`Process::serve`]. The process aborts itself at this point (`src/crash.rs`).
    pub(crate) async fn serve_until(config: &Path, place: &str) -> Process {
        let mut command = program("serve");
        command.arg("--config").arg(config).env("LOANGATE_CRASH", place);
        Process::start(command, config.with_file_name("serve.log")).await
    }

    /// Like [`Process::serve`], with this environment variable.
    pub(crate) async fn serve_with(config: &Path, variable: &str, value: &str) -> Process {
        let mut command = program("serve");
        command.arg("--config").arg(config).env(variable, value);
        Process::start(command, config.with_file_name("serve.log")).await
    }

    /// Like [`Process::serve_until`], for a point before any request. Returns the exit status.
    pub(crate) async fn serve_until_death(config: &Path, place: &str) -> ExitStatus {
        let mut command = program("serve");
        let errors =
            OpenOptions::new().create(true).append(true).open(config.with_file_name("serve.log"));
        command.arg("--config").arg(config).env("LOANGATE_CRASH", place);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors.unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                return child.wait().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Like [`Process::serve_until`]. Returns none if the process ended before it was ready.
    pub(crate) async fn try_serve_until(config: &Path, place: &str) -> Option<Process> {
        let mut command = program("serve");
        command.arg("--config").arg(config).env("LOANGATE_CRASH", place);
        Process::try_start(command, config.with_file_name("serve.log")).await
    }

    /// Returns whether the process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Starts the command, to which it adds `--json`, and waits for its ready line.
    pub(crate) async fn start(command: Command, log: PathBuf) -> Process {
        let started = Process::try_start(command, log.clone()).await;
        started.unwrap_or_else(|| {
            panic!(
                "the process did not become ready: {}",
                std::fs::read_to_string(&log).unwrap_or_default()
            )
        })
    }

    /// Starts the command and waits for its ready line. Returns none without one.
    async fn try_start(mut command: Command, log: PathBuf) -> Option<Process> {
        // Appended, so that the log of an earlier, killed process is kept.
        let errors = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let began = Instant::now();
        let mut child = command
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let reading = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).map(|_| (line, stdout))
        });
        let read = tokio::time::timeout(PATIENCE, reading).await;
        let took = began.elapsed();
        let ready = match &read {
            Ok(Ok(Ok((line, _)))) => serde_json::from_str(line).ok(),
            _ => None,
        };
        let (Some(ready), Ok(Ok(Ok((_, stdout))))) = (ready, read) else {
            let _ = child.kill(); // also ends the reader task
            let _ = child.wait();
            return None;
        };
        Some(Process { child, ready, took, log, _stdout: stdout })
    }

    /// Returns a text member of the ready line.
    pub(crate) fn ready_field(&self, name: &str) -> String {
        self.ready[name]
            .as_str()
            .unwrap_or_else(|| panic!("no {name} in {}", self.ready))
            .to_owned()
    }

    /// Sends SIGKILL and waits until the process is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM, by the `kill` command, since the standard library has no call for it.
    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends SIGHUP, which reloads keys and tables.
    pub(crate) fn reload(&self) {
        self.signal("-HUP");
    }

    /// Sends SIGSTOP: the process keeps its connections and locks, and does nothing.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    /// Sends SIGCONT, which continues a paused process.
    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let sent =
            Command::new("kill").arg(signal).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success(), "cannot send {signal}");
    }

    /// Returns whether the process still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until the process has ended.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the process did not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns its peak resident memory, in KiB.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.status("VmHWM")
    }

    /// Returns its resident memory, in KiB.
    pub(crate) fn memory(&self) -> u64 {
        self.status("VmRSS")
    }

    fn status(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(60)..).unwrap_or_default();
            println!("the last lines of the process log:\n{}", tail.join("\n"));
        }
    }
}

fn program(command: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_loangate"));
    program.arg(command);
    program
}
