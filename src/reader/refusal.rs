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
    TokenTooLong,
    TokenMalformed,
    TokenAlgorithm,
    TokenKey,
    TokenSignature,
    TokenIssuer,
    TokenAudience,
    TokenWithoutExpiry,
    TokenExpired,
    TokenNotYetValid(WrongClock),
    TokenIssuedAhead(WrongClock),
    TokenLivesTooLong,
    TokenLibrary,
    TokenBorrower,
    LinkTwice,
    LinkMalformed,
    LinkKey,
    LinkForged,
    LinkIssuedAhead(WrongClock),
    LinkExpired,
    LinkLivesTooLong,
}

impl Refusal {
    /// Returns the problem document: 400 for an unreadable link, else 401.
    pub(super) fn problem(self) -> Problem {
        match self {
            Refusal::LinkTwice | Refusal::LinkMalformed => {
                Problem::RequestMalformed(self.sentence())
            }
            Refusal::NoCredential
            | Refusal::SeveralCredentials
            | Refusal::OtherScheme
            | Refusal::TokensDisabled
            | Refusal::LinksDisabled
            | Refusal::TokenInLink
            | Refusal::TokenTooLong
            | Refusal::TokenMalformed
            | Refusal::TokenAlgorithm
            | Refusal::TokenKey
            | Refusal::TokenSignature
            | Refusal::TokenIssuer
            | Refusal::TokenAudience
            | Refusal::TokenWithoutExpiry
            | Refusal::TokenExpired
            | Refusal::TokenNotYetValid(_)
            | Refusal::TokenIssuedAhead(_)
            | Refusal::TokenLivesTooLong
            | Refusal::TokenLibrary
            | Refusal::TokenBorrower
            | Refusal::LinkKey
            | Refusal::LinkForged
            | Refusal::LinkIssuedAhead(_)
            | Refusal::LinkExpired
            | Refusal::LinkLivesTooLong => Problem::ReaderUnauthenticated(self.sentence()),
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
            Refusal::TokenTooLong => "The reader token is longer than 8 KiB. Get a shorter one.",
            Refusal::TokenMalformed => {
                "The reader token is not a JWT that can be read. Get a new token."
            }
            Refusal::TokenAlgorithm => {
                "The reader token is signed with an algorithm that is not allowed here. Get a new \
                 token."
            }
            Refusal::TokenKey => {
                "The reader token is signed with a key that is not known here. Get a new token."
            }
            Refusal::TokenSignature => {
                "The signature of the reader token is wrong. Get a new token."
            }
            Refusal::TokenIssuer => {
                "The reader token is from another issuer, or names none. Get a new token."
            }
            Refusal::TokenAudience => {
                "The reader token is for another service. Get a token for this one."
            }
            Refusal::TokenWithoutExpiry => {
                "The reader token does not say when it expires. Get one that does."
            }
            Refusal::TokenExpired => "The reader token has expired. Get a new token.",
            Refusal::TokenNotYetValid(WrongClock::Issuer) => {
                "The reader token is not valid yet. Check the clock of the login service."
            }
            Refusal::TokenNotYetValid(WrongClock::Gate) => {
                "The reader token is not valid yet by this gate's clock, which is behind. The \
                 gate's operator must set it."
            }
            Refusal::TokenNotYetValid(WrongClock::Unknown) => {
                "The reader token is not valid yet. The clock of the login service or of this \
                 gate is wrong: check both."
            }
            Refusal::TokenIssuedAhead(WrongClock::Issuer) => {
                "The reader token was issued in the future. Check the clock of the login service."
            }
            Refusal::TokenIssuedAhead(WrongClock::Gate) => {
                "The reader token was issued in the future by this gate's clock, which is behind. \
                 The gate's operator must set it."
            }
            Refusal::TokenIssuedAhead(WrongClock::Unknown) => {
                "The reader token was issued in the future. The clock of the login service or of \
                 this gate is wrong: check both."
            }
            Refusal::TokenLivesTooLong => {
                "The reader token is valid for longer than this gate allows. Get one that expires \
                 sooner."
            }
            Refusal::TokenLibrary => {
                "The reader token does not name its library by an ISIL. Get a new token."
            }
            Refusal::TokenBorrower => {
                "The reader token does not name its borrower. Get a new token."
            }
            Refusal::LinkTwice => {
                "The query has more than one token. Use the link as it was given."
            }
            Refusal::LinkMalformed => {
                "The signed link cannot be read. Use the whole link as it was given."
            }
            Refusal::LinkKey => {
                "The signed link was signed with a key that is no longer known here. Get a new \
                 link."
            }
            Refusal::LinkForged => {
                "The signature of the link is wrong. Use the link as it was given."
            }
            Refusal::LinkIssuedAhead(WrongClock::Issuer) => {
                "The signed link was issued in the future. Check the clock of its issuer."
            }
            Refusal::LinkIssuedAhead(WrongClock::Gate) => {
                "The signed link was issued in the future by this gate's clock, which is behind. \
                 The gate's operator must set it."
            }
            Refusal::LinkIssuedAhead(WrongClock::Unknown) => {
                "The signed link was issued in the future. The clock of its issuer or of this \
                 gate is wrong: check both."
            }
            Refusal::LinkExpired => "The signed link has expired. Get a new link.",
            Refusal::LinkLivesTooLong => {
                "The signed link is valid for longer than this gate allows. Get one that expires \
                 sooner."
            }
        }
    }
}
