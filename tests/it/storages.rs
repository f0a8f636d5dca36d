//! Storages other than HTTP, and several addresses for one origin.

use std::time::Duration;

use http::StatusCode;
use tokio_util::sync::CancellationToken;

use crate::support::raw_client::refusing;
use crate::support::scene::Setting;
use crate::support::storage::{KEY_ID, Kind, SECRET, Storage, breaking};
use crate::support::{BOOK, File, Origin, Process, Scene};

const PATH: &str = "/files/9788299999014/audio.mp3";

fn at_origin() -> String {
    format!("{BOOK}/audio.mp3")
}

async fn get(scene: &Scene, range: Option<&str>) -> reqwest::Response {
    let mut request = scene.get(&scene.http2(), PATH, &scene.token("kari"));
    if let Some(range) = range {
        request = request.header("range", range);
    }
    request.send().await.unwrap()
}

#[tokio::test]
async fn files_and_ranges_are_served_from_every_storage() {
    for kind in Kind::ALL {
        let (scene, storage) = Storage::scene(kind).await;
        let file = File::of(300_000);
        storage.put(&scene, &at_origin(), &file);
        storage.put(&scene, &format!("{BOOK}/tom.epub"), &File::of(0));
        storage.put(&scene, &format!("{BOOK}/Å være #1 + 50%.mp3"), &File::of(10));
        let whole = get(&scene, None).await;
        assert_eq!(whole.status(), StatusCode::OK, "{kind:?}");
        assert!(
            whole.headers()["etag"].to_str().unwrap().starts_with('"'),
            "{kind:?}: the tag must be strong"
        );
        assert!(whole.headers().contains_key("last-modified"), "{kind:?}");
        assert_eq!(whole.headers()["content-length"], "300000");
        assert_eq!(
            whole.headers()["content-type"],
            "audio/mpeg",
            "{kind:?}: derived from the name if needed"
        );
        assert_eq!(whole.bytes().await.unwrap(), file.part(0..300_000), "{kind:?}");
        for (range, first, last) in [
            ("bytes=0-0", 0, 0),
            ("bytes=1000-99999", 1000, 99_999),
            ("bytes=299000-", 299_000, 299_999),
            ("bytes=-10", 299_990, 299_999),
            ("bytes=-400000", 0, 299_999),
            ("bytes=5-18446744073709551615", 5, 299_999),
        ] {
            let part = get(&scene, Some(range)).await;
            assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT, "{kind:?} {range}");
            assert_eq!(
                part.headers()["content-range"],
                format!("bytes {first}-{last}/300000"),
                "{kind:?}"
            );
            assert_eq!(part.bytes().await.unwrap(), file.part(first..last + 1), "{kind:?} {range}");
        }
        for range in ["bytes=300000-", "bytes=-0", "bytes=18446744073709551615-"] {
            let outside = get(&scene, Some(range)).await;
            assert_eq!(outside.status(), StatusCode::RANGE_NOT_SATISFIABLE, "{kind:?} {range}");
            assert_eq!(outside.headers()["content-range"], "bytes */300000", "{kind:?} {range}");
        }
        for (name, status, length) in [
            ("tom.epub", StatusCode::OK, 0),
            ("%C3%85%20v%C3%A6re%20%231%20%2B%2050%25.mp3", StatusCode::OK, 10),
            ("nothing.mp3", StatusCode::NOT_FOUND, 0),
            ("audio.mp3/below", StatusCode::NOT_FOUND, 0),
        ] {
            let path = format!("/files/{BOOK}/{name}");
            let answer =
                scene.get(&scene.http1(), &path, &scene.token("kari")).send().await.unwrap();
            assert_eq!(answer.status(), status, "{kind:?} {name}");
            if status == StatusCode::OK {
                assert_eq!(answer.bytes().await.unwrap().len(), length, "{kind:?} {name}");
            }
        }
        scene.end().await;
    }
}

#[tokio::test]
async fn downloads_resume_from_a_storage_that_keeps_breaking() {
    let (mut scene, storage) = Storage::without_gate(Kind::S3, Setting::default()).await;
    let stop = CancellationToken::new();
    let through = breaking(storage.address.clone(), 400_000, stop.clone()).await;
    scene.replace_in_config(&storage.address, &through);
    // What an aborted connection has not been read of yet is lost, and that may be all of it.
    scene.replace_in_config("name = \"files\"", "name = \"files\"\nresumes = 50");
    scene.start_gate().await;
    let file = File::of(3_000_000);
    storage.put(&scene, &at_origin(), &file);
    for _ in 0..5 {
        let whole = get(&scene, None).await;
        assert_eq!(whole.status(), StatusCode::OK);
        assert!(whole.bytes().await.unwrap() == file.part(0..3_000_000));
    }
    stop.cancel();
    scene.end().await;
}

#[tokio::test]
async fn wrong_storage_credential_fails_clearly_and_is_not_shown() {
    let scene = Scene::without_gate(Setting::default()).await;
    let storage = Storage::start(Kind::S3, &scene).await;
    storage.configure(&scene, &storage.lines(&storage.address, "another-secret-altogether"));
    storage.put(&scene, &at_origin(), &File::of(1000));
    let mut process = Process::serve(&scene.config_file()).await;
    let base = process.ready_field("base_url");
    let client = scene.http2();
    let answer =
        client.get(format!("{base}{PATH}")).bearer_auth(scene.token("kari")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    let problem: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(problem["type"], "origin-failed");
    process.terminate();
    process.exit().await;
    let log = std::fs::read_to_string(&process.log).unwrap();
    assert!(log.contains("the credentials are unknown"), "{log}");
    let shown = format!("{problem}{log}");
    for secret in ["another-secret-altogether", SECRET, KEY_ID, "Signature", "AWS4"] {
        assert!(!shown.contains(secret), "{secret} is shown: {shown}");
    }
}

#[tokio::test]
async fn writing_to_a_file_in_place_breaks_its_download() {
    let (scene, storage) = Storage::scene(Kind::Directory).await;
    let file = File::of(20_000_000);
    storage.put(&scene, &at_origin(), &file);
    for in_place in [true, false] {
        let mut answer = get(&scene, None).await;
        let mut got = answer.chunk().await.unwrap().unwrap().to_vec();
        let place = storage.place(&at_origin());
        if in_place {
            std::fs::write(&place, vec![b'x'; 20_000_000]).unwrap();
        } else {
            storage.put(&scene, &at_origin(), &File::of(5));
        }
        let end = loop {
            match answer.chunk().await {
                Ok(Some(bytes)) => got.extend_from_slice(&bytes),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // A download of a replaced file gets all of the old one.
        assert_eq!(end.is_ok(), !in_place, "{end:?}");
        assert!(got == file.part(0..got.len() as u64), "bytes of both files");
        storage.put(&scene, &at_origin(), &file);
    }
    scene.end().await;
}

#[tokio::test]
async fn first_address_that_answers_is_used() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    let second = Origin::start().await;
    // The first address does not listen yet. The second lacks a file that the third, a directory,
    // has.
    let (_reserved, first) = refusing();
    let directory = Storage::start(Kind::Directory, &scene).await;
    let place = directory.place("");
    scene.replace_in_config(
        &format!("url = \"{}/\"", scene.origin.url),
        &format!(
            "urls = [\"http://{first}/\", \"{}/\", \"file://{}\"]",
            second.url,
            place.display()
        ),
    );
    scene.start_gate().await;
    let file = File::of(200_000);
    second.put(&at_origin(), file.clone());
    assert_eq!(get(&scene, None).await.bytes().await.unwrap(), file.part(0..200_000));
    // A failure of an address leads to the next one, also during a body; a missing file does not.
    second.put(&at_origin(), File { status: Some(StatusCode::BAD_GATEWAY), ..file.clone() });
    directory.put(&scene, &at_origin(), &file);
    let answer = get(&scene, None).await;
    assert_eq!(answer.status(), StatusCode::OK, "the third address has the file");
    assert_eq!(answer.bytes().await.unwrap(), file.part(0..200_000));
    let none = format!("/files/{BOOK}/none.mp3");
    let answer = scene.get(&scene.http1(), &none, &scene.token("kari")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert!(second.requests().len() < 20, "{}", second.requests().len());
    scene.end().await;
}

#[tokio::test]
async fn stream_resumes_from_the_next_address() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    let second = Origin::start().await;
    scene.replace_in_config(
        &format!("url = \"{}/\"", scene.origin.url),
        &format!("urls = [\"{}/\", \"{}/\"]\nidle = \"200ms\"", scene.origin.url, second.url),
    );
    scene.start_gate().await;
    let file = File::of(2_000_000);
    second.put(&at_origin(), file.clone());
    for broken in [
        File { abort_after: Some(700_000), ..file.clone() },
        File { stall_after: Some(700_000), ..file.clone() },
    ] {
        scene.origin.put(&at_origin(), broken);
        let mut answer = get(&scene, None).await;
        let first = answer.chunk().await.unwrap().unwrap();
        // From now on the first address returns only errors.
        scene.origin.put(
            &at_origin(),
            File { status: Some(StatusCode::SERVICE_UNAVAILABLE), ..file.clone() },
        );
        let mut got = first.to_vec();
        while let Some(bytes) =
            tokio::time::timeout(Duration::from_secs(20), answer.chunk()).await.unwrap().unwrap()
        {
            got.extend_from_slice(&bytes);
        }
        assert!(got == file.part(0..2_000_000));
    }
    scene.end().await;
}

#[tokio::test]
async fn check_finds_a_missing_directory_and_an_invalid_key() {
    let scene = Scene::without_gate(Setting::default()).await;
    scene.make_config_private();
    let url = format!("url = \"{}/\"", scene.origin.url);
    for (lines, sentence) in [
        ("url = \"file:///nowhere/books\"", "/nowhere/books is no directory that can be read"),
        (
            "url = \"gs://books\"\ngoogle = { service_account = \"not-json-at-all\" }",
            "origin files cannot be used",
        ),
        (
            "url = \"az://books\"\nazure = { account = \"a\", access_key = \"not base64!\" }",
            "origin files cannot be used",
        ),
    ] {
        scene.replace_in_config(&url, lines);
        let checked = loangate::config::check(&scene.config_file(), false).await;
        scene.replace_in_config(lines, &url);
        let [mistake] = checked.mistakes.as_slice() else { panic!("{:?}", checked.mistakes) };
        assert_eq!(mistake.key, "origins[0].url");
        assert!(mistake.sentence.contains(sentence), "{mistake:?}");
        assert!(!mistake.sentence.contains("not-json-at-all"), "{mistake:?}");
    }
}

#[tokio::test]
async fn file_metadata_is_requested_once_for_many_responses() {
    let scene = Scene::start().await;
    scene.origin.put(&at_origin(), File::of(1000));
    assert_eq!(
        get(&scene, Some("bytes=2000-")).await.status(),
        StatusCode::FORBIDDEN,
        "a HEAD begins no loan"
    );
    assert_eq!(get(&scene, None).await.status(), StatusCode::OK);
    let client = scene.http2();
    let conditional = |field: &'static str, value: &'static str| {
        scene.get(&client, PATH, &scene.token("kari")).header(field, value)
    };
    let head = || client.head(format!("{}{PATH}", scene.base)).bearer_auth(scene.token("kari"));
    for _ in 0..3 {
        assert_eq!(head().send().await.unwrap().status(), StatusCode::OK);
        for (field, value, status) in [
            ("range", "bytes=1000-", StatusCode::RANGE_NOT_SATISFIABLE),
            ("range", "bytes=5000-6000,7000-", StatusCode::RANGE_NOT_SATISFIABLE),
            ("if-none-match", "\"v1\"", StatusCode::NOT_MODIFIED),
            ("if-match", "\"v0\"", StatusCode::PRECONDITION_FAILED),
        ] {
            assert_eq!(
                conditional(field, value).send().await.unwrap().status(),
                status,
                "{field}: {value}"
            );
        }
    }
    let methods: Vec<_> =
        scene.origin.requests().into_iter().map(|request| request.method).collect();
    assert_eq!(methods, [http::Method::GET, http::Method::HEAD]);
    scene.end().await;
}

/// Checks the requests to Google and Azure, and their signatures, literally: no test server exists.
#[tokio::test]
async fn google_and_azure_get_requests_of_their_own_form() {
    let key = "c2VjcmV0LW9mLWF6dXJl"; // base64
    let google = "google = { service_account = { file = \"google.json\" }, endpoint = \"ORIGIN\" }";
    let azure =
        format!("azure = {{ account = \"lyd\", access_key = \"{key}\", endpoint = \"ORIGIN\" }}");
    for (url, lines, signed) in
        [("gs://books/all", google, "Bearer"), ("az://books/all", azure.as_str(), "SharedKey lyd:")]
    {
        let mut scene = Scene::without_gate(Setting::default()).await;
        // A service account for a storage without login: all of the request except the token.
        let account = serde_json::json!({
            "gcs_base_url": scene.origin.url, "disable_oauth": true,
            "client_email": "gate@example.no", "private_key": "none", "private_key_id": "none",
        });
        std::fs::write(scene.dir.path().join("google.json"), account.to_string()).unwrap();
        let lines = format!("url = \"{url}\"\n{}", lines.replace("ORIGIN", &scene.origin.url));
        scene.replace_in_config(&format!("url = \"{}/\"", scene.origin.url), &lines);
        scene.start_gate().await;
        let file = File::of(100_000);
        // Google's URL has the name in one segment, fully percent-encoded.
        for name in [format!("all/{}", at_origin()), format!("all%2F{BOOK}%2Faudio%2Emp3")] {
            scene.origin.put(&format!("books/{name}"), file.clone());
        }
        for (range, first, last) in
            [("bytes=0-", 0, 99_999), ("bytes=500-999", 500, 999), ("bytes=-10", 99_990, 99_999)]
        {
            let part = get(&scene, Some(range)).await;
            assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT, "{url} {range}");
            assert_eq!(
                part.headers()["content-range"],
                format!("bytes {first}-{last}/100000"),
                "{url}"
            );
            assert_eq!(part.bytes().await.unwrap(), file.part(first..last + 1), "{url} {range}");
        }
        let none = format!("/files/{BOOK}/none.mp3");
        let answer = scene.get(&scene.http1(), &none, &scene.token("kari")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{url}");
        for request in scene.origin.requests() {
            let name = request.path.replace("%2F", "/");
            assert!(name.starts_with(&format!("/books/all/{BOOK}/")), "{url}: {name}");
            let by = request.headers.get("authorization").map_or("", |by| by.to_str().unwrap());
            assert!(by.starts_with(signed) || (signed == "Bearer" && by.is_empty()), "{url}: {by}");
        }
        scene.end().await;
    }
}
