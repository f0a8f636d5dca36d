//! The world of the sandbox: libraries, titles with their licences, and refused borrowers.
//!
//! The demo, tests and files (JSON or TOML) define it as a [`World`]. The control API changes it
//! while the sandbox runs. The keys are spelt as in Bokbasen's API.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::serde_text;
use crate::loan::{Isbn, LibraryId};

/// The default loan period, in days.
pub(super) const LOAN_DAYS: u32 = 21;

/// Everything that exists in the sandbox at its start. The default is empty: every library gets 403
/// and every title 404.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct World {
    /// Whether every library and title exists, with unlimited licences, unless listed below.
    #[serde(alias = "any_library_any_title")]
    pub any_library_any_title: bool,
    /// The libraries with a contract.
    pub libraries: Vec<Library>,
    /// The titles that can be lent.
    pub titles: Vec<Title>,
    /// The borrowers whose loans are refused.
    pub borrowers: Vec<BorrowerRule>,
    /// The licence types; empty means the default four.
    #[serde(rename = "licenseTypes", alias = "licenceTypes")]
    pub licence_types: Vec<LicenceType>,
}

/// A library with a contract.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Library {
    /// The ISIL of the library.
    #[serde(with = "serde_text")]
    pub isil: LibraryId,
    /// The code that refuses all its loans, such as `BUDGET_EXCEEDED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuse: Option<String>,
}

/// A title, with the licences of all libraries.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Title {
    /// The ISBN of the title.
    #[serde(with = "serde_text")]
    pub isbn: Isbn,
    /// The licences. A library uses the first free one, unless a begin names one.
    #[serde(default, rename = "licenses", alias = "licences")]
    pub licences: Vec<Licence>,
    /// The loan period, in days of 24 hours.
    #[serde(default = "loan_days")]
    pub loan_days: u32,
    /// The code that refuses all its loans, such as `TITLE_NOT_LENDABLE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuse: Option<String>,
}

fn loan_days() -> u32 {
    LOAN_DAYS
}

/// A licence of a title.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Licence {
    /// The id that a begin may name.
    #[serde(rename = "licenseId", alias = "licenceId")]
    pub licence_id: String,
    /// The type, such as `PACKAGE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Maximum number of live loans per library; by default one if exclusive, else no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Whether it allows only one live loan at a time.
    #[serde(default)]
    pub exclusive: bool,
    /// The total number of loans per library; none means without limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loans_left: Option<u32>,
    /// The source of the licence.
    #[serde(default)]
    pub origin: Origin,
    /// When the licence expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// The only library that has the licence; none means every library.
    #[serde(default, with = "serde_text::option", skip_serializing_if = "Option::is_none")]
    pub library: Option<LibraryId>,
}

impl Licence {
    /// Creates a licence with a maximum number of live loans (none: without limit).
    pub fn new(
        licence_id: impl Into<String>,
        kind: impl Into<String>,
        count: Option<u32>,
    ) -> Licence {
        Licence {
            licence_id: licence_id.into(),
            kind: kind.into(),
            count,
            exclusive: false,
            loans_left: None,
            origin: Origin::default(),
            expires: None,
            library: None,
        }
    }

    /// Returns the maximum number of live loans; none means without limit.
    pub(super) fn limit(&self) -> Option<u32> {
        self.count.or(self.exclusive.then_some(1))
    }
}

/// The source of a licence.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Origin {
    /// The library bought it.
    #[default]
    Purchase,
    /// It was migrated from an earlier platform.
    Imported,
    /// Arts Council Norway (Kulturrådet) granted it.
    Kulturradet,
}

/// A licence type in a response of `GET /v1/license-types`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LicenceType {
    /// The type's name in licences.
    #[serde(rename = "type")]
    pub kind: String,
    /// The type's name for people.
    pub name: String,
    /// The usual loan period, in days.
    pub loan_days: u32,
    /// Whether it allows only one live loan at a time.
    pub exclusive: bool,
}

/// Returns the licence types of a world that names none (assumed).
pub(super) fn usual_licence_types() -> Vec<LicenceType> {
    [
        ("EXCLUSIVE", "Eksemplarlisens", true),
        ("IMPORTED", "Importert lisens", true),
        ("PACKAGE", "Pakke", false),
        ("PAY_PER_LOAN", "Klikklisens", false),
    ]
    .map(|(kind, name, exclusive)| LicenceType {
        kind: kind.to_owned(),
        name: name.to_owned(),
        loan_days: LOAN_DAYS,
        exclusive,
    })
    .into()
}

/// A borrower whose loans are refused.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BorrowerRule {
    /// The borrower's pseudonym, as in a begin.
    pub borrower: Pseudonym,
    /// The code of the refusal, such as `BORROWER_LIMIT`.
    pub refuse: String,
}

/// A borrower's pseudonym: an opaque text that `Debug` does not show.
#[derive(Clone, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Pseudonym(pub String);

impl fmt::Debug for Pseudonym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pseudonym(…)")
    }
}
