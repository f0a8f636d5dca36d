//! The folder of a server: created for its account, with its configuration files.

use std::fs::{self, Permissions};
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::account::Account;

/// A temporary folder that only the account of the servers and root can read.
#[derive(Debug)]
pub(super) struct Folder {
    directory: TempDir,
    pub(super) account: Option<Account>,
}

impl Folder {
    pub(super) fn create(prefix: &str) -> Folder {
        let directory = tempfile::Builder::new().prefix(prefix).tempdir().unwrap();
        let account = Account::for_servers();
        if let Some(account) = account {
            account.own(directory.path());
        }
        Folder { directory, account }
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a file that only the account can read, as PostgreSQL demands of a private key.
    pub(super) fn write(&self, name: &str, content: &str) -> PathBuf {
        let file = self.path().join(name);
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        if let Some(account) = self.account {
            account.own(&file);
        }
        file
    }

    /// Returns what the programs of this folder logged.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }
}

/// Returns a free port below the ephemeral range, where no outgoing connection can take it while
/// its server restarts.
pub(super) fn free_port() -> u16 {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let random = || 16_000 + u16::from_le_bytes(random_bytes()) % 16_000;
    std::iter::repeat_with(random).find(is_free).unwrap()
}

/// Returns a password of 128 bits.
pub(super) fn random_password() -> String {
    format!("{:032x}", u128::from_le_bytes(random_bytes()))
}

fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}
