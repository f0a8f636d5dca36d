//! Chromium plays an audiobook by a signed link and seeks in it. Pages of other origins see what
//! `[cors]` allows.

use std::time::{Duration, Instant};

use http::Method;
use loangate::samples::Collection;
use serde_json::{Value, json};

use crate::support::external_program::system_file;
use crate::support::scene::Setting;
use crate::support::{AUDIO, BOOK, Chromium, File, Pages, Scene, program};

/// Plays each of `urls` in turn. When the duration is known it seeks to the middle, and reports
/// once it has played on from there.
const PLAYER_SCRIPT: &str = "
for (const url of urls) {
    const audio = new Audio();
    const until = name => new Promise((done, failed) => {
        audio.addEventListener(name, done, { once: true });
        audio.addEventListener('error', () => failed(audio.error.message), { once: true });
    });
    const known = until('loadedmetadata');
    audio.preload = 'metadata';
    audio.src = url;
    await known;
    const middle = audio.duration / 2;
    const there = until('seeked');
    audio.currentTime = middle;
    await there;
    const from = audio.currentTime;
    await audio.play();
    while (audio.currentTime < from + 0.5) await until('timeupdate');
    audio.pause();
    await report({ duration: audio.duration, from, to: audio.currentTime });
    audio.src = '';
}";

/// Begins a loan, requests a range by token and by signed link, and reports what the script can
/// read of the responses.
const FETCH_SCRIPT: &str = "
const request = async (url, headers, method = 'GET') => {
    try {
        const answer = await fetch(url, { method, headers });
        const body = Array.from(new Uint8Array(await answer.arrayBuffer()));
        return { status: answer.status, fields: Object.fromEntries(answer.headers), body };
    } catch (error) {
        return { error: error.name };
    }
};
const Range = 'bytes=100-199', Authorization = 'Bearer ' + token;
await report({
    begun: await request(loan, { Authorization }, 'PUT'),
    token: await request(file, { Range, Authorization }),
    link: await request(file + '?token=' + link, { Range }),
    refused: await request(file, { Range, Authorization: 'Bearer no.token.atall' }),
});";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audiobook_plays_by_link_and_seeks_by_range() {
    let Some(chromium) = program("chromium", "chromium") else {
        return;
    };
    let scene = Scene::start().await;
    let samples = Collection::build().unwrap();
    let audio = samples.files().iter().find(|file| file.path().ends_with("audio.mp3")).unwrap();
    let size = audio.content().len() as u64;
    scene.origin.put(&format!("{AUDIO}/audio.mp3"), File::with(audio.content()));
    let link = scene.link(&["--isbn", AUDIO]);
    let file = format!("files/{AUDIO}/audio.mp3");
    let urls =
        [format!("{}/{file}?token={link}", scene.base), format!("{}/~{link}/{file}", scene.base)];
    let mut pages = Pages::bind().await;
    pages.serve(&format!("const urls = {};{PLAYER_SCRIPT}", json!(urls)));
    let certificate = scene.dir.path().join("certs/server.pem");
    let mut browser = Chromium::open(&chromium, &pages.origin, &certificate);
    let mut seen = 0;
    for _ in urls {
        let reported = browser.reported(&mut pages).await;
        let second = |name: &str| reported[name].as_f64().unwrap_or_else(|| panic!("{reported}"));
        assert!((second("duration") - 2181.8).abs() < 2.0, "{reported}");
        assert!((second("from") - second("duration") / 2.0).abs() < 1.0, "{reported}");
        assert!(
            second("to") >= second("from") + 0.5 && second("to") < second("from") + 60.0,
            "{reported}"
        );
        let requests = scene.origin.requests();
        let ranges = requests[seen..]
            .iter()
            .filter_map(|request| request.headers.get("range")?.to_str().ok());
        let begins: Vec<u64> = ranges
            .map(|range| {
                range["bytes=".len()..].split('-').next().unwrap().parse().unwrap_or_default()
            })
            .collect();
        let middle = size * 2 / 5..size * 3 / 5;
        assert!(begins.iter().any(|begin| middle.contains(begin)), "{begins:?} of {size}");
        seen = requests.len();
    }
    assert_eq!(scene.books().await.len(), 1, "one loan");
    drop(browser);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_pages_of_listed_origins_can_read_responses() {
    let Some(chromium) = program("chromium", "chromium") else {
        return;
    };
    let (mut listed, mut stranger) = (Pages::bind().await, Pages::bind().await);
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.replace_in_config(
        "[ledger]",
        &format!("[cors]\norigins = [\"{}\"]\n\n[ledger]", listed.origin),
    );
    scene.start_gate().await;
    let file = File::of(1000).field("content-type", "application/epub+zip");
    scene.origin.put(&format!("{BOOK}/book.epub"), file.clone());
    let certificate = scene.dir.path().join("certs/server.pem");
    let script = format!(
        "const [loan, file, token, link] = {};{FETCH_SCRIPT}",
        json!([
            format!("{}/loans/{BOOK}", scene.base),
            format!("{}/files/{BOOK}/book.epub", scene.base),
            scene.token("kari"),
            scene.link(&["--isbn", BOOK])
        ])
    );

    listed.serve(&script);
    let mut browser = Chromium::open(&chromium, &listed.origin, &certificate);
    let reported = browser.reported(&mut listed).await;
    assert_eq!(reported["begun"]["status"], 201, "{reported}");
    let part: Vec<Value> = file.part(100..200).into_iter().map(Value::from).collect();
    for way in ["token", "link"] {
        let seen = &reported[way];
        assert_eq!(seen["status"], 206, "{way}: {reported}");
        assert!(seen["body"] == Value::from(part.clone()), "{way}: other bytes: {reported}");
        for (name, value) in [
            ("content-range", "bytes 100-199/1000"),
            ("etag", "\"v1\""),
            ("accept-ranges", "bytes"),
        ] {
            assert_eq!(seen["fields"][name], value, "{way}: {reported}");
        }
    }
    assert_eq!(reported["refused"]["status"], 401, "{reported}");
    assert_eq!(
        reported["refused"]["fields"]["content-type"], "application/problem+json",
        "{reported}"
    );
    drop(browser);

    let requests = scene.origin.requests().len();
    stranger.serve(&script);
    let mut browser = Chromium::open(&chromium, &stranger.origin, &certificate);
    let reported = browser.reported(&mut stranger).await;
    for way in ["begun", "token", "link", "refused"] {
        assert_eq!(reported[way], json!({ "error": "TypeError" }), "{way}: {reported}");
    }
    // With a token the browser sends a preflight and no request after it. With a link it sends the
    // request and hides the response from the page.
    let requests = &scene.origin.requests()[requests..];
    assert!(requests.len() == 1 && requests[0].method == Method::GET, "{requests:?}");
    drop(browser);
    scene.end().await;
}

/// A page of an unpacked EPUB. No script may report from it, so its layout does. Once the embedded
/// font is in use, its wide text leaves so little room that a container query loads `loaded.png`.
///
/// The row without that font never does.
const EPUB_PAGE: &str = r#"<html xmlns="http://www.w3.org/1999/xhtml">
<head><title>A page</title><style>
@font-face { font-family: embedded; src: url("font.ttf"); }
body { margin: 0; }
.row { display: flex; width: 1000px; font-size: 100px; }
.with { font-family: embedded, monospace; }
.without { font-family: monospace; }
.rest { flex: 1; min-width: 0; container-type: inline-size; }
.probe { width: 10px; height: 10px; }
@container (max-width: 300px) {
    .with .probe { background-image: url("loaded.png"); }
    .without .probe { background-image: url("control.png"); }
}
</style></head><body>
<script>new Image().src = "ran.png"; fetch("ran.json");</script>
<div
class="row without"><span>WWWWWWWW</span><div class="rest"><div class="probe"></div></div></div>
<div class="row with"><span>WWWWWWWW</span><div class="rest"><div class="probe"></div></div></div>
<img src="image.png" alt=""/>
</body></html>"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unpacked_epub_loads_fonts_and_runs_no_script() {
    let Some(chromium) = program("chromium", "chromium") else {
        return;
    };
    const FONT: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";
    let Some(font) = system_file(FONT, "fonts-dejavu-core") else {
        return;
    };
    let scene = Scene::start().await;
    scene
        .origin
        .put(&format!("{BOOK}/page.xhtml"), File::with(EPUB_PAGE).field("content-type", ""));
    scene.origin.put(
        &format!("{BOOK}/font.ttf"),
        File::with(std::fs::read(font).unwrap()).field("content-type", ""),
    );
    let link = scene.link(&["--isbn", BOOK]);
    let url = format!("{}/~{link}/files/{BOOK}/page.xhtml", scene.base);
    let certificate = scene.dir.path().join("certs/server.pem");
    let browser = Chromium::open(&chromium, &url, &certificate);
    let paths = || -> Vec<String> {
        scene.origin.requests().into_iter().map(|request| request.path).collect()
    };
    let requested =
        |name: &str| paths().iter().any(|path| path.ends_with(&format!("{BOOK}/{name}")));
    let deadline = Instant::now() + Duration::from_secs(90);
    while !requested("loaded.png") {
        assert!(Instant::now() < deadline, "the font is not in use: {:?}", paths());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(requested("font.ttf") && requested("image.png"));
    assert!(!requested("control.png"), "the row without the font loaded its image");
    assert!(!requested("ran.png") && !requested("ran.json"), "a script ran");
    drop(browser);
    scene.end().await;
}
