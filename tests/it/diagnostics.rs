//! `loangate check` on mistakes that only the machine or the network shows: certificates, the
//! ledger's directory, Bokbasen, the clock and the storages.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::support::raw_client::refusing;
use crate::support::scene::initialised;
use crate::support::storage::{Kind, Storage};
use crate::support::{BOOK, File, Scene, Setting, program};

/// User ID without privileges.
const UNPRIVILEGED_USER: u32 = 65_534;

/// Result of a check: whether the configuration is good, standard output, and standard error.
#[derive(Debug)]
struct CheckResult {
    good: bool,
    output: String,
    errors: String,
}

fn checked(command: &mut Command) -> CheckResult {
    let ran = command.stdin(Stdio::null()).output().unwrap();
    CheckResult {
        good: ran.status.success(),
        output: String::from_utf8(ran.stdout).unwrap(),
        errors: String::from_utf8(ran.stderr).unwrap(),
    }
}

fn loangate(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
    command.args(arguments).current_dir(directory);
    for name in ["AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        command.env_remove(name);
    }
    command
}

fn check(directory: &Path) -> CheckResult {
    checked(&mut loangate(directory, &["check"]))
}

/// Runs [`check`] with `--online` while the sandbox runs in this process.
async fn check_online(scene: &Scene, environment: &[(&'static str, &str)]) -> CheckResult {
    let mut command = loangate(scene.dir.path(), &["check", "--online"]);
    command.envs(environment.iter().copied());
    tokio::task::spawn_blocking(move || checked(&mut command)).await.unwrap()
}

/// Runs a shell line that must succeed.
fn shell(directory: &Path, line: &str) {
    let ran = Command::new("sh").args(["-c", line]).current_dir(directory).output().unwrap();
    assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn encrypted_key_is_named_with_the_command_that_helps() {
    if program("openssl", "openssl").is_none() {
        return;
    }
    // An unencrypted key of each tool, the tool that encrypts it, and the marker of the encrypted
    // file.
    let kinds = [
        (
            "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048",
            "rsa -traditional -aes256",
            "BEGIN RSA PRIVATE KEY",
        ),
        (
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
            "ec -aes256",
            "BEGIN EC PRIVATE KEY",
        ),
        (
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
            "pkcs8 -topk8 -v2 aes256",
            "BEGIN ENCRYPTED PRIVATE KEY",
        ),
    ];
    for (generate, encrypt, label) in kinds {
        let directory = initialised();
        let dir = directory.path();
        shell(dir, &format!("openssl {generate} -out clear.key"));
        shell(
            dir,
            "openssl req -x509 -key clear.key -out certs/server.pem -days 30 -subj /CN=localhost",
        );
        shell(
            dir,
            &format!("openssl {encrypt} -in clear.key -out certs/server.key -passout pass:x"),
        );
        let text = std::fs::read_to_string(dir.join("certs/server.key")).unwrap();
        assert!(text.contains(label), "{encrypt}: {text}");
        let result = check(dir);
        assert!(!result.good, "{encrypt}");
        let expected = "config.toml:9: tls.key: certs/server.key is encrypted with a passphrase";
        assert!(result.errors.contains(expected), "{encrypt}: {}", result.errors);
        // The suggested command decrypts the key; a person types the passphrase.
        let (_, command) = result.errors.split_once("Remove it: ").unwrap();
        let (command, _) = command.split_once(", and name").unwrap();
        shell(dir, &command.replace("-out", "-passin pass:x -out"));
        std::fs::rename(dir.join("NEW.key"), dir.join("certs/server.key")).unwrap();
        let result = check(dir);
        assert!(result.good, "{encrypt}: {}", result.errors);
    }
}

/// Replaces the server's certificate by one with these dates.
fn certificate(directory: &Path, from: (i32, u8, u8), until: (i32, u8, u8)) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
    params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
    let made = params.self_signed(&key).unwrap();
    std::fs::write(directory.join("certs/server.pem"), made.pem()).unwrap();
    std::fs::write(directory.join("certs/server.key"), key.serialize_pem()).unwrap();
}

/// Returns the date this many days from now.
fn in_days(days: i64) -> (i32, u8, u8) {
    let at = loangate::clock::Clock::system().now() + jiff::SignedDuration::from_hours(24 * days);
    let date = jiff::tz::TimeZone::UTC.to_datetime(at).date();
    (i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
}

#[test]
fn certificate_dates_are_checked() {
    let directory = initialised();
    certificate(directory.path(), (2020, 1, 1), (2021, 2, 3));
    let result = check(directory.path());
    let expected = "config.toml:8: tls.certificate: certs/server.pem: the certificate expired at \
                    2021-02-03T00:00:00Z";
    assert!(!result.good && result.errors.contains(expected), "{result:?}");
    certificate(directory.path(), (2090, 1, 1), (2091, 1, 1));
    let result = check(directory.path());
    assert!(
        !result.good && result.errors.contains("is not valid before 2090-01-01T00:00:00Z"),
        "{result:?}"
    );
    certificate(directory.path(), in_days(-10), in_days(13));
    let result = check(directory.path());
    let expected =
        "warning: config.toml:8: tls.certificate: certs/server.pem: the certificate expires at";
    assert!(result.good && result.output.contains(expected), "{result:?}");
    certificate(directory.path(), in_days(-10), in_days(16));
    let result = check(directory.path());
    assert!(result.good && result.output == "config.toml is good\n", "{result:?}");
}

#[test]
fn ledger_that_the_user_cannot_write_is_reported() {
    let directory = initialised();
    let dir = directory.path();
    let data = dir.join("data");
    std::fs::create_dir(&data).unwrap();
    let is_root = std::fs::metadata(dir).unwrap().uid() == 0;
    let run = || {
        let mut command = loangate(dir, &["check"]);
        if is_root {
            command.uid(UNPRIVILEGED_USER).gid(UNPRIVILEGED_USER);
        }
        checked(&mut command)
    };
    if is_root {
        // Everything except the ledger's directory belongs to an ordinary user.
        let certs =
            std::fs::read_dir(dir.join("certs")).unwrap().map(|entry| entry.unwrap().path());
        for path in certs.chain([dir.to_owned(), dir.join("certs"), dir.join("config.toml")]) {
            chown(path, Some(UNPRIVILEGED_USER), Some(UNPRIVILEGED_USER)).unwrap();
        }
    }
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o555)).unwrap();
    let result = run();
    let expected = "config.toml:37: ledger.url: the ledger file data/loangate.db cannot be used: \
                    nothing can be \
                    written in the directory data: Permission denied";
    assert!(!result.good && result.errors.contains(expected), "{result:?}");
    // A ledger that belongs to another user, in a directory of this user.
    std::fs::write(data.join("loangate.db"), "").unwrap_or_else(|_| panic!("not as this user"));
    std::fs::set_permissions(data.join("loangate.db"), std::fs::Permissions::from_mode(0o444))
        .unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o777)).unwrap();
    let result = run();
    let expected = "the ledger file data/loangate.db cannot be used: Permission denied";
    assert!(!result.good && result.errors.contains(expected), "{result:?}");
    std::fs::remove_file(data.join("loangate.db")).unwrap();
    let result = run();
    assert!(
        result.good && std::fs::read_dir(&data).unwrap().count() == 0,
        "the check left a file: {result:?}"
    );
}

#[tokio::test]
async fn ledger_of_another_pseudonym_key_is_reported() {
    let mut scene = Scene::start().await;
    scene.stop_gate().await;
    let key = scene.dir.path().join("certs/pseudonym.key");
    assert!(check_offline(&scene).await.good);
    std::fs::write(&key, "0123456789abcdef0123456789abcdef").unwrap();
    let result = check_offline(&scene).await;
    assert!(
        !result.good && result.errors.contains("written under another pseudonym key"),
        "{result:?}"
    );
    scene.end().await;
}

async fn check_offline(scene: &Scene) -> CheckResult {
    let directory = scene.dir.path().to_owned();
    tokio::task::spawn_blocking(move || check(&directory)).await.unwrap()
}

#[tokio::test]
async fn online_check_says_what_works() {
    let scene = Scene::without_gate(Setting::default()).await;
    let result = check_online(&scene, &[]).await;
    assert!(result.good, "{result:?}");
    for line in [
        "ok: the readers' key set certs/jwks.json can be read",
        "ok: Bokbasen's login works",
        "ok: Bokbasen's API accepts the token",
        "ok: this machine's clock agrees with Bokbasen's to a second",
        &format!("ok: origin files: {}/: it answers", scene.origin.url),
    ] {
        assert!(result.output.lines().any(|result| result == line), "no {line}: {}", result.output);
    }
    assert!(scene.books().await.is_empty(), "the check has begun a loan");
    scene.end().await;
}

#[tokio::test]
async fn online_check_names_why_bokbasen_cannot_be_used() {
    let scene = Scene::without_gate(Setting::default()).await;
    let original = std::fs::read_to_string(scene.config_file()).unwrap();
    let (_reserved, closed) = refusing();
    // The backlog accepts connections, and nothing responds.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let sandbox = original.lines().find_map(|line| line.strip_prefix("url = \"http://")).unwrap();
    let sandbox = format!("http://{}", sandbox.trim_end_matches('"'));
    for (from, to, expected) in [
        ("\"sandbox-client\"", "\"someone-else\"", "lending.auth: Bokbasen refuses the login"),
        (&*sandbox, &*format!("http://{closed}"), "Bokbasen refuses the connection"),
        (&*sandbox, &*silent, "Bokbasen does not answer within lending.timeout"),
        (&*sandbox, &*sandbox.replace("http:", "https:"), "TLS to Bokbasen fails"),
        ("/oauth/token", "/nowhere", "check token_url in [lending]"),
    ] {
        let text = original.replace(from, to).replace("settle = \"500ms\"", "settle = \"30s\"");
        std::fs::write(scene.config_file(), text).unwrap();
        let result = check_online(&scene, &[]).await;
        assert!(!result.good && result.errors.contains(expected), "{expected}: {result:?}");
        assert!(!result.output.contains("login works"), "{result:?}");
    }
    // The login works, but the API belongs to another service.
    scene.fault(&json!({ "call": "list", "effect": { "status": { "status": 401 } } })).await;
    std::fs::write(scene.config_file(), &original).unwrap();
    let result = check_online(&scene, &[]).await;
    assert!(!result.good && result.output.contains("ok: Bokbasen's login works"), "{result:?}");
    assert!(result.errors.contains("lending.url: Bokbasen's API refuses the token"), "{result:?}");
    scene.end().await;
}

/// Starts a server with Bokbasen's API whose clock is this far ahead of this machine's.
async fn lending_with_clock(ahead: i64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let Ok((mut socket, _)) = listener.accept().await else { continue };
            let mut request = vec![0; 4096];
            let read = socket.read(&mut request).await.unwrap_or(0);
            let body = match request[..read].starts_with(b"POST") {
                true => "{\"access_token\":\"t\",\"expires_in\":3600}",
                false => "[]",
            };
            let seconds =
                u64::try_from(loangate::clock::Clock::system().now().as_second() + ahead).unwrap();
            let date =
                httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(seconds));
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\ndate: {date}\r\nconnection: close",
                body.len()
            );
            let _ = socket.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await;
        }
    });
    url
}

#[tokio::test]
async fn online_check_compares_clocks_in_both_directions() {
    let scene = Scene::without_gate(Setting::default()).await;
    let original = std::fs::read_to_string(scene.config_file()).unwrap();
    let sandbox = original.lines().find_map(|line| line.strip_prefix("url = \"http://")).unwrap();
    let sandbox = format!("http://{}", sandbox.trim_end_matches('"'));
    for (ahead, stream, words) in [
        (20, "ok", "s behind Bokbasen's"),
        (-20, "ok", "s ahead of Bokbasen's"),
        (300, "warning", "s behind Bokbasen's. Loans would end at a different time"),
        (-2000, "mistake", "s ahead of Bokbasen's. Bokbasen refuses calls"),
        (2000, "mistake", "s behind Bokbasen's. Bokbasen refuses calls"),
    ] {
        let url = lending_with_clock(ahead).await;
        std::fs::write(scene.config_file(), original.replace(&sandbox, &url)).unwrap();
        let result = check_online(&scene, &[]).await;
        let text = if stream == "mistake" { &result.errors } else { &result.output };
        let line = text.lines().find(|line| line.contains("this machine's clock"));
        let line = line.unwrap_or_else(|| panic!("{ahead}: {result:?}"));
        assert!(line.contains(words), "{ahead}: {line}");
        assert_eq!(
            (result.good, line.starts_with("ok: ")),
            (stream != "mistake", stream == "ok"),
            "{line}"
        );
        // A second may pass, and a Date field has whole seconds.
        let seconds =
            line.split(" s ").next().unwrap().rsplit(' ').next().unwrap().parse::<i64>().unwrap();
        assert!((seconds - ahead.abs()).abs() <= 5, "{line}");
    }
    scene.end().await;
}

#[tokio::test]
async fn online_check_tries_a_bucket_with_its_credentials() {
    let scene = Scene::without_gate(Setting::default()).await;
    scene.make_config_private();
    let storage = Storage::start(Kind::S3, &scene).await;
    storage.put(&scene, &format!("{BOOK}/book.epub"), &File::of(10));
    let original = std::fs::read_to_string(scene.config_file()).unwrap();
    let good = storage.lines(&storage.address, crate::support::storage::SECRET);
    let with = |lines: &str| {
        let from = format!("url = \"{}/\"", scene.origin.url);
        std::fs::write(scene.config_file(), original.replace(&from, lines)).unwrap();
    };
    with(&good);
    let result = check_online(&scene, &[]).await;
    let expected = "ok: origin files: s3://books/: the bucket can be listed";
    assert!(result.good && result.output.contains(expected), "{result:?}");
    let (_reserved, closed) = refusing();
    let keyless = format!(
        "url = \"s3://books\"\ns3 = {{ endpoint = \"http://{}\", region = \"eu-north-1\" }}",
        storage.address
    );
    let metadata = format!("http://{closed}");
    for (lines, expected) in [
        (
            good.replace(crate::support::storage::SECRET, "another-secret-altogether"),
            "the secret does not belong",
        ),
        (
            good.replace(crate::support::storage::KEY_ID, "AKIDSTRANGER"),
            "the storage does not know the access key",
        ),
        (good.replace("s3://books", "s3://bøker"), "names no bucket"),
        (good.replace("s3://books", "s3://boker"), "there is no such bucket"),
        (good.replace(&storage.address, &closed.to_string()), "cannot be reached"),
        (keyless, "no credentials are configured, and this machine has none"),
    ] {
        with(&lines);
        let result = check_online(&scene, &[("AWS_METADATA_ENDPOINT", &metadata)]).await;
        assert!(!result.good && result.errors.contains(expected), "{expected}: {result:?}");
        assert!(
            result.errors.contains("config.toml:") && result.errors.contains("origins[0].url"),
            "{result:?}"
        );
        for secret in ["another-secret", crate::support::storage::SECRET, "Signature", "AWS4"] {
            assert!(!format!("{result:?}").contains(secret), "{secret} is shown: {result:?}");
        }
    }
    // A wrong path is found as well, and a bucket at Amazon needs its region.
    with(&good.replace("s3://books", "s3://books/elsewhere"));
    let result = check_online(&scene, &[]).await;
    assert!(result.output.contains("no file is below this path"), "{result:?}");
    with("url = \"s3://books\"\ns3 = { access_key_id = \"a\", secret_access_key = \"b\" }");
    let result = check_offline(&scene).await;
    assert!(
        result.output.contains("no region is set") && result.output.contains("us-east-1"),
        "{result:?}"
    );
    scene.end().await;
}

#[tokio::test]
async fn online_check_tries_all_addresses_at_once() {
    let scene = Scene::without_gate(Setting::default()).await;
    let (_reserved, closed) = refusing();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent.local_addr().unwrap();
    let directory = scene.dir.path().join("empty");
    std::fs::create_dir(&directory).unwrap();
    let silents: Vec<String> =
        (0..8).map(|number| format!("\"http://{silent}/{number}/\"")).collect();
    scene.replace_in_config(
        &format!("url = \"{}/\"", scene.origin.url),
        &format!(
            "urls = [\"{}/\", \"http://{closed}/\", \"file:empty\", {}]\nconnect_timeout = \"1s\"\n\
             first_byte = \"3s\"",
            scene.origin.url,
            silents.join(", ")
        ),
    );
    let began = Instant::now();
    let result = check_online(&scene, &[]).await;
    // In sequence they would take 32 s.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(result.output.contains("it answers"), "{result:?}");
    assert!(result.output.contains("the directory is empty"), "{result:?}");
    assert!(
        result.errors.contains(&format!("http://{closed}/: it cannot be reached: ")),
        "{result:?}"
    );
    let late =
        result.errors.lines().filter(|line| line.contains("it did not respond within 4 s")).count();
    assert_eq!(late, 8, "{result:?}");
    scene.end().await;
}
