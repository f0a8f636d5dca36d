//! Runs each step of the README in a shell against a demo, and checks that it does what its comment
//! says.

use std::collections::BTreeMap;
use std::process::Command;

use crate::support::{Demo, program};

/// A step of the README: its comment and its lines.
struct Step {
    comment: String,
    lines: Vec<String>,
}

/// Returns the steps of the first shell block that has any.
fn steps(readme: &str) -> BTreeMap<u32, Step> {
    let blocks = readme.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let block = blocks
        .into_iter()
        .find(|block| block.lines().any(|line| line.starts_with("curl")))
        .unwrap();
    let mut steps: BTreeMap<u32, Step> = BTreeMap::new();
    for line in block.lines().filter(|line| !line.is_empty()) {
        match line.strip_prefix("# ") {
            Some(comment) => {
                let (number, comment) = comment.split_once(". ").expect("a step has a number");
                let step = Step { comment: comment.to_owned(), lines: Vec::new() };
                assert!(
                    steps.insert(number.parse().unwrap(), step).is_none(),
                    "two steps {number}"
                );
            }
            None => steps
                .last_entry()
                .expect("a step starts with a comment")
                .get_mut()
                .lines
                .push(line.to_owned()),
        }
    }
    steps
}

/// A running step, whose lines run one after the other.
struct Tried<'a> {
    demo: &'a Demo,
    step: Step,
    line: usize,
}

impl Tried<'_> {
    /// Runs the next line and returns its status and output. If the line does not show the status,
    /// a second request does.
    fn next(&mut self) -> (String, String) {
        let line = self.line();
        let output = self.run(&line);
        if line.contains("%{http_code}") {
            return (output.trim().to_owned(), output);
        }
        if let Some(status) = output.strip_prefix("HTTP/").and_then(|head| head.split(' ').nth(1)) {
            return (status.to_owned(), output);
        }
        let request = line.split(" | ").next().unwrap();
        let status = self.run(&format!("{request} -o /dev/null -w '%{{http_code}}'"));
        (status, output)
    }

    /// Runs the next line once and returns its output, for lines that change something.
    fn once(&mut self) -> String {
        let line = self.line();
        self.run(&line)
    }

    fn line(&mut self) -> String {
        self.line += 1;
        self.step.lines.get(self.line - 1).expect("the README has fewer lines here").clone()
    }

    fn run(&self, line: &str) -> String {
        // Same substitution as in src/cli/demo/walkthrough.rs.
        let line = line
            .replace("https://localhost:8443", &self.demo.base())
            .replace("http://127.0.0.1:9443", self.demo.ready_field("admin_url"))
            .replace("http://127.0.0.1:9100", self.demo.ready_field("sandbox_url"))
            .replace("http://127.0.0.1:9000", self.demo.ready_field("origin_url"))
            .replace("demo/", &format!("{}/", self.demo.dir().display()));
        let ran = Command::new("sh").args(["-c", &line]).output().unwrap();
        let errors = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success() && errors.is_empty(), "{line}: {errors}");
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    /// Runs the next line and expects this refusal.
    fn refused(&mut self, status: &str, words: &[&str]) {
        let (answered, output) = self.next();
        assert_eq!(answered, status, "{output}");
        // The output may start with a response head.
        let document = output.rsplit("\r\n\r\n").next().unwrap();
        let document: serde_json::Value = serde_json::from_str(document).unwrap();
        assert_eq!(document["status"].to_string(), status, "{document}");
        for word in words {
            assert!(document.to_string().contains(word), "{document} has no {word}");
        }
    }

    fn status(&mut self, status: &str) -> String {
        let (answered, output) = self.next();
        assert_eq!(answered, status, "{output}");
        output
    }
}

/// Returns the value of a field in a head as curl prints it.
fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("no {name} in {head}")).split_once(':').unwrap().1.trim()
}

#[test]
fn readme_steps_do_what_their_comments_say() {
    if program("curl", "curl").is_none() {
        return;
    }
    let demo = Demo::start();
    let steps = steps(include_str!("../../README.md"));
    assert_eq!(steps.keys().copied().collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    for (number, step) in steps {
        let mut tried = Tried { demo: &demo, step, line: 0 };
        let says: &[&str] = match number {
            1 => {
                let (through, there) = (tried.status("200"), tried.status("200"));
                assert_eq!(through, there, "the storage has other bytes");
                assert_eq!(through.split(' ').next().unwrap().len(), 64, "{through}");
                &["200", "the same bytes"]
            }
            2 => {
                let start = tried.status("206");
                assert!(field(&start, "content-range").starts_with("bytes 0-1/"), "{start}");
                let jump = tried.status("206");
                assert!(
                    field(&jump, "content-range").starts_with("bytes 5000000-5000999/"),
                    "{jump}"
                );
                assert_eq!(field(&jump, "content-length"), "1000");
                &["206", "Content-Range"]
            }
            3 => {
                tried.refused("416", &["range-not-satisfiable"]);
                let head = tried.run(&tried.step.lines[0]);
                let size = field(&head, "content-range").strip_prefix("bytes */").unwrap();
                assert!(size.parse::<u64>().unwrap() > 5_000_000, "{size}");
                &["416", "Content-Range has the size"]
            }
            4 => {
                tried.status("304");
                &["304"]
            }
            5 => {
                tried.refused("401", &["reader-unauthenticated"]);
                &["401"]
            }
            6 => {
                tried.refused("403", &["loan-refused", "BORROWER_LIMIT"]);
                tried.refused("403", &["loan-refused", "BUDGET_EXCEEDED"]);
                &["403", "BORROWER_LIMIT", "BUDGET_EXCEEDED"]
            }
            7 => {
                tried.status("200");
                tried.refused("403", &["loan-refused", "NO_FREE_LICENSE"]);
                &["(200)", "403", "NO_FREE_LICENSE"]
            }
            8 => {
                tried.refused("404", &["title-not-found"]);
                tried.status("200");
                &["404", "200"]
            }
            9 => {
                assert_eq!(tried.once(), "");
                tried.refused("503", &["lending-unavailable", "retry_after"]);
                tried.status("200");
                assert_eq!(tried.once(), "");
                let faults = tried.run("curl -sS http://127.0.0.1:9100/sandbox/faults");
                assert_eq!(faults.trim(), "[]", "the last line removes the fault");
                &["503", "200", "The last line ends the fault"]
            }
            _ => {
                let held: serde_json::Value = serde_json::from_str(&tried.status("200")).unwrap();
                let books: serde_json::Value = serde_json::from_str(&tried.status("200")).unwrap();
                // Kari has three loans. The gate refused Ola, Liv, Per, and Kari for the unknown
                // title; refusals of Bokbasen are counted elsewhere.
                let count = |loans: &serde_json::Value, name: &str, word: &str| {
                    let loans = loans["loans"].as_array().unwrap().iter();
                    loans.filter(|loan| loan[name] == word).count()
                };
                assert_eq!(count(&held, "state", "accepted"), 3, "{held}");
                assert_eq!(count(&held, "state", "refused"), 4, "{held}");
                assert_eq!(count(&books, "status", "ACCEPTED"), 3, "{books}");
                &["the loans of the gate", "Bokbasen's books"]
            }
        };
        for words in says {
            assert!(tried.step.comment.contains(words), "step {number} does not say {words}");
        }
        assert_eq!(
            tried.line,
            tried.step.lines.len(),
            "step {number} has lines that were not tried"
        );
    }
}

/// Returns the lines of the first shell block below a heading.
fn block_below(readme: &str, heading: &str) -> Vec<String> {
    let (_, below) =
        readme.split_once(&format!("\n## {heading}\n")).expect("the README has no such heading");
    let (_, block) = below.split_once("```sh\n").unwrap();
    let lines = block.split("```").next().unwrap().lines();
    lines.map(|line| line.split("  # ").next().unwrap().trim().to_owned()).collect()
}

/// Kills background processes of the lines when dropped.
struct Background(Vec<std::process::Child>);

impl Drop for Background {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Returns free ports below the ephemeral range, where no other test's connection can take them.
fn free_ports() -> impl Iterator<Item = u16> {
    let first = 12_000 + u16::try_from(std::process::id() % 4_000).unwrap() * 4;
    (first..32_000).filter(|&port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok())
}

#[test]
fn readme_setup_delivers_a_book() {
    if program("curl", "curl").is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let ports: Vec<(u16, u16)> = [8443, 9443, 9100].into_iter().zip(free_ports()).collect();
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_loangate"));
    let search =
        format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let shell = |line: &str| {
        let mut command = Command::new("sh");
        command
            .current_dir(directory.path())
            .env("PATH", &search)
            .stdin(std::process::Stdio::null());
        command.args(["-c", line]);
        command
    };
    let with_ports = |text: &str| {
        ports.iter().fold(text.to_owned(), |text, (written, free)| {
            text.replace(&format!(":{written}"), &format!(":{free}"))
        })
    };
    let (_open, pause) = std::sync::mpsc::channel::<()>();
    let mut background = Background(Vec::new());
    let mut last = String::new();
    let readme = include_str!("../../README.md");
    for line in block_below(readme, "Set up a gate of your own") {
        if line.starts_with("cargo install") {
            continue; // the test already has the program
        }
        if let Some(line) = line.strip_suffix(" &") {
            let listen = if line == "loangate sandbox" { " --listen 127.0.0.1:9100" } else { "" };
            let quiet = std::process::Stdio::null;
            // Without exec, killing the shell would leave the program running.
            let line = format!("exec {}", with_ports(&format!("{line}{listen}")));
            background.0.push(shell(&line).stdout(quiet()).stderr(quiet()).spawn().unwrap());
            let port = if listen.is_empty() { ports[0].1 } else { ports[2].1 };
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
                assert!(std::time::Instant::now() < deadline, "{line} does not listen");
                let _ = pause.recv_timeout(std::time::Duration::from_millis(20));
            }
            continue;
        }
        let ran = shell(&with_ports(&line)).output().unwrap();
        last = String::from_utf8_lossy(&ran.stdout).into_owned();
        let errors = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{line}: {last}{errors}");
        // The configuration of init has the README's ports; free ones replace them.
        let config = directory.path().join("config.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, with_ports(&text)).unwrap();
        if line.starts_with("loangate check") {
            assert!(
                last.contains("ok: Bokbasen's login works") && last.contains("is good"),
                "{last}"
            );
        }
    }
    assert_eq!(background.0.len(), 2, "the sandbox and the gate");
    assert_eq!(last, "a book\n", "the last line reads the book");
    for word in ["9788299999014/book.epub` in the storage", "LimitNOFILE="] {
        assert!(readme.contains(word), "the README does not say {word}");
    }
}
