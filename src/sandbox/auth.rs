//! Who may call: tickets and tokens, given out and checked.
//!
//! The login calls give them out, every other call has its header checked here. It calls nothing of
//! ours. A token is a secret: no error and no `Debug` shows one. They do not survive a restart.

use std::collections::HashMap;
use std::fmt;

use http::HeaderMap;
use http::header::{AUTHORIZATION, DATE};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::error_response::Rejected;

/// How far a caller's clock may be off (page "Authentication Service").
const SKEW: SignedDuration = SignedDuration::from_mins(15);

/// Which of the two logins a token came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Ticket,
    OAuth,
}

/// Every token that is out.
#[derive(Default)]
pub(super) struct Tokens(HashMap<String, (Kind, Timestamp)>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({} out)", self.0.len())
    }
}

impl Tokens {
    /// Gives out a token until this moment, and forgets those that have expired for a day.
    pub(super) fn give_out(&mut self, kind: Kind, now: Timestamp, until: Timestamp) -> String {
        self.0.retain(|_, (_, end)| now.duration_since(*end) < SignedDuration::from_hours(24));
        let prefix = match kind {
            Kind::Ticket => "TGT-",
            Kind::OAuth => "sandbox.",
        };
        let token = format!("{prefix}{}", Uuid::new_v4().simple());
        self.0.insert(token.clone(), (kind, until));
        token
    }

    /// Takes a token back; false where it was not out.
    pub(super) fn take_back(&mut self, token: &str) -> bool {
        self.0.remove(token).is_some()
    }

    /// Takes back the token that a call carries, and says what a call with it is answered.
    pub(super) fn expire(&mut self, headers: &HeaderMap) -> Rejected {
        if let Ok((_, token)) = credential(headers) {
            self.take_back(token);
        }
        Rejected::unauthorized("TOKEN_EXPIRED", "The token has expired.")
    }

    /// Checks the `Authorization` of a call, and the `Date` that a legacy one must have.
    ///
    /// # Errors
    /// 401, with a code for each reason.
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
    if now.duration_since(date).abs() > SKEW {
        return Err(Rejected::unauthorized(
            "CLOCK_SKEW",
            "The header Date is more than 15 minutes off; set the clock.",
        ));
    }
    Ok(())
}
