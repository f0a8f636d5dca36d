//! The built program as a process of its own: started, asked how much memory it takes, told to
//! stop, killed.
//!
//! Nothing here blocks the test's runtime for longer than a moment, since the sandbox and the
//! origin run on it. The process is killed when its handle is dropped; what it logged is shown
//! where the test fails.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

/// How long a start may take, and an end that nothing holds up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `loangate`.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) child: Child,
    /// What it said when it was ready.
    pub(crate) ready: Value,
    /// How long that took.
    pub(crate) took: Duration,
    /// Where its standard error goes.
    pub(crate) log: PathBuf,
    /// Kept open, so that a later line of its would not end it.
    _stdout: BufReader<ChildStdout>,
}

impl Process {
    /// `loangate serve` under this configuration; `ready` has `base_url` and `admin_url`.
    pub(crate) async fn serve(config: &Path) -> Process {
        let mut command = program("serve");
        command.arg("--config").arg(config);
        Process::start(command, config.with_file_name("serve.log")).await
    }

    /// As [`Process::serve`], by a program that runs the command it is given, as a debugger does.
    pub(crate) async fn serve_within(mut wrapper: Command, config: &Path) -> Process {
        wrapper.arg(env!("CARGO_BIN_EXE_loangate")).arg("serve").arg("--config").arg(config);
        Process::start(wrapper, config.with_file_name("serve.log")).await
    }

    /// As [`Process::serve`], to end itself at this place (`src/crash.rs`).
    pub(crate) async fn serve_until(config: &Path, place: &str) -> Process {
        let mut command = program("serve");
        command.arg("--config").arg(config).env("LOANGATE_CRASH", place);
        Process::start(command, config.with_file_name("serve.log")).await
    }

    /// As [`Process::serve`], with this variable in its environment.
    pub(crate) async fn serve_with(config: &Path, variable: &str, value: &str) -> Process {
        let mut command = program("serve");
        command.arg("--config").arg(config).env(variable, value);
        Process::start(command, config.with_file_name("serve.log")).await
    }

    /// As [`Process::serve_until`], for a place that it comes to by itself: how it ended.
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

    /// Starts it and waits for its ready line.
    async fn start(mut command: Command, log: PathBuf) -> Process {
        // Appended, so that the log of a process that was killed before is there as well.
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
            let _ = child.kill(); // which also ends the reading
            let _ = child.wait();
            panic!("it never became ready: {}", std::fs::read_to_string(&log).unwrap_or_default());
        };
        Process { child, ready, took, log, _stdout: stdout }
    }

    /// A text of the ready line.
    pub(crate) fn told(&self, name: &str) -> String {
        self.ready[name]
            .as_str()
            .unwrap_or_else(|| panic!("no {name} in {}", self.ready))
            .to_owned()
    }

    /// SIGKILL, and nothing of it is left when this returns.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM. The library has no safe call for it; every system has the command.
    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    /// SIGHUP: reload.
    pub(crate) fn hang_up(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        let sent =
            Command::new("kill").arg(signal).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success(), "{signal} could not be sent");
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The most memory that it has had resident, in KiB.
    pub(crate) fn most_memory(&self) -> u64 {
        self.status("VmHWM")
    }

    /// The memory that it has resident now, in KiB.
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
            println!("the end of what the process logged:\n{}", tail.join("\n"));
        }
    }
}

fn program(command: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_loangate"));
    program.arg(command);
    program
}
