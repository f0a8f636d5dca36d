//! Security header fields: on every response, and stricter ones on documents that could run
//! scripts.

use http::{HeaderMap, Method};

use crate::support::scene::Setting;
use crate::support::{BOOK, File, Scene};

const HSTS: &str = "strict-transport-security";
const CSP: &str = "content-security-policy";

async fn fields(
    scene: &Scene,
    method: Method,
    path: &str,
    token: Option<&str>,
) -> (u16, HeaderMap) {
    let mut request = scene.http2().request(method.clone(), format!("{}{path}", scene.base));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if method == Method::OPTIONS {
        request = request
            .header("origin", "https://reader.example.no")
            .header("access-control-request-method", "GET");
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.headers().clone())
}

#[tokio::test]
async fn every_response_has_security_headers() {
    let cors = ("[ledger]", "[cors]\norigins = [\"https://reader.example.no\"]\n\n[ledger]");
    let scene = Scene::start_with(Setting { config: vec![cors], ..Setting::default() }).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(100));
    scene.origin.put("covers/cover.png", File::of(100));
    let token = scene.token("kari");
    let file = format!("/files/{BOOK}/book.epub");
    for (method, path, token, status) in [
        (Method::GET, &*file, Some(&*token), 200),
        (Method::HEAD, &*file, Some(&*token), 200),
        (Method::GET, &*file, None, 401),
        (Method::GET, "/nothing", None, 404),
        (Method::POST, &*file, Some(&*token), 405),
        (Method::GET, "/covers/cover.png", None, 200),
        (Method::GET, "/loans", Some(&*token), 200),
        (Method::DELETE, &*format!("/loans/{BOOK}"), Some(&*token), 204),
        (Method::OPTIONS, &*file, None, 204),
    ] {
        let (answered, fields) = fields(&scene, method.clone(), path, token).await;
        assert_eq!(answered, status, "{method} {path}");
        assert_eq!(fields["referrer-policy"], "no-referrer", "{method} {path}");
        assert_eq!(fields[HSTS], "max-age=15552000", "{method} {path}");
    }
    scene.end().await;
}

#[tokio::test]
async fn strict_transport_security_can_be_off() {
    let config = vec![("[ledger]", "[server]\nhsts = \"0s\"\n\n[ledger]")];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    let (_, fields) = fields(&scene, Method::GET, "/nothing", None).await;
    assert!(!fields.contains_key(HSTS) && fields.contains_key("referrer-policy"));
    scene.end().await;
}

#[tokio::test]
async fn gated_documents_run_no_scripts() {
    let mut scene = Scene::start_with(Setting::default()).await;
    let put = |scene: &Scene, name: &str, kind: &str| {
        scene.origin.put(&format!("{BOOK}/{name}"), File::of(100).field("content-type", kind));
        scene.origin.put(&format!("covers/{name}"), File::of(100).field("content-type", kind));
    };
    let documents = [
        ("a.xhtml", "application/xhtml+xml"),
        ("a.html", "text/html; charset=utf-8"),
        ("a.svg", "image/svg+xml"),
        ("a.xml", "application/octet-stream"), // typed by its name
        ("a.opf", "application/oebps-package+xml"),
    ];
    let media =
        [("a.epub", "application/epub+zip"), ("a.png", "image/png"), ("a.woff2", "font/woff2")];
    documents.iter().chain(&media).for_each(|(name, kind)| put(&scene, name, kind));
    let token = scene.token("kari");
    let policy = async |scene: &Scene, path: String| {
        let (status, fields) = fields(scene, Method::GET, &path, Some(&token)).await;
        assert_eq!(status, 200, "{path}");
        fields.get(CSP).map(|policy| policy.to_str().unwrap().to_owned())
    };
    for (name, _) in documents {
        let gated = policy(&scene, format!("/files/{BOOK}/{name}")).await;
        assert_eq!(gated.as_deref(), Some("sandbox allow-same-origin"), "{name}");
        assert_eq!(
            policy(&scene, format!("/covers/{name}")).await,
            None,
            "{name} of an open route"
        );
    }
    for (name, _) in media {
        assert_eq!(policy(&scene, format!("/files/{BOOK}/{name}")).await, None, "{name}");
    }

    scene.stop_gate().await;
    let route = "to = \"{isbn}/{file}\"";
    scene.replace_in_config(
        route,
        &format!("{route}\ncontent_security_policy = \"script-src 'self'\""),
    );
    scene.start_gate().await;
    let own = policy(&scene, format!("/files/{BOOK}/a.html")).await;
    assert_eq!(own.as_deref(), Some("script-src 'self'"), "the route's own");
    scene.end().await;
}
