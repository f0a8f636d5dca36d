//! The resources of the authority (RFC 8555 §7).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use uuid::Uuid;

use super::jws::{self, Signed};
use super::validation::validate;
use super::{Authorization, Fault, Order, Script, State};

type Answer = Result<(StatusCode, Value, Option<String>), (u16, &'static str)>;

/// How long a validation waits until it is known where the name leads.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn answer(request: Request<Incoming>, state: Arc<State>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let script = state.script.lock().unwrap().clone();
    let path = parts.uri.path().to_owned();
    match script.fault {
        Some(Fault::Broken) => return plain(500, "<html>"),
        Some(Fault::Huge) => return plain(200, &"x".repeat(1 << 20)),
        Some(Fault::Redirects) if path == "/order" => {
            let mut answer = plain(307, "");
            let place = format!("{}/order?again", state.url).parse().unwrap();
            answer.headers_mut().insert("location", place);
            return answer;
        }
        _ => {}
    }
    let nonce = Uuid::new_v4().simple().to_string();
    state.books.lock().unwrap().nonces.insert(nonce.clone());
    let mut answer = match (&parts.method, path.as_str()) {
        (&Method::GET, "/directory") => plain(200, &directory(&state, &script).to_string()),
        (&Method::GET, path) if path.starts_with("/renewal/") => {
            renewal(path.trim_start_matches("/renewal/"), &state, &script)
        }
        (&Method::HEAD, "/nonce") => plain(200, ""),
        (&Method::POST, path) => {
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            post(path, &body, &state, &script)
        }
        _ => plain(404, ""),
    };
    answer.headers_mut().insert("replay-nonce", nonce.parse().unwrap());
    if script.has(Fault::Undecided) {
        // As many seconds as fit into the number.
        answer.headers_mut().insert("retry-after", u64::MAX.to_string().parse().unwrap());
    }
    answer
}

/// Returns when a certificate should be renewed.
fn renewal(id: &str, state: &State, script: &Script) -> Response<Full<Bytes>> {
    state.books.lock().unwrap().asked_about.push(id.to_owned());
    let hours = |hours: i64| state.clock.now() + jiff::SignedDuration::from_hours(hours);
    let (start, end) = if script.wants_renewal { (-2, -1) } else { (1400, 1500) };
    let window = json!({ "start": hours(start), "end": hours(end) });
    let mut answer = plain(200, &json!({ "suggestedWindow": window }).to_string());
    answer.headers_mut().insert("retry-after", 21_600.into());
    answer
}

fn directory(state: &State, script: &Script) -> Value {
    let base = match script.fault {
        Some(Fault::OtherServer) => "https://example.no".to_owned(),
        Some(Fault::PlainHttp) => state.url.replacen("https", "http", 1),
        Some(Fault::NoUrl) => "https:// no url".to_owned(),
        _ => state.url.clone(),
    };
    json!({
        "newNonce": format!("{base}/nonce"),
        "newAccount": format!("{base}/account"),
        "newOrder": format!("{base}/order"),
        "revokeCert": format!("{base}/revoke"),
        "keyChange": format!("{base}/key"),
        "renewalInfo": format!("{base}/renewal"),
        // Authorities add such entries, so that clients ignore what they do not know.
        "x7Gq2": "https://community.example.no/t/random-entries",
        "meta": { "externalAccountRequired": script.needs_external_account },
    })
}

fn post(path: &str, body: &[u8], state: &Arc<State>, script: &Script) -> Response<Full<Bytes>> {
    let url = format!("{}{path}", state.url);
    let signed = jws::verify(body, &url, &mut state.books.lock().unwrap());
    let signed = match signed {
        Ok(signed) => signed,
        Err(kind) => return problem(400, kind),
    };
    let (resource, number) =
        path.trim_start_matches('/').split_once('/').unwrap_or((&path[1..], ""));
    let numbers: Vec<usize> = number.split('-').filter_map(|number| number.parse().ok()).collect();
    let answered = match (resource, signed.account, numbers.as_slice()) {
        ("account", None, []) => account(&signed, &url, state, script),
        ("account", Some(account), [number]) if account == *number => contact(&signed, state),
        ("order", Some(account), []) => new_order(&signed, account, state, script),
        ("order", Some(account), [order]) => own(state, account, *order)
            .inspect(|()| state.books.lock().unwrap().polls += 1)
            .map(|()| (StatusCode::OK, shown(state, *order, script), None)),
        ("authorization", Some(account), [order, name]) => own(state, account, *order)
            .map(|()| (StatusCode::OK, authorization(state, *order, *name, script), None)),
        ("challenge", Some(account), [order, name]) => own(state, account, *order).map(|()| {
            tokio::spawn(decide(state.clone(), *order, *name, signed.key.clone(), script.clone()));
            let challenge = authorization(state, *order, *name, script)["challenges"][0].clone();
            (StatusCode::OK, challenge, None)
        }),
        ("finalize", Some(account), [order]) => {
            own(state, account, *order).and_then(|()| finalize(&signed, *order, state, script))
        }
        ("certificate", Some(account), [order]) => match own(state, account, *order) {
            Ok(()) => {
                let books = state.books.lock().unwrap();
                return plain(200, books.orders[*order].certificate.as_deref().unwrap_or_default());
            }
            Err(error) => Err(error),
        },
        _ => Err((403, "unauthorized")),
    };
    match answered {
        Ok((status, body, location)) => {
            let mut answer = plain(status.as_u16(), &body.to_string());
            if let Some(location) = location {
                answer.headers_mut().insert("location", location.parse().unwrap());
            }
            answer
        }
        Err((status, kind)) => {
            let mut answer = problem(status, kind);
            if let Some(Fault::RateLimited(seconds)) = script.fault {
                answer.headers_mut().insert("retry-after", seconds.into());
            }
            answer
        }
    }
}

/// Finds or creates an account.
fn account(signed: &Signed, url: &str, state: &State, script: &Script) -> Answer {
    let mut books = state.books.lock().unwrap();
    let thumbprint = jws::thumbprint(&signed.key);
    let known = books.accounts.iter().position(|key| jws::thumbprint(key) == thumbprint);
    let location = |number: usize| Some(format!("{}/account/{number}", state.url));
    if let Some(number) = known {
        return Ok((StatusCode::OK, json!({ "status": "valid" }), location(number)));
    }
    if signed.payload["onlyReturnExisting"] == true {
        return Err((400, "accountDoesNotExist"));
    }
    if signed.payload["termsOfServiceAgreed"] != true {
        return Err((403, "userActionRequired"));
    }
    let binding = &signed.payload["externalAccountBinding"];
    if script.needs_external_account && !jws::is_bound(binding, &signed.key, url) {
        return Err((403, "externalAccountRequired"));
    }
    books.accounts.push(signed.key.clone());
    let number = books.accounts.len() - 1;
    Ok((StatusCode::CREATED, json!({ "status": "valid" }), location(number)))
}

fn contact(signed: &Signed, state: &State) -> Answer {
    let contact = signed.payload["contact"].clone();
    state.books.lock().unwrap().contacts.push(contact);
    Ok((StatusCode::OK, json!({ "status": "valid" }), None))
}

fn new_order(signed: &Signed, account: usize, state: &State, script: &Script) -> Answer {
    let identifiers = signed.payload["identifiers"].as_array().ok_or((400, "malformed"))?;
    let names = identifiers.iter().map(|identifier| match identifier["type"].as_str() {
        Some("dns") => identifier["value"].as_str().map(str::to_owned).ok_or((400, "malformed")),
        _ => Err((400, "unsupportedIdentifier")),
    });
    let names: Vec<String> = names.collect::<Result<_, _>>()?;
    let mut validated = names.clone();
    match script.fault {
        Some(Fault::OtherName) => validated[0] = "other.example.no".to_owned(),
        Some(Fault::MoreNames) => validated.push("other.example.no".to_owned()),
        _ => {}
    }
    let authorizations = validated.into_iter().map(|name| Authorization {
        name,
        token: BASE64URL_NOPAD.encode(Uuid::new_v4().as_bytes()),
        status: "pending",
        error: None,
    });
    let number = {
        let mut books = state.books.lock().unwrap();
        let order = Order {
            account,
            names,
            authorizations: authorizations.collect(),
            certificate: None,
            has_failed: false,
        };
        books.orders.push(order);
        books.orders.len() - 1
    };
    if let Some(Fault::RateLimited(_)) = script.fault {
        return Err((429, "rateLimited"));
    }
    let location = format!("{}/order/{number}", state.url);
    Ok((StatusCode::CREATED, shown(state, number, script), Some(location)))
}

/// Whether an order exists and belongs to the account.
fn own(state: &State, account: usize, order: usize) -> Result<(), (u16, &'static str)> {
    let books = state.books.lock().unwrap();
    let is_own = books.orders.get(order).is_some_and(|order| order.account == account);
    is_own.then_some(()).ok_or((403, "unauthorized"))
}

fn status_of(order: &Order) -> &'static str {
    let all = |status| order.authorizations.iter().all(|one| one.status == status);
    let any = |status| order.authorizations.iter().any(|one| one.status == status);
    match () {
        () if order.has_failed || any("invalid") => "invalid",
        () if order.certificate.is_some() => "valid",
        () if all("valid") => "ready",
        () => "pending",
    }
}

/// Returns an order as a client sees it.
fn shown(state: &State, number: usize, script: &Script) -> Value {
    let books = state.books.lock().unwrap();
    let order = &books.orders[number];
    let base = match script.fault {
        Some(Fault::OrderElsewhere) => "https://example.no",
        _ => &state.url,
    };
    let authorizations = (0..order.authorizations.len())
        .map(|name| format!("{base}/authorization/{number}-{name}"))
        .collect::<Vec<_>>();
    let status = status_of(order);
    let mut shown = json!({
        "status": status,
        "identifiers": order.names.iter().map(|name| json!({ "type": "dns", "value": name }))
            .collect::<Vec<_>>(),
        "authorizations": authorizations,
        "finalize": format!("{base}/finalize/{number}"),
    });
    if status == "valid" {
        shown["certificate"] = json!(format!("{base}/certificate/{number}"));
    }
    shown
}

fn authorization(state: &State, order: usize, name: usize, script: &Script) -> Value {
    let books = state.books.lock().unwrap();
    let Some(of) = books.orders[order].authorizations.get(name) else { return Value::Null };
    let kind = match script.has(Fault::OtherChallenges) {
        true => "http-01",
        false => "tls-alpn-01",
    };
    let mut challenge = json!({
        "type": kind,
        "url": format!("{}/challenge/{order}-{name}", state.url),
        "token": of.token,
        "status": of.status,
    });
    if let Some(error) = &of.error {
        challenge["error"] = json!({
            "type": "urn:ietf:params:acme:error:unauthorized",
            "detail": error,
        });
    }
    json!({
        "identifier": { "type": "dns", "value": of.name },
        "status": of.status,
        "challenges": [challenge],
    })
}

/// Validates a name, and records the result.
async fn decide(state: Arc<State>, order: usize, name: usize, key: Value, script: Script) {
    if script.has(Fault::Undecided) {
        return;
    }
    let of = state.books.lock().unwrap().orders[order].authorizations[name].clone();
    let mut addresses = state.addresses.subscribe();
    let known = addresses.wait_for(|addresses| addresses.contains_key(&of.name));
    let address = match tokio::time::timeout(PATIENCE, known).await {
        Ok(Ok(addresses)) => addresses[&of.name],
        _ => return,
    };
    let token = if script.has(Fault::OtherDigest) { "other" } else { &of.token };
    let authorization = format!("{token}.{}", jws::thumbprint(&key));
    let validated = validate(address, &of.name, &authorization).await;
    let mut books = state.books.lock().unwrap();
    match &validated {
        Ok(()) => books.validated.push(of.name),
        Err(why) => books.refused.push(why.clone()),
    }
    let of = &mut books.orders[order].authorizations[name];
    of.status = if validated.is_ok() { "valid" } else { "invalid" };
    of.error = validated.err();
}

fn finalize(signed: &Signed, number: usize, state: &State, script: &Script) -> Answer {
    let request = signed.payload["csr"].as_str().unwrap_or_default();
    let request = BASE64URL_NOPAD.decode(request.as_bytes()).map_err(|_| (400, "badCSR"))?;
    let names = {
        let books = state.books.lock().unwrap();
        let order = &books.orders[number];
        if status_of(order) != "ready" {
            return Err((403, "orderNotReady"));
        }
        order.names.clone()
    };
    let issued = state.issuer.issue(&request, &names, script, state.clock.now());
    let mut books = state.books.lock().unwrap();
    match issued {
        Ok(chain) => books.orders[number].certificate = Some(chain),
        Err(kind) => {
            books.orders[number].has_failed = true;
            return Err((400, kind));
        }
    }
    drop(books);
    Ok((StatusCode::OK, shown(state, number, script), None))
}

fn problem(status: u16, kind: &str) -> Response<Full<Bytes>> {
    let kind = format!("urn:ietf:params:acme:error:{kind}");
    plain(status, &json!({ "type": kind, "detail": format!("refused: {kind}") }).to_string())
}

fn plain(status: u16, body: &str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}
