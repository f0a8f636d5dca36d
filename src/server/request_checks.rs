//! The checks of a request for a file that need no route and no reader. `dispatch` and `explain`
//! call them.

use http::Method;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;

use crate::language::Sentence;
use crate::problem::Problem;

const FILE_METHODS: &str = "GET, HEAD";

/// Accepts a GET or a HEAD without a body.
pub(super) fn check_shape(request: &Parts, has_body: bool) -> Result<(), Problem> {
    if request.method != Method::GET && request.method != Method::HEAD {
        return Err(Problem::MethodNotAllowed(FILE_METHODS));
    }
    let length =
        request.headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if has_body || length || request.headers.contains_key(TRANSFER_ENCODING) {
        return Err(Problem::RequestMalformed(&Sentence {
            english: "A request for a file has no body. Send it without one.",
            norwegian: "En forespørsel om en fil har ingen kropp. Send den uten.",
        }));
    }
    Ok(())
}

/// RFC 9110 §7.4: a request for another authority than the connection was made for is misdirected,
/// and one that names two is malformed (RFC 9112 §3.2, RFC 9113 §8.3.1).
pub(super) fn check_authority(request: &Parts, server_name: Option<&str>) -> Result<(), Problem> {
    const NO_HOST: Problem = Problem::RequestMalformed(&Sentence {
        english: "The request names no host, or more than one. Send one field Host.",
        norwegian: "Forespørselen nevner ingen vert, eller flere. Send ett felt Host.",
    });
    let mut fields = request.headers.get_all(HOST).iter();
    let field = match (fields.next(), fields.next()) {
        (_, Some(_)) => return Err(NO_HOST),
        (Some(field), None) => Some(field.to_str().map_err(|_| NO_HOST)?),
        (None, None) => None,
    };
    let authority = request.uri.authority().map(http::uri::Authority::as_str);
    let named = match (authority, field) {
        (Some(authority), Some(field)) if !authority.eq_ignore_ascii_case(field) => {
            return Err(NO_HOST);
        }
        (Some(named), _) | (None, Some(named)) => named,
        (None, None) => return Err(NO_HOST),
    };
    match server_name {
        Some(server_name) if !host_of(named).eq_ignore_ascii_case(server_name) => {
            Err(Problem::MisdirectedRequest)
        }
        _ => Ok(()),
    }
}

/// An authority without its port.
pub(super) fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn request_names_one_host_and_that_of_its_connection() {
        let check = |uri: &str, hosts: &[&str], name: Option<&str>| {
            let mut request = Request::builder().uri(uri);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            check_authority(&request.body(()).unwrap().into_parts().0, name)
        };
        assert_eq!(check("/f", &["a.no:8443"], Some("a.no")), Ok(()));
        assert_eq!(check("/f", &["A.no"], Some("a.no")), Ok(()));
        assert_eq!(check("https://a.no/f", &[], Some("a.no")), Ok(()));
        assert_eq!(check("/f", &["127.0.0.1:8443"], None), Ok(()));
        assert_eq!(check("/f", &["[::1]:8443"], None), Ok(()));
        assert_eq!(check("/f", &["b.no"], Some("a.no")), Err(Problem::MisdirectedRequest));
        assert!(matches!(check("/f", &[], None), Err(Problem::RequestMalformed(_))));
        assert!(matches!(check("/f", &["a.no", "b.no"], None), Err(Problem::RequestMalformed(_))));
        assert!(matches!(
            check("https://a.no/f", &["b.no"], None),
            Err(Problem::RequestMalformed(_))
        ));
    }
}
