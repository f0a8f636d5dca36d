//! The texts of the page Problems: the name of each problem, and what to do.

use crate::language::{Language, Sentence};
use crate::monitor::{Code, Severity};

/// Texts of the page.
pub(in crate::console) struct Problems {
    pub(in crate::console) title: &'static str,
    pub(in crate::console) nothing: &'static str,
    pub(in crate::console) nothing_hint: &'static str,
    pub(in crate::console) count: fn(usize) -> String,
    pub(in crate::console) advice: &'static str,
    pub(in crate::console) since: &'static str,
    pub(in crate::console) gate: &'static str,
    pub(in crate::console) subject: &'static str,
    pub(in crate::console) runbook: &'static str,
    pub(in crate::console) in_runbook: &'static str,
    pub(in crate::console) runbook_lead: &'static str,
    pub(in crate::console) unlisted: fn(usize, &str) -> String,
    pub(in crate::console) ago: fn(&str) -> String,
    /// How many gates were looked at.
    pub(in crate::console) gates: fn(usize) -> String,
}

/// Returns the texts of the page.
pub(in crate::console) fn problems(language: Language) -> &'static Problems {
    match language {
        Language::English => &ENGLISH,
        Language::Norwegian => &NORWEGIAN,
    }
}

const ENGLISH: Problems = Problems {
    title: "Problems",
    nothing: "Nothing needs you.",
    nothing_hint: "A problem appears some seconds after it begins, and is gone a minute after it \
                   ends.",
    count: |count| match count {
        1 => "1 problem needs a person.".to_owned(),
        _ => format!("{count} problems need a person."),
    },
    advice: "What to do",
    since: "Since",
    gate: "Gate",
    subject: "Concerns",
    runbook: "Runbook",
    in_runbook: "In the runbook",
    runbook_lead: "",
    unlisted: |count, gate| {
        format!("{count} more at {gate}. Open the console of that gate to see all of them.")
    },
    ago: |time| format!("{time} ago"),
    gates: |count| match count {
        1 => "1 gate was looked at.".to_owned(),
        _ => format!("{count} gates were looked at."),
    },
};

const NORWEGIAN: Problems = Problems {
    title: "Problemer",
    nothing: "Ingenting trenger deg.",
    nothing_hint: "Et problem er her noen sekunder etter at det oppstår, og borte et minutt etter \
                   at det er over.",
    count: |count| match count {
        1 => "1 problem trenger et menneske.".to_owned(),
        _ => format!("{count} problemer trenger et menneske."),
    },
    advice: "Hva du kan gjøre",
    since: "Siden",
    gate: "Port",
    subject: "Gjelder",
    runbook: "Håndbok",
    in_runbook: "I håndboken",
    runbook_lead: "Håndboken er på engelsk.",
    unlisted: |count, gate| {
        format!("{count} til hos {gate}. Åpne konsollen til den porten for å se alle.")
    },
    ago: |time| format!("for {time} siden"),
    gates: |count| match count {
        1 => "1 port ble undersøkt.".to_owned(),
        _ => format!("{count} porter ble undersøkt."),
    },
};

/// Returns how bad a problem is.
pub(in crate::console) fn severity(severity: Severity, language: Language) -> &'static str {
    match (severity, language) {
        (Severity::Critical, Language::English) => "critical",
        (Severity::Warning, Language::English) => "warning",
        (Severity::Critical, Language::Norwegian) => "kritisk",
        (Severity::Warning, Language::Norwegian) => "advarsel",
    }
}

/// Returns the name of a kind of problem.
pub(in crate::console) fn problem_name(code: Code, language: Language) -> &'static str {
    let [english, norwegian] = match code {
        Code::BeginsClosed => ["No gate begins a loan", "Ingen port begynner lån"],
        Code::BooksUnbalanced => ["The books differ from Bokbasen's", "Avvik mot Bokbasens bøker"],
        Code::BreakerOpen => ["Calls to Bokbasen are suspended", "Kall til Bokbasen er på vent"],
        Code::CertificateExpires => ["A certificate expires soon", "Et sertifikat utløper snart"],
        Code::CertificateInvalid => ["A certificate is not valid", "Et sertifikat er ugyldig"],
        Code::CertificateOrders => ["No certificate is issued", "Sertifikatet blir ikke utstedt"],
        Code::ClockSkew => ["The clock differs from Bokbasen's", "Klokken avviker fra Bokbasens"],
        Code::DiskFilling => ["The disk is nearly full", "Disken er nesten full"],
        Code::EndsDelayed => ["Ends are delayed", "Avslutninger er forsinket"],
        Code::EndsOverdue => ["Ends are overdue", "Avslutninger mangler bekreftelse"],
        Code::FeedStale => ["Changes of other gates are late", "Andre porters endringer mangler"],
        Code::LateBegin => ["A loan began too late", "Et lån begynte for sent"],
        Code::LeaseLost => ["The gate has lost its lease", "Porten har mistet plassen sin"],
        Code::LedgerClock => ["The clock differs from the database's", "Databasens klokke avviker"],
        Code::LedgerDamaged => ["Rows of the ledger are damaged", "Rader i hovedboken er skadet"],
        Code::LedgerMoved => ["The ledger was moved", "Hovedboken er flyttet"],
        Code::LedgerUnreadable => ["The ledger cannot be read", "Hovedboken kan ikke leses"],
        Code::LedgerUnwritable => ["The ledger cannot be written", "Hovedboken kan ikke skrives"],
        Code::LendingBreach => ["Bokbasen violates its API", "Bokbasen bryter sitt eget API"],
        Code::LendingPaused => ["Lending is paused", "Utlån er satt på pause"],
        Code::LendingUnavailable => ["Bokbasen is unavailable", "Bokbasen er utilgjengelig"],
        Code::LoansUndecided => ["Many loans are undecided", "Mange lån er ikke avgjort"],
        Code::LoginKeys => {
            ["Keys of a login service are missing", "Nøkler til en innloggingstjeneste mangler"]
        }
        Code::NodeMissing => ["A gate is missing", "En port mangler"],
        Code::OriginFailing => ["A storage fails", "Et lager svikter"],
        Code::ReportsForAPerson => {
            ["Usage reports need a person", "Bruksrapporter trenger et menneske"]
        }
        Code::ReportsLate => ["Usage reports are late", "Bruksrapporter er forsinket"],
        Code::TaskRestarted => {
            ["A background task was restarted", "En bakgrunnsoppgave er omstartet"]
        }
    };
    Sentence { english, norwegian }.text(language)
}

/// Returns what to do about a kind of problem.
pub(in crate::console) fn advice(code: Code, language: Language) -> &'static str {
    let norwegian = match code {
        Code::BeginsClosed => {
            "Sammenlign databasen med Bokbasen, og kjør `loangate ledger reconcile`."
        }
        Code::BooksUnbalanced => {
            "Les rapporten fra siste avstemming, og avgjør hvert funn som er rapportert."
        }
        Code::BreakerOpen => {
            "Kontakt Bokbasen, eller undersøk nettet dit. Porten prøver igjen av seg selv."
        }
        Code::CertificateExpires => "Forny sertifikatet. Porten laster det selv.",
        Code::CertificateInvalid => "Installer et gyldig sertifikat. Porten laster det selv.",
        Code::CertificateOrders => {
            "Rett opp det setningen nevner. Porten bestiller på nytt til tiden den oppgir."
        }
        Code::ClockSkew => "Still klokken på denne maskinen med NTP.",
        Code::DiskFilling => "Frigjør plass på disken til hovedboken, eller gjør den større.",
        Code::EndsDelayed => {
            "Undersøk om Bokbasen svarer på innleveringer. Porten fortsetter å sende dem."
        }
        Code::EndsOverdue => {
            "Spør Bokbasen om disse lånene; de har end_overdue i API-et for brukerstøtte."
        }
        Code::FeedStale | Code::LeaseLost => "Undersøk databasen til hovedboken og nettet dit.",
        Code::LateBegin => "Finn ut hva som stanset maskinen som begynte et lån for sent.",
        Code::LedgerClock => "Still klokkene på denne maskinen og på databasen med NTP.",
        Code::LedgerDamaged => {
            "Kjør `loangate ledger check`, og gjenopprett det den nevner, fra en sikkerhetskopi."
        }
        Code::LedgerMoved => "Start portene med hovedboken som loggen nevner.",
        Code::LedgerUnreadable | Code::LedgerUnwritable => {
            "Undersøk disken eller databasen til hovedboken."
        }
        Code::LendingBreach => "Spør Bokbasen: svarene bryter API-et. Loggen har lånene.",
        Code::LendingPaused => {
            "Spør den som satte det på pause: `loangate lending list`. `loangate lending resume` \
             avslutter pausen."
        }
        Code::LendingUnavailable => "Undersøk Bokbasens tjeneste, nettet dit og innloggingen der.",
        Code::LoansUndecided => {
            "Undersøk om Bokbasen svarer. Porten avgjør disse lånene når den gjør det."
        }
        Code::LoginKeys => {
            "Undersøk innloggingstjenesten og nettet dit: `loangate check --online`."
        }
        Code::NodeMissing => "Finn ut hvorfor porten stanset, og start den igjen.",
        Code::OriginFailing => "Undersøk lageret og nettet dit.",
        Code::ReportsForAPerson => {
            "List dem opp med `loangate report`, og avgjør hver med `loangate report resolve`."
        }
        Code::ReportsLate => {
            "Les i loggen hvorfor rapportene ikke sendes, og undersøk Bokbasens rapport-API."
        }
        Code::TaskRestarted => "Meld feilen til loangate, med loggen.",
    };
    Sentence { english: code.advice(), norwegian }.text(language)
}
