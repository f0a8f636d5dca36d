//! Finds, runs and ends external programs. A test whose program is not installed is skipped.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tokio::time::Instant;

/// Timeout for a program, also on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);
/// Interval at which a program is polled for its exit.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Finds a program in `PATH`.
///
/// Where it is missing, prints how to install it and returns `None`; the test then returns. With
/// `LOANGATE_TEST_ALL=1` it panics instead, so that a complete run cannot skip a test unnoticed.
pub(crate) fn program(name: &str, package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        skipped(name, &format!("apt-get install {package}"));
    }
    found
}

/// Like [`program`], for a file that is not of a Debian package. `install` is the command that
/// installs it.
pub(crate) fn installed(file: &Path, install: &str) -> bool {
    let is_installed = file.is_file();
    if !is_installed {
        skipped(&file.display().to_string(), install);
    }
    is_installed
}

/// Like [`program`], for any file of a package.
pub(crate) fn system_file(path: &str, package: &str) -> Option<PathBuf> {
    let file = PathBuf::from(path);
    if file.is_file() {
        return Some(file);
    }
    skipped(path, &format!("apt-get install {package}"));
    None
}

/// Reports that a test is skipped because this file is missing, and the command that installs it.
fn skipped(name: &str, install: &str) {
    let sentence = format!("skipped: {name} is not installed; {install}");
    let all = std::env::var("LOANGATE_TEST_ALL").is_ok_and(|all| all == "1");
    assert!(!all, "{sentence}");
    // The test harness captures `print!` of passing tests.
    let _ = writeln!(std::io::stderr(), "{sentence}");
}

/// Returns the first of this number of free ports, below the ephemeral range.
pub(crate) fn free_ports(number: u16) -> u16 {
    let is_free = |first: &u16| {
        (*first..*first + number).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
    };
    std::iter::repeat_with(|| fastrand::u16(16_000..32_000)).find(is_free).unwrap()
}

/// Returns a command that ignores proxy settings and so connects to the gate directly.
pub(crate) fn direct(program: &Path) -> Command {
    let mut command = Command::new(program);
    for name in ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command
}

/// Returns an ffprobe or ffmpeg command that accepts only certificates of this CA.
pub(crate) fn trusting(file: &Path, ca: &Path) -> Command {
    let mut command = direct(file);
    command.args(["-v", "error", "-tls_verify", "1", "-ca_file"]).arg(ca);
    command
}

/// A child process, killed when it is dropped.
#[derive(Debug)]
pub(crate) struct OwnedProcess(pub(crate) Child);

impl Drop for OwnedProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end without blocking the runtime of the gate. Panics after [`PATIENCE`].
pub(crate) async fn run(command: &mut Command) -> Output {
    run_within(command, PATIENCE).await
}

/// As [`run`], with another patience.
pub(crate) async fn run_within(command: &mut Command, patience: Duration) -> Output {
    let (mut stdout, mut stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().unwrap())
        .stderr(stderr.try_clone().unwrap());
    let mut process = OwnedProcess(command.spawn().unwrap());
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = process.0.try_wait().unwrap() {
            break status;
        }
        let late = Instant::now() > deadline;
        assert!(!late, "no end of {command:?}: {}{}", text(&mut stdout), text(&mut stderr));
        tokio::time::sleep(POLL_INTERVAL).await;
    };
    Output { status, stdout: written(&mut stdout), stderr: written(&mut stderr) }
}

/// Returns standard output and standard error as one text.
pub(crate) fn output_text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

fn written(file: &mut File) -> Vec<u8> {
    let mut written = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut written).unwrap();
    written
}

fn text(file: &mut File) -> String {
    String::from_utf8_lossy(&written(file)).into_owned()
}
