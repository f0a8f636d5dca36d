//! The manners of commands: exit codes, results and errors as JSON, and the progress of long work.

use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::external_program::{free_ports, output_text, program};
use crate::support::scene::initialised;

const BALANCED: &str = r#"{"balanced": true, "libraries": [], "findings": [], "more": 0}"#;

/// Timeout for what a command shows.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time in which a terminal would show several drawings.
const SEVERAL_DRAWINGS: Duration = Duration::from_secs(1);

fn loangate(dir: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
    command.current_dir(dir).args(arguments.split_whitespace());
    command.stdin(Stdio::null());
    command
}

fn output(dir: &TempDir, arguments: &str) -> Output {
    loangate(dir.path(), arguments).output().unwrap()
}

/// Runs a gate for one access, so that there is a ledger with a step.
fn with_ledger() -> TempDir {
    let dir = initialised();
    let admin = format!("\"127.0.0.1:{}\"", free_ports(1));
    edit(&dir, "\"127.0.0.1:8443\"", "\"127.0.0.1:0\"");
    edit(&dir, "\"127.0.0.1:9443\"", &admin);
    let mut gate = loangate(dir.path(), "serve --json");
    let mut gate = gate.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 1];
    gate.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    let listed = output(&dir, "loans list --json");
    let pid = rustix::process::Pid::from_child(&gate);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(gate.wait().unwrap().success());
    assert!(listed.status.success(), "{}", output_text(&listed));
    dir
}

fn edit(dir: &TempDir, from: &str, to: &str) {
    let file = dir.path().join("config.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{from} is not in\n{text}");
    std::fs::write(file, text.replace(from, to)).unwrap();
}

#[test]
fn exit_codes_are_those_of_the_help() {
    let dir = with_ledger();
    let help = output_text(&output(&dir, "--help"));
    for code in ["0  done", "1  failed, or a person", "2  the arguments are wrong"] {
        assert!(help.contains(code), "{help}");
    }
    for (code, arguments) in [
        (0, "--version"),
        (0, "ledger check"),
        (0, "audit verify"),
        (0, "ledger backup backup.db"),
        (1, "ledger backup backup.db"),
        (1, "check --config missing.toml"),
        (1, "healthcheck"),
        (1, "status"),
        (2, ""),
        (2, "ledger"),
        (2, "ledger prune"),
        (2, "ledger prune --before 2999-01-01"),
        (2, "ledger reconcile --balanced-since 2026-01-01"),
        (2, "report"),
        (2, "report --month 2026-10 --format xlsx"),
        (2, "unknown"),
    ] {
        let output = output(&dir, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {}", output_text(&output));
    }
}

#[test]
fn results_and_errors_are_json_for_scripts() {
    let dir = with_ledger();
    for (arguments, member) in [
        ("check", "mistakes"),
        ("check --diff config.toml config.toml", ""),
        ("ledger backup a.db", "backup"),
        ("ledger check", "findings"),
        ("ledger contract", "removals"),
        ("ledger prune --before 2026-01-01", "pruned"),
        ("ledger reconcile --restored", "reports_for_a_person"),
        ("audit verify", "steps"),
        ("ledger restore a.db", "replaced"),
    ] {
        let output = output(&dir, &format!("{arguments} --json"));
        assert!(output.status.success(), "{arguments}: {}", output_text(&output));
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(member.is_empty() || document.get(member).is_some(), "{arguments}: {document}");
    }
    // A check that finds something has a result, and errors.
    std::fs::remove_file(dir.path().join("data/loangate.db.head")).unwrap();
    let found = output(&dir, "audit verify --json");
    let document: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(1));
    assert!(!document["findings"].as_array().unwrap().is_empty(), "{document}");
    assert_eq!(document["findings"], errors(&found));
}

#[test]
fn errors_are_json_where_the_result_is() {
    let dir = initialised();
    edit(&dir, "\"127.0.0.1:9443\"", &format!("\"127.0.0.1:{}\"", free_ports(1)));
    std::fs::write(dir.path().join("there.db"), "").unwrap();
    for arguments in [
        "check --config missing.toml",
        "ledger backup there.db",
        "ledger check --config missing.toml",
        "ledger contract --config missing.toml",
        "ledger prune --before 2999-01-01",
        "audit verify --config missing.toml",
        "healthcheck",
        "status",
        "reload",
        "loans balance",
        "loans end --reason x 1",
        "lending list",
        "problems",
    ] {
        let output = output(&dir, &format!("{arguments} --json"));
        assert!(!output.status.success(), "{arguments}");
        let errors = errors(&output);
        let errors = errors.as_array().unwrap();
        assert!(!errors.is_empty() && errors.iter().all(Value::is_string), "{arguments}");
    }
}

/// Reads the errors from the last line of standard error.
fn errors(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    let mut errors: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("{said}"));
    errors["errors"].take()
}

/// A gate that answers a balance when the test lets it.
fn slow_gate() -> (TempDir, TcpListener) {
    let (dir, listener) = (initialised(), TcpListener::bind("127.0.0.1:0").unwrap());
    let admin = format!("\"{}\"", listener.local_addr().unwrap());
    edit(&dir, "\"127.0.0.1:9443\"", &admin);
    (dir, listener)
}

fn answer(mut connection: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let length = BALANCED.len();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
    write!(connection, "{head}content-length: {length}\r\n\r\n{BALANCED}").unwrap();
}

/// Runs a balance on a pseudo terminal.
fn on_terminal(script: &Path, dir: &TempDir, variables: &[(&str, &str)]) -> Child {
    let balance = format!("{} loans balance", env!("CARGO_BIN_EXE_loangate"));
    let mut command = Command::new(script);
    command.args(["-qefc", &balance, "/dev/null"]).current_dir(dir.path());
    command.env("TERM", "xterm").env_remove("NO_COLOR").envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn terminal_shows_progress_while_work_runs() {
    let Some(script) = program("script", "bsdutils") else { return };
    let (dir, gate) = slow_gate();
    let mut child = on_terminal(&script, &dir, &[]);
    let (connection, _) = gate.accept().unwrap();
    let shown = BufReader::new(child.stdout.take().unwrap());
    let (send, bytes) = std::sync::mpsc::channel();
    std::thread::spawn(move || shown.bytes().map_while(Result::ok).try_for_each(|b| send.send(b)));
    let mut text = Vec::new();
    let drawn = |text: &[u8]| {
        let text = String::from_utf8_lossy(text);
        text.matches("comparing the ledger with Bokbasen's loans (").count()
    };
    while drawn(&text) < 2 {
        text.push(bytes.recv_timeout(PATIENCE).unwrap());
    }
    answer(connection);
    text.extend(bytes);
    assert!(child.wait().unwrap().success());
    let text = String::from_utf8(text).unwrap();
    let result = text.rsplit("\r\u{1b}[K").next().unwrap();
    assert_eq!(result.trim(), "nothing differs", "the line is removed: {text:?}");
}

#[test]
fn nothing_is_drawn_where_it_is_not_wanted() {
    let Some(script) = program("script", "bsdutils") else { return };
    for variables in [[("NO_COLOR", "1")], [("TERM", "dumb")]] {
        let (dir, gate) = slow_gate();
        let mut child = on_terminal(&script, &dir, &variables);
        let (connection, _) = gate.accept().unwrap();
        let mut shown = child.stdout.take().unwrap();
        let (read, first) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut text = vec![0];
            shown.read_exact(&mut text).unwrap();
            read.send(()).unwrap();
            shown.read_to_end(&mut text).unwrap();
            String::from_utf8(text).unwrap()
        });
        assert!(first.recv_timeout(SEVERAL_DRAWINGS).is_err(), "{variables:?}");
        answer(connection);
        assert_eq!(reader.join().unwrap().trim(), "nothing differs", "{variables:?}");
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn closed_standard_error_stops_no_work() {
    let (dir, gate) = slow_gate();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = loangate(dir.path(), "loans balance");
    let child = command.stderr(writer).stdout(Stdio::piped()).spawn().unwrap();
    answer(gate.accept().unwrap().0);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "nothing differs");
}
