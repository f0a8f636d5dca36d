//! The console's cookies: the session, the secret of forms before a session, and preferences.

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

/// How long a browser stores a preference, in seconds.
const PREFERENCE_LIFETIME: u32 = 365 * 86_400;
/// How long a person may take at the provider, in seconds.
const PROVIDER_LIFETIME: u64 = super::oidc::LIFETIME.as_secs();

/// A cookie of the console.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cookie {
    /// The id of the session.
    Session,
    /// The secret of the forms of somebody without a session.
    Form,
    /// The language.
    Language,
    /// The theme.
    Theme,
    /// Whether single keys are shortcuts.
    Keys,
    /// The secret of a sign-in by OpenID Connect that waits.
    Provider,
}

impl Cookie {
    /// Returns the name. Over TLS, the prefix lets no other host or page set a secret (RFC 6265bis
    /// §4.1.3.2).
    fn name(self, tls: bool) -> &'static str {
        match (self, tls) {
            (Cookie::Session, true) => "__Host-loangate-session",
            (Cookie::Session, false) => "loangate-session",
            (Cookie::Form, true) => "__Host-loangate-form",
            (Cookie::Form, false) => "loangate-form",
            (Cookie::Provider, true) => "__Host-loangate-provider",
            (Cookie::Provider, false) => "loangate-provider",
            (Cookie::Language, _) => "loangate-language",
            (Cookie::Theme, _) => "loangate-theme",
            (Cookie::Keys, _) => "loangate-keys",
        }
    }

    /// Returns the value that a request has; none if it has none or several.
    pub(super) fn read(self, headers: &HeaderMap, tls: bool) -> Option<&str> {
        let name = self.name(tls);
        let fields = headers.get_all(COOKIE).iter().filter_map(|field| field.to_str().ok());
        let mut values = fields.flat_map(|field| field.split(';')).filter_map(|pair| {
            let (found, value) = pair.split_once('=')?;
            (found.trim() == name).then_some(value.trim())
        });
        values.next().filter(|_| values.next().is_none())
    }

    /// Returns a Set-Cookie field. Scripts cannot read the cookie. Requests from other sites lack
    /// it, except [`Cookie::Provider`] in the request with which the provider sends the browser
    /// back.
    pub(super) fn set(self, value: &str, tls: bool) -> Option<HeaderValue> {
        let age = match self {
            Cookie::Session | Cookie::Form => String::new(),
            Cookie::Provider => format!("; Max-Age={PROVIDER_LIFETIME}"),
            Cookie::Language | Cookie::Theme | Cookie::Keys => {
                format!("; Max-Age={PREFERENCE_LIFETIME}")
            }
        };
        self.field(value, &age, tls)
    }

    /// Returns a Set-Cookie field that removes the cookie.
    pub(super) fn remove(self, tls: bool) -> Option<HeaderValue> {
        self.field("", "; Max-Age=0", tls)
    }

    fn field(self, value: &str, age: &str, tls: bool) -> Option<HeaderValue> {
        let secure = if tls { "; Secure" } else { "" };
        let name = self.name(tls);
        let site = if self == Cookie::Provider { "Lax" } else { "Strict" };
        let text = format!("{name}={value}; Path=/; HttpOnly; SameSite={site}{age}{secure}");
        HeaderValue::from_str(&text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookie_is_read_if_it_is_there_once() {
        let headers = |fields: &[&'static str]| {
            let fields = fields.iter().map(|field| (COOKIE, HeaderValue::from_static(field)));
            fields.collect::<HeaderMap>()
        };
        for (fields, value) in [
            (&["loangate-session=a"][..], Some("a")),
            (&["x=1; loangate-session=a; y=2"], Some("a")),
            (&["x=1", "loangate-session=a"], Some("a")),
            (&["loangate-session=a; loangate-session=b"], None),
            (&["xloangate-session=a"], None),
            (&[], None),
        ] {
            assert_eq!(Cookie::Session.read(&headers(fields), false), value, "{fields:?}");
        }
        assert_eq!(Cookie::Session.read(&headers(&["loangate-session=a"]), true), None);
    }

    #[test]
    fn secrets_are_for_this_host_only() {
        let field = Cookie::Session.set("a", true).unwrap();
        let expected = "__Host-loangate-session=a; Path=/; HttpOnly; SameSite=Strict; Secure";
        assert_eq!(field, expected);
        assert!(!Cookie::Session.set("a", false).unwrap().to_str().unwrap().contains("Secure"));
    }
}
