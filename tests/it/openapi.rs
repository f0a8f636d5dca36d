//! The OpenAPI description is true. Every described operation is called, and each response matches
//! its description to the last member. Every refusal is a problem document with a listed status.

use std::collections::BTreeSet;

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::scene::Setting;
use crate::support::{BOOK, File, LIBRARY, Scene};

/// A call: method, path, body, and the expected status.
type Call = (&'static str, String, Option<Value>, u16);

/// The description, and the operations and responses seen so far.
struct Described {
    document: Value,
    seen: BTreeSet<String>,
}

impl Described {
    /// Returns the operation of a path: its template and its description.
    fn operation(&self, method: &str, path: &str) -> (String, Value) {
        let path = path.split('?').next().unwrap();
        let fits = |template: &str| {
            let (template, path): (Vec<_>, Vec<_>) =
                (template.split('/').collect(), path.split('/').collect());
            template.len() == path.len()
                && template
                    .iter()
                    .zip(&path)
                    .all(|(one, other)| one == other || one.starts_with('{'))
        };
        let paths = self.document["paths"].as_object().unwrap();
        let (template, item) =
            paths.iter().find(|(template, _)| fits(template)).unwrap_or_else(|| panic!("{path}"));
        let operation = item[method.to_lowercase()].clone();
        assert!(operation.is_object(), "{method} {template} is not described");
        (template.clone(), operation)
    }

    /// Compares a response with its description.
    fn check(&mut self, method: &str, path: &str, status: StatusCode, kind: &str, body: &[u8]) {
        let (template, operation) = self.operation(method, path);
        let response = &operation["responses"][status.as_str()];
        let response = match response["$ref"].as_str() {
            Some(reference) => self.document.pointer(reference.trim_start_matches('#')).unwrap(),
            None => response,
        };
        assert!(
            response.is_object(),
            "{method} {template} answered {status}, which is not described"
        );
        let content = &response["content"];
        if body.is_empty() {
            assert!(content.is_null(), "{method} {template} {status} has no body");
        } else {
            let schema = &content[kind]["schema"];
            assert!(
                schema.is_object(),
                "{method} {template} {status}: {kind} is not described: {response:#}"
            );
            let body: Value = serde_json::from_slice(body).unwrap();
            self.valid(schema, &body);
            self.documented(schema, &body, &template);
        }
        self.seen.insert(format!("{method} {template}"));
    }

    fn valid(&self, schema: &Value, body: &Value) {
        let mut whole = json!({ "components": self.document["components"] });
        whole.as_object_mut().unwrap().extend(schema.as_object().unwrap().clone());
        let validator = jsonschema::options().should_validate_formats(true).build(&whole).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(body).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}: {body:#}");
    }

    /// Collects a schema with everything that it refers to or is composed of.
    fn parts<'a>(&'a self, schema: &'a Value, parts: &mut Vec<&'a Value>) {
        if let Some(reference) = schema["$ref"].as_str() {
            return self
                .parts(self.document.pointer(reference.trim_start_matches('#')).unwrap(), parts);
        }
        parts.push(schema);
        for several in ["allOf", "oneOf", "anyOf"] {
            for part in schema[several].as_array().into_iter().flatten() {
                self.parts(part, parts);
            }
        }
    }

    /// Checks that every member of a body is described.
    fn documented(&self, schema: &Value, body: &Value, at: &str) {
        let mut parts = Vec::new();
        self.parts(schema, &mut parts);
        // All members of a map share one description.
        let each = parts.iter().find_map(|part| part.get("additionalProperties"));
        match body {
            Value::Array(list) => {
                let items = parts
                    .iter()
                    .find_map(|part| part.get("items"))
                    .unwrap_or_else(|| panic!("{at}"));
                list.iter().for_each(|entry| self.documented(items, entry, at));
            }
            Value::Object(members) => {
                for (name, value) in members {
                    let described =
                        parts.iter().find_map(|part| part["properties"].get(name)).or(each);
                    let described =
                        described.unwrap_or_else(|| panic!("{at}: {name} is not described"));
                    self.documented(described, value, &format!("{at} {name}"));
                }
            }
            _ => {}
        }
    }
}

/// Sends a call to the listener of its path, and compares the response.
/// Returns whether a path is one of the admin listener.
fn is_of_admin(path: &str) -> bool {
    path.starts_with("/api/") || path == "/status.json"
}

async fn call(scene: &Scene, described: &mut Described, call_spec: &Call, token: &str) -> Value {
    let (method, path, body, expected) = call_spec;
    let admin = std::fs::read_to_string(scene.dir.path().join("certs/admin.token")).unwrap();
    let support = is_of_admin(path);
    let (base, token) = if support { (&scene.admin, admin.as_str()) } else { (&scene.base, token) };
    let client = if support {
        reqwest::Client::builder().no_proxy().build().unwrap()
    } else {
        scene.http1()
    };
    let mut request =
        client.request(method.parse().unwrap(), format!("{base}{path}")).bearer_auth(token);
    if let Some(body) = body {
        request = request.body(body.to_string());
    }
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let kind =
        answer.headers().get("content-type").map_or("", |kind| kind.to_str().unwrap()).to_owned();
    let body = answer.bytes().await.unwrap();
    assert_eq!(status.as_u16(), *expected, "{method} {path}: {}", String::from_utf8_lossy(&body));
    assert!(status.is_success() || kind == "application/problem+json", "{method} {path}: {kind}");
    described.check(method, path, status, &kind, &body);
    serde_json::from_slice(&body).unwrap_or_default()
}

/// Number of the calls below after which a loan exists.
const CALLS_BEFORE_LOAN: usize = 4;

#[tokio::test]
async fn every_operation_answers_as_described() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.report_usage("PAY_PER_LOAN,1\n", "# none\n", "");
    scene.start_gate().await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(5000));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let without_token = client.get(format!("{}/openapi.json", scene.admin)).send().await.unwrap();
    assert_eq!(without_token.status(), StatusCode::UNAUTHORIZED);
    let document: Value = scene.admin("/openapi.json").await.json().await.unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{document:#}");
    let mut described = Described { document, seen: BTreeSet::new() };
    let token = scene.token("kari");
    let (loan, other) = (format!("/loans/{BOOK}"), "/loans/9788299999021".to_owned());
    scene
        .fault(&json!({ "call": "begin", "isbn": "9788299999021",
            "effect": { "refuse": { "code": "NO_FREE_LICENSE", "retry_after": 60 } } }))
        .await;
    let nowhere = format!("/api/v1/loans/{}", uuid::Uuid::now_v7());
    let link_request = json!({ "library": LIBRARY, "borrower": "kari", "isbn": BOOK });
    let explain_request = json!({
        "library": LIBRARY,
        "borrower": "anne",
        "path": format!("/files/{BOOK}/book.epub"),
        "headers": ["Range: bytes=0-1"],
    });
    let calls: Vec<Call> = vec![
        ("GET", "/loans".into(), None, 200),
        ("GET", loan.clone(), None, 404),
        ("PUT", format!("{loan}/progress"), Some(json!({ "fraction": 0.4 })), 404),
        ("DELETE", loan.clone(), None, 204),
        ("PUT", loan.clone(), None, 201),
        ("PUT", loan.clone(), None, 200),
        ("PUT", other.clone(), None, 403),
        ("PUT", "/loans/9788299999015".into(), None, 404),
        ("GET", loan.clone(), None, 200),
        ("PUT", format!("{loan}/progress"), Some(json!({ "fraction": 0.4 })), 204),
        ("PUT", format!("{loan}/progress"), Some(json!({ "fraction": 4 })), 400),
        ("GET", format!("{loan}/availability"), None, 200),
        ("GET", "/loans".into(), None, 200),
        ("GET", "/api/v1/loans".into(), None, 200),
        ("GET", "/api/v1/loans?limit=1".into(), None, 200),
        ("GET", "/api/v1/loans?state=refused".into(), None, 200),
        ("GET", "/api/v1/loans?cursor=kari".into(), None, 400),
        ("GET", "/api/v1/loans?colour=red".into(), None, 400),
        ("GET", nowhere.clone(), None, 404),
        ("DELETE", format!("{nowhere}?reason=x"), None, 404),
        ("DELETE", nowhere, None, 400),
        ("POST", "/api/v1/links".into(), Some(link_request), 201),
        ("POST", "/api/v1/links".into(), Some(json!({ "library": LIBRARY })), 400),
        ("POST", "/api/v1/links".into(), Some(json!("kari")), 400),
        ("POST", "/api/v1/explain".into(), Some(explain_request), 200),
        ("POST", "/api/v1/explain".into(), Some(json!({ "path": "/nowhere" })), 200),
        ("POST", "/api/v1/explain".into(), Some(json!({ "path": "/loans" })), 400),
        ("GET", "/api/v1/accesses?library=NO-0301000&limit=5".into(), None, 200),
        ("GET", "/api/v1/problems".into(), None, 200),
        ("GET", "/status.json".into(), None, 200),
        ("GET", "/api/v1/now".into(), None, 200),
        ("GET", "/api/v1/status".into(), None, 200),
        ("GET", "/api/v1/status?ledger=false".into(), None, 200),
        ("GET", "/api/v1/status?ledger=maybe".into(), None, 400),
        ("GET", "/api/v1/now?window=day".into(), None, 200),
        ("GET", "/api/v1/now?window=year".into(), None, 400),
        ("GET", "/api/v1/accesses?limit=0".into(), None, 400),
        ("GET", "/api/v1/balance".into(), None, 404),
        ("POST", "/api/v1/balance".into(), None, 200),
        ("GET", "/api/v1/balance".into(), None, 200),
        ("POST", "/api/v1/balance?since=now".into(), None, 400),
        ("POST", "/api/v1/reload".into(), None, 200),
        (
            "POST",
            "/api/v1/privacy/export".into(),
            Some(json!({ "library": "NO-0301000", "borrower": "kari" })),
            200,
        ),
        ("POST", "/api/v1/privacy/export".into(), Some(json!({ "library": "NO-0301000" })), 400),
        (
            "POST",
            "/api/v1/privacy/erase".into(),
            Some(json!({ "library": "NO-0301000", "borrower": "ola", "reason": "case 7" })),
            200,
        ),
        ("POST", "/api/v1/privacy/erase".into(), Some(json!({})), 400),
        ("POST", "/api/v1/lending/pause".into(), Some(json!({ "all": true, "reason": "a" })), 200),
        ("POST", "/api/v1/lending/pause".into(), Some(json!({})), 400),
        ("GET", "/api/v1/lending".into(), None, 200),
        ("POST", "/api/v1/lending/resume".into(), Some(json!({ "all": true })), 200),
        ("POST", "/api/v1/lending/resume".into(), Some(json!({ "library": "x" })), 400),
        ("POST", "/api/v1/balance?until=now".into(), None, 400),
        ("GET", "/api/v1/reports?month=2026-13".into(), None, 400),
        ("GET", "/api/v1/reports?cursor=x".into(), None, 400),
        ("GET", "/api/v1/reports?moth=2026-10".into(), None, 400),
        ("GET", "/api/v1/reports?month=2000-01".into(), None, 200),
        ("GET", "/api/v1/reports/x".into(), None, 404),
        ("GET", "/api/v1/reports/%FF".into(), None, 400),
        ("POST", "/api/v1/reports/x".into(), None, 400),
        ("POST", "/api/v1/reports/x".into(), Some(json!({ "as": "due", "reason": "x" })), 404),
        ("DELETE", loan.clone(), None, 204),
        ("PUT", loan.clone(), None, 403),
        ("GET", loan.clone(), None, 200),
        // A path with a control character, or with escapes that are not UTF-8.
        ("GET", format!("{loan}%00"), None, 400),
        ("PUT", "/loans/%0A".into(), None, 400),
        ("DELETE", "/loans/%7F".into(), None, 400),
        ("PUT", "/loans/%1B/progress".into(), None, 400),
        ("GET", "/loans/%C2%85/availability".into(), None, 400),
        ("GET", "/api/v1/loans/%FF".into(), None, 400),
        ("DELETE", "/api/v1/loans/%FF?reason=x".into(), None, 400),
    ];
    let file = format!("/files/{BOOK}/book.epub");
    for (number, call_spec) in calls.iter().enumerate() {
        call(&scene, &mut described, call_spec, &token).await;
        // Once a loan exists, a delivery under it makes that part of the response comparable too.
        if number == CALLS_BEFORE_LOAN {
            let answer = scene.get(&scene.http1(), &file, &token).send().await.unwrap();
            assert_eq!(answer.bytes().await.unwrap().len(), 5000);
            let noted = async || {
                scene.ledger().await.iter().any(|loan| !loan["delivered"][&file].is_null())
            };
            scene.until("the delivery is reported", noted).await;
        }
    }
    let is_reported =
        async || scene.reports().await.first().is_some_and(|one| one["state"] == "reported");
    scene.until("the usage is reported", is_reported).await;
    let page =
        call(&scene, &mut described, &("GET", "/api/v1/reports".into(), None, 200), &token).await;
    let report = format!("/api/v1/reports/{}", page["reports"][0]["loan"].as_str().unwrap());
    call(&scene, &mut described, &("GET", report.clone(), None, 200), &token).await;
    for (state, reason, status) in [("reported", "x", 409), ("due", "a\nb", 400), ("x", "y", 400)] {
        let body = json!({ "as": state, "reason": reason });
        let spec = ("POST", report.clone(), Some(body), status);
        call(&scene, &mut described, &spec, &token).await;
    }
    // Two links at once are malformed on any path.
    let twice =
        scene.http1().get(format!("{}/loans?token=x&token=y", scene.base)).send().await.unwrap();
    assert_eq!(twice.status(), StatusCode::BAD_REQUEST);
    let body = twice.bytes().await.unwrap();
    described.check("GET", "/loans", StatusCode::BAD_REQUEST, "application/problem+json", &body);
    let page =
        call(&scene, &mut described, &("GET", "/api/v1/loans".into(), None, 200), &token).await;
    assert!(
        page["loans"]
            .as_array()
            .unwrap()
            .iter()
            .any(|loan| loan["delivered"][&file]["bytes"] == 5000)
    );
    for loan in page["loans"].as_array().unwrap() {
        let path = format!("/api/v1/loans/{}", loan["id"].as_str().unwrap());
        call(&scene, &mut described, &("GET", path.clone(), None, 200), &token).await;
        call(&scene, &mut described, &("DELETE", format!("{path}?reason=x"), None, 202), &token)
            .await;
    }
    // Every operation needs a token, and its description says so.
    let paths = described.document["paths"].as_object().unwrap().clone();
    let mut all = BTreeSet::new();
    for (template, item) in &paths {
        for (method, operation) in item.as_object().unwrap() {
            let method = method.to_uppercase();
            let path =
                template.replace("{isbn}", BOOK).replace("{id}", &uuid::Uuid::now_v7().to_string());
            all.insert(format!("{method} {template}"));
            if template == "/status.json" {
                assert!(operation["security"].is_null(), "it is open");
                continue;
            }
            let path = path.replace("{loan}", &uuid::Uuid::now_v7().to_string());
            let base = if is_of_admin(&path) { &scene.admin } else { &scene.base };
            let client = if is_of_admin(&path) { client.clone() } else { scene.http1() };
            let answer = client
                .request(method.parse().unwrap(), format!("{base}{path}"))
                .send()
                .await
                .unwrap();
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
            assert!(
                operation["responses"]["401"].is_object() && operation["security"][0].is_object()
            );
        }
    }
    assert_eq!(described.seen, all, "an operation was not called");
    // Everything that the documentation names is described.
    assert_eq!(all.len(), 27);
    scene.end().await;
}

/// Returns the schema of an operation's parameter or of a body member.
fn limits(document: &Value, pointer: &str, name: &str) -> Value {
    let place = document.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}"));
    let named = place.as_array().into_iter().flatten().find(|parameter| parameter["name"] == name);
    named.map_or_else(|| place[name].clone(), |parameter| parameter["schema"].clone())
}

#[tokio::test]
async fn described_limits_are_enforced() {
    let scene = Scene::start_with(Setting::default()).await;
    let document: Value = scene.admin("/openapi.json").await.json().await.unwrap();
    let mut described = Described { document, seen: BTreeSet::new() };
    let (list, end) = (
        "/paths/~1api~1v1~1loans/get/parameters",
        "/paths/~1api~1v1~1loans~1{id}/delete/parameters",
    );
    let schema = "/components/schemas/LinkRequest/properties";
    let text_of = |length: usize| "x".repeat(length);
    let nowhere = format!("/api/v1/loans/{}", uuid::Uuid::now_v7());
    let link = |library: &str, borrower: &str| {
        let body = json!({ "library": library, "borrower": borrower, "isbn": BOOK });
        ("POST", "/api/v1/links".to_owned(), Some(body))
    };
    let library = format!("NO-{}", text_of(11));
    type Case<'a> = (&'a str, &'a str, Vec<(&'static str, String, Option<Value>)>, u16, String);
    let cases: Vec<Case<'_>> = vec![
        (
            end,
            "reason",
            vec![("DELETE", format!("{nowhere}?reason={}", text_of(200)), None)],
            404,
            text_of(200),
        ),
        (
            end,
            "reason",
            vec![("DELETE", format!("{nowhere}?reason={}", text_of(201)), None)],
            400,
            text_of(201),
        ),
        (end, "reason", vec![("DELETE", format!("{nowhere}?reason="), None)], 400, String::new()),
        (
            end,
            "reason",
            vec![("DELETE", format!("{nowhere}?reason=a%0Ab"), None)],
            400,
            "a\nb".to_owned(),
        ),
        (
            list,
            "library",
            vec![("GET", format!("/api/v1/loans?library={library}"), None)],
            200,
            library.clone(),
        ),
        (
            list,
            "library",
            vec![("GET", format!("/api/v1/loans?library={library}x"), None)],
            400,
            format!("{library}x"),
        ),
        (
            list,
            "library",
            vec![("GET", "/api/v1/loans?library=Oslo".into(), None)],
            400,
            "Oslo".into(),
        ),
        (
            list,
            "borrower",
            vec![("GET", format!("/api/v1/loans?borrower={}", "a".repeat(26)), None)],
            200,
            "a".repeat(26),
        ),
        (
            list,
            "borrower",
            vec![("GET", format!("/api/v1/loans?borrower={}", "a".repeat(25)), None)],
            400,
            "a".repeat(25),
        ),
        (
            list,
            "borrower",
            vec![("GET", "/api/v1/loans?borrower=kari".into(), None)],
            400,
            "kari".into(),
        ),
        (schema, "borrower", vec![link(LIBRARY, &text_of(256))], 201, text_of(256)),
        (schema, "borrower", vec![link(LIBRARY, &text_of(257))], 400, text_of(257)),
        (schema, "borrower", vec![link(LIBRARY, "")], 400, String::new()),
        (schema, "library", vec![link(&library, "kari")], 201, library.clone()),
        (schema, "library", vec![link("Oslo", "kari")], 400, "Oslo".into()),
    ];
    for (pointer, name, calls, status, value) in cases {
        let schema = limits(&described.document, pointer, name);
        let is_valid = jsonschema::validator_for(&schema).unwrap().is_valid(&json!(value));
        assert_eq!(is_valid, status != 400, "{name} {value:?}: {schema}");
        for (method, path, body) in calls {
            call(&scene, &mut described, &(method, path, body, status), "").await;
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn outage_responses_are_described() {
    let mut scene = Scene::start_with(Setting::default()).await;
    let document: Value = scene.admin("/openapi.json").await.json().await.unwrap();
    let mut described = Described { document, seen: BTreeSet::new() };
    scene.stop_sandbox().await;
    let token = scene.token("kari");
    for path in [format!("/loans/{BOOK}"), format!("/loans/{BOOK}/availability")] {
        let method = if path.ends_with("availability") { "GET" } else { "PUT" };
        let document = call(&scene, &mut described, &(method, path, None, 503), &token).await;
        assert_eq!(document["type"], "lending-unavailable");
        assert!(document["retry_after"].as_u64().is_some());
    }
    scene.end().await;
}
