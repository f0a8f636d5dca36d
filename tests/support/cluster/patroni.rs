//! Two PostgreSQL servers that Patroni manages, as `tests/examples/ha.sh` starts them.

use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::support::external_program::{direct, free_ports, output_text, run};
use crate::support::{Postgres, program};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/examples/ha.sh");
/// Ports that the script uses. The API of Patroni of the first node has the fifth.
const PORTS: u16 = 8;
const FIRST_API: u16 = 4;
const NODES: [&str; 2] = ["node-1", "node-2"];
/// Runs the script of its argument. At the end of its standard input, which is at the latest the
/// end of the test process, ends the script, which ends its services.
const WATCHDOG: &str = r#"
exec 3<&0
sh "$1" </dev/null 3<&- &
exec >&2
read -r word <&3
kill $!
wait $!
"#;
/// Timeout for a standby that becomes primary, and for a node that is a synchronous standby again.
const PATIENCE: Duration = Duration::from_secs(120);
/// Timeout of one request to Patroni.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The running servers. Dropping them ends everything that the script started.
#[derive(Debug)]
pub(crate) struct Patroni {
    watchdog: Child,
    control: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    directory: TempDir,
    port: u16,
    /// The lines of `[ledger]` that the script prints, one text for each kind of connection.
    ledgers: Vec<String>,
    client: reqwest::Client,
}

impl Patroni {
    /// Starts the servers. Returns `None` where a program of them is not installed.
    pub(super) async fn start() -> Option<Patroni> {
        let packages = [
            ("patroni", "patroni"),
            ("etcd", "etcd-server"),
            ("pgbouncer", "pgbouncer"),
            ("curl", "curl"),
        ];
        let missing = packages.iter().any(|(name, package)| program(name, package).is_none());
        if missing || !Postgres::is_installed() {
            return None;
        }
        let directory = tempfile::Builder::new().prefix("loangate-ha-").tempdir().unwrap();
        // The user of PostgreSQL reaches its own directories inside.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).unwrap();
        tokio::task::spawn_blocking(|| Patroni::start_in(directory)).await.unwrap().into()
    }

    fn start_in(directory: TempDir) -> Patroni {
        let port = free_ports(PORTS);
        let mut command = script_command("sh", directory.path(), port);
        command.args(["-c", WATCHDOG, "watchdog", SCRIPT]);
        // A group of its own, so that the terminal's Ctrl-C does not end the watchdog.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut watchdog = command.spawn().unwrap();
        let mut patroni = Patroni {
            control: watchdog.stdin.take(),
            stdout: BufReader::new(watchdog.stdout.take().unwrap()),
            watchdog,
            directory,
            port,
            ledgers: Vec::new(),
            client: reqwest::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).build().unwrap(),
        };
        patroni.read_ledgers();
        patroni
    }

    /// Reads what the script prints until it is ready.
    fn read_ledgers(&mut self) {
        let mut is_ledger = false;
        loop {
            let mut line = String::new();
            let read = self.stdout.read_line(&mut line).unwrap();
            assert!(read > 0, "the script of Patroni ended");
            if line.starts_with("[ledger]") {
                self.ledgers.push(String::new());
                is_ledger = true;
            } else if line.trim().is_empty() && self.ledgers.last().is_some_and(|l| !l.is_empty()) {
                is_ledger = false;
            } else if is_ledger {
                self.ledgers.last_mut().unwrap().push_str(&line);
            }
            if line.contains("Ctrl-C") {
                return;
            }
        }
    }

    /// Returns the lines of `[ledger]` of a gate: the first one connects to PostgreSQL, the second
    /// one through PgBouncer.
    pub(super) fn lines(&self, gate: usize) -> &str {
        &self.ledgers[gate % self.ledgers.len()]
    }

    /// Kills the primary and its Patroni with SIGKILL. Returns its name.
    pub(crate) async fn kill_primary(&self) -> String {
        let mut command = script_command("sh", self.directory.path(), self.port);
        let output = run(command.args([SCRIPT, "kill-primary"])).await;
        assert!(output.status.success(), "{}", output_text(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Waits until another node than this one is primary.
    pub(crate) async fn until_another_is_primary(&self, killed: &str) {
        let other = NODES.into_iter().find(|node| *node != killed).unwrap();
        self.until(&format!("{other} is primary"), async || self.has_role(other, "primary").await)
            .await;
    }

    /// Waits until one node is primary and the other one its synchronous standby.
    pub(crate) async fn until_synchronous(&self) {
        self.until("there is a synchronous standby", async || {
            let [first, second] = NODES;
            self.has_role(first, "primary").await && self.has_role(second, "sync").await
                || self.has_role(second, "primary").await && self.has_role(first, "sync").await
        })
        .await;
    }

    async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds().await {
            assert!(Instant::now() < deadline, "not in time: {what}. {:?}", self.cluster().await);
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Returns whether Patroni says that its node has this role: `primary` or `sync`.
    async fn has_role(&self, node: &str, role: &str) -> bool {
        let response = self.client.get(self.api(node, role)).send().await;
        response.is_ok_and(|response| response.status().is_success())
    }

    /// Returns the state of both nodes, for messages of failed tests.
    async fn cluster(&self) -> Vec<Value> {
        let mut states = Vec::new();
        for node in NODES {
            if let Ok(response) = self.client.get(self.api(node, "cluster")).send().await {
                states.push(response.json().await.unwrap_or_default());
            }
        }
        states
    }

    fn api(&self, node: &str, path: &str) -> String {
        let number = NODES.iter().position(|name| *name == node).unwrap();
        let port = self.port + FIRST_API + u16::try_from(number).unwrap();
        format!("http://127.0.0.1:{port}/{path}")
    }
}

impl Drop for Patroni {
    fn drop(&mut self) {
        self.control = None;
        let _ = self.watchdog.wait();
    }
}

/// Returns a command with the script's environment.
fn script_command(program: &str, directory: &Path, port: u16) -> Command {
    let mut command = direct(Path::new(program));
    command.env("HA_DIR", directory.join("ha")).env("HA_PORT", port.to_string());
    command
}
