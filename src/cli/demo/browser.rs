//! Opens the demo's page in Chromium with `--open`: in a temporary profile that accepts the key of
//! the demo's certificate and no other unknown one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aws_lc_rs::digest;
use data_encoding::BASE64;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::{Instant, sleep};

/// The names of Chromium, in the order of preference. The last one is macOS's.
const NAMES: [&str; 5] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
];
/// How soon a browser that cannot start has ended.
const FAILURE_TIME: Duration = Duration::from_millis(1500);
/// How long the processes of the browser may take to leave its profile.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// An opened browser. Dropping it closes the browser and removes its profile.
#[derive(Debug)]
pub(super) struct Browser {
    process: Child,
    profile: PathBuf,
}

impl Browser {
    /// Opens the page. `dir` has the certificate, and gets the temporary profile.
    ///
    /// # Errors
    /// Says why no browser was opened.
    pub(super) async fn open(page: &str, dir: &Path) -> Result<Browser, String> {
        let program = found().ok_or("Chromium is not installed, so --open opened nothing.")?;
        let key = key_of(&dir.join("certs/server.pem"))?;
        let profile = dir.join("browser-profile");
        remove(&profile).map_err(|error| format!("{} is in use: {error}", profile.display()))?;
        let process = Command::new(&program)
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(format!("--ignore-certificate-errors-spki-list={key}"))
            .args(["--no-first-run", "--no-default-browser-check", "--test-type", "--new-window"])
            .arg(page)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process =
            process.map_err(|error| format!("{} cannot start: {error}.", program.display()))?;
        let mut browser = Browser { process, profile };
        let deadline = Instant::now() + FAILURE_TIME;
        while Instant::now() < deadline {
            match browser.process.try_wait() {
                Ok(Some(status)) if !status.success() => {
                    let program = program.display();
                    return Err(format!(
                        "{program} ended with {status}, so --open opened nothing."
                    ));
                }
                Ok(Some(_)) => break,
                Ok(None) | Err(_) => sleep(POLL_INTERVAL).await,
            }
        }
        Ok(browser)
    }

    /// Closes the browser, and removes its profile.
    pub(super) async fn close(mut self) {
        let _ = self.process.kill();
        let deadline = Instant::now() + STOP_TIMEOUT;
        while remove(&self.profile).is_err() && Instant::now() < deadline {
            sleep(POLL_INTERVAL).await;
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = remove(&self.profile);
    }
}

fn remove(profile: &Path) -> io::Result<()> {
    match fs::remove_dir_all(profile) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn found() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let files = NAMES.iter().flat_map(|name| directories.iter().map(move |dir| dir.join(name)));
    files.into_iter().find(|file| file.is_file())
}

/// Returns the hash of a certificate's key in the form of Chromium's option.
fn key_of(certificate: &Path) -> Result<String, String> {
    let failed = |error: &dyn std::fmt::Display| {
        format!("{} cannot be read: {error}.", certificate.display())
    };
    let der = CertificateDer::from_pem_file(certificate).map_err(|error| failed(&error))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|error| failed(&error))?;
    let key = parsed.public_key().raw;
    Ok(BASE64.encode(digest::digest(&digest::SHA256, key).as_ref()))
}
