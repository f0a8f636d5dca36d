//! Runs the example clients of `tests/examples` against a gate: they download across broken
//! connections, wait where the gate requests it, report refusals, and return loans.

use std::path::{Path, PathBuf};
use std::process::Output;

use aws_lc_rs::digest;
use serde_json::{Value, json};

use crate::support::external_program::{direct, output_text, run};
use crate::support::scene::Setting;
use crate::support::{AUDIO, BOOK, Chromium, Demo, File, Pages, Scene, program};

const SIZE: u64 = 20_000_000;
const BOOK_SIZE: u64 = 5000;
/// Bytes after which the origin breaks off each response.
const BREAK_AFTER: u64 = 3_500_000;
/// Requests that a download of [`SIZE`] bytes takes at least.
const MIN_REQUESTS: usize = 6;

/// An example client, and what is needed to run it.
struct Client {
    /// The program that interprets the file, and its Debian package.
    interpreter: &'static str,
    package: &'static str,
    file: &'static str,
    /// Whether it continues a partial file of an earlier run.
    keeps_partial_file: bool,
}

const SHELL: Client =
    Client { interpreter: "sh", package: "dash", file: "client.sh", keeps_partial_file: true };
const PYTHON: Client = Client {
    interpreter: "python3",
    package: "python3",
    file: "client.py",
    keeps_partial_file: true,
};
const JAVASCRIPT: Client = Client {
    interpreter: "node",
    package: "nodejs",
    file: "client.mjs",
    keeps_partial_file: false,
};

/// A client under test, and the gate that it talks to.
struct Run {
    client: Client,
    interpreter: PathBuf,
    scene: Scene,
    token: String,
}

impl Run {
    /// Starts a gate that does not resume bodies of the origin, so that the client has to.
    async fn start(client: Client, interpreter: PathBuf) -> Run {
        let config = vec![("name = \"files\"", "name = \"files\"\nresumes = 0")];
        let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
        scene.origin.put(&format!("{AUDIO}/audio.mp3"), audio());
        scene.origin.put(&format!("{BOOK}/book.epub"), File::of(BOOK_SIZE));
        let token = scene.token("kari");
        Run { client, interpreter, scene, token }
    }

    /// Runs the client for this reader until it ends.
    async fn run_as(&self, token: &str, arguments: &[&str]) -> Output {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples");
        let ca = self.place("certs/ca.pem");
        let mut command = direct(&self.interpreter);
        command.arg(directory.join(self.client.file)).args(arguments);
        command.env("LOANGATE_URL", &self.scene.base).env("LOANGATE_TOKEN", token);
        command.env("LOANGATE_CA", &ca).env("NODE_EXTRA_CA_CERTS", &ca);
        run(command.current_dir(self.scene.dir.path())).await
    }

    /// Runs the client for kari and expects success.
    async fn succeed(&self, arguments: &[&str]) {
        let ran = self.run_as(&self.token, arguments).await;
        assert!(ran.status.success(), "{arguments:?}: {}", output_text(&ran));
    }

    /// Runs a download of the book for this reader. Expects that it ends with these words.
    async fn fail(&self, token: &str, words: &[&str]) {
        let ran = self.run_as(token, &["download", &book_path(), "refused"]).await;
        let text = output_text(&ran);
        assert!(!ran.status.success(), "a refused reader got a file: {text}");
        for word in words {
            assert!(text.contains(word), "{text} has no {word}");
        }
        assert!(!self.place("refused").exists(), "a refusal left a file");
    }

    fn place(&self, name: &str) -> PathBuf {
        self.scene.dir.path().join(name)
    }

    /// Compares a downloaded file with the origin's.
    fn compare(&self, name: &str, file: &File) {
        let downloaded = std::fs::read(self.place(name)).unwrap();
        assert!(downloaded == file.part(0..file.size), "{name} has other bytes");
    }

    /// Adds a fault to the next begin at Bokbasen.
    async fn fail_next_begin(&self, effect: Value) {
        let fault = json!({ "call": "begin", "times": 1, "effect": effect });
        self.scene.fault(&fault).await;
    }
}

/// An audiobook whose every response breaks off.
fn audio() -> File {
    File { abort_after: Some(BREAK_AFTER), ..File::of(SIZE) }
}

fn audio_path() -> String {
    format!("/files/{AUDIO}/audio.mp3")
}

fn book_path() -> String {
    format!("/files/{BOOK}/book.epub")
}

async fn downloads_across_broken_connections(run: &Run) {
    run.succeed(&["download", &audio_path(), "audio.mp3"]).await;
    run.compare("audio.mp3", &audio());
    let requests = run.scene.origin.count(&format!("/{AUDIO}"));
    assert!(requests >= MIN_REQUESTS, "only {requests} requests: the download did not break off");
}

async fn continues_a_partial_file(run: &Run) {
    let (part, tag) = (run.place("late.mp3.part"), run.place("late.mp3.part.etag"));
    for (name, etag, size) in [
        ("a partial file is continued", "\"v1\"", SIZE - 1_000_000),
        ("a complete file is not requested again", "\"v1\"", SIZE),
        ("a changed file is requested from the start", "\"v0\"", SIZE - 1_000_000),
    ] {
        std::fs::write(&part, audio().part(0..size)).unwrap();
        std::fs::write(&tag, etag).unwrap();
        let bytes_before = run.scene.origin.bytes();
        run.succeed(&["download", &audio_path(), "late.mp3"]).await;
        run.compare("late.mp3", &audio());
        assert!(!part.exists() && !tag.exists(), "{name}: files are left over");
        let sent = run.scene.origin.bytes() - bytes_before;
        assert_eq!(sent >= SIZE, etag == "\"v0\"", "{name}: {sent} bytes sent");
    }
}

async fn waits_and_tries_again(run: &Run) {
    run.fail_next_begin(json!({ "status": { "status": 429, "retry_after": 1 } })).await;
    run.succeed(&["download", &book_path(), "book.epub"]).await;
    assert_eq!(run.scene.sandbox_get("/sandbox/faults").await, json!([]), "the fault is left");
    run.compare("book.epub", &File::of(BOOK_SIZE));
}

async fn reports_a_refusal(run: &Run) {
    run.fail_next_begin(json!({ "refuse": { "code": "BORROWER_LIMIT" } })).await;
    run.fail(&run.scene.token("ola"), &["loan-refused", "BORROWER_LIMIT"]).await;
}

async fn returns_the_loan(run: &Run) {
    for _ in 0..2 {
        run.succeed(&["return", BOOK]).await; // also if there is no loan
    }
    run.fail(&run.token, &["loan-ended"]).await;
}

async fn example_works(client: Client) {
    let Some(interpreter) = program(client.interpreter, client.package) else {
        return;
    };
    let run = Run::start(client, interpreter).await;
    downloads_across_broken_connections(&run).await;
    if run.client.keeps_partial_file {
        continues_a_partial_file(&run).await;
    }
    waits_and_tries_again(&run).await;
    reports_a_refusal(&run).await;
    returns_the_loan(&run).await;
    run.scene.end().await;
}

#[test]
fn lines_of_the_guide_download_and_return() {
    if program("python3", "python3").is_none() {
        return;
    }
    let demo = Demo::start();
    let directory = tempfile::tempdir().unwrap();
    let guide = include_str!("../../docs/apps.md");
    let (_, section) = guide.split_once("\n## Example clients\n").unwrap();
    let (_, block) = section.split_once("```sh\n").unwrap();
    let lines = block
        .split("```")
        .next()
        .unwrap()
        .replace("https://localhost:8443", &demo.base())
        .replace("demo/", &format!("{}/", demo.dir().display()))
        .replace("tests/examples/", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/examples/"));
    let mut shell = direct(Path::new("sh"));
    shell.current_dir(directory.path()).args(["-e", "-c", &lines]);
    let ran = shell.output().unwrap();
    assert!(ran.status.success(), "{lines}: {}", output_text(&ran));
    let size = std::fs::metadata(directory.path().join("audio.mp3")).unwrap().len();
    assert!(size > 10_000_000, "{size} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shell_client_downloads_waits_and_returns() {
    if program("curl", "curl").is_some() {
        example_works(SHELL).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_client_downloads_waits_and_returns() {
    example_works(PYTHON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn javascript_client_downloads_waits_and_returns() {
    example_works(JAVASCRIPT).await;
}

/// Downloads a file, returns its loan, and requests the file again.
const BROWSER_SCRIPT: &str = "
const client = new Client(url, token);
const blob = await client.download(path);
const digest = await crypto.subtle.digest('SHA-256', await blob.arrayBuffer());
await client.returnLoan(isbn);
const refused = await client.download(path).catch(error => error.type);
await report({ size: blob.size, digest: Array.from(new Uint8Array(digest)), refused });";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn javascript_client_works_in_a_browser() {
    let Some(chromium) = program("chromium", "chromium") else {
        return;
    };
    let mut pages = Pages::bind().await;
    let config = vec![("name = \"files\"", "name = \"files\"\nresumes = 0")];
    let mut scene = Scene::without_gate(Setting { config, ..Setting::default() }).await;
    let cors = format!("[cors]\norigins = [\"{}\"]\n\n[ledger]", pages.origin);
    scene.replace_in_config("[ledger]", &cors);
    scene.start_gate().await;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), audio());
    let parameters = json!([scene.base, scene.token("kari"), audio_path(), AUDIO]);
    let client = include_str!("../examples/client.mjs");
    pages.serve(&format!(
        "const [url, token, path, isbn] = {parameters};\n{client}\n{BROWSER_SCRIPT}"
    ));
    let certificate = scene.dir.path().join("certs/server.pem");
    let mut browser = Chromium::open(&chromium, &pages.origin, &certificate);
    let reported = browser.reported(&mut pages).await;
    let digest = digest::digest(&digest::SHA256, &audio().part(0..SIZE));
    let expected = json!({ "size": SIZE, "digest": digest.as_ref(), "refused": "loan-ended" });
    assert_eq!(reported, expected);
    let requests = scene.origin.count(&format!("/{AUDIO}"));
    assert!(requests >= MIN_REQUESTS, "only {requests} requests: the download did not break off");
    drop(browser);
    scene.end().await;
}
