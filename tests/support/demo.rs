//! `loangate demo` as a process: a stand-in for Bokbasen, a small storage and the gate, on free
//! ports.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tempfile::TempDir;

/// Timeout for the start, also on a machine that is busy with other tests.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running demo, killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Demo {
    child: Child,
    ready: Value,
    dir: TempDir,
}

impl Demo {
    pub(crate) fn start() -> Demo {
        Demo::start_with_log("info")
    }

    /// Starts a demo with this level in `LOANGATE_LOG`.
    pub(crate) fn start_with_log(level: &str) -> Demo {
        Demo::start_in(tempfile::tempdir().unwrap(), level, &[])
    }

    /// Starts a demo that opens its page in the browser of this directory.
    pub(crate) fn start_with_browser(directory: &Path) -> Demo {
        let mut command = Demo::command();
        command.arg("--open").env("PATH", directory);
        Demo::start_command(command, tempfile::tempdir().unwrap(), "info")
    }

    /// Kills the demo and starts another one with its files and these arguments.
    pub(crate) fn restart_with(mut self, arguments: &[&str]) -> Demo {
        self.kill();
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        Demo::start_in(dir, "info", arguments)
    }

    /// Kills the demo. Its files stay.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn command() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
        command
            .args(["demo", "--json", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--sandbox", "127.0.0.1:0", "--origin", "127.0.0.1:0"]);
        command
    }

    fn start_in(dir: TempDir, level: &str, arguments: &[&str]) -> Demo {
        let mut command = Demo::command();
        command.args(arguments);
        Demo::start_command(command, dir, level)
    }

    fn start_command(mut command: Command, dir: TempDir, level: &str) -> Demo {
        let mut child = command
            .arg("--dir")
            .arg(dir.path().join("demo"))
            .env("LOANGATE_LOG", level)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut demo = Demo { child, ready: Value::Null, dir }; // from here on a panic kills it
        let (sender, line) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = out.read_line(&mut line);
            let _ = sender.send(read.map(|_| line));
        });
        let line = line.recv_timeout(START_TIMEOUT).expect("the demo printed nothing").unwrap();
        demo.ready = serde_json::from_str(&line).unwrap_or_else(|error| {
            panic!("the demo printed {line:?}, {error}; its log: {}", demo.log())
        });
        demo
    }

    /// Returns the directory in which the demo stores everything.
    pub(crate) fn dir(&self) -> PathBuf {
        self.dir.path().join("demo")
    }

    /// Reads a text file of that directory and trims it.
    pub(crate) fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir().join(name)).unwrap().trim().to_owned()
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir().join("certs/ca.pem")
    }

    /// Returns a member of the JSON line that the demo prints when it is ready, such as `base_url`.
    pub(crate) fn ready_field(&self, name: &str) -> &str {
        self.ready[name].as_str().unwrap_or_else(|| panic!("no {name} in the demo's ready line"))
    }

    /// Returns the gate's base URL with the host name of its certificate.
    pub(crate) fn base(&self) -> String {
        self.ready_field("base_url").replace("127.0.0.1", "localhost")
    }

    /// Returns the token of a reader of the demo.
    pub(crate) fn token(&self, reader: &str) -> String {
        let field = self.text(&format!("readers/{reader}"));
        field.strip_prefix("Authorization: Bearer ").unwrap().to_owned()
    }

    /// Runs `loangate token` with these arguments and the demo's keys, and returns its output.
    pub(crate) fn mint(&self, kind: &str, arguments: &[&str]) -> String {
        let made = Command::new(env!("CARGO_BIN_EXE_loangate"))
            .args(["token", kind, "--config"])
            .arg(self.dir().join("config.toml"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }

    /// Returns what the demo has written to standard error so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.path().join("log")).unwrap()).into_owned()
    }

    /// Returns a client that trusts the gate's certificate and can also use plain HTTP.
    pub(crate) fn client(&self) -> reqwest::Client {
        let ca = std::fs::read(self.ca()).unwrap();
        reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([reqwest::Certificate::from_pem(&ca).unwrap()])
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(60))
            .build()
            .unwrap()
    }

    /// Sends an authorized GET to the admin listener and returns the body.
    pub(crate) async fn admin(&self, path: &str) -> String {
        let url = format!("{}{path}", self.ready_field("admin_url"));
        let request = self.client().get(url).bearer_auth(self.ready_field("admin_token"));
        request.send().await.unwrap().error_for_status().unwrap().text().await.unwrap()
    }

    /// Waits for a line of the log that has all these words, and returns its time.
    pub(crate) async fn time_of_line(&self, words: &[&str]) -> Timestamp {
        let time = || {
            let log = self.log();
            let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)))?;
            line.split_whitespace().next()?.parse().ok()
        };
        super::until(&format!("{words:?} in the log"), async || time().is_some()).await;
        time().unwrap()
    }

    /// Waits until all bodies are sent, so that the log has a line for each.
    pub(crate) async fn wait_for_streams(&self) {
        super::until("all bodies are sent", async || {
            super::metric(&self.admin("/metrics").await, "loangate_streams", "") == 0.0
        })
        .await;
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns every file below this directory.
pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// Returns whether a file of a ledger below this directory contains these bytes.
pub(crate) fn is_in_files(directory: &Path, bytes: &[u8]) -> bool {
    let files = files_below(directory);
    let is_database = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "db");
    assert!(files.iter().any(is_database));
    files.iter().any(|file| {
        // SQLite deletes a journal when its connection closes, so a listed file may be gone.
        let content = match std::fs::read(file) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_database(file) => {
                return false;
            }
            Err(error) => panic!("cannot read {}: {error}", file.display()),
        };
        content.windows(bytes.len()).any(|window| window == bytes)
    })
}
