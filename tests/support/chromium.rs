//! Headless Chromium on a page that a test serves. It has a new profile, accepts only the gate's
//! certificate key, reaches only loopback, and ends when its handle is dropped.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use aws_lc_rs::digest;
use data_encoding::BASE64;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use super::external_program::{OwnedProcess, direct};
use super::{DevTools, Pages};

/// Timeout for each report of the page.
const PATIENCE: Duration = Duration::from_secs(90);
/// Interval at which the browser process is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Options that disable background traffic and sound, and allow playback without a click.
const OPTIONS: &[&str] = &[
    "--headless=new",
    "--no-sandbox", // the sandbox needs namespaces, which a container lacks
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-pings",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--password-store=basic",
    // Chromium ends when the other end of this pipe closes, so also when the test is killed.
    "--remote-debugging-pipe",
];

/// A running browser process.
#[derive(Debug)]
pub(crate) struct Chromium {
    process: OwnedProcess,
    home: TempDir,
}

impl Chromium {
    /// Opens this address in a browser that accepts the key of the gate's certificate.
    pub(crate) fn open(program: &Path, url: &str, certificate: &Path) -> Chromium {
        let home = tempfile::tempdir().unwrap();
        let log = File::create(home.path().join("log")).unwrap();
        // Chromium reads descriptors 3 and 4, and only a shell can pass those.
        let mut command = direct(Path::new("/bin/sh"));
        command
            .args(["-c", "exec \"$@\" 3<&0 4>&1 0</dev/null 1>&2", "sh"])
            .arg(program)
            .args(OPTIONS);
        command.arg(format!("--user-data-dir={}", home.path().join("profile").display()));
        command
            .arg(format!("--ignore-certificate-errors-spki-list={}", key_of(certificate)))
            .arg(url);
        command
            .env("HOME", home.path())
            .env("XDG_CONFIG_HOME", home.path())
            .env("TMPDIR", home.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        Chromium { process: OwnedProcess(command.spawn().unwrap()), home }
    }

    /// Attaches to the browser's page by the DevTools protocol.
    pub(crate) async fn devtools(mut self) -> DevTools {
        let pipes = self.process.0.stdin.take().zip(self.process.0.stdout.take());
        DevTools::attach(self, pipes.unwrap()).await
    }

    /// Returns what the browser has written to its log.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read(self.home.path().join("log")).unwrap();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Returns the next value that the page reports.
    pub(crate) async fn reported(&mut self, pages: &mut Pages) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(value) = tokio::time::timeout(POLL_INTERVAL, pages.reported()).await {
                return value;
            }
            let ended = self.process.0.try_wait().unwrap();
            let why = ended.map(|status| format!("the browser ended with {status}"));
            let why =
                why.or((Instant::now() > deadline).then(|| "the page reported nothing".to_owned()));
            if let Some(why) = why {
                panic!("{why}; the browser's log: {}", self.log());
            }
        }
    }
}

/// Returns the hash of a certificate's key in the form of Chromium's option.
pub(crate) fn key_of(certificate: &Path) -> String {
    let certificate = CertificateDer::from_pem_file(certificate).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).unwrap();
    BASE64.encode(digest::digest(&digest::SHA256, certificate.public_key().raw).as_ref())
}
