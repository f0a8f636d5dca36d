//! Reads the keys of `[server]` about upgrades.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use super::socket_path::{collide, socket_path};
use super::table::Table;
use super::values::nonzero_duration;
use crate::ledger::StoreSettings;
use crate::listeners;

/// The keys of `[server]` about upgrades, before the ledger is known.
#[derive(Debug)]
pub(super) struct Handover {
    /// The file, if the configuration names one; an empty path turns it off.
    file: Option<PathBuf>,
    timeout: Duration,
}

impl Handover {
    /// Reads the keys. `admin_socket` is another Unix socket, which must have another path.
    pub(super) fn read(table: &mut Table<'_>, admin_socket: Option<&Path>) -> Handover {
        let timeout = table.or("handover_timeout", Duration::from_secs(120), nonzero_duration);
        let source = table.source();
        let file = table.optional("handover", |value| {
            if matches!(value, DeValue::String(text) if text.is_empty()) {
                return Ok(PathBuf::new());
            }
            let file = socket_path(value, source, "\"\" for no upgrades while it runs")?;
            match admin_socket.is_some_and(|other| collide(other, &file)) {
                false => Ok(file),
                true => Err("it is the same path as listen.admin_socket. Write another".to_owned()),
            }
        });
        Handover { file, timeout }
    }

    /// Returns the settings. Without a file in the configuration, it is beside the ledger, if the
    /// system allows a path of that length.
    pub(super) fn settings(self, ledger: &StoreSettings, port: u16) -> listeners::Settings {
        let beside = match ledger {
            StoreSettings::Sqlite(file) => file,
            StoreSettings::Postgres(settings) => &settings.heads,
        };
        let file = self.file.unwrap_or_else(|| listeners::default_file(beside, port));
        // A configured path was checked. One beside the ledger that is too long turns upgrades off.
        let fits = |length| (1..=listeners::longest_file()).contains(&length);
        let file = Some(file).filter(|file| fits(file.as_os_str().len()));
        listeners::Settings { file, timeout: self.timeout }
    }
}
