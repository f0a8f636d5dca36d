//! The texts of the fields that describe a request further, in each language.

use crate::language::Language;

/// Texts of the fields.
pub(in crate::console) struct WhyFields {
    pub(in crate::console) more: &'static str,
    pub(in crate::console) method: &'static str,
    pub(in crate::console) method_hint: &'static str,
    pub(in crate::console) issued: &'static str,
    pub(in crate::console) issued_hint: &'static str,
    pub(in crate::console) headers: &'static str,
    pub(in crate::console) headers_hint: &'static str,
    pub(in crate::console) bad_method: &'static str,
    pub(in crate::console) bad_issued: &'static str,
    pub(in crate::console) bad_headers: &'static str,
}

/// Returns the texts in a language.
pub(in crate::console) fn why_fields(language: Language) -> &'static WhyFields {
    match language {
        Language::English => &ENGLISH,
        Language::Norwegian => &NORWEGIAN,
    }
}

const ENGLISH: WhyFields = WhyFields {
    more: "More about the request",
    method: "Method",
    method_hint: "GET if it is empty.",
    issued: "When the credential was issued",
    issued_hint: "A time like 2026-01-31T12:00:00Z; now if it is empty.",
    headers: "Header fields",
    headers_hint: "One to a line, like Range: bytes=0-99. They are not stored.",
    bad_method: "This is no method. Write one like GET.",
    bad_issued: "This is no time, or one in the future. Write one like 2026-01-31T12:00:00Z.",
    bad_headers: "These are no header fields. Write at most 100 lines like Range: bytes=0-99.",
};

const NORWEGIAN: WhyFields = WhyFields {
    more: "Mer om forespørselen",
    method: "Metode",
    method_hint: "GET om feltet er tomt.",
    issued: "Når adgangsbeviset ble utstedt",
    issued_hint: "Et tidspunkt som 2026-01-31T12:00:00Z; nå om feltet er tomt.",
    headers: "HTTP-felter",
    headers_hint: "Ett per linje, som Range: bytes=0-99. De lagres ikke.",
    bad_method: "Dette er ingen metode. Skriv en som GET.",
    bad_issued: "Dette er ikke et tidspunkt, eller det er i fremtiden. Skriv et som \
                 2026-01-31T12:00:00Z.",
    bad_headers: "Dette er ikke HTTP-felter. Skriv høyst 100 linjer som Range: bytes=0-99.",
};
