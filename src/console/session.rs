//! The sessions of people who are signed in.
//!
//! The cookie has a random id, and memory only its hash. A session ends after some time without a
//! request, and at the latest after a working day. A restart ends all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::rand;
use data_encoding::BASE64URL_NOPAD;
use jiff::{SignedDuration, Timestamp};

use crate::clock::Clock;
use crate::lock::lock;

/// How long a session lasts without a request.
pub(super) const IDLE_LIFETIME: Duration = Duration::from_secs(30 * 60);
/// How long a session lasts.
pub(super) const LIFETIME: Duration = Duration::from_secs(10 * 3600);
/// The most sessions. A further one ends the one that is idle the longest.
const MAX_SESSIONS: usize = 1000;
/// How far the clock may step back without ending a session.
const CLOCK_STEP: SignedDuration = SignedDuration::from_secs(60);
/// The length of a random secret, in bytes.
const SECRET_LENGTH: usize = 32;

/// What a person may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// Reads everything and does everything.
    Operator,
    /// Reads loans and acts on them.
    Support,
    /// Reads the access trail and the reports of libraries.
    Auditor,
}

impl Role {
    /// Returns the role's name, as in the trail.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Operator => "operator",
            Role::Support => "support",
            Role::Auditor => "auditor",
        }
    }
}

/// Who is signed in.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    /// The name that the trail records.
    pub(crate) name: Arc<str>,
    /// The name that the pages show to the person.
    pub(crate) shown: Arc<str>,
    /// What the person may do.
    pub(crate) role: Role,
}

/// A session, as a request finds it.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) person: Person,
    /// Why the person looks at loans, for the trail.
    pub(super) purpose: Option<Arc<str>>,
    begun: Timestamp,
    used: Timestamp,
}

/// A random secret in a cookie.
#[derive(Clone)]
pub(super) struct Secret(String);

/// The hash of a secret.
pub(super) type Hash = [u8; SECRET_LENGTH];

/// All sessions of this process.
pub(super) struct Sessions {
    clock: Clock,
    sessions: Mutex<HashMap<Hash, Session>>,
}

impl Secret {
    /// Generates a secret; none if the system has no randomness.
    pub(super) fn generate() -> Option<Secret> {
        let mut bytes = [0; SECRET_LENGTH];
        rand::fill(&mut bytes).ok()?;
        Some(Secret(BASE64URL_NOPAD.encode(&bytes)))
    }

    /// Reads the value of a cookie.
    pub(super) fn of_cookie(value: &str) -> Option<Secret> {
        let decoded = BASE64URL_NOPAD.decode(value.as_bytes()).ok()?;
        (decoded.len() == SECRET_LENGTH).then(|| Secret(value.to_owned()))
    }

    /// Returns the value for a cookie.
    pub(super) fn cookie_value(&self) -> &str {
        &self.0
    }

    /// Returns the token of the forms that belong to this secret. It does not reveal the secret.
    pub(super) fn form_token(&self) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.as_bytes());
        BASE64URL_NOPAD.encode(hmac::sign(&key, b"loangate console form").as_ref())
    }

    /// Returns the hash under which memory has what belongs to the secret.
    pub(super) fn hash(&self) -> Hash {
        let mut hash = [0; SECRET_LENGTH];
        hash.copy_from_slice(digest(&SHA256, self.0.as_bytes()).as_ref());
        hash
    }

    /// Returns a number that names what belongs to the secret, and does not tell the secret.
    pub(super) fn number(&self) -> u64 {
        self.hash().iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
    }
}

impl Session {
    /// Returns whether the session is over. A clock that was set back ends it too: its age is
    /// then unknown.
    fn is_over(&self, now: Timestamp) -> bool {
        let over = |since: Timestamp, lifetime: Duration| {
            let age = now.duration_since(since);
            age < -CLOCK_STEP || age >= SignedDuration::try_from(lifetime).unwrap_or_default()
        };
        over(self.used, IDLE_LIFETIME) || over(self.begun, LIFETIME)
    }
}

impl Sessions {
    /// Creates an empty store.
    pub(super) fn new(clock: Clock) -> Sessions {
        Sessions { clock, sessions: Mutex::default() }
    }

    /// Begins a session, and returns the secret for its cookie; none without randomness.
    pub(super) fn begin(&self, person: Person) -> Option<Secret> {
        let (secret, now) = (Secret::generate()?, self.clock.now());
        let mut sessions = lock(&self.sessions);
        sessions.retain(|_, session| !session.is_over(now));
        if sessions.len() >= MAX_SESSIONS {
            let idle = sessions.iter().min_by_key(|(_, session)| session.used);
            if let Some(hash) = idle.map(|(hash, _)| *hash) {
                sessions.remove(&hash);
            }
        }
        let session = Session { person, purpose: None, begun: now, used: now };
        sessions.insert(secret.hash(), session);
        Some(secret)
    }

    /// Returns the session of this secret and renews it; none if it is over.
    pub(super) fn find(&self, secret: &Secret) -> Option<Session> {
        let (hash, now) = (secret.hash(), self.clock.now());
        let mut sessions = lock(&self.sessions);
        let session = sessions.get_mut(&hash)?;
        if session.is_over(now) {
            sessions.remove(&hash);
            return None;
        }
        session.used = session.used.max(now);
        Some(session.clone())
    }

    /// Returns the session of this secret and does not renew it; none if it is over.
    pub(super) fn peek(&self, secret: &Secret) -> Option<Session> {
        let now = self.clock.now();
        let session = lock(&self.sessions).get(&secret.hash()).cloned();
        session.filter(|session| !session.is_over(now))
    }

    /// Stores why the person looks at loans.
    pub(super) fn set_purpose(&self, secret: &Secret, purpose: &str) {
        if let Some(session) = lock(&self.sessions).get_mut(&secret.hash()) {
            session.purpose = Some(purpose.into());
        }
    }

    /// Ends a session.
    pub(super) fn end(&self, secret: &Secret) {
        self.end_hashed(&secret.hash());
    }

    /// Ends the session whose secret has this hash.
    pub(super) fn end_hashed(&self, hash: &Hash) {
        lock(&self.sessions).remove(hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person() -> Person {
        Person { name: "token".into(), shown: "token".into(), role: Role::Operator }
    }

    fn sessions() -> (Clock, Sessions) {
        let clock = Clock::movable(Timestamp::from_second(1_790_000_000).unwrap());
        (clock.clone(), Sessions::new(clock))
    }

    #[test]
    fn session_ends_when_idle_and_after_its_lifetime() {
        let (clock, sessions) = sessions();
        let idle = sessions.begin(person()).unwrap();
        clock.advance(IDLE_LIFETIME - Duration::from_secs(1));
        assert!(sessions.find(&idle).is_some());
        clock.advance(IDLE_LIFETIME);
        assert!(sessions.find(&idle).is_none());

        let used = sessions.begin(person()).unwrap();
        let step = IDLE_LIFETIME / 2;
        for _ in 1..LIFETIME.as_secs() / step.as_secs() {
            clock.advance(step);
            assert!(sessions.find(&used).is_some());
        }
        clock.advance(step);
        assert!(sessions.find(&used).is_none(), "a session in use ends as well");

        let watched = sessions.begin(person()).unwrap();
        clock.advance(step);
        assert!(sessions.peek(&watched).is_some());
        clock.advance(step);
        assert!(sessions.peek(&watched).is_none(), "an open page is no request");
    }

    #[test]
    fn number_of_sessions_is_bounded_and_the_idlest_ends() {
        let (clock, sessions) = sessions();
        let first = sessions.begin(person()).unwrap();
        let second = sessions.begin(person()).unwrap();
        clock.advance(Duration::from_secs(1));
        assert!(sessions.find(&first).is_some());
        for _ in 2..=MAX_SESSIONS {
            sessions.begin(person()).unwrap();
        }
        assert_eq!(lock(&sessions.sessions).len(), MAX_SESSIONS);
        assert!(sessions.find(&first).is_some());
        assert!(sessions.find(&second).is_none(), "it was idle the longest");
    }

    #[test]
    fn cookie_value_is_read_only_in_its_own_form() {
        let secret = Secret::generate().unwrap();
        assert!(Secret::of_cookie(secret.cookie_value()).is_some());
        for wrong in ["", "abc", "%", &secret.0[1..]] {
            assert!(Secret::of_cookie(wrong).is_none(), "{wrong}");
        }
        assert_ne!(secret.form_token(), Secret::generate().unwrap().form_token());
    }
}
