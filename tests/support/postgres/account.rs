//! The account that runs the database servers: PostgreSQL and PgBouncer refuse to run as root.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// A user and its group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    user: u32,
    group: u32,
}

impl Account {
    /// Returns the account for the servers of a test that runs as root. Other users run them
    /// themselves.
    pub(super) fn for_servers() -> Option<Account> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let accounts = fs::read_to_string("/etc/passwd").unwrap();
        let account = Account::find(&accounts, "postgres");
        Some(account.or_else(|| Account::find(&accounts, "nobody")).expect("the account nobody"))
    }

    fn find(accounts: &str, name: &str) -> Option<Account> {
        let mut fields =
            accounts.lines().find(|line| line.split(':').next() == Some(name))?.split(':');
        let user = fields.nth(2)?.parse().ok()?;
        Some(Account { user, group: fields.next()?.parse().ok()? })
    }

    /// Makes a command run under this account.
    pub(super) fn apply(self, command: &mut Command) {
        command.uid(self.user).gid(self.group);
    }

    /// Makes this account the owner of a file.
    pub(super) fn own(self, path: &Path) {
        chown(path, Some(self.user), Some(self.group)).unwrap();
    }
}
