//! The cluster that `tests/examples/cluster.sh` runs: each line that it prints does what its
//! comment says, and nothing is left behind.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::sleep;

use crate::support::external_program::{direct, free_ports, output_text, system_file};
use crate::support::{Postgres, metric, program};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/examples/cluster.sh");
/// Ports that the script uses.
const PORTS: u16 = 9;
/// Timeout for what takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A running script. Dropping it ends the script with SIGTERM.
struct Example {
    script: Child,
    directory: PathBuf,
    /// The lines for a reader to try, without their comments.
    steps: Vec<String>,
    stdout: BufReader<ChildStdout>,
}

impl Example {
    /// Starts the script and waits until it is ready.
    fn start(directory: &Path, port: u16) -> Example {
        let mut script = direct(Path::new("sh"));
        script.arg(SCRIPT).env("LOANGATE", env!("CARGO_BIN_EXE_loangate"));
        script.env("CLUSTER_DIR", directory).env("CLUSTER_PORT", port.to_string());
        let mut script = script.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(script.stdout.take().unwrap());
        let directory = directory.to_owned();
        let mut example = Example { script, directory, steps: Vec::new(), stdout };
        let mut is_step = false;
        loop {
            let mut line = String::new();
            let read = example.stdout.read_line(&mut line).unwrap();
            assert!(read > 0, "the script ended: {:?}", example.script.wait());
            if is_step {
                example.steps.push(line.trim().to_owned());
            }
            is_step = line.starts_with("# ");
            if line.contains("Ctrl-C") {
                return example;
            }
        }
    }

    /// Runs the line of a step, from 1.
    fn step(&self, number: usize) -> Output {
        self.shell(number).output().unwrap()
    }

    fn shell(&self, number: usize) -> Command {
        let mut shell = direct(Path::new("sh"));
        shell.args(["-c", &self.steps[number - 1]]).stdin(Stdio::null());
        shell
    }

    /// Runs a step until it prints this.
    async fn until_prints(&self, number: usize, expected: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.step(number);
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if text == expected {
                return;
            }
            assert!(Instant::now() < deadline, "step {number}: {}", output_text(&output));
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Returns the states of all loans at the simulated Bokbasen.
    fn loans(&self) -> Vec<String> {
        let books: Value = serde_json::from_slice(&self.step(6).stdout).unwrap();
        let loans = books["loans"].as_array().unwrap().iter();
        loans.map(|loan| loan["status"].as_str().unwrap().to_owned()).collect()
    }

    /// Returns the number of running streams of the gate with this admin port.
    fn streams(&self, port: u16) -> f64 {
        let line = format!(
            "curl -q -sS -H \"Authorization: Bearer $(cat {}/certs/admin.token)\" \
             http://127.0.0.1:{port}/metrics",
            self.directory.display()
        );
        let output = direct(Path::new("sh")).args(["-c", &line]).output().unwrap();
        metric(&String::from_utf8_lossy(&output.stdout), "loangate_streams", "")
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.script.id().try_into().unwrap()).unwrap();
        let _ = kill_process(pid, signal);
    }

    /// Returns how many processes name the directory of the cluster.
    fn processes(&self) -> usize {
        let name = format!("{}/", self.directory.display());
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let commands = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        commands.filter(|command| String::from_utf8_lossy(command).contains(&name)).count()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let _ = self.script.wait();
    }
}

#[tokio::test]
async fn lines_of_the_example_do_what_they_say_and_nothing_remains() {
    let programs = [system_file("/usr/sbin/haproxy", "haproxy"), program("curl", "curl")];
    if !Postgres::is_installed() || programs.contains(&None) {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    // The user of PostgreSQL reaches its own directory inside.
    fs::set_permissions(parent.path(), Permissions::from_mode(0o711)).unwrap();
    let (directory, port) = (parent.path().join("cluster"), free_ports(PORTS));

    let mut example = Example::start(&directory, port);
    example.until_prints(1, "200").await;
    let mut stream = example.shell(2).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while example.streams(port + 4) != 1.0 {
        assert!(Instant::now() < deadline, "step 2 streams nothing: {:?}", example.loans());
        sleep(POLL_INTERVAL).await;
    }
    assert_eq!(example.loans(), ["ACCEPTED", "ACCEPTED"]);
    example.until_prints(3, "204").await;
    assert!(!stream.wait().unwrap().success(), "the stream is complete after the return");
    while example.loans() != ["ACCEPTED", "RETURNED"] {
        assert!(Instant::now() < deadline, "the end is not sent: {:?}", example.loans());
        sleep(POLL_INTERVAL).await;
    }
    for kill in [4, 5] {
        assert!(example.step(kill).status.success(), "step {kill}");
        example.until_prints(1, "200").await;
    }
    example.signal(Signal::KILL);
    example.script.wait().unwrap();
    assert!(example.processes() > 0, "the cluster outlives the kill of its script");

    let mut example = Example::start(&directory, port);
    example.until_prints(1, "200").await;
    example.signal(Signal::TERM);
    assert!(!example.script.wait().unwrap().success());
    assert_eq!(example.processes(), 0, "processes are left");
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0, "files are left");
}
