//! Whether a URL names this machine. Every module may call it.
//!
//! Secrets, and answers that must be genuine, travel without TLS only to a loopback address.

use url::{Host, Url};

/// Returns whether the host of a URL is `localhost` or a loopback address.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine_are_loopback() {
        for (url, expected) in [
            ("http://localhost:1/", true),
            ("http://127.9.9.9/", true),
            ("http://[::1]/", true),
            ("http://localhost.example.no/", false),
            ("http://127.0.0.1.example.no/", false),
            ("http://10.0.0.1/", false),
            ("http://[::2]/", false),
            ("file:///etc/passwd", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), expected, "{url}");
        }
    }
}
