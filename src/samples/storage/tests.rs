//! The storage over a real socket.

use jiff::Timestamp;
use reqwest::Client;
use serde_json::{Value, json};

use super::*;

const BOOK: &str = "/9788299999014/book.epub";

struct Fixture {
    collection: Collection,
    storage: Running,
    client: Client,
}

impl Fixture {
    async fn new() -> Fixture {
        let collection = Collection::build().unwrap();
        let clock = Clock::movable(Timestamp::from_second(1_767_600_000).unwrap());
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Fixture {
            storage: Storage::start(listen, &collection, clock).await.unwrap(),
            collection,
            client: Client::builder().no_proxy().build().unwrap(),
        }
    }

    async fn send(&self, method: Method, path: &str, fields: &[(&str, &str)]) -> reqwest::Response {
        let mut request = self.client.request(method, format!("{}{path}", self.storage.url()));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn get(&self, path: &str, fields: &[(&str, &str)]) -> reqwest::Response {
        self.send(Method::GET, path, fields).await
    }
}

fn field<'a>(response: &'a reqwest::Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn files_arrive_complete_with_their_headers() {
    let fixture = Fixture::new().await;
    for file in fixture.collection.files() {
        let head = fixture.send(Method::HEAD, file.path(), &[("range", "bytes=0-1")]).await;
        let get = fixture.get(file.path(), &[]).await;
        for response in [&head, &get] {
            assert_eq!(response.status(), 200);
            assert_eq!(field(response, "content-type"), file.content_type());
            assert_eq!(field(response, "content-length"), file.content().len().to_string());
            assert_eq!(field(response, "etag"), format!("\"{}\"", file.sha256()));
            assert_eq!(field(response, "last-modified"), "Mon, 05 Jan 2026 08:00:00 GMT");
            assert_eq!(field(response, "accept-ranges"), "bytes");
        }
        assert!(head.bytes().await.unwrap().is_empty());
        if !file.content.is_paced() {
            assert!(get.bytes().await.unwrap() == file.content());
        }
    }
    fixture.storage.stop().await;
}

#[tokio::test]
async fn single_ranges_of_all_forms_return_206() {
    let fixture = Fixture::new().await;
    let content = fixture.collection.file(BOOK).unwrap().content();
    let complete = content.len();
    for (range, part) in [
        ("bytes=100-".to_owned(), 100..complete),
        ("bytes=10-19".to_owned(), 10..20),
        (format!("bytes=5-{}", complete * 2), 5..complete),
        ("bytes=-7".to_owned(), complete - 7..complete),
    ] {
        let response = fixture.get(BOOK, &[("range", &range)]).await;
        assert_eq!(response.status(), 206, "{range}");
        let content_range = format!("bytes {}-{}/{complete}", part.start, part.end - 1);
        assert_eq!(field(&response, "content-range"), content_range);
        assert_eq!(field(&response, "content-length"), part.len().to_string());
        assert_eq!(response.bytes().await.unwrap(), content.slice(part));
    }
    for range in [format!("bytes={complete}-"), "bytes=-0".to_owned()] {
        let response = fixture.get(BOOK, &[("range", &range)]).await;
        assert_eq!(response.status(), 416, "{range}");
        assert_eq!(field(&response, "content-range"), format!("bytes */{complete}"));
    }
    let several = fixture.get(BOOK, &[("range", "bytes=0-1,4-5")]).await;
    assert_eq!(several.status(), 200);
}

#[tokio::test]
async fn validator_conditions_are_honoured() {
    let fixture = Fixture::new().await;
    let etag = fixture.collection.file(BOOK).unwrap().etag();
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
        let response = fixture.get(BOOK, &[("range", "bytes=0-1"), (name, value)]).await;
        assert_eq!(response.status(), status, "{name}: {value}");
    }
}

#[tokio::test]
async fn log_has_every_request_except_its_own() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.get(BOOK, &[("range", "bytes=0-9")]).await.status(), 206);
    assert_eq!(fixture.get("/nothing", &[]).await.status(), 404);
    let refused = fixture.send(Method::POST, BOOK, &[]).await;
    assert_eq!(refused.status(), 405);
    assert_eq!(field(&refused, "allow"), "GET, HEAD");
    assert_eq!(fixture.send(Method::POST, "/_requests", &[]).await.status(), 405);
    for _ in 0..2 {
        let response = fixture.get("/_requests", &[]).await;
        assert_eq!(field(&response, "content-type"), "application/json");
        let log: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
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
async fn stopped_storage_refuses_connections() {
    let fixture = Fixture::new().await;
    let url = format!("{}{BOOK}", fixture.storage.url());
    assert!(fixture.client.get(&url).send().await.is_ok());
    fixture.storage.stop().await;
    assert!(fixture.client.get(&url).send().await.is_err());
}
