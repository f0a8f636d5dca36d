//! The texts of the page of the access trail, in each language.

use crate::language::Language;

/// Texts of the page.
pub(in crate::console) struct TrailTexts {
    pub(in crate::console) title: &'static str,
    pub(in crate::console) lead: &'static str,
    pub(in crate::console) library: &'static str,
    pub(in crate::console) show: &'static str,
    pub(in crate::console) none: &'static str,
    pub(in crate::console) at: &'static str,
    pub(in crate::console) who: &'static str,
    pub(in crate::console) what: &'static str,
    pub(in crate::console) of: &'static str,
    pub(in crate::console) why: &'static str,
    pub(in crate::console) older: &'static str,
    pub(in crate::console) newest: &'static str,
}

/// Returns the texts in a language.
pub(in crate::console) fn trail_texts(language: Language) -> &'static TrailTexts {
    match language {
        Language::English => &ENGLISH,
        Language::Norwegian => &NORWEGIAN,
    }
}

/// Returns the words for an access; its own name if there are none, as of a newer gate.
pub(in crate::console) fn access_name(language: Language, name: &str) -> &str {
    let found = ACCESSES.iter().find(|(known, ..)| *known == name);
    match (found, language) {
        (Some((_, english, _)), Language::English) => english,
        (Some((.., norwegian)), Language::Norwegian) => norwegian,
        (None, _) => name,
    }
}

/// The accesses of the console, the command line and the admin API.
const ACCESSES: [(&str, &str, &str); 22] = [
    ("sign-in", "signed in", "logget inn"),
    ("list-accesses", "looked at the trail", "så på loggen"),
    ("find", "searched", "søkte"),
    ("list-loans", "listed loans", "så på en liste av lån"),
    ("show-loan", "looked at a loan", "så på et lån"),
    ("explain", "asked why", "spurte hvorfor"),
    ("end-loan", "ended a loan", "avsluttet et lån"),
    ("mint-link", "made a link", "laget en lenke"),
    ("poll-loan", "queried Bokbasen about a loan", "spurte Bokbasen om et lån"),
    ("export-borrower", "exported the data of a borrower", "eksporterte dataene om en låner"),
    ("erase-borrower", "erased a borrower", "slettet en låner"),
    ("pause-lending", "paused lending", "satte utlån på pause"),
    ("resume-lending", "resumed lending", "gjenopptok utlån"),
    ("request-examination", "marked a loan for balance", "merket et lån for avstemming"),
    ("show-library", "looked at a library", "så på et bibliotek"),
    ("download-library", "downloaded a library's tables", "lastet ned et biblioteks tabeller"),
    ("query-availability", "queried availability", "spurte om tilgjengelighet"),
    ("list-reports", "listed usage reports", "så på en liste av bruksrapporter"),
    ("show-report", "looked at a usage report", "så på en bruksrapport"),
    ("settle-report", "settled a usage report", "avgjorde en bruksrapport"),
    ("run-balance", "ran a balance", "kjørte en avstemming"),
    ("show-balance", "looked at a balance", "så på en avstemming"),
];

const ENGLISH: TrailTexts = TrailTexts {
    title: "Trail",
    lead: "Who of the staff looked at loans or acted on them, and why. Looking here is recorded, \
           too.",
    library: "An ISIL like NO-0301000; all libraries without it.",
    show: "Show",
    none: "No access is recorded.",
    at: "Time",
    who: "Who",
    what: "What",
    of: "Of what",
    why: "Why",
    older: "Older accesses",
    newest: "Newest accesses",
};

const NORWEGIAN: TrailTexts = TrailTexts {
    title: "Logg",
    lead: "Hvem av de ansatte som så på lån eller handlet med dem, og hvorfor. Også oppslag her \
           registreres.",
    library: "En ISIL som NO-0301000; alle bibliotek uten.",
    show: "Vis",
    none: "Ingen tilgang er registrert.",
    at: "Tid",
    who: "Hvem",
    what: "Hva",
    of: "Hva det gjaldt",
    why: "Hvorfor",
    older: "Eldre tilganger",
    newest: "Nyeste tilganger",
};
