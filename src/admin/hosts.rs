//! Check of the Host header at the admin listener, against DNS rebinding.
//!
//! A hostile page can point its own host name at this listener's address, and then read responses
//! in an operator's browser. The attack needs a host name, so IP addresses are allowed.

use std::net::{IpAddr, Ipv6Addr};

use axum::extract::Request;
use http::header::HOST;

/// Whether the request's host is an IP address, a loopback name, or one of `hosts`.
pub(super) fn allows(request: &Request, hosts: &[String]) -> bool {
    let mut fields = request.headers().get_all(HOST).iter();
    let host = match (request.uri().authority(), fields.next(), fields.next()) {
        (_, _, Some(_)) => return false,
        (Some(authority), ..) => Some(authority.as_str()),
        (None, field, None) => field.and_then(|field| field.to_str().ok()),
    };
    host.is_some_and(|host| is_allowed(host, hosts))
}

fn is_allowed(host: &str, hosts: &[String]) -> bool {
    if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || hosts.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_loopback_and_configured_names_pass() {
        let hosts = ["gate.example.no".to_owned()];
        for (host, allowed) in [
            ("127.0.0.1:9443", true),
            ("10.1.2.3", true),
            ("[::1]:9443", true),
            ("[::1]", true),
            ("localhost:9443", true),
            ("LOCALHOST", true),
            ("a.localhost:1", true),
            ("gate.example.no:9443", true),
            ("Gate.Example.no.", true),
            ("rebound.example.com:9443", false),
            ("gate.example.no.example.com", false),
            ("notlocalhost", false),
            ("127.0.0.1.example.com", false),
            ("[evil]", false),
            ("", false),
        ] {
            assert_eq!(is_allowed(host, &hosts), allowed, "{host}");
        }
    }

    #[test]
    fn request_must_have_one_host() {
        let request = |fields: &[&str]| {
            let builder = fields
                .iter()
                .fold(http::Request::builder(), |builder, host| builder.header(HOST, *host));
            builder.body(axum::body::Body::empty()).unwrap()
        };
        assert!(allows(&request(&["localhost"]), &[]));
        assert!(!allows(&request(&["localhost", "localhost"]), &[]));
        assert!(!allows(&request(&[]), &[]));
    }
}
