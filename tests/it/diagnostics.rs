//! What `loangate check` says about mistakes that only the machine or the network shows:
//! certificates, the ledger's place, Bokbasen, the clock and the storages.

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

/// A user without privileges.
const NOBODY: u32 = 65_534;

/// What a check said: whether the configuration is good, its standard output, and its errors.
#[derive(Debug)]
struct Said {
    good: bool,
    output: String,
    errors: String,
}

fn checked(command: &mut Command) -> Said {
    let ran = command.stdin(Stdio::null()).output().unwrap();
    Said {
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

fn check(directory: &Path) -> Said {
    checked(&mut loangate(directory, &["check"]))
}

/// As [`check`], online, beside a sandbox that runs in this process.
async fn check_online(scene: &Scene, environment: &[(&'static str, &str)]) -> Said {
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
    // A key in the clear as each tool writes it, the tool that encrypts it, and what marks the
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
        let said = check(dir);
        assert!(!said.good, "{encrypt}");
        let expected = "config.toml:9: tls.key: certs/server.key is encrypted with a passphrase";
        assert!(said.errors.contains(expected), "{encrypt}: {}", said.errors);
        // The command that it names mends it; the passphrase is typed there.
        let (_, command) = said.errors.split_once("Remove it: ").unwrap();
        let (command, _) = command.split_once(", and name").unwrap();
        shell(dir, &command.replace("-out", "-passin pass:x -out"));
        std::fs::rename(dir.join("NEW.key"), dir.join("certs/server.key")).unwrap();
        let said = check(dir);
        assert!(said.good, "{encrypt}: {}", said.errors);
    }
}

/// Puts a certificate with these dates in the place of the server's.
fn certificate(directory: &Path, from: (i32, u8, u8), until: (i32, u8, u8)) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
    params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
    let made = params.self_signed(&key).unwrap();
    std::fs::write(directory.join("certs/server.pem"), made.pem()).unwrap();
    std::fs::write(directory.join("certs/server.key"), key.serialize_pem()).unwrap();
}

/// The date in so many days.
fn in_days(days: i64) -> (i32, u8, u8) {
    let at = loangate::clock::Clock::system().now() + jiff::SignedDuration::from_hours(24 * days);
    let date = jiff::tz::TimeZone::UTC.to_datetime(at).date();
    (i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
}

#[test]
fn certificate_dates_are_checked() {
    let directory = initialised();
    certificate(directory.path(), (2020, 1, 1), (2021, 2, 3));
    let said = check(directory.path());
    let expected = "config.toml:8: tls.certificate: certs/server.pem: the certificate expired at 2021-02-03T00:00:00Z";
    assert!(!said.good && said.errors.contains(expected), "{said:?}");
    certificate(directory.path(), (2090, 1, 1), (2091, 1, 1));
    let said = check(directory.path());
    assert!(
        !said.good && said.errors.contains("is not valid before 2090-01-01T00:00:00Z"),
        "{said:?}"
    );
    certificate(directory.path(), in_days(-10), in_days(13));
    let said = check(directory.path());
    let expected =
        "warning: config.toml:8: tls.certificate: certs/server.pem: the certificate expires at";
    assert!(said.good && said.output.contains(expected), "{said:?}");
    certificate(directory.path(), in_days(-10), in_days(16));
    let said = check(directory.path());
    assert!(said.good && said.output == "config.toml is good\n", "{said:?}");
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
            command.uid(NOBODY).gid(NOBODY);
        }
        checked(&mut command)
    };
    if is_root {
        // Everything belongs to an ordinary user, but for the directory of the ledger.
        let certs =
            std::fs::read_dir(dir.join("certs")).unwrap().map(|entry| entry.unwrap().path());
        for path in certs.chain([dir.to_owned(), dir.join("certs"), dir.join("config.toml")]) {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o555)).unwrap();
    let said = run();
    let expected = "config.toml:37: ledger.url: the ledger file data/loangate.db cannot be used: nothing can be \
                    written in the directory data: Permission denied";
    assert!(!said.good && said.errors.contains(expected), "{said:?}");
    // A ledger that belongs to another user, in a directory that is ours.
    std::fs::write(data.join("loangate.db"), "").unwrap_or_else(|_| panic!("not as this user"));
    std::fs::set_permissions(data.join("loangate.db"), std::fs::Permissions::from_mode(0o444))
        .unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o777)).unwrap();
    let said = run();
    let expected = "the ledger file data/loangate.db cannot be used: Permission denied";
    assert!(!said.good && said.errors.contains(expected), "{said:?}");
    std::fs::remove_file(data.join("loangate.db")).unwrap();
    let said = run();
    assert!(
        said.good && std::fs::read_dir(&data).unwrap().count() == 0,
        "nothing is left behind: {said:?}"
    );
}

#[tokio::test]
async fn ledger_of_another_pseudonym_key_is_reported() {
    let mut scene = Scene::start().await;
    scene.stop_gate().await;
    let key = scene.dir.path().join("certs/pseudonym.key");
    assert!(check_offline(&scene).await.good);
    std::fs::write(&key, "0123456789abcdef0123456789abcdef").unwrap();
    let said = check_offline(&scene).await;
    assert!(!said.good && said.errors.contains("written under another pseudonym key"), "{said:?}");
    scene.end().await;
}

async fn check_offline(scene: &Scene) -> Said {
    let directory = scene.dir.path().to_owned();
    tokio::task::spawn_blocking(move || check(&directory)).await.unwrap()
}

#[tokio::test]
async fn online_check_says_what_works() {
    let scene = Scene::around(Setting::default()).await;
    let said = check_online(&scene, &[]).await;
    assert!(said.good, "{said:?}");
    for line in [
        "ok: the readers' key set certs/jwks.json can be read",
        "ok: Bokbasen's login works",
        "ok: Bokbasen's API takes the token",
        "ok: this machine's clock agrees with Bokbasen's to a second",
        &format!("ok: origin files: {}/: it answers", scene.origin.url),
    ] {
        assert!(said.output.lines().any(|said| said == line), "no {line}: {}", said.output);
    }
    assert!(scene.books().await.is_empty(), "it has begun nothing");
    scene.end().await;
}

#[tokio::test]
async fn online_check_names_why_bokbasen_cannot_be_used() {
    let scene = Scene::around(Setting::default()).await;
    let original = std::fs::read_to_string(scene.config_file()).unwrap();
    let (_reserved, closed) = refusing();
    // It accepts, by the backlog, and never answers.
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
        let said = check_online(&scene, &[]).await;
        assert!(!said.good && said.errors.contains(expected), "{expected}: {said:?}");
        assert!(!said.output.contains("login works"), "{said:?}");
    }
    // The login works, and the API is another one.
    scene.fault(&json!({ "call": "list", "effect": { "status": { "status": 401 } } })).await;
    std::fs::write(scene.config_file(), &original).unwrap();
    let said = check_online(&scene, &[]).await;
    assert!(!said.good && said.output.contains("ok: Bokbasen's login works"), "{said:?}");
    assert!(said.errors.contains("lending.url: Bokbasen's API refuses the token"), "{said:?}");
    scene.end().await;
}

/// An API of Bokbasen's shape whose clock is this far ahead of ours.
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
    let scene = Scene::around(Setting::default()).await;
    let original = std::fs::read_to_string(scene.config_file()).unwrap();
    let sandbox = original.lines().find_map(|line| line.strip_prefix("url = \"http://")).unwrap();
    let sandbox = format!("http://{}", sandbox.trim_end_matches('"'));
    for (ahead, stream, words) in [
        (20, "ok", "s behind Bokbasen's"),
        (-20, "ok", "s ahead of Bokbasen's"),
        (300, "warning", "s behind Bokbasen's. Loans would end at another moment"),
        (-2000, "mistake", "s ahead of Bokbasen's. Bokbasen refuses calls"),
        (2000, "mistake", "s behind Bokbasen's. Bokbasen refuses calls"),
    ] {
        let url = lending_with_clock(ahead).await;
        std::fs::write(scene.config_file(), original.replace(&sandbox, &url)).unwrap();
        let said = check_online(&scene, &[]).await;
        let text = if stream == "mistake" { &said.errors } else { &said.output };
        let line = text.lines().find(|line| line.contains("this machine's clock"));
        let line = line.unwrap_or_else(|| panic!("{ahead}: {said:?}"));
        assert!(line.contains(words), "{ahead}: {line}");
        assert_eq!(
            (said.good, line.starts_with("ok: ")),
            (stream != "mistake", stream == "ok"),
            "{line}"
        );
        // A second may pass, and a Date has whole ones.
        let seconds =
            line.split(" s ").next().unwrap().rsplit(' ').next().unwrap().parse::<i64>().unwrap();
        assert!((seconds - ahead.abs()).abs() <= 5, "{line}");
    }
    scene.end().await;
}

#[tokio::test]
async fn online_check_tries_a_bucket_with_its_credentials() {
    let scene = Scene::around(Setting::default()).await;
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
    let said = check_online(&scene, &[]).await;
    let expected = "ok: origin files: s3://books/: the bucket can be listed";
    assert!(said.good && said.output.contains(expected), "{said:?}");
    let (_reserved, closed) = refusing();
    let keyless = format!(
        "url = \"s3://books\"\ns3 = {{ endpoint = \"http://{}\", region = \"eu-north-1\" }}",
        storage.address
    );
    let metadata = format!("http://{closed}");
    for (lines, expected) in [
        (
            good.replace(crate::support::storage::SECRET, "another-secret-altogether"),
            "the secret is not the one",
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
        let said = check_online(&scene, &[("AWS_METADATA_ENDPOINT", &metadata)]).await;
        assert!(!said.good && said.errors.contains(expected), "{expected}: {said:?}");
        assert!(
            said.errors.contains("config.toml:") && said.errors.contains("origins[0].url"),
            "{said:?}"
        );
        for secret in ["another-secret", crate::support::storage::SECRET, "Signature", "AWS4"] {
            assert!(!format!("{said:?}").contains(secret), "{secret} is shown: {said:?}");
        }
    }
    // A wrong path is found too, and a bucket at Amazon needs its region.
    with(&good.replace("s3://books", "s3://books/elsewhere"));
    let said = check_online(&scene, &[]).await;
    assert!(said.output.contains("no file is below this path"), "{said:?}");
    with("url = \"s3://books\"\ns3 = { access_key_id = \"a\", secret_access_key = \"b\" }");
    let said = check_offline(&scene).await;
    assert!(
        said.output.contains("no region is written") && said.output.contains("us-east-1"),
        "{said:?}"
    );
    scene.end().await;
}

#[tokio::test]
async fn online_check_tries_all_addresses_at_once() {
    let scene = Scene::around(Setting::default()).await;
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
            "urls = [\"{}/\", \"http://{closed}/\", \"file:empty\", {}]\nconnect_timeout = \"1s\"\nfirst_byte = \"3s\"",
            scene.origin.url,
            silents.join(", ")
        ),
    );
    let began = Instant::now();
    let said = check_online(&scene, &[]).await;
    // One after the other they would take 32 s.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(said.output.contains("it answers"), "{said:?}");
    assert!(said.output.contains("the directory is empty"), "{said:?}");
    assert!(said.errors.contains(&format!("http://{closed}/: it cannot be reached: ")), "{said:?}");
    let late =
        said.errors.lines().filter(|line| line.contains("it did not answer within 4 s")).count();
    assert_eq!(late, 8, "{said:?}");
    scene.end().await;
}
