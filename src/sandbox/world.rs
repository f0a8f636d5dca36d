//! What the sandbox knows before anyone calls: libraries, titles with their licences, and who is
//! refused.
//!
//! The demo, tests and files (JSON or TOML) say it as a [`World`]; the control API changes it while
//! the sandbox runs. It calls nothing of ours but the domain's names. The keys are written as
//! Bokbasen's are.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::serde_text;
use crate::loan::{Isbn, LibraryId};

/// How many days a loan lasts where the title does not say.
pub(super) const LOAN_DAYS: u32 = 21;

/// Everything that the sandbox knows at its start. The default is an empty world: every library is
/// answered 403 and every title 404.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct World {
    /// Every library and title exists, with unlimited licences, unless it is named below.
    #[serde(alias = "any_library_any_title")]
    pub any_library_any_title: bool,
    /// The libraries with a contract.
    pub libraries: Vec<Library>,
    /// The titles.
    pub titles: Vec<Title>,
    /// The borrowers that are refused.
    pub borrowers: Vec<BorrowerRule>,
    /// The kinds of licences; none leaves the usual four.
    #[serde(rename = "licenseTypes", alias = "licenceTypes")]
    pub licence_types: Vec<LicenceType>,
}

/// A library with a contract.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Library {
    /// Its ISIL.
    #[serde(with = "serde_text")]
    pub isil: LibraryId,
    /// The code with which each of its loans is refused, like `BUDGET_EXCEEDED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuse: Option<String>,
}

/// A title, with the licences of the libraries.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Title {
    /// Its ISBN.
    #[serde(with = "serde_text")]
    pub isbn: Isbn,
    /// Its licences. A library takes the first that is free, unless a begin names one.
    #[serde(default, rename = "licenses", alias = "licences")]
    pub licences: Vec<Licence>,
    /// How many days of 24 hours a loan lasts.
    #[serde(default = "loan_days")]
    pub loan_days: u32,
    /// The code with which each of its loans is refused, like `TITLE_NOT_LENDABLE`.
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
    /// Its id, as a begin may name it.
    #[serde(rename = "licenseId", alias = "licenceId")]
    pub licence_id: String,
    /// Its kind, like `PACKAGE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How many loans may be live on it at once, in each library; none is one where it is
    /// exclusive, and otherwise without limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Whether it carries one loan at a time.
    #[serde(default)]
    pub exclusive: bool,
    /// How many loans may be made on it in all, in each library; none is without limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loans_left: Option<u32>,
    /// Where it comes from.
    #[serde(default)]
    pub origin: Origin,
    /// When it lapses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// The one library that has it; none is every library.
    #[serde(default, with = "serde_text::option", skip_serializing_if = "Option::is_none")]
    pub library: Option<LibraryId>,
}

impl Licence {
    /// A licence of this id and kind that carries this many loans at once (none: without limit).
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

    /// How many loans may be live at once; none is without limit.
    pub(super) fn limit(&self) -> Option<u32> {
        self.count.or(self.exclusive.then_some(1))
    }
}

/// Where a licence comes from.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Origin {
    /// The library bought it.
    #[default]
    Purchase,
    /// It was brought along from an earlier platform.
    Imported,
    /// Kulturrådet gave it.
    Kulturradet,
}

/// A kind of licence, as `GET /v1/license-types` shows it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LicenceType {
    /// Its name in licences.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name for people.
    pub name: String,
    /// How many days its loans last as a rule.
    pub loan_days: u32,
    /// Whether it carries one loan at a time.
    pub exclusive: bool,
}

/// The kinds of licences where the world names none (assumed).
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

/// A borrower that is refused.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BorrowerRule {
    /// The borrower, by the pseudonym that the begin carries.
    pub borrower: Pseudonym,
    /// The code of the refusal, like `BORROWER_LIMIT`.
    pub refuse: String,
}

/// A borrower as a begin names them: an opaque text. `Debug` does not show it.
#[derive(Clone, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Pseudonym(pub String);

impl fmt::Debug for Pseudonym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pseudonym(…)")
    }
}
