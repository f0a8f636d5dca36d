//! Reasons why authentication fails, each with a sentence and a problem document.
//!
//! The other modules of `reader` return them; `reader/mod.rs` converts them to a [`Problem`].
//! Sentences are fixed text: they never repeat the request, a key, a borrower or a token.

use super::clock_blame::WrongClock;
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

    fn sentence(self) -> &'static str {
        match self {
            Refusal::NoCredential => {
                "The request has no credentials. Send Authorization: Bearer with a reader token, \
                 or use a signed link."
            }
            Refusal::SeveralCredentials => "There is more than one Authorization header. Send one.",
            Refusal::OtherScheme => {
                "The Authorization header is not the scheme Bearer with one token. Send \
                 Authorization: Bearer and the token."
            }
            Refusal::TokensDisabled => "This gate accepts no reader tokens. Use a signed link.",
            Refusal::LinksDisabled => {
                "This gate accepts no signed links. Send a reader token in Authorization."
            }
            Refusal::TokenInLink => {
                "A reader token must not be in a URL, which logs store. Get a new token and send \
                 it in Authorization."
            }
            Refusal::Token(fault) => fault.sentence(),
            Refusal::Link(fault) => fault.sentence(),
        }
    }
}

impl JwtFault {
    fn sentence(self) -> &'static str {
        match self {
            JwtFault::TooLong => "The reader token is longer than 8 KiB. Get a shorter one.",
            JwtFault::Malformed => {
                "The reader token is not a JWT that can be read. Get a new token."
            }
            JwtFault::Algorithm => {
                "The reader token is signed with an algorithm that is not allowed here. Get a new \
                 token."
            }
            JwtFault::Key => {
                "The reader token is signed with a key that is not known here. Get a new token."
            }
            JwtFault::Signature => "The signature of the reader token is wrong. Get a new token.",
            JwtFault::Issuer => {
                "The reader token is from another issuer, or names none. Get a new token."
            }
            JwtFault::Audience => {
                "The reader token is for another service. Get a token for this one."
            }
            JwtFault::WithoutExpiry => {
                "The reader token does not say when it expires. Get one that does."
            }
            JwtFault::Expired => "The reader token has expired. Get a new token.",
            JwtFault::LivesTooLong => {
                "The reader token is valid for longer than this gate allows. Get one that expires \
                 sooner."
            }
            JwtFault::Library => {
                "The reader token does not name its library by an ISIL. Get a new token."
            }
            JwtFault::Borrower => "The reader token does not name its borrower. Get a new token.",
            JwtFault::NotYetValid(clock) => TOKEN_NOT_YET_VALID.of(clock),
            JwtFault::IssuedAhead(clock) => TOKEN_ISSUED_AHEAD.of(clock),
        }
    }
}

impl LinkFault {
    fn sentence(self) -> &'static str {
        match self {
            LinkFault::Twice => "The query has more than one token. Use the link as it was given.",
            LinkFault::Malformed => {
                "The signed link cannot be read. Use the whole link as it was given."
            }
            LinkFault::Key => {
                "The signed link was signed with a key that is no longer known here. Get a new \
                 link."
            }
            LinkFault::Forged => {
                "The signature of the link is wrong. Use the link as it was given."
            }
            LinkFault::Expired => "The signed link has expired. Get a new link.",
            LinkFault::LivesTooLong => {
                "The signed link is valid for longer than this gate allows. Get one that expires \
                 sooner."
            }
            LinkFault::IssuedAhead(clock) => LINK_ISSUED_AHEAD.of(clock),
        }
    }
}

/// The sentences about a credential from the future, by the clock that is wrong.
struct ClockSentences {
    issuer: &'static str,
    gate: &'static str,
    unknown: &'static str,
}

impl ClockSentences {
    fn of(&self, clock: WrongClock) -> &'static str {
        match clock {
            WrongClock::Issuer => self.issuer,
            WrongClock::Gate => self.gate,
            WrongClock::Unknown => self.unknown,
        }
    }
}

const TOKEN_NOT_YET_VALID: ClockSentences = ClockSentences {
    issuer: "The reader token is not valid yet. Check the clock of the login service.",
    gate: "The reader token is not valid yet by this gate's clock, which is behind. The gate's \
           operator must set it.",
    unknown: "The reader token is not valid yet. The clock of the login service or of this gate \
              is wrong: check both.",
};

const TOKEN_ISSUED_AHEAD: ClockSentences = ClockSentences {
    issuer: "The reader token was issued in the future. Check the clock of the login service.",
    gate: "The reader token was issued in the future by this gate's clock, which is behind. The \
           gate's operator must set it.",
    unknown: "The reader token was issued in the future. The clock of the login service or of \
              this gate is wrong: check both.",
};

const LINK_ISSUED_AHEAD: ClockSentences = ClockSentences {
    issuer: "The signed link was issued in the future. Check the clock of its issuer.",
    gate: "The signed link was issued in the future by this gate's clock, which is behind. The \
           gate's operator must set it.",
    unknown: "The signed link was issued in the future. The clock of its issuer or of this gate \
              is wrong: check both.",
};
