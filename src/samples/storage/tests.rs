//! The storage over a real socket.

use jiff::Timestamp;
use reqwest::Client;
use serde_json::{Value, json};

use super::*;

const BOOK: &str = "/9788299999014/book.epub";

struct Scene {
    collection: Collection,
    storage: Running,
    client: Client,
}

impl Scene {
    async fn new() -> Scene {
        let collection = Collection::build().unwrap();
        let clock = Clock::movable(Timestamp::from_second(1_767_600_000).unwrap());
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Scene {
            storage: Storage::start(listen, &collection, clock).await.unwrap(),
            collection,
            client: Client::builder().no_proxy().build().unwrap(),
        }
    }

    async fn ask(&self, method: Method, path: &str, fields: &[(&str, &str)]) -> reqwest::Response {
        let mut request = self.client.request(method, format!("{}{path}", self.storage.url()));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn get(&self, path: &str, fields: &[(&str, &str)]) -> reqwest::Response {
        self.ask(Method::GET, path, fields).await
    }
}

fn field<'a>(answer: &'a reqwest::Response, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn every_file_comes_whole_with_its_fields() {
    let scene = Scene::new().await;
    for file in scene.collection.files() {
        let head = scene.ask(Method::HEAD, file.path(), &[("range", "bytes=0-1")]).await;
        let get = scene.get(file.path(), &[]).await;
        for answer in [&head, &get] {
            assert_eq!(answer.status(), 200);
            assert_eq!(field(answer, "content-type"), file.content_type());
            assert_eq!(field(answer, "content-length"), file.content().len().to_string());
            assert_eq!(field(answer, "etag"), format!("\"{}\"", file.sha256()));
            assert_eq!(field(answer, "last-modified"), "Mon, 05 Jan 2026 08:00:00 GMT");
            assert_eq!(field(answer, "accept-ranges"), "bytes");
        }
        assert!(head.bytes().await.unwrap().is_empty());
        assert!(get.bytes().await.unwrap() == file.content());
    }
    scene.storage.stop().await;
}

#[tokio::test]
async fn one_range_in_its_three_forms_is_a_part() {
    let scene = Scene::new().await;
    let content = scene.collection.file(BOOK).unwrap().content().clone();
    let complete = content.len();
    for (range, part) in [
        ("bytes=100-".to_owned(), 100..complete),
        ("bytes=10-19".to_owned(), 10..20),
        (format!("bytes=5-{}", complete * 2), 5..complete),
        ("bytes=-7".to_owned(), complete - 7..complete),
    ] {
        let answer = scene.get(BOOK, &[("range", &range)]).await;
        assert_eq!(answer.status(), 206, "{range}");
        let told = format!("bytes {}-{}/{complete}", part.start, part.end - 1);
        assert_eq!(field(&answer, "content-range"), told);
        assert_eq!(field(&answer, "content-length"), part.len().to_string());
        assert_eq!(answer.bytes().await.unwrap(), content.slice(part));
    }
    for range in [format!("bytes={complete}-"), "bytes=-0".to_owned()] {
        let answer = scene.get(BOOK, &[("range", &range)]).await;
        assert_eq!(answer.status(), 416, "{range}");
        assert_eq!(field(&answer, "content-range"), format!("bytes */{complete}"));
    }
    let several = scene.get(BOOK, &[("range", "bytes=0-1,4-5")]).await;
    assert_eq!(several.status(), 200);
}

#[tokio::test]
async fn conditions_on_the_validator_are_honoured() {
    let scene = Scene::new().await;
    let etag = scene.collection.file(BOOK).unwrap().etag();
    let weak = format!("W/{etag}");
    let date = "Mon, 05 Jan 2026 08:00:00 GMT";
    for (name, value, status) in [
        ("if-range", etag.as_str(), 206),
        ("if-range", date, 206),
        ("if-range", "\"other\"", 200),
        ("if-range", &weak, 200),
        ("if-match", &etag, 206),
        ("if-match", "*", 206),
        ("if-match", "\"other\"", 412),
        ("if-match", &weak, 412),
        ("if-match", "nonsense", 412),
    ] {
        let answer = scene.get(BOOK, &[("range", "bytes=0-1"), (name, value)]).await;
        assert_eq!(answer.status(), status, "{name}: {value}");
    }
}

#[tokio::test]
async fn the_log_has_every_request_for_a_file_and_none_for_itself() {
    let scene = Scene::new().await;
    assert_eq!(scene.get(BOOK, &[("range", "bytes=0-9")]).await.status(), 206);
    assert_eq!(scene.get("/nothing", &[]).await.status(), 404);
    let refused = scene.ask(Method::POST, BOOK, &[]).await;
    assert_eq!(refused.status(), 405);
    assert_eq!(field(&refused, "allow"), "GET, HEAD");
    assert_eq!(scene.ask(Method::POST, "/_requests", &[]).await.status(), 405);
    for _ in 0..2 {
        let answer = scene.get("/_requests", &[]).await;
        assert_eq!(field(&answer, "content-type"), "application/json");
        let log: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        let at = "2026-01-05T08:00:00Z";
        let expected = json!([
            {"at": at, "method": "GET", "path": BOOK, "range": "bytes=0-9"},
            {"at": at, "method": "GET", "path": "/nothing", "range": null},
            {"at": at, "method": "POST", "path": BOOK, "range": null},
        ]);
        assert_eq!(log, expected);
    }
}

#[tokio::test]
async fn a_stopped_storage_serves_no_more() {
    let scene = Scene::new().await;
    let url = format!("{}{BOOK}", scene.storage.url());
    assert!(scene.client.get(&url).send().await.is_ok());
    scene.storage.stop().await;
    assert!(scene.client.get(&url).send().await.is_err());
}
