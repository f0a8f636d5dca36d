//! `loangate top`: what a gate does, again and again.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use crate::support::external_program::{OwnedProcess, free_ports, output_text, run};
use crate::support::{BOOK, File, Scene, Setting, program};

/// Timeout for what the command shows.
const PATIENCE: Duration = Duration::from_secs(60);
/// Home, at the start of each drawing, and what restores the terminal.
const HOME: &str = "\u{1b}[H";
const RESTORED: &str = "\u{1b}[?25h\u{1b}[?1049l";

fn top(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
    command.args(["top", "--config"]).arg(config).args(arguments).stdin(Stdio::null());
    command
}

/// A scene with a file, whose admin listener has a fixed address.
async fn scene() -> Scene {
    let scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let admin = format!("admin = \"127.0.0.1:{}\"", free_ports(1));
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &admin);
    scene
}

async fn read_book(scene: &Scene, client: &reqwest::Client) {
    let request = scene.get(client, &format!("/files/{BOOK}/book.epub"), &scene.token("kari"));
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    response.bytes().await.unwrap();
}

/// Starts the command, and returns the lines that it prints.
fn lines(command: &mut Command) -> (OwnedProcess, Receiver<String>) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let (send, lines) = channel();
    std::thread::spawn(move || {
        out.lines().map_while(Result::ok).try_for_each(|line| send.send(line))
    });
    (OwnedProcess(child), lines)
}

fn interrupt(child: &Child) {
    let process = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_show_what_the_gate_does() {
    let mut scene = scene().await;
    let gate = scene.spawn_gate().await;
    let output =
        run(&mut top(&scene.config_file(), &["--count", "2", "--interval", "200ms"])).await;
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{}", output_text(&output));
    assert_eq!(said.lines().count(), 2, "{said}");
    for line in said.lines() {
        assert!(line.contains("Z requests 0/s, 0.0 MB/s, loans 0/min"), "{line}");
        assert!(line.contains("ends 0, ledger ok, problems 0"), "{line}");
    }

    let arguments = ["--json", "--interval", "100ms"];
    let (child, lines) = lines(&mut top(&scene.config_file(), &arguments));
    let next = || -> Value {
        serde_json::from_str(&lines.recv_timeout(PATIENCE).expect("a line")).unwrap()
    };
    assert_eq!(next()["loans"], 0);
    let client = scene.http1();
    read_book(&scene, &client).await;
    let mut seen = next();
    // A look may be between the loan and the file.
    let answered = |seen: &Value| seen["origins"]["files"]["answered_per_minute"].as_f64();
    while answered(&seen).is_none_or(|rate| rate == 0.0) {
        seen = next();
    }
    assert!(seen["loans_per_minute"].as_f64().unwrap() > 0.0, "{seen}");
    assert_eq!((&seen["process"], &seen["gates"]), (&gate.child.id().into(), &1.into()), "{seen}");
    assert_eq!((&seen["connections"], &seen["ledger_writable"]), (&1.into(), &true.into()));
    assert!(seen["lending"]["answered_per_minute"].as_f64().unwrap() > 0.0, "{seen}");
    let refused = scene.get(&client, &format!("/files/{BOOK}/book.epub"), "nonsense");
    assert_eq!(refused.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    while next()["refusals_per_minute"]["reader-unauthenticated"].is_null() {}
    let mut child = child;
    interrupt(&child.0);
    assert!(child.0.wait().unwrap().success());
    drop(gate);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absent_gate_is_shown_and_tried_again() {
    let mut scene = scene().await;
    let config = scene.config_file();
    let output = run(&mut top(&config, &["--count", "2", "--interval", "100ms"])).await;
    let (said, why) = (output.stdout.clone(), output_text(&output));
    assert_eq!(output.status.code(), Some(1), "{why}");
    let said = String::from_utf8(said).unwrap();
    assert_eq!(said.matches("away: no gate answers at 127.0.0.1:").count(), 2, "{said}");

    let (mut child, lines) = lines(&mut top(&config, &["--json", "--interval", "100ms"]));
    let until = |is_away: bool| loop {
        let line = lines.recv_timeout(PATIENCE).expect("a line");
        let look: Value = serde_json::from_str(&line).unwrap();
        if look["away"].is_string() == is_away {
            return look;
        }
    };
    until(true);
    let mut gate = scene.spawn_gate().await;
    let first = until(false);
    gate.kill();
    until(true);
    let gate = scene.spawn_gate().await;
    let again = until(false);
    assert_ne!(first["process"], again["process"]);
    interrupt(&child.0);
    assert!(child.0.wait().unwrap().success());
    drop(gate);
    scene.end().await;
}

/// As `head` closes its pipe.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_output_ends_the_command() {
    let scene = scene().await;
    let (mut child, lines) = lines(&mut top(&scene.config_file(), &["--interval", "100ms"]));
    lines.recv_timeout(PATIENCE).unwrap();
    drop(lines);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let status = loop {
        match child.0.try_wait().unwrap() {
            Some(status) => break status,
            None if tokio::time::Instant::now() > deadline => panic!("it does not end"),
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert!(status.success());
    scene.end().await;
}

/// Runs the command on a pseudo terminal, until there are several drawings, and then presses
/// Ctrl-C. Returns what the terminal got.
fn on_terminal(script: &Path, config: &Path) -> String {
    let program = env!("CARGO_BIN_EXE_loangate");
    // The shell would end by the signal itself.
    let command = format!("exec {program} top --interval 100ms --config {}", config.display());
    let mut script = Command::new(script);
    script.args(["-qefc", &command, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut keys = child.stdin.take().unwrap();
    let shown = BufReader::new(child.stdout.take().unwrap());
    let mut child = OwnedProcess(child);
    let (send, bytes) = channel();
    std::thread::spawn(move || shown.bytes().map_while(Result::ok).try_for_each(|b| send.send(b)));
    let mut text = Vec::new();
    while String::from_utf8_lossy(&text).matches(HOME).count() < 4 {
        text.push(bytes.recv_timeout(PATIENCE).unwrap());
    }
    keys.write_all(b"\x03").unwrap();
    loop {
        match bytes.recv_timeout(PATIENCE) {
            Ok(byte) => text.push(byte),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(timeout) => panic!("it does not end: {timeout}"),
        }
    }
    drop(keys);
    let text = String::from_utf8(text).unwrap();
    let status = child.0.wait().unwrap();
    assert!(status.success(), "{status}: {text:?}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminal_is_drawn_again_and_restored() {
    let Some(script) = program("script", "bsdutils") else { return };
    let mut scene = scene().await;
    let gate = scene.spawn_gate().await;
    let config = scene.config_file();
    let text = tokio::task::spawn_blocking(move || on_terminal(&script, &config)).await.unwrap();
    assert_eq!(text.matches("\u{1b}[?1049h\u{1b}[?25l").count(), 1, "{text:?}");
    let (drawn, left) = text.split_once(RESTORED).expect("the terminal is restored");
    for row in ["gate ", "serving ", "requests ", "outbox ", "ledger "] {
        assert!(drawn.matches(row).count() >= 2, "{row}: {text:?}");
        assert!(left.contains(row), "{row}: {text:?}");
    }
    drop(gate);
    scene.end().await;
}
