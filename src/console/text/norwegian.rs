//! The console in Norwegian bokmål.

use super::library;
use super::{Actions, Common, Failures, Find, Help, Loan, SignIn, Texts, Why};

pub(super) const TEXTS: Texts = Texts {
    common: COMMON,
    sign_in: SIGN_IN,
    find: FIND,
    loan: LOAN,
    actions: ACTIONS,
    why: WHY,
    library: library::NORWEGIAN,
    help: HELP,
    failure: FAILURES,
};

const COMMON: Common = Common {
    skip: "Hopp til innholdet",
    navigation: "Sider",
    first_page: "Gå til første side",
    find: "Finn",
    why: "Hvorfor",
    help: "Hjelp",
    sign_out: "Logg ut",
    signed_in_as: "Logget inn som",
    theme: "Tema",
    light: "Lyst",
    dark: "Mørkt",
    system: "Som systemet",
    language: "Språk",
    times: "Tidspunkter er norsk tid (Europe/Oslo).",
    required: "må fylles ut",
    optional: "valgfritt",
};

const SIGN_IN: SignIn = SignIn {
    title: "Logg inn",
    lead: "Konsollen viser lån, og hvorfor en leser ble avvist. Hvert oppslag og hver handling \
           registreres med navnet ditt og begrunnelsen din.",
    token: "Administratornøkkel",
    token_hint: "Nøkkelen som [admin] token peker på i portens konfigurasjon.",
    name: "Navnet ditt",
    name_hint: "Til tilgangsloggen: det skiller personer som bruker samme nøkkel.",
    submit: "Logg inn",
    wrong: "Dette er ikke administratornøkkelen.",
    signed_out: "Du er logget ut.",
    purpose_title: "Oppgi en begrunnelse",
    purpose_lead: "Hvert oppslag i en persons lån registreres med begrunnelsen din.",
    purpose: "Begrunnelse for oppslaget",
    purpose_hint: "Et saksnummer eller noen få ord. Ingen navn og ingen kortnumre.",
    go_on: "Fortsett",
};

const FIND: Find = Find {
    title: "Finn",
    lead: "Søk etter en låner, en tittel, et lån eller en forespørsel.",
    query: "Søk etter",
    query_hint: "En forespørsels-id fra en feilmelding, en lån-id, et ISBN, et pseudonym, \
                 Bokbasens lån-id med bokbasen: foran, eller lånerens egen id sammen med \
                 biblioteket.",
    library: "Bibliotek",
    library_hint: "En ISIL som NO-0301000. Med et bibliotek er teksten lånerens egen id, om den \
                   ikke er et pseudonym. Id-en lagres aldri.",
    submit: "Søk",
    nothing: "Ingenting ble funnet.",
    nothing_hint: "Kontroller id-en. En forespørsel finnes hos porten som svarte, blant de siste \
                   forespørslene der, eller i lånebasen, om portene lagrer forespørsler der.",
    borrower_needs_library: "Er det lånerens egen id, så fyll ut biblioteket også. Er det \
                             Bokbasens lån-id, så skriv bokbasen: foran.",
    id_in_purpose: "Formålet inneholder lånerens egen id, og sporet lagres. Ta den ut.",
    bad_library: "Biblioteket er ikke en ISIL. Skriv en som NO-0301000.",
    loans_of_borrower: "Lån til en låner",
    loans_of_title: "Lån av en tittel",
    no_loans: "Det finnes ingen lån.",
    no_loans_hint: "En avvist forespørsel etterlater et lån bare hvis Bokbasen svarte. Lim inn \
                    forespørsels-id-en fra feilmeldingen for å se hvorfor.",
    state: "Tilstand",
    title_column: "Tittel",
    begun: "Startet",
    due_or_ended: "Forfall eller slutt",
    borrower: "Låner",
    loan: "Lån",
    open: "Åpne",
    older: "Eldre lån",
    newest: "Nyeste lån",
    due: "forfaller",
    ended: "avsluttet",
};

const LOAN: Loan = Loan {
    title: "Lån",
    facts: "Fakta",
    id: "Lån-id",
    bokbasen_id: "Bokbasens lån-id",
    reference: "Referanse",
    pseudonym: "Låner (pseudonym)",
    forgotten: "Låneren ble slettet",
    licence: "Lisens",
    progress: "Lest, ifølge appen",
    no_progress: "Appen har ikke meldt noe.",
    due: "Forfaller",
    ended: "Avsluttet",
    end_reason: "Hvorfor det sluttet",
    overdue: "Bokbasen har ikke bekreftet slutten på mer enn et døgn.",
    refused: "Lånet ble avvist",
    code: "Kode",
    retry_at: "Ikke før",
    bokbasen_says: "Bokbasens egne ord",
    timeline: "Tidslinje",
    delivered: "Levert",
    delivered_hint: "Hver stolpe viser en fil fra første byte til den siste som ble levert. De \
                     siste sekundene kan mangle.",
    nothing_delivered: "Ingen byte er levert.",
    ranges: |count, covered| match count {
        1 => format!("{covered} i ett område"),
        _ => format!("{covered} i {count} områder"),
    },
    sent: |bytes| format!("{bytes} sendt, gjentakelser medregnet"),
    files: "Tittelens filer",
    no_files: "Konfigurasjonen har ingen fil av denne tittelen.",
    all_of_borrower: "Alle lån til denne låneren",
    all_of_title: "Alle lån av denne tittelen",
};

const ACTIONS: Actions = Actions {
    title: "Handlinger",
    none: "Det er ingenting å gjøre med dette lånet.",
    reason: "Begrunnelse",
    reason_hint: "Til lånets historikk. Høyst 200 tegn, ingen navn.",
    end: "Avslutt lånet",
    end_hint: "Tilgangen stopper med en gang, og pågående nedlastinger lukkes. Deretter får \
               Bokbasen returen. Det kan ikke angres.",
    link: "Lag en lenke",
    link_hint: "En signert lenke for denne leseren til denne tittelen, for å teste eller hjelpe. \
                Den som har lenken, kan lese.",
    hours: "Gyldig i (timer)",
    poll: "Spør Bokbasen igjen",
    poll_hint: "Spør Bokbasen nå om dette uavgjorte lånet. Ingenting nytt registreres.",
    ended: "Lånet er avsluttet her. Bokbasens bekreftelse kommer i tidslinjen.",
    polled: "Bokbasen blir spurt. Last siden på nytt om litt.",
    poll_elsewhere: "En annen port driver dette lånet, eller det er avgjort. Last siden på nytt.",
    pending: "Bokbasen har ikke avgjort, så lånet kan ikke avsluttes ennå. Prøv igjen om litt.",
    reason_missing: "En handling trenger en begrunnelse: 1 til 200 tegn uten styretegn.",
    no_link: "Ingen lenke kan lages: konfigurasjonen mangler nøkler i [readers.links], \
              varigheten er for lang, eller låneren er slettet.",
    mark: "Merk for balansen",
    mark_hint: "Den neste balansen av biblioteket spør Bokbasen om dette lånet, om natten eller \
                med `loangate loans balance`. Tidslinjen viser hva den finner.",
    marked: "Lånet er merket. Den neste balansen undersøker det, og tidslinjen viser resultatet.",
    waits: "Lånet er merket for den neste balansen.",
    minted: "Lenken",
    minted_hint: "Den vises bare nå.",
    valid_until: "Gyldig til",
    copy: "Kopier",
    back: "Tilbake til lånet",
};

const WHY: Why = Why {
    title: "Hvorfor",
    lead: "Følg en forespørsel gjennom porten: hva hvert steg avgjør, og hvorfor. Ingenting \
           endres, og ingenting sendes til Bokbasen.",
    by_request: "En forespørsel som er gjort",
    request: "Forespørsels-id",
    request_hint: "Fra X-Request-Id, eller fra instance i leserens feilmelding.",
    by_reader: "Hva en leser ville fått nå",
    library_hint: "En ISIL som NO-0301000.",
    borrower: "Lånerens egen id",
    borrower_hint: "Den blir til et pseudonym med en gang og lagres aldri.",
    path: "Filens sti",
    path_hint: "Den begynner med en skråstrek.",
    method: "Metode",
    submit: "Forklar",
    bad_request_id: "Dette er ikke id-en til en forespørsel. Lim inn UUID-en fra feilmeldingen.",
    unknown_request: "Denne porten kjenner ikke forespørselen. Porten som svarte, har den blant \
                      sine siste forespørsler, og lånebasen bare om det er satt opp. Beskriv den \
                      nedenfor i stedet.",
    bad_borrower: "Lånerens egen id må ha 1 til 256 byte.",
    bad_path: "Dette er ikke stien til en forespørsel. Skriv en som begynner med en skråstrek.",
    loans_api: "Dette er en sti i lesernes API for lån. Skriv stien til en fil.",
    facts: "Forespørselen",
    was_sent: "Filen ble sendt.",
    would_be_sent: "Filen ville blitt sendt.",
    was_refused: "Forespørselen ble avvist.",
    would_be_refused: "Forespørselen ville blitt avvist.",
    assumes: "Hvis Bokbasen godtar lånet.",
    begins: "Den starter et lån.",
    steps: "Steg for steg",
    advice: "Hva som kan gjøres",
    for_reader: "Leser og bibliotek",
    for_app: "Appen",
    for_operator: "Driften",
    another: "Forklar en annen forespørsel",
    status: "Status",
    problem: "Problem",
    reason: "Årsak",
    at: "Tidspunkt",
    issued: "Adgangsbevis utstedt",
};

const HELP: Help = Help {
    title: "Hjelp",
    shortcuts: "Hurtigtaster",
    shortcuts_hint: "Enkelttaster virker utenfor felter. De trenger et skript; hver side virker \
                     også med Tab og Enter.",
    key: "Tast",
    does: "Gjør",
    search_field: "Gå til det første feltet",
    turn_off: "Slå av hurtigtaster",
    turn_on: "Slå på hurtigtaster",
    are_off: "Hurtigtaster er slått av.",
    states: "Et låns tilstander",
    privacy: "Personvern",
    privacy_text: "En låner vises som et pseudonym. Lånerens egen id som du skriver, blir til et \
                   pseudonym i minnet; den lagres eller logges aldri, og er aldri del av en \
                   adresse. Hvert oppslag i lån og hver handling registreres: hvem, hva, når og \
                   hvorfor.",
};

const FAILURES: Failures = Failures {
    not_found: ["Ikke funnet", "Det er ingenting på denne adressen. Det kan være fjernet."],
    forged: [
        "Skjemaet er utløpt",
        "Skjemaet hører ikke til denne økten, eller et annet nettsted sendte det. Åpne siden på \
         nytt.",
    ],
    signed_out: ["Logget ut", "Økten er over. Logg inn på nytt; ingenting ble gjort."],
    not_allowed: ["Ikke tillatt", "Rollen din tillater ikke dette."],
    malformed: ["Skjemaet kan ikke leses", "Åpne siden på nytt, og send skjemaet en gang til."],
    unreadable_address: [
        "Adressen til siden kan ikke leses",
        "En del av den har feil verdi eller står der to ganger. Gå videre fra første side.",
    ],
    busy: ["En annen fil skrives", "Én fil skrives om gangen. Prøv igjen om litt."],
    ledger: ["Lånebasen kan ikke leses", "Portens logg sier hvorfor. Prøv igjen om litt."],
    trail: [
        "Oppslaget kan ikke registreres",
        "Et oppslag i lån som ikke kan registreres, avvises. Prøv igjen om litt.",
    ],
};
