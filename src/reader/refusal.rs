//! Reasons why authentication fails, each with a sentence and a problem document.
//!
//! The other modules of `reader` return them; `reader/mod.rs` converts them to a [`Problem`].
//! Sentences are fixed text: they never repeat the request, a key, a borrower or a token.

use super::clock_blame::WrongClock;
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
    /// Returns the problem document: 400 for an unreadable link, else 401.
    pub(super) fn problem(self) -> Problem {
        match self {
            Refusal::Link(LinkFault::Twice | LinkFault::Malformed) => {
                Problem::RequestMalformed(self.sentence())
            }
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
            Refusal::NoCredential => &Sentence {
                english: "The request has no credentials. Send Authorization: Bearer with a \
                              reader token, or use a signed link.",
                norwegian: "Forespørselen har ikke noe adgangsbevis. Send Authorization: \
                                Bearer med et lesertoken, eller bruk en signert lenke.",
            },
            Refusal::SeveralCredentials => &Sentence {
                english: "There is more than one Authorization header. Send one.",
                norwegian: "Det er mer enn ett felt Authorization. Send ett.",
            },
            Refusal::OtherScheme => &Sentence {
                english: "The Authorization header is not the scheme Bearer with one token. \
                              Send Authorization: Bearer and the token.",
                norwegian: "Feltet Authorization er ikke Bearer med ett token. Send \
                                Authorization: Bearer og tokenet.",
            },
            Refusal::TokensDisabled => &Sentence {
                english: "This gate accepts no reader tokens. Use a signed link.",
                norwegian: "Denne porten godtar ikke lesertokener. Bruk en signert lenke.",
            },
            Refusal::LinksDisabled => &Sentence {
                english: "This gate accepts no signed links. Send a reader token in \
                              Authorization.",
                norwegian: "Denne porten godtar ikke signerte lenker. Send et lesertoken i \
                                Authorization.",
            },
            Refusal::TokenInLink => &Sentence {
                english: "A reader token must not be in a URL, which logs store. Get a new \
                              token and send it in Authorization.",
                norwegian: "Et lesertoken må ikke stå i en URL, som logger lagrer. Hent et \
                                nytt token og send det i Authorization.",
            },
            Refusal::Token(fault) => fault.sentence(),
            Refusal::Link(fault) => fault.sentence(),
        }
    }
}

impl JwtFault {
    fn sentence(self) -> &'static Sentence {
        match self {
            JwtFault::TooLong => &Sentence {
                english: "The reader token is longer than 8 KiB. Get a shorter one.",
                norwegian: "Lesertokenet er lengre enn 8 KiB. Hent et kortere.",
            },
            JwtFault::Malformed => &Sentence {
                english: "The reader token is not a JWT that can be read. Get a new token.",
                norwegian: "Lesertokenet er ikke et JWT som kan leses. Hent et nytt token.",
            },
            JwtFault::Algorithm => &Sentence {
                english: "The reader token is signed with an algorithm that is not allowed \
                              here. Get a new token.",
                norwegian: "Lesertokenet er signert med en algoritme som ikke er tillatt \
                                her. Hent et nytt token.",
            },
            JwtFault::Key => &Sentence {
                english: "The reader token is signed with a key that is not known here. Get \
                              a new token.",
                norwegian: "Lesertokenet er signert med en nøkkel som ikke er kjent her. \
                                Hent et nytt token.",
            },
            JwtFault::Signature => &Sentence {
                english: "The signature of the reader token is wrong. Get a new token.",
                norwegian: "Lesertokenets signatur er feil. Hent et nytt token.",
            },
            JwtFault::Issuer => &Sentence {
                english: "The reader token is from another issuer, or names none. Get a new \
                              token.",
                norwegian: "Lesertokenet er fra en annen utsteder, eller nevner ingen. Hent \
                                et nytt token.",
            },
            JwtFault::Audience => &Sentence {
                english: "The reader token is for another service. Get a token for this one.",
                norwegian: "Lesertokenet er for en annen tjeneste. Hent et token for denne.",
            },
            JwtFault::WithoutExpiry => &Sentence {
                english: "The reader token does not say when it expires. Get one that does.",
                norwegian: "Lesertokenet sier ikke når det utløper. Hent et som gjør det.",
            },
            JwtFault::Expired => &Sentence {
                english: "The reader token has expired. Get a new token.",
                norwegian: "Lesertokenet er utløpt. Hent et nytt token.",
            },
            JwtFault::LivesTooLong => &Sentence {
                english: "The reader token is valid for longer than this gate allows. Get \
                              one that expires sooner.",
                norwegian: "Lesertokenet varer lenger enn denne porten tillater. Hent et som \
                                utløper før.",
            },
            JwtFault::Library => &Sentence {
                english: "The reader token does not name its library by an ISIL. Get a new \
                              token.",
                norwegian: "Lesertokenet nevner ikke biblioteket med en ISIL. Hent et nytt \
                                token.",
            },
            JwtFault::Borrower => &Sentence {
                english: "The reader token does not name its borrower. Get a new token.",
                norwegian: "Lesertokenet nevner ikke låneren. Hent et nytt token.",
            },
            JwtFault::NotYetValid(clock) => TOKEN_NOT_YET_VALID.of(clock),
            JwtFault::IssuedAhead(clock) => TOKEN_ISSUED_AHEAD.of(clock),
        }
    }
}

impl LinkFault {
    fn sentence(self) -> &'static Sentence {
        match self {
            LinkFault::Twice => &Sentence {
                english: "The query has more than one token. Use the link as it was given.",
                norwegian: "Spørringen har mer enn ett token. Bruk lenken slik den ble gitt.",
            },
            LinkFault::Malformed => &Sentence {
                english: "The signed link cannot be read. Use the whole link as it was \
                              given.",
                norwegian: "Den signerte lenken kan ikke leses. Bruk hele lenken slik den \
                                ble gitt.",
            },
            LinkFault::Key => &Sentence {
                english: "The signed link was signed with a key that is no longer known \
                              here. Get a new link.",
                norwegian: "Den signerte lenken er signert med en nøkkel som ikke lenger er \
                                kjent her. Hent en ny lenke.",
            },
            LinkFault::Forged => &Sentence {
                english: "The signature of the link is wrong. Use the link as it was given.",
                norwegian: "Lenkens signatur er feil. Bruk lenken slik den ble gitt.",
            },
            LinkFault::Expired => &Sentence {
                english: "The signed link has expired. Get a new link.",
                norwegian: "Den signerte lenken er utløpt. Hent en ny lenke.",
            },
            LinkFault::LivesTooLong => &Sentence {
                english: "The signed link is valid for longer than this gate allows. Get one \
                              that expires sooner.",
                norwegian: "Den signerte lenken varer lenger enn denne porten tillater. Hent \
                                en som utløper før.",
            },
            LinkFault::IssuedAhead(clock) => LINK_ISSUED_AHEAD.of(clock),
        }
    }
}

/// The sentences about a credential from the future, by the clock that is wrong.
struct ClockSentences {
    issuer: Sentence,
    gate: Sentence,
    unknown: Sentence,
}

impl ClockSentences {
    fn of(&'static self, clock: WrongClock) -> &'static Sentence {
        match clock {
            WrongClock::Issuer => &self.issuer,
            WrongClock::Gate => &self.gate,
            WrongClock::Unknown => &self.unknown,
        }
    }
}

static TOKEN_NOT_YET_VALID: ClockSentences = ClockSentences {
    issuer: Sentence {
        english: "The reader token is not valid yet. Check the clock of the login service.",
        norwegian: "Lesertokenet gjelder ikke ennå. Kontroller klokken til innloggingstjenesten.",
    },
    gate: Sentence {
        english: "The reader token is not valid yet by this gate's clock, which is behind. The \
                  gate's operator must set it.",
        norwegian: "Lesertokenet gjelder ikke ennå ifølge portens klokke, som går etter. Portens \
                    drift må stille den.",
    },
    unknown: Sentence {
        english: "The reader token is not valid yet. The clock of the login service or of this \
                  gate is wrong: check both.",
        norwegian: "Lesertokenet gjelder ikke ennå. Klokken til innloggingstjenesten eller til \
                    denne porten er feil: kontroller begge.",
    },
};

static TOKEN_ISSUED_AHEAD: ClockSentences = ClockSentences {
    issuer: Sentence {
        english: "The reader token was issued in the future. Check the clock of the login \
                  service.",
        norwegian: "Lesertokenet er utstedt i fremtiden. Kontroller klokken til \
                    innloggingstjenesten.",
    },
    gate: Sentence {
        english: "The reader token was issued in the future by this gate's clock, which is \
                  behind. The gate's operator must set it.",
        norwegian: "Lesertokenet er utstedt i fremtiden ifølge portens klokke, som går etter. \
                    Portens drift må stille den.",
    },
    unknown: Sentence {
        english: "The reader token was issued in the future. The clock of the login service or \
                  of this gate is wrong: check both.",
        norwegian: "Lesertokenet er utstedt i fremtiden. Klokken til innloggingstjenesten eller \
                    til denne porten er feil: kontroller begge.",
    },
};

static LINK_ISSUED_AHEAD: ClockSentences = ClockSentences {
    issuer: Sentence {
        english: "The signed link was issued in the future. Check the clock of its issuer.",
        norwegian: "Den signerte lenken er utstedt i fremtiden. Kontroller klokken til \
                    utstederen.",
    },
    gate: Sentence {
        english: "The signed link was issued in the future by this gate's clock, which is \
                  behind. The gate's operator must set it.",
        norwegian: "Den signerte lenken er utstedt i fremtiden ifølge portens klokke, som går \
                    etter. Portens drift må stille den.",
    },
    unknown: Sentence {
        english: "The signed link was issued in the future. The clock of its issuer or of this \
                  gate is wrong: check both.",
        norwegian: "Den signerte lenken er utstedt i fremtiden. Klokken til utstederen eller til \
                    denne porten er feil: kontroller begge.",
    },
};
