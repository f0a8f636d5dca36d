//! Pauses of lending: while one lasts, no loan of its libraries begins.
//!
//! An operator pauses one library, or all. The executor checks it in the transaction of an intent,
//! so a pause holds for all processes on one ledger from its commit on. Loans whose intent
//! was written before are sent, served and ended as ever.
//!
//! Each pause is a row of `meta`, which names the person and the reason.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Ledger, LedgerError, Update};
use crate::loan::LibraryId;

/// The name of the row that pauses all libraries. Those of one library have its ISIL after it.
pub(super) const PAUSED: &str = "lending paused";
/// The queries. Both stores read parameters of this form.
pub(super) const IS_PAUSED: &str = "SELECT 1 FROM meta WHERE name IN ($1, $2) LIMIT 1";
pub(super) const LIST: &str = "SELECT name, value FROM meta WHERE name LIKE 'lending paused%' \
     ORDER BY name LIMIT 10000";

/// A pause of lending.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pause {
    /// The library; none for all.
    pub library: Option<LibraryId>,
    /// Since when, who has paused it, and why.
    pub origin: PauseOrigin,
}

/// Since when lending is paused, by whom, and why.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PauseOrigin {
    /// When it began.
    pub since: Timestamp,
    /// The name of the person, or of the credential.
    pub who: String,
    /// The reason that the person gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A change of a pause, by the name of its row.
pub(super) struct PauseChange {
    pub(super) name: String,
    /// The value of the new row; none to resume.
    pub(super) value: Option<Vec<u8>>,
}

impl PauseChange {
    /// Pauses all libraries, in a ledger that no gate has open. `value` is a [`PauseOrigin`].
    pub(super) fn of_all(value: Vec<u8>) -> PauseChange {
        PauseChange { name: name_of(None), value: Some(value) }
    }
}

/// Returns the name of the row of a library.
pub(super) fn name_of(library: Option<LibraryId>) -> String {
    match library {
        Some(library) => format!("{PAUSED} {library}"),
        None => PAUSED.to_owned(),
    }
}

/// Returns the pause of a row; none if the row names no library, and so pauses nothing. A row with
/// a damaged value pauses, so it is shown with what can be read.
pub(super) fn pause_of(name: &str, value: &[u8]) -> Option<Pause> {
    let library = match name.strip_prefix(PAUSED)? {
        "" => None,
        rest => Some(rest.strip_prefix(' ')?.parse().ok()?),
    };
    let origin = serde_json::from_slice(value).unwrap_or_else(|_| PauseOrigin {
        since: Timestamp::UNIX_EPOCH,
        who: "?".to_owned(),
        why: None,
    });
    Some(Pause { library, origin })
}

impl Ledger {
    /// Pauses lending of a library, or of all. Returns false if it is paused already, which stays
    /// as it is. It holds when this returns.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written. After [`LedgerError::Commit`] it may be
    /// paused.
    pub async fn pause_lending(&self, pause: &Pause) -> Result<bool, LedgerError> {
        let value = serde_json::to_vec(&pause.origin).unwrap_or_default();
        let change = PauseChange { name: name_of(pause.library), value: Some(value) };
        Ok(self.update(Update::SetPause(change)).await? > 0)
    }

    /// Resumes lending of a library, or of all. A pause of one library and the pause of all are
    /// independent. Returns false if there is no such pause.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be written.
    pub async fn resume_lending(&self, library: Option<LibraryId>) -> Result<bool, LedgerError> {
        let change = PauseChange { name: name_of(library), value: None };
        Ok(self.update(Update::SetPause(change)).await? > 0)
    }

    /// Returns all pauses, that of all libraries first.
    ///
    /// # Errors
    /// [`LedgerError`] if the ledger cannot be read.
    pub async fn pauses(&self) -> Result<Vec<Pause>, LedgerError> {
        self.queries.pauses().await
    }
}

#[cfg(test)]
mod tests {
    use super::super::Intended;
    use super::super::test_store::{TestStore, on_each_store};
    use super::super::test_support::{accepted, by, loan};
    use super::*;

    on_each_store! {
        pause_stops_begins_of_its_libraries_in_every_process
    }

    fn pause(library: Option<LibraryId>) -> Pause {
        let since = Timestamp::from_second(1_800_000_000).unwrap();
        let origin = PauseOrigin { since, who: "admin token".into(), why: Some("a test".into()) };
        Pause { library, origin }
    }

    async fn pause_stops_begins_of_its_libraries_in_every_process(store: &TestStore) {
        let (ledger, other) = (store.open().await, store.open().await);
        let live = accepted(&ledger, 1).await;
        let library = live.library();
        let elsewhere: LibraryId = "NO-0301001".parse().unwrap();
        let mut next = 2;
        let mut begins = async |ledger: &Ledger| {
            next += 1;
            let begun = ledger.intend(loan(next), None, by("reader")).await.unwrap();
            match begun {
                Intended::Written(_) => true,
                Intended::Paused => false,
                begun => panic!("{begun:?}"),
            }
        };
        assert!(ledger.pauses().await.unwrap().is_empty());
        assert!(ledger.pause_lending(&pause(Some(elsewhere))).await.unwrap());
        assert!(begins(&ledger).await, "another library is paused");
        for paused in [Some(library), None] {
            assert!(ledger.pause_lending(&pause(paused)).await.unwrap());
            assert!(!other.pause_lending(&pause(paused)).await.unwrap(), "it is paused already");
            assert!(!begins(&ledger).await && !begins(&other).await, "{paused:?}");
            let again = ledger.intend(loan(1), None, by("reader")).await.unwrap();
            assert!(matches!(again, Intended::Live(_)), "a live loan goes on: {again:?}");
            let all = other.pauses().await.unwrap();
            assert!(all.contains(&pause(paused)) && all.contains(&pause(Some(elsewhere))));
            assert!(other.resume_lending(paused).await.unwrap());
            assert!(!ledger.resume_lending(paused).await.unwrap());
            assert!(begins(&ledger).await && begins(&other).await, "{paused:?}");
        }
        assert_eq!(ledger.pauses().await.unwrap(), [pause(Some(elsewhere))]);
        ledger.close().await;
        other.close().await;
        store.assert_sound().await;
    }

    #[test]
    fn damaged_row_is_shown() {
        assert_eq!(pause_of("lending paused x", b"{}"), None, "it pauses no library");
        assert_eq!(pause_of("lending paused", b"{").unwrap().library, None);
        let shown = pause_of("lending paused NO-0301000", b"{").unwrap();
        assert_eq!((shown.library, shown.origin.who.as_str()), ("NO-0301000".parse().ok(), "?"));
    }
}
