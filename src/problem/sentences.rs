//! What failed and what to do about it, as a sentence in each language.

use super::Problem;
use crate::language::Sentence;

impl Problem {
    /// Returns what failed and what to do, in each language.
    pub fn sentence(&self) -> &'static Sentence {
        match self {
            Problem::RequestMalformed(sentence) | Problem::ReaderUnauthenticated(sentence) => {
                sentence
            }
            Problem::LoanRefused { reason, .. } => refusal_sentence(reason),
            Problem::LoanEnded => &LOAN_ENDED,
            Problem::TitleNotFound => &TITLE_NOT_FOUND,
            Problem::LoanNotFound => &LOAN_NOT_FOUND,
            Problem::MethodNotAllowed(_) => &METHOD_NOT_ALLOWED,
            Problem::PreconditionFailed => &PRECONDITION_FAILED,
            Problem::RangeNotSatisfiable { .. } => &RANGE_NOT_SATISFIABLE,
            Problem::MisdirectedRequest => &MISDIRECTED_REQUEST,
            Problem::TooManyRequests { .. } => &TOO_MANY_REQUESTS,
            Problem::OriginFailed { .. } => &ORIGIN_FAILED,
            Problem::OriginTimeout => &ORIGIN_TIMEOUT,
            Problem::LendingUnavailable { .. } => &LENDING_UNAVAILABLE,
            Problem::LendingPaused => &LENDING_PAUSED,
            Problem::LedgerUnavailable => &LEDGER_UNAVAILABLE,
            Problem::LoginUnavailable { .. } => &LOGIN_UNAVAILABLE,
            Problem::LoanPending { .. } => &LOAN_PENDING,
            Problem::Overloaded => &OVERLOADED,
        }
    }
}

static LOAN_ENDED: Sentence = Sentence {
    english: "The loan of this title has ended. To borrow it again, sign in again and \
              open the title from the start.",
    norwegian: "Lånet av denne tittelen er avsluttet. For å låne den igjen: logg inn \
                på nytt og åpne tittelen fra begynnelsen.",
};

static TITLE_NOT_FOUND: Sentence = Sentence {
    english: "There is no such file here. Check the path and the ISBN in it.",
    norwegian: "Det finnes ingen slik fil her. Kontroller stien og ISBN-et i den.",
};

static LOAN_NOT_FOUND: Sentence = Sentence {
    english: "There is no loan of this title. Begin one with PUT, or open the title \
              from the start.",
    norwegian: "Det er ikke noe lån av denne tittelen. Start et med PUT, eller åpne \
                tittelen fra begynnelsen.",
};

static METHOD_NOT_ALLOWED: Sentence = Sentence {
    english: "This method is not supported here. The field Allow lists the supported \
              ones.",
    norwegian: "Denne metoden støttes ikke her. Feltet Allow lister dem som støttes.",
};

static PRECONDITION_FAILED: Sentence = Sentence {
    english: "The file has changed since the version that the request names. Fetch it \
              from the start.",
    norwegian: "Filen er endret siden versjonen som forespørselen nevner. Hent den fra \
                begynnelsen.",
};

static RANGE_NOT_SATISFIABLE: Sentence = Sentence {
    english: "The range lies past the end of the file. The field Content-Range gives \
              the file's length.",
    norwegian: "Området ligger etter filens slutt. Feltet Content-Range har filens \
                lengde.",
};

static MISDIRECTED_REQUEST: Sentence = Sentence {
    english: "This gate does not serve that host name. Connect to the host that the \
              request names.",
    norwegian: "Denne porten svarer ikke for det vertsnavnet. Koble til verten som \
                forespørselen nevner.",
};

static TOO_MANY_REQUESTS: Sentence = Sentence {
    english: "A limit is reached. Try again after Retry-After.",
    norwegian: "En grense er nådd. Prøv igjen etter Retry-After.",
};

static ORIGIN_FAILED: Sentence = Sentence {
    english: "The storage did not deliver the file. Try again; if it keeps failing, \
              contact the operator.",
    norwegian: "Lageret leverte ikke filen. Prøv igjen; kontakt driften hvis det \
                fortsetter å feile.",
};

static ORIGIN_TIMEOUT: Sentence = Sentence {
    english: "The storage did not respond in time. Try again later.",
    norwegian: "Lageret svarte ikke i tide. Prøv igjen senere.",
};

static LENDING_PAUSED: Sentence = Sentence {
    english: "The library has paused new loans. Try again later; titles that are on loan can be \
              read on.",
    norwegian: "Biblioteket har satt nye lån på pause. Prøv igjen senere; titler som er lånt, \
                kan leses videre.",
};

static LENDING_UNAVAILABLE: Sentence = Sentence {
    english: "The lending platform cannot be reached, so no new loan can begin. Try \
              again after Retry-After.",
    norwegian: "Utlånsplattformen kan ikke nås, så ingen nye lån kan starte. Prøv \
                igjen etter Retry-After.",
};

static LEDGER_UNAVAILABLE: Sentence = Sentence {
    english: "The gate cannot access its record of loans, so it cannot admit requests. \
              Try again after Retry-After.",
    norwegian: "Porten når ikke lånebasen sin, så den kan ikke slippe inn \
                forespørsler. Prøv igjen etter Retry-After.",
};

static LOGIN_UNAVAILABLE: Sentence = Sentence {
    english: "The gate cannot verify the reader token, since it does not have the login \
              service's key yet. Try again after Retry-After.",
    norwegian: "Porten kan ikke kontrollere lesertokenet, siden den ennå ikke har \
                innloggingstjenestens nøkkel. Prøv igjen etter Retry-After.",
};

static LOAN_PENDING: Sentence = Sentence {
    english: "The lending platform has not yet decided about this loan. Try again \
              after Retry-After; nothing is lost.",
    norwegian: "Utlånsplattformen har ennå ikke avgjort dette lånet. Prøv igjen etter \
                Retry-After; ingenting er tapt.",
};

static OVERLOADED: Sentence = Sentence {
    english: "The gate is overloaded. Try again after Retry-After.",
    norwegian: "Porten er overbelastet. Prøv igjen etter Retry-After.",
};

/// Returns what a reader can do about a refusal. The upper-case codes are Bokbasen's (assumed), the
/// slugs are the gate's.
pub fn refusal_sentence(reason: &str) -> &'static Sentence {
    match reason {
        "NO_FREE_LICENSE" => &NO_FREE_LICENSE,
        "BUDGET_EXCEEDED" => &BUDGET_EXCEEDED,
        "BORROWER_LIMIT" => &BORROWER_LIMIT,
        "TITLE_NOT_LENDABLE" => &TITLE_NOT_LENDABLE,
        "LIBRARY_NOT_ACTIVE" => &LIBRARY_NOT_ACTIVE,
        "LICENSE_NOT_FOUND" => &LICENSE_NOT_FOUND,
        "licence-not-allowed" => &LICENCE_NOT_ALLOWED,
        "outside-of-link" => &OUTSIDE_OF_LINK,
        "explicit-begin-required" => &EXPLICIT_BEGIN_REQUIRED,
        "continues-download" => &CONTINUES_DOWNLOAD,
        _ => &OTHER_REFUSAL,
    }
}

static NO_FREE_LICENSE: Sentence = Sentence {
    english: "All of the library's copies of this title are on loan. Try again later or \
              reserve it.",
    norwegian: "Alle bibliotekets eksemplarer av denne tittelen er utlånt. Prøv igjen \
                senere, eller reserver den.",
};

static BUDGET_EXCEEDED: Sentence = Sentence {
    english: "The library's budget for loans is used up for now. Ask the library.",
    norwegian: "Bibliotekets budsjett for lån er brukt opp for nå. Spør biblioteket.",
};

static BORROWER_LIMIT: Sentence = Sentence {
    english: "The reader has as many loans as the library allows. Return one and try again.",
    norwegian: "Leseren har så mange lån som biblioteket tillater. Lever ett og prøv igjen.",
};

static TITLE_NOT_LENDABLE: Sentence = Sentence {
    english: "The library does not lend this title. Ask the library.",
    norwegian: "Biblioteket låner ikke ut denne tittelen. Spør biblioteket.",
};

static LIBRARY_NOT_ACTIVE: Sentence = Sentence {
    english: "The library is not active on the lending platform. Ask the library.",
    norwegian: "Biblioteket er ikke aktivt på utlånsplattformen. Spør biblioteket.",
};

static LICENSE_NOT_FOUND: Sentence = Sentence {
    english: "The library has no licence of this title. Ask the library.",
    norwegian: "Biblioteket har ingen lisens på denne tittelen. Spør biblioteket.",
};

static LICENCE_NOT_ALLOWED: Sentence = Sentence {
    english: "The library's rules allow no licence that this title has. Ask the library.",
    norwegian: "Bibliotekets regler tillater ingen av tittelens lisenser. Spør biblioteket.",
};

static OUTSIDE_OF_LINK: Sentence = Sentence {
    english: "This link does not open this file. Request a link to the file's own title \
              and path.",
    norwegian: "Denne lenken åpner ikke denne filen. Be om en lenke til filens egen tittel \
                og sti.",
};

static EXPLICIT_BEGIN_REQUIRED: Sentence = Sentence {
    english: "This title is lent only on request. Begin the loan with PUT /loans/{isbn} \
              first.",
    norwegian: "Denne tittelen lånes bare ut når det bes om det. Start lånet med \
                PUT /loans/{isbn} først.",
};

static CONTINUES_DOWNLOAD: Sentence = Sentence {
    english: "There is no live loan, and a request that continues a download never begins \
              one. Open the title from the start.",
    norwegian: "Det er ikke noe løpende lån, og en forespørsel som fortsetter en \
                nedlasting, starter aldri et. Åpne tittelen fra begynnelsen.",
};

static OTHER_REFUSAL: Sentence = Sentence {
    english: "The lending platform refused this loan. The member reason gives its code; \
              ask the library.",
    norwegian: "Utlånsplattformen avviste dette lånet. Feltet reason har koden; spør \
                biblioteket.",
};
