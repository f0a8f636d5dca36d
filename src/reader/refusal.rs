//! Reasons why authentication fails, each with a sentence and a problem document.
//!
//! The other modules of `reader` return them; `reader/mod.rs` converts them to a [`Problem`].
//! Sentences are fixed text: they never repeat the request, a key, a borrower or a token.

use std::time::Duration;

use super::clock_blame::WrongClock;
use super::clock_sentences::{LINK_ISSUED_AHEAD, TOKEN_ISSUED_AHEAD, TOKEN_NOT_YET_VALID};
use crate::language::Sentence;
use crate::problem::Problem;

/// The reason why a request is not authenticated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    NoCredential,
    SeveralCredentials,
    OtherScheme,
    TokensDisabled,
    LinksDisabled,
    TokenInLink,
    /// The key of a token is not known, and a fetch may find it. The next begins after this time.
    LoginUnavailable(Duration),
    Token(JwtFault),
    Link(LinkFault),
}

/// Why a reader token is not accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum JwtFault {
    TooLong,
    Malformed,
    Algorithm,
    Key,
    Signature,
    Issuer,
    Audience,
    WithoutExpiry,
    Expired,
    NotYetValid(WrongClock),
    IssuedAhead(WrongClock),
    LivesTooLong,
    Library,
    UnlistedLibrary,
    Borrower,
}

/// Why a signed link is not accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum LinkFault {
    Twice,
    Malformed,
    Key,
    Forged,
    IssuedAhead(WrongClock),
    Expired,
    LivesTooLong,
}

impl Refusal {
    /// Returns the problem document: 400 for an unreadable link, 503 without a key, else 401.
    pub(super) fn problem(self) -> Problem {
        match self {
            Refusal::Link(LinkFault::Twice | LinkFault::Malformed) => {
                Problem::RequestMalformed(self.sentence())
            }
            Refusal::LoginUnavailable(retry_after) => Problem::LoginUnavailable { retry_after },
            Refusal::NoCredential
            | Refusal::SeveralCredentials
            | Refusal::OtherScheme
            | Refusal::TokensDisabled
            | Refusal::LinksDisabled
            | Refusal::TokenInLink
            | Refusal::Token(_)
            | Refusal::Link(
                LinkFault::Key
                | LinkFault::Forged
                | LinkFault::IssuedAhead(_)
                | LinkFault::Expired
                | LinkFault::LivesTooLong,
            ) => Problem::ReaderUnauthenticated(self.sentence()),
        }
    }

    fn sentence(self) -> &'static Sentence {
        match self {
            Refusal::NoCredential => &NO_CREDENTIAL,
            Refusal::SeveralCredentials => &SEVERAL_CREDENTIALS,
            Refusal::OtherScheme => &OTHER_SCHEME,
            Refusal::TokensDisabled => &TOKENS_DISABLED,
            Refusal::LinksDisabled => &LINKS_DISABLED,
            Refusal::TokenInLink => &TOKEN_IN_LINK,
            Refusal::LoginUnavailable(retry_after) => {
                Problem::LoginUnavailable { retry_after }.sentence()
            }
            Refusal::Token(fault) => fault.sentence(),
            Refusal::Link(fault) => fault.sentence(),
        }
    }
}

impl JwtFault {
    fn sentence(self) -> &'static Sentence {
        match self {
            JwtFault::TooLong => &TOKEN_TOO_LONG,
            JwtFault::Malformed => &TOKEN_MALFORMED,
            JwtFault::Algorithm => &TOKEN_ALGORITHM,
            JwtFault::Key => &TOKEN_KEY,
            JwtFault::Signature => &TOKEN_SIGNATURE,
            JwtFault::Issuer => &TOKEN_ISSUER,
            JwtFault::Audience => &TOKEN_AUDIENCE,
            JwtFault::WithoutExpiry => &TOKEN_WITHOUT_EXPIRY,
            JwtFault::Expired => &TOKEN_EXPIRED,
            JwtFault::LivesTooLong => &TOKEN_LIVES_TOO_LONG,
            JwtFault::Library => &TOKEN_LIBRARY,
            JwtFault::UnlistedLibrary => &TOKEN_UNLISTED_LIBRARY,
            JwtFault::Borrower => &TOKEN_BORROWER,
            JwtFault::NotYetValid(clock) => TOKEN_NOT_YET_VALID.of(clock),
            JwtFault::IssuedAhead(clock) => TOKEN_ISSUED_AHEAD.of(clock),
        }
    }
}

impl LinkFault {
    fn sentence(self) -> &'static Sentence {
        match self {
            LinkFault::Twice => &LINK_TWICE,
            LinkFault::Malformed => &LINK_MALFORMED,
            LinkFault::Key => &LINK_KEY,
            LinkFault::Forged => &LINK_FORGED,
            LinkFault::Expired => &LINK_EXPIRED,
            LinkFault::LivesTooLong => &LINK_LIVES_TOO_LONG,
            LinkFault::IssuedAhead(clock) => LINK_ISSUED_AHEAD.of(clock),
        }
    }
}

static NO_CREDENTIAL: Sentence = Sentence {
    english: "The request has no credentials. Send Authorization: Bearer with a \
              reader token, or use a signed link.",
    norwegian: "Forespørselen har ikke noe adgangsbevis. Send Authorization: \
                Bearer med et lesertoken, eller bruk en signert lenke.",
};

static SEVERAL_CREDENTIALS: Sentence = Sentence {
    english: "There is more than one Authorization header. Send one.",
    norwegian: "Det er mer enn ett felt Authorization. Send ett.",
};

static OTHER_SCHEME: Sentence = Sentence {
    english: "The Authorization header is not the scheme Bearer with one token. \
              Send Authorization: Bearer and the token.",
    norwegian: "Feltet Authorization er ikke Bearer med ett token. Send \
                Authorization: Bearer og tokenet.",
};

static TOKENS_DISABLED: Sentence = Sentence {
    english: "This gate accepts no reader tokens. Use a signed link.",
    norwegian: "Denne porten godtar ikke lesertokener. Bruk en signert lenke.",
};

static LINKS_DISABLED: Sentence = Sentence {
    english: "This gate accepts no signed links. Send a reader token in \
              Authorization.",
    norwegian: "Denne porten godtar ikke signerte lenker. Send et lesertoken i \
                Authorization.",
};

static TOKEN_IN_LINK: Sentence = Sentence {
    english: "A reader token must not be in a URL, which logs store. Get a new \
              token and send it in Authorization.",
    norwegian: "Et lesertoken må ikke stå i en URL, som logger lagrer. Hent et \
                nytt token og send det i Authorization.",
};

static TOKEN_TOO_LONG: Sentence = Sentence {
    english: "The reader token is longer than 8 KiB. Get a shorter one.",
    norwegian: "Lesertokenet er lengre enn 8 KiB. Hent et kortere.",
};

static TOKEN_MALFORMED: Sentence = Sentence {
    english: "The reader token is not a JWT that can be read. Get a new token.",
    norwegian: "Lesertokenet er ikke et JWT som kan leses. Hent et nytt token.",
};

static TOKEN_ALGORITHM: Sentence = Sentence {
    english: "The reader token is signed with an algorithm that is not allowed \
              here. Get a new token.",
    norwegian: "Lesertokenet er signert med en algoritme som ikke er tillatt \
                her. Hent et nytt token.",
};

static TOKEN_KEY: Sentence = Sentence {
    english: "The reader token is signed with a key that is not known here. Get \
              a new token.",
    norwegian: "Lesertokenet er signert med en nøkkel som ikke er kjent her. \
                Hent et nytt token.",
};

static TOKEN_SIGNATURE: Sentence = Sentence {
    english: "The signature of the reader token is wrong. Get a new token.",
    norwegian: "Lesertokenets signatur er feil. Hent et nytt token.",
};

static TOKEN_ISSUER: Sentence = Sentence {
    english: "The reader token is from another issuer, or names none. Get a new \
              token.",
    norwegian: "Lesertokenet er fra en annen utsteder, eller nevner ingen. Hent \
                et nytt token.",
};

static TOKEN_AUDIENCE: Sentence = Sentence {
    english: "The reader token is for another service. Get a token for this one.",
    norwegian: "Lesertokenet er for en annen tjeneste. Hent et token for denne.",
};

static TOKEN_WITHOUT_EXPIRY: Sentence = Sentence {
    english: "The reader token does not say when it expires. Get one that does.",
    norwegian: "Lesertokenet sier ikke når det utløper. Hent et som gjør det.",
};

static TOKEN_EXPIRED: Sentence = Sentence {
    english: "The reader token has expired. Get a new token.",
    norwegian: "Lesertokenet er utløpt. Hent et nytt token.",
};

static TOKEN_LIVES_TOO_LONG: Sentence = Sentence {
    english: "The reader token is valid for longer than this gate allows. Get \
              one that expires sooner.",
    norwegian: "Lesertokenet varer lenger enn denne porten tillater. Hent et som \
                utløper før.",
};

static TOKEN_LIBRARY: Sentence = Sentence {
    english: "The reader token does not name its library by an ISIL. Get a new \
              token.",
    norwegian: "Lesertokenet nevner ikke biblioteket med en ISIL. Hent et nytt \
                token.",
};

static TOKEN_UNLISTED_LIBRARY: Sentence = Sentence {
    english: "The reader token names a library that this gate does not serve. The \
              gate's operator must list it.",
    norwegian: "Lesertokenet nevner et bibliotek som denne porten ikke betjener. \
                Portens drift må føre det opp.",
};

static TOKEN_BORROWER: Sentence = Sentence {
    english: "The reader token does not name its borrower. Get a new token.",
    norwegian: "Lesertokenet nevner ikke låneren. Hent et nytt token.",
};

static LINK_TWICE: Sentence = Sentence {
    english: "The query has more than one token. Use the link as it was given.",
    norwegian: "Spørringen har mer enn ett token. Bruk lenken slik den ble gitt.",
};

static LINK_MALFORMED: Sentence = Sentence {
    english: "The signed link cannot be read. Use the whole link as it was \
              given.",
    norwegian: "Den signerte lenken kan ikke leses. Bruk hele lenken slik den \
                ble gitt.",
};

static LINK_KEY: Sentence = Sentence {
    english: "The signed link was signed with a key that is no longer known \
              here. Get a new link.",
    norwegian: "Den signerte lenken er signert med en nøkkel som ikke lenger er \
                kjent her. Hent en ny lenke.",
};

static LINK_FORGED: Sentence = Sentence {
    english: "The signature of the link is wrong. Use the link as it was given.",
    norwegian: "Lenkens signatur er feil. Bruk lenken slik den ble gitt.",
};

static LINK_EXPIRED: Sentence = Sentence {
    english: "The signed link has expired. Get a new link.",
    norwegian: "Den signerte lenken er utløpt. Hent en ny lenke.",
};

static LINK_LIVES_TOO_LONG: Sentence = Sentence {
    english: "The signed link is valid for longer than this gate allows. Get one \
              that expires sooner.",
    norwegian: "Den signerte lenken varer lenger enn denne porten tillater. Hent \
                en som utløper før.",
};
