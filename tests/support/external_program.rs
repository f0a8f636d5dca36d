//! Other people's programs that a test drives: looked for, done without where they are not
//! installed, and ended.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tokio::time::Instant;

/// How long a program may take, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked whether it is done.
const LOOK: Duration = Duration::from_millis(10);

/// Where this program is. Where it is not, a sentence says how to get it, and the test is to
/// return; under LOANGATE_TEST_ALL=1 it fails instead, so that a complete run cannot leave anything
/// out without being seen.
pub(crate) fn program(name: &str, package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        skipped(name, package);
    }
    found
}

/// As [`program`], for any file of a package.
pub(crate) fn system_file(path: &str, package: &str) -> Option<PathBuf> {
    let file = PathBuf::from(path);
    if file.is_file() {
        return Some(file);
    }
    skipped(path, package);
    None
}

/// Reports a test that is skipped for want of this.
fn skipped(name: &str, package: &str) {
    let sentence = format!("skipped: {name} is not installed; apt-get install {package}");
    let all = std::env::var("LOANGATE_TEST_ALL").is_ok_and(|all| all == "1");
    assert!(!all, "{sentence}");
    // Not by print!, which the test harness keeps to itself where a test passes.
    let _ = writeln!(std::io::stderr(), "{sentence}");
}

/// A command of this program that knows of no proxy, so that it goes to the gate itself.
pub(crate) fn direct(program: &Path) -> Command {
    let mut command = Command::new(program);
    for name in ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command
}

/// ffprobe's or ffmpeg's options that make it trust the gate; it refuses other certificates.
pub(crate) fn trusting(file: &Path, ca: &Path) -> Command {
    let mut command = direct(file);
    command.args(["-v", "error", "-tls_verify", "1", "-ca_file"]).arg(ca);
    command
}

/// A process that does not outlive its handle.
#[derive(Debug)]
pub(crate) struct Held(pub(crate) Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs it to its end, which must come, while the gate goes on beside it.
pub(crate) async fn run(command: &mut Command) -> Output {
    let (mut stdout, mut stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().unwrap())
        .stderr(stderr.try_clone().unwrap());
    let mut process = Held(command.spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = process.0.try_wait().unwrap() {
            break status;
        }
        let late = Instant::now() > deadline;
        assert!(!late, "no end of {command:?}: {}{}", text(&mut stdout), text(&mut stderr));
        tokio::time::sleep(LOOK).await;
    };
    Output { status, stdout: written(&mut stdout), stderr: written(&mut stderr) }
}

/// Everything that it wrote.
pub(crate) fn said(ran: &Output) -> String {
    [&ran.stdout, &ran.stderr].map(|text| String::from_utf8_lossy(text)).concat()
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
