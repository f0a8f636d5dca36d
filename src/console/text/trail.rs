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
