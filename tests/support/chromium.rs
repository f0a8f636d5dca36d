//! Chromium without a window, on a page of the test's own. It has a new profile, trusts the gate's
//! key and no other that it does not know, finds nothing but loopback, and ends with its handle.

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

use super::Pages;
use super::external_program::{Held, direct};

/// How long a page may take to tell something, from the start of the browser.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often it is looked whether the browser is still there.
const LOOK: Duration = Duration::from_millis(200);

/// How it is run. It may not ask its maker for anything, and plays without a click and without a
/// sound.
const OPTIONS: &[&str] = &[
    "--headless=new",
    "--no-sandbox", // which needs namespaces that a container has not
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
    // It ends when the other end of this pipe is closed, so also where the test is killed.
    "--remote-debugging-pipe",
];

/// A browser that runs.
#[derive(Debug)]
pub(crate) struct Chromium {
    process: Held,
    home: TempDir,
}

impl Chromium {
    /// Opens this address in a browser that knows the certificate of the gate.
    pub(crate) fn open(program: &Path, url: &str, certificate: &Path) -> Chromium {
        let home = tempfile::tempdir().unwrap();
        let log = File::create(home.path().join("log")).unwrap();
        // Its pipe is numbered 3 and 4, which only a shell can give it.
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
        Chromium { process: Held(command.spawn().unwrap()), home }
    }

    /// The next thing that the page tells.
    pub(crate) async fn told(&mut self, pages: &mut Pages) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(told) = tokio::time::timeout(LOOK, pages.told()).await {
                return told;
            }
            let ended = self.process.0.try_wait().unwrap();
            let why = ended.map(|status| format!("the browser ended with {status}"));
            let why =
                why.or((Instant::now() > deadline).then(|| "the page tells nothing".to_owned()));
            if let Some(why) = why {
                let log = std::fs::read(self.home.path().join("log")).unwrap();
                panic!("{why}; the browser's log: {}", String::from_utf8_lossy(&log));
            }
        }
    }
}

/// The key of a certificate, as Chromium names it.
fn key_of(certificate: &Path) -> String {
    let certificate = CertificateDer::from_pem_file(certificate).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).unwrap();
    BASE64.encode(digest::digest(&digest::SHA256, certificate.public_key().raw).as_ref())
}
