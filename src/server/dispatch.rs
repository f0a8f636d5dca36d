//! The line that a request walks: reader, catalog, gate, delivery.
//!
//! [`dispatch`] is the outer function: whatever happens, it gives a response, counts it, and sees
//! to the one line that is logged for it, which is written when the body is over. [`walk`] is the
//! inner one, and reads like the line; it may end anywhere with a [`Problem`].

use std::sync::Arc;
use std::time::Instant;

use http::header::{CONTENT_LENGTH, HOST, RANGE, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body::Body as _;

use super::connection::ConnectionInfo;
use super::request_body::RequestBody;
use super::{Line, download_continuation, loans_api, problem_response};
use crate::catalog::{Target, Titles};
use crate::delivery::{Body, Delivered, Delivery, Pass};
use crate::gate;
use crate::loan::Isbn;
use crate::path::RequestPath;
use crate::problem::Problem;
use crate::reader::{Reader, Readers};
use crate::telemetry::{RequestLine, Via};

const FILE_METHODS: &str = "GET, HEAD";

/// Answers one request.
pub(super) async fn dispatch(
    line: &Line,
    delivery: &Delivery,
    asked: &ConnectionInfo,
    request: Request<RequestBody>,
) -> Response<Body> {
    let began = Instant::now();
    let (parts, body) = request.into_parts();
    let mut log = RequestLine::start(&parts.method, parts.version);
    let mut via = Via::None;
    if let Some(mut response) = line.cors.preflight(&parts.method, &parts.headers) {
        line.metrics.request("preflight", via, began.elapsed());
        line.security.add(response.headers_mut());
        return response;
    }
    let answer = walk(line, delivery, asked, &parts, body, &mut log, &mut via).await;
    let mut response = match answer {
        Ok(response) => {
            line.metrics.request("ok", via, began.elapsed());
            response
        }
        Err(problem) => {
            line.metrics.request(problem.slug(), via, began.elapsed());
            log.via(via).outcome(problem.status().as_u16(), problem.slug());
            log.finish(0, 0, "complete", began.elapsed());
            problem_response::problem(&problem, &parts.method, parts.version)
        }
    };
    line.cors.add_response_fields(&parts.headers, &mut response);
    line.security.add(response.headers_mut());
    response
}

async fn walk(
    line: &Line,
    delivery: &Delivery,
    asked: &ConnectionInfo,
    request: &Parts,
    body: RequestBody,
    log: &mut RequestLine,
    via: &mut Via,
) -> Result<Response<Body>, Problem> {
    let path = RequestPath::parse(request.uri.path())
        .map_err(|error| Problem::RequestMalformed(error.0))?;
    check_authority(request, asked.name.as_deref())?;
    let (token, path) = path.split_token();
    if let Some(loans) = loans_api::parse_endpoint(&path) {
        log.route("/loans");
        return answer_loans(line, asked, request, body, loans?, token.as_deref(), log).await;
    }
    let target = line.catalog.resolve(&path)?;
    log.range(request.headers.get(RANGE));
    check_shape(request, !body.is_end_stream())?;
    drop(body);
    let pass = match target {
        Target::Open(file) => {
            *via = Via::Open;
            log.route(line.catalog.route_name(file.file().route));
            Pass::Open(file)
        }
        Target::Loanable { titles, file, explicit } => {
            log.route(line.catalog.route_name(file.route)).isbn(titles.first());
            let (reader, is_late) = authenticate(line, request, token.as_deref())?;
            asked.connection.note_credentials();
            let continues = download_continuation::continues(&request.headers);
            let wish =
                ask(&reader, &titles, &path, explicit, continues).ok_or_else(outside_of_link)?;
            let answer = line.gate.admit(&wish).await;
            *via = answer.via;
            log.isbn(answer.isbn);
            match answer.permit {
                Ok(permit) if is_late => Pass::Rest(permit, file),
                Ok(permit) => Pass::Loan(permit, file),
                Err(problem) => {
                    return Err(if is_late { as_expired_link(problem) } else { problem });
                }
            }
        }
    };
    log.via(*via);
    let log = log.clone();
    let on_end = Box::new(move |delivered: Delivered| write_line(log, &delivered));
    let is_late = matches!(pass, Pass::Rest(..));
    let delivered =
        delivery.deliver(pass, &request.method, &request.headers, &asked.connection, on_end).await;
    delivered.map_err(|problem| if is_late { as_expired_link(problem) } else { problem })
}

/// Who asks for a file, and whether by a link in the grace after its expiry, which only a request
/// has that shows what it goes on with.
fn authenticate(
    line: &Line,
    request: &Parts,
    token: Option<&str>,
) -> Result<(Arc<Reader>, bool), Problem> {
    let (headers, query) = (&request.headers, request.uri.query());
    if download_continuation::proves_partial_download(&request.method, headers) {
        return line.readers.authenticate_with_grace(headers, query, token);
    }
    Ok((line.readers.authenticate(headers, query, token)?, false))
}

/// What is said where an expired link is of no more use: the grace is only for the rest of a file
/// that is still the same, under a loan that lives. That a loan has ended is for a reader to know;
/// all else a new link will tell.
fn as_expired_link(problem: Problem) -> Problem {
    match problem {
        Problem::PreconditionFailed | Problem::LoanRefused { .. } => {
            Readers::expired_link_problem()
        }
        other => other,
    }
}

/// A request for a reader's loans, whose answer is whole when it is made.
async fn answer_loans(
    line: &Line,
    connection: &ConnectionInfo,
    request: &Parts,
    body: RequestBody,
    target: loans_api::LoansEndpoint,
    link: Option<&str>,
    log: &RequestLine,
) -> Result<Response<Body>, Problem> {
    let response =
        loans_api::answer(line, &connection.connection, request, body, target, link).await?;
    let mut log = log.clone();
    if let Some(isbn) = target.isbn() {
        log.isbn(isbn);
    }
    log.outcome(response.status().as_u16(), "ok");
    let (bytes, head) = (response.body().size_hint().lower(), log.began().elapsed());
    log.finish(bytes, 0, "complete", head);
    Ok(response)
}

fn write_line(mut log: RequestLine, delivered: &Delivered) {
    log.outcome(delivered.status.as_u16(), "ok");
    let head = delivered.opened.duration_since(log.began());
    log.finish(delivered.bytes, delivered.resumes, delivered.end.name(), head);
}

/// What the gate is asked for a file of these titles; none where the credential opens it under no
/// title.
fn ask<'a>(
    reader: &Reader,
    titles: &'a Titles,
    path: &RequestPath,
    explicit: bool,
    continues: bool,
) -> Option<gate::Request<'a>> {
    let opens = |isbn: &Isbn| reader.opens(Some(*isbn), path);
    let (first, further) = (titles.first(), titles.further());
    let (isbn, further, explicit) = if !opens(&first) {
        // A link to a title that is not named first: its loan opens the file, and no request for
        // the file begins it.
        (*further.iter().find(|isbn| opens(isbn))?, &[][..], true)
    } else if further.iter().all(opens) {
        (first, further, explicit)
    } else {
        (first, &[][..], explicit)
    };
    let (key, issued) = (reader.key(isbn), reader.issued);
    Some(gate::Request { key, further, issued, continues, explicit })
}

/// What is asked of a file is a GET or a HEAD without a body.
fn check_shape(request: &Parts, has_body: bool) -> Result<(), Problem> {
    if request.method != Method::GET && request.method != Method::HEAD {
        return Err(Problem::MethodNotAllowed(FILE_METHODS));
    }
    let length =
        request.headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if has_body || length || request.headers.contains_key(TRANSFER_ENCODING) {
        return Err(Problem::RequestMalformed(
            "A request for a file has no body. Send it without one.",
        ));
    }
    Ok(())
}

/// RFC 9110 §7.4: a request for another authority than the connection was made for is misdirected,
/// and one that names two is malformed (RFC 9112 §3.2, RFC 9113 §8.3.1).
fn check_authority(request: &Parts, server_name: Option<&str>) -> Result<(), Problem> {
    const NO_HOST: Problem = Problem::RequestMalformed(
        "The request names no host, or more than one. Send one field Host.",
    );
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
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

pub(super) fn outside_of_link() -> Problem {
    Problem::LoanRefused { reason: "outside-of-link".to_owned(), retry_after: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_one_host_and_the_one_that_was_connected_to() {
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
