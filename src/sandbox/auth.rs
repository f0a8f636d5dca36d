//! Issues and checks tickets and tokens.
//!
//! The login calls issue them, and every other call checks its headers here. A token is a secret:
//! no error and no `Debug` shows one. Tokens do not survive a restart.

use std::collections::HashMap;
use std::fmt;

use http::HeaderMap;
use http::header::{AUTHORIZATION, DATE};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::error_response::Rejected;

/// The largest accepted clock difference of a caller (page "Authentication Service").
const MAX_SKEW: SignedDuration = SignedDuration::from_mins(15);

/// The login that issued a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Ticket,
    OAuth,
}

/// The issued tokens, with their kind and expiry.
#[derive(Default)]
pub(super) struct Tokens(HashMap<String, (Kind, Timestamp)>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({} out)", self.0.len())
    }
}

impl Tokens {
    /// Issues a token that expires at `until`, and removes tokens that expired over a day ago.
    pub(super) fn issue(&mut self, kind: Kind, now: Timestamp, until: Timestamp) -> String {
        self.0.retain(|_, (_, end)| now.duration_since(*end) < SignedDuration::from_hours(24));
        let prefix = match kind {
            Kind::Ticket => "TGT-",
            Kind::OAuth => "sandbox.",
        };
        let token = format!("{prefix}{}", Uuid::new_v4().simple());
        self.0.insert(token.clone(), (kind, until));
        token
    }

    /// Revokes a token. Returns false for an unknown one.
    pub(super) fn revoke(&mut self, token: &str) -> bool {
        self.0.remove(token).is_some()
    }

    /// Revokes the token of a call, and returns the response to that call.
    pub(super) fn expire(&mut self, headers: &HeaderMap) -> Rejected {
        if let Ok((_, token)) = credential(headers) {
            self.revoke(token);
        }
        Rejected::unauthorized("TOKEN_EXPIRED", "The token has expired.")
    }

    /// Checks the `Authorization` header of a call, and the `Date` header of a legacy one.
    ///
    /// # Errors
    /// Fails with 401, and a different code for each reason.
    pub(super) fn check(&self, headers: &HeaderMap, now: Timestamp) -> Result<(), Rejected> {
        let (kind, token) = credential(headers)?;
        let until = match self.0.get(token) {
            Some((of, until)) if *of == kind => *until,
            _ => return Err(Rejected::unauthorized("TOKEN_INVALID", "The token is not known.")),
        };
        if now >= until {
            return Err(Rejected::unauthorized("TOKEN_EXPIRED", "The token has expired."));
        }
        match kind {
            Kind::Ticket => check_date(headers, now),
            Kind::OAuth => Ok(()),
        }
    }
}

fn credential(headers: &HeaderMap) -> Result<(Kind, &str), Rejected> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(header), None) = (all.next(), all.next()) else {
        return Err(Rejected::unauthorized(
            "TOKEN_MISSING",
            "The call needs one Authorization header.",
        ));
    };
    match header.to_str().unwrap_or("").split_once(' ') {
        Some(("Boknett", ticket)) => Ok((Kind::Ticket, ticket)),
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok((Kind::OAuth, token)),
        _ => Err(Rejected::unauthorized(
            "TOKEN_MISSING",
            "The Authorization must be \"Boknett TGT-…\" or \"Bearer …\".",
        )),
    }
}

fn check_date(headers: &HeaderMap, now: Timestamp) -> Result<(), Rejected> {
    let date = headers.get(DATE).and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
    let Some(date) = date.and_then(|date| Timestamp::try_from(date).ok()) else {
        return Err(Rejected::unauthorized(
            "DATE_MISSING",
            "A call with a ticket needs the header Date, in the form of RFC 1123.",
        ));
    };
    if now.duration_since(date).abs() > MAX_SKEW {
        return Err(Rejected::unauthorized(
            "CLOCK_SKEW",
            "The header Date is more than 15 minutes off; set the clock.",
        ));
    }
    Ok(())
}
