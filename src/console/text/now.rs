//! The texts of the page Now, and of all pages that are updated while they are open.

use crate::language::Language;
use crate::monitor::Level;

/// Texts of pages that are updated.
pub(in crate::console) struct Live {
    pub(in crate::console) drawn: &'static str,
    pub(in crate::console) reload: &'static str,
    pub(in crate::console) live: &'static str,
    pub(in crate::console) paused: &'static str,
    pub(in crate::console) ended: &'static str,
    pub(in crate::console) pause: &'static str,
    pub(in crate::console) resume: &'static str,
}

/// Texts of the page Now.
pub(in crate::console) struct Now {
    pub(in crate::console) title: &'static str,
    pub(in crate::console) lead: &'static str,
    pub(in crate::console) windows: &'static str,
    pub(in crate::console) hour: &'static str,
    pub(in crate::console) day: &'static str,
    pub(in crate::console) gates: &'static str,
    pub(in crate::console) all_gates: &'static str,
    pub(in crate::console) this_gate: &'static str,
    pub(in crate::console) missing_gates: fn(usize, u64) -> String,
    pub(in crate::console) empty: &'static str,
    pub(in crate::console) empty_hint: &'static str,
    pub(in crate::console) service: &'static str,
    /// Reading, borrowing and returning.
    pub(in crate::console) components: [&'static str; 3],
    pub(in crate::console) since: &'static str,
    pub(in crate::console) loans: &'static str,
    pub(in crate::console) refusals: &'static str,
    pub(in crate::console) hit_rate: &'static str,
    pub(in crate::console) bytes: &'static str,
    pub(in crate::console) latency: &'static str,
    pub(in crate::console) lending: &'static str,
    pub(in crate::console) storages: &'static str,
    pub(in crate::console) outbox: &'static str,
    pub(in crate::console) members: &'static str,
    pub(in crate::console) refusals_hint: &'static str,
    pub(in crate::console) hit_rate_hint: &'static str,
    pub(in crate::console) latency_hint: &'static str,
    pub(in crate::console) outbox_hint: &'static str,
    pub(in crate::console) per_minute: &'static str,
    pub(in crate::console) answered: &'static str,
    pub(in crate::console) failed: &'static str,
    pub(in crate::console) other_refusals: &'static str,
    pub(in crate::console) no_refusals: &'static str,
    pub(in crate::console) no_requests: &'static str,
    pub(in crate::console) no_storages: &'static str,
    pub(in crate::console) waiting: fn(u64) -> String,
    pub(in crate::console) works: &'static str,
    pub(in crate::console) idle: &'static str,
    pub(in crate::console) fails: &'static str,
    pub(in crate::console) suspended: &'static str,
    pub(in crate::console) requests: &'static str,
    pub(in crate::console) streams: &'static str,
    pub(in crate::console) problems: &'static str,
    pub(in crate::console) gate: &'static str,
    pub(in crate::console) show_only: &'static str,
    pub(in crate::console) as_table: &'static str,
    pub(in crate::console) time: &'static str,
    pub(in crate::console) unknown: &'static str,
    /// The newest, the lowest and the highest value of a line.
    pub(in crate::console) summary: fn(&str, &str, &str, &str) -> String,
    pub(in crate::console) nothing_known: &'static str,
}

/// Returns the texts of pages that are updated.
pub(in crate::console) fn live(language: Language) -> &'static Live {
    match language {
        Language::English => &LIVE_ENGLISH,
        Language::Norwegian => &LIVE_NORWEGIAN,
    }
}

/// Returns the texts of the page Now.
pub(in crate::console) fn now(language: Language) -> &'static Now {
    match language {
        Language::English => &ENGLISH,
        Language::Norwegian => &NORWEGIAN,
    }
}

/// Returns the name of a level.
pub(in crate::console) fn level(level: Level, language: Language) -> &'static str {
    match (level, language) {
        (Level::Ok, Language::English) => "works",
        (Level::Degraded, Language::English) => "degraded",
        (Level::Down, Language::English) => "down",
        (Level::Ok, Language::Norwegian) => "virker",
        (Level::Degraded, Language::Norwegian) => "svekket",
        (Level::Down, Language::Norwegian) => "nede",
    }
}

const LIVE_ENGLISH: Live = Live {
    drawn: "Drawn at",
    reload: "Reload",
    live: "Updated while the page is open.",
    paused: "Paused.",
    ended: "No longer updated. Reload the page.",
    pause: "Pause updates",
    resume: "Resume updates",
};

const LIVE_NORWEGIAN: Live = Live {
    drawn: "Tegnet kl.",
    reload: "Last inn på nytt",
    live: "Oppdateres mens siden er åpen.",
    paused: "Satt på pause.",
    ended: "Oppdateres ikke lenger. Last inn siden på nytt.",
    pause: "Sett oppdatering på pause",
    resume: "Fortsett oppdatering",
};

const ENGLISH: Now = Now {
    title: "Now",
    lead: "What the gates are doing. Each large number is the last minute.",
    windows: "Time",
    hour: "Last hour",
    day: "Last day",
    gates: "Gates",
    all_gates: "All gates",
    this_gate: "this one",
    missing_gates: |shown, all| {
        format!("The figures of {shown} of {all} gates are here. Those of the others are missing.")
    },
    empty: "There are no figures yet.",
    empty_hint: "The gate has just started. Its first figures are here within 20 seconds.",
    service: "Service",
    components: ["Reading", "Borrowing", "Returning"],
    since: "since",
    loans: "Loans",
    refusals: "Refusals",
    hit_rate: "Hit rate",
    bytes: "Sent to readers",
    latency: "Time to the response",
    lending: "Bokbasen",
    storages: "Storages",
    outbox: "Oldest waiting end",
    members: "Number of gates",
    refusals_hint: "By the type of the problem.",
    hit_rate_hint: "Requests under a loan that needed no look into the ledger.",
    latency_hint: "Half, 90% and 99% of the requests were faster.",
    outbox_hint: "Ends of loans that Bokbasen has not acknowledged.",
    per_minute: "a minute",
    answered: "answered",
    failed: "failed",
    other_refusals: "others",
    no_refusals: "No refusals in this time.",
    no_requests: "no requests",
    no_storages: "No storage has been asked yet.",
    waiting: |count| match count {
        1 => "1 waits".to_owned(),
        _ => format!("{count} wait"),
    },
    works: "works",
    idle: "no calls",
    fails: "calls fail",
    suspended: "suspended",
    requests: "Requests",
    streams: "Streams",
    problems: "Problems",
    gate: "Gate",
    show_only: "Show only this gate",
    as_table: "As a table",
    time: "Time",
    unknown: "unknown",
    summary: |name, newest, lowest, highest| {
        format!("{name}: {newest} now, between {lowest} and {highest}.")
    },
    nothing_known: "Nothing is known of this time.",
};

const NORWEGIAN: Now = Now {
    title: "Nå",
    lead: "Hva portene gjør. Hvert stort tall er det siste minuttet.",
    windows: "Tid",
    hour: "Siste time",
    day: "Siste døgn",
    gates: "Porter",
    all_gates: "Alle porter",
    this_gate: "denne",
    missing_gates: |shown, all| {
        format!("Her er tallene fra {shown} av {all} porter. De andres tall mangler.")
    },
    empty: "Det er ingen tall ennå.",
    empty_hint: "Porten har nettopp startet. De første tallene er her innen 20 sekunder.",
    service: "Tjenesten",
    components: ["Lesing", "Utlån", "Innlevering"],
    since: "siden",
    loans: "Lån",
    refusals: "Avvisninger",
    hit_rate: "Treffandel",
    bytes: "Sendt til lesere",
    latency: "Tid til svar",
    lending: "Bokbasen",
    storages: "Lagre",
    outbox: "Eldste ventende avslutning",
    members: "Antall porter",
    refusals_hint: "Etter problemets type.",
    hit_rate_hint: "Forespørsler under et lån som ikke krevde oppslag i hovedboken.",
    latency_hint: "Halvparten, 90 % og 99 % av forespørslene var raskere.",
    outbox_hint: "Avslutninger av lån som Bokbasen ikke har bekreftet.",
    per_minute: "per minutt",
    answered: "besvart",
    failed: "mislykket",
    other_refusals: "andre",
    no_refusals: "Ingen avvisninger i dette tidsrommet.",
    no_requests: "ingen forespørsler",
    no_storages: "Ingen lagre er spurt ennå.",
    waiting: |count| format!("{count} venter"),
    works: "virker",
    idle: "ingen kall",
    fails: "kall mislykkes",
    suspended: "satt på vent",
    requests: "Forespørsler",
    streams: "Strømmer",
    problems: "Problemer",
    gate: "Port",
    show_only: "Vis bare denne porten",
    as_table: "Som tabell",
    time: "Tid",
    unknown: "ukjent",
    summary: |name, newest, lowest, highest| {
        format!("{name}: {newest} nå, mellom {lowest} og {highest}.")
    },
    nothing_known: "Ingenting er kjent om dette tidsrommet.",
};
