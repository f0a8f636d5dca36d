//! Signed links: they end with their loan and open no other title or path. In the grace after its
//! expiry a link only resumes a download that has begun.

use std::time::Duration;

use http::StatusCode;
use loangate::clock::Clock;
use loangate::reader::Scope;
use serde_json::Value;

use crate::support::scene::{Setting, movable_clock};
use crate::support::{AUDIO, BOOK, File, LIBRARY, Scene, raw_client};

const SIZE: u64 = 100_000;
const HOUR: Duration = Duration::from_secs(3600);
const GRACE: Duration = Duration::from_secs(600);
const DAY: &str = "Mon, 05 Jan 2026 08:00:00 GMT";

/// Header fields of a request, and whether the grace applies.
type Case = (&'static [(&'static str, &'static str)], bool);

const CASES: &[Case] = &[
    (&[("range", "bytes=10000-"), ("if-range", "\"v1\"")], true),
    (&[("range", "bytes=10000-19999"), ("if-range", "\"v1\"")], true),
    (&[("range", "bytes=10000-19999"), ("if-match", "\"v1\"")], true),
    (&[("range", "bytes=10000-"), ("if-match", "\"v0\", \"v1\"")], true),
    (&[("range", "bytes=10000-"), ("if-match", "\"v1\""), ("if-range", "\"v1\"")], true),
    (&[("range", "bytes=-500"), ("if-range", "\"v1\"")], true),
    // From the start, or without a range.
    (&[], false),
    (&[("if-range", "\"v1\"")], false),
    (&[("if-match", "\"v1\"")], false),
    (&[("range", "bytes=0-"), ("if-range", "\"v1\"")], false),
    (&[("range", "bytes=0-1"), ("if-match", "\"v1\"")], false),
    (&[("range", "bytes=00-"), ("if-range", "\"v1\"")], false),
    (&[("range", "bytes=-100000"), ("if-range", "\"v1\"")], false),
    (&[("range", "bytes=-999999"), ("if-match", "\"v1\"")], false),
    // Several ranges, or an unreadable one: the file might be sent whole.
    (&[("range", "bytes=10000-19999,0-9"), ("if-range", "\"v1\"")], false),
    (&[("range", "bytes=10000-19999,30000-39999"), ("if-match", "\"v1\"")], false),
    (&[("range", "bytes=x"), ("if-range", "\"v1\"")], false),
    (&[("range", "chapters=1-2"), ("if-range", "\"v1\"")], false),
    (&[("range", "bytes=5-1"), ("if-range", "\"v1\"")], false),
    // No validator, a weak one, a date, or the tag of another file.
    (&[("range", "bytes=10000-")], false),
    (&[("range", "bytes=10000-"), ("if-match", "*")], false),
    (&[("range", "bytes=10000-"), ("if-range", DAY)], false),
    (&[("range", "bytes=10000-"), ("if-unmodified-since", DAY)], false),
    (&[("range", "bytes=10000-"), ("if-range", "W/\"v1\"")], false),
    (&[("range", "bytes=10000-"), ("if-match", "W/\"v1\"")], false),
    (&[("range", "bytes=10000-"), ("if-range", "\"v2\"")], false),
    (&[("range", "bytes=10000-"), ("if-match", "\"v2\"")], false),
    (&[("range", "bytes=10000-"), ("if-match", "\"v2\""), ("if-range", "\"v1\"")], false),
    (&[("range", "bytes=10000-"), ("if-match", "\"v1\""), ("if-range", "\"v2\"")], false),
    (&[("range", "bytes=10000-"), ("if-range", "\"v1\""), ("if-none-match", "\"v1\"")], false),
];

struct Stage {
    scene: Scene,
    clock: Clock,
    path: String,
}

async fn stage(config: Vec<(&'static str, &'static str)>) -> Stage {
    let clock = movable_clock();
    let scene =
        Scene::start_with(Setting { config, clock: clock.clone(), ..Setting::default() }).await;
    for isbn in [BOOK, AUDIO] {
        scene.origin.put(&format!("{isbn}/file"), File::of(SIZE));
    }
    Stage { scene, clock, path: format!("/files/{BOOK}/file") }
}

impl Stage {
    /// Returns kari's link, valid for an hour from now.
    fn link(&self, scope: &Scope) -> String {
        let readers = &self.scene.gate.as_ref().unwrap().readers;
        let library = LIBRARY.parse().unwrap();
        let borrower = readers.pseudonym(library, "kari");
        readers.mint_link(library, borrower, scope, HOUR).unwrap().0
    }

    fn title(&self) -> String {
        self.link(&Scope::Title(BOOK.parse().unwrap()))
    }

    /// Requests a path with this link in both forms. Returns status, problem type and body.
    async fn fetch(
        &self,
        link: &str,
        path: &str,
        fields: &[(&str, &str)],
    ) -> (StatusCode, Value, Vec<u8>) {
        let mut answers = Vec::new();
        for url in [
            format!("{}/~{link}{path}", self.scene.base),
            format!("{}{path}?token={link}", self.scene.base),
        ] {
            let mut request = self.scene.http2().get(url);
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let answer = request.send().await.unwrap();
            let status = answer.status();
            let mut body = answer.bytes().await.unwrap().to_vec();
            let mut document: Value = serde_json::from_slice(&body).unwrap_or_default();
            // Each request has an id of its own.
            if let Some(members) = document.as_object_mut()
                && members.remove("instance").is_some()
            {
                body = serde_json::to_vec(&document).unwrap();
            }
            answers.push((status, document["type"].clone(), body));
        }
        assert_eq!(answers[0], answers[1]);
        answers.remove(0)
    }

    async fn begin(&self, link: &str) {
        assert_eq!(self.fetch(link, &self.path, &[]).await.0, StatusCode::OK);
        assert_eq!(self.scene.books().await.len(), 1);
    }
}

const REST: &[(&str, &str)] = &[("range", "bytes=10000-"), ("if-range", "\"v1\"")];

#[tokio::test]
async fn expired_link_in_its_grace_only_resumes_its_download() {
    let stage = stage(Vec::new()).await;
    let link = stage.title();
    stage.begin(&link).await;
    let content = File::of(SIZE).part(0..SIZE);
    stage.clock.advance(HOUR);
    for (fields, passes) in CASES {
        let (status, problem, body) = stage.fetch(&link, &stage.path, fields).await;
        if *passes {
            assert_eq!(status, StatusCode::PARTIAL_CONTENT, "{fields:?}");
            assert!(
                body.len() < content.len()
                    && content[1..].windows(body.len()).any(|part| part == body)
            );
        } else {
            assert_eq!(
                (status, problem),
                (StatusCode::UNAUTHORIZED, "reader-unauthenticated".into()),
                "{fields:?}"
            );
        }
    }
    // HEAD gets the same refusal as GET.
    let head = stage.scene.http2().head(format!("{}/~{link}{}", stage.scene.base, stage.path));
    let head =
        head.header("range", "bytes=10000-").header("if-range", "\"v1\"").send().await.unwrap();
    assert_eq!(head.status(), StatusCode::UNAUTHORIZED);
    // A finished download gets 416, which means that the file is complete.
    let end = &[("range", "bytes=100000-"), ("if-range", "\"v1\"")];
    assert_eq!(stage.fetch(&link, &stage.path, end).await.0, StatusCode::RANGE_NOT_SATISFIABLE);

    stage.clock.advance(GRACE - Duration::from_secs(1));
    assert_eq!(stage.fetch(&link, &stage.path, REST).await.0, StatusCode::PARTIAL_CONTENT);
    stage.clock.advance(Duration::from_secs(1));
    assert_eq!(
        stage.fetch(&link, &stage.path, REST).await.0,
        StatusCode::UNAUTHORIZED,
        "the grace is over"
    );
    assert_eq!(stage.scene.books().await.len(), 1);
    stage.scene.end().await;
}

#[tokio::test]
async fn expired_link_in_its_grace_never_gets_a_whole_file() {
    let stage = stage(Vec::new()).await;
    let link = stage.title();
    stage.begin(&link).await;
    stage.clock.advance(HOUR);
    assert_eq!(stage.fetch(&link, &stage.path, REST).await.0, StatusCode::PARTIAL_CONTENT);
    let file = format!("{BOOK}/file");
    // From a storage without ranges, the gate extracts the rest if the length is known. Otherwise
    // it sends nothing.
    stage.scene.origin.put(&file, File { ranges: false, ..File::of(SIZE) });
    let (status, _, body) = stage.fetch(&link, &stage.path, REST).await;
    assert_eq!((status, body), (StatusCode::PARTIAL_CONTENT, File::of(SIZE).part(10_000..SIZE)));
    stage.scene.origin.put(&file, File { ranges: false, has_length: false, ..File::of(SIZE) });
    assert_eq!(stage.fetch(&link, &stage.path, REST).await.0, StatusCode::UNAUTHORIZED);
    // The cached metadata still has the tag v1: the file has changed since.
    for changed in [File::of(SIZE).field("etag", "\"v2\""), File::of(SIZE).field("etag", "")] {
        for file_now in [File { ranges: false, ..changed.clone() }, changed] {
            stage.scene.origin.put(&file, file_now);
            for validator in ["if-range", "if-match"] {
                let fields = [("range", "bytes=10000-"), (validator, "\"v1\"")];
                let (status, _, body) = stage.fetch(&link, &stage.path, &fields).await;
                assert_eq!(status, StatusCode::UNAUTHORIZED);
                assert!(body.len() < 1000);
            }
        }
    }
    stage.scene.end().await;
}

#[tokio::test]
async fn grace_needs_a_live_loan_and_begins_none() {
    let stage = stage(Vec::new()).await;
    let (link, never) = (stage.title(), stage.link(&Scope::Title(AUDIO.parse().unwrap())));
    stage.begin(&link).await;
    stage.clock.advance(HOUR);
    assert_eq!(stage.fetch(&link, &stage.path, REST).await.0, StatusCode::PARTIAL_CONTENT);
    let (status, problem, _) = stage.fetch(&never, &format!("/files/{AUDIO}/file"), REST).await;
    assert_eq!((status, problem), (StatusCode::UNAUTHORIZED, "reader-unauthenticated".into()));
    let token = stage.scene.token("kari");
    let (status, _) = stage.scene.call_api("DELETE", &format!("/loans/{BOOK}"), &token, "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, problem, _) = stage.fetch(&link, &stage.path, REST).await;
    assert_eq!((status, problem), (StatusCode::FORBIDDEN, "loan-ended".into()));
    assert_eq!(stage.scene.books().await.len(), 1);
    stage.scene.end().await;
}

#[tokio::test]
async fn grace_can_be_disabled() {
    let grace = ("[readers.links]", "[readers.links]\nresume_grace = \"0s\"");
    let stage = stage(vec![grace]).await;
    let link = stage.title();
    stage.begin(&link).await;
    stage.clock.advance(HOUR - Duration::from_secs(1));
    assert_eq!(stage.fetch(&link, &stage.path, REST).await.0, StatusCode::PARTIAL_CONTENT);
    stage.clock.advance(Duration::from_secs(1));
    assert_eq!(stage.fetch(&link, &stage.path, REST).await.0, StatusCode::UNAUTHORIZED);
    stage.scene.end().await;
}

#[tokio::test]
async fn link_and_its_stream_end_with_the_loan() {
    let stage = stage(Vec::new()).await;
    let link = stage.title();
    stage.begin(&link).await;
    let stalls = File { stall_after: Some(1000), ..File::of(SIZE) };
    stage.scene.origin.put(&format!("{BOOK}/file"), stalls);
    let url = format!("{}/~{link}{}", stage.scene.base, stage.path);
    let stream = stage.scene.http1().get(url).send().await.unwrap();
    assert_eq!(stream.status(), StatusCode::OK);
    let token = stage.scene.token("kari");
    stage.scene.call_api("DELETE", &format!("/loans/{BOOK}"), &token, "").await;
    assert!(stream.bytes().await.is_err(), "the stream is aborted");
    for fields in [&[][..], REST] {
        let (status, problem, _) = stage.fetch(&link, &stage.path, fields).await;
        assert_eq!((status, problem), (StatusCode::FORBIDDEN, "loan-ended".into()));
    }
    assert_eq!(stage.scene.books().await.len(), 1);
    stage.scene.end().await;
}

#[tokio::test]
async fn link_opens_no_other_title_or_path_by_any_trick() {
    let stage = stage(Vec::new()).await;
    let scene = &stage.scene;
    let token = scene.token("kari");
    // The reader has a loan of the other title, so only the link refuses it.
    assert_eq!(
        scene.call_api("PUT", &format!("/loans/{AUDIO}"), &token, "").await.0,
        StatusCode::CREATED
    );
    let links = [
        stage.title(),
        stage.link(&Scope::prefix(&format!("/files/{BOOK}/")).unwrap()),
        stage.link(&Scope::prefix(&format!("/files/{}", &AUDIO[..12])).unwrap()),
    ];
    let before = scene.origin.requests().len();
    let (address, ca) = (scene.address(), scene.dir.path().join("certs/ca.pem"));
    for late in [false, true] {
        if late {
            stage.clock.advance(HOUR);
        }
        for link in &links {
            for (path, refused) in [
                (format!("/files/{AUDIO}/file"), 403),
                (format!("/files/{AUDIO}/file?isbn={BOOK}"), 403),
                (format!("/files/%39{}/file", &AUDIO[1..]), 403),
                (format!("/files/{BOOK}/../{AUDIO}/file"), 400),
                (format!("/files/{BOOK}/%2e%2e/{AUDIO}/file"), 400),
                (format!("/files/{BOOK}/..%2f{AUDIO}/file"), 400),
                (format!("/files/{BOOK}%2f..%2f{AUDIO}/file"), 400),
                (format!("/files/{BOOK};/../{AUDIO}/file"), 400),
                (format!("/files//{AUDIO}/file"), 400),
                (format!("/files/~{link}/{AUDIO}/file"), 404),
            ] {
                let (path, query) = path.split_once('?').unwrap_or((&path, "a=b"));
                for target in
                    [format!("/~{link}{path}?{query}"), format!("{path}?token={link}&{query}")]
                {
                    let head = format!(
                        "GET {target} HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\n\
                         If-Range: \"v1\"\r\n\
                         Range: bytes=10000-\r\n\r\n",
                        address.port()
                    );
                    let (status, _) =
                        raw_client::exchange(address, &ca, "localhost", head.as_bytes()).await;
                    assert_eq!(status, refused, "{target}");
                }
            }
        }
    }
    assert_eq!(scene.origin.requests().len(), before, "a request reached the storage");
    assert_eq!(scene.books().await.len(), 1);
    stage.scene.end().await;
}
