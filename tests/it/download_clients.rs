//! Download programs: `curl -C -` and `wget -c` resume a broken download, and aria2c uses eight
//! connections for one file. The result must equal the file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::external_program::{direct, output_text, run};
use crate::support::scene::Setting;
use crate::support::{BOOK, File, Scene, metric, program};

const SIZE: u64 = 16_000_000;
/// Bytes after which the origin breaks off each response, so that a download takes at least five.
const BREAK_AFTER: u64 = 3_500_000;
const MIN_RUNS: usize = 5;
/// More runs than any client needs.
const MAX_RUNS: usize = 20;

/// Starts scenes in which the gate does not resume, one for each reason.
async fn breaking() -> Vec<(&'static str, Scene, File)> {
    let file = || File { abort_after: Some(BREAK_AFTER), ..File::of(SIZE) };
    let switched_off = vec![("name = \"files\"", "name = \"files\"\nresumes = 0")];
    let mut all = Vec::new();
    for (name, file, config) in [
        ("without a strong validator", file().field("etag", ""), Vec::new()),
        ("without resumes", file(), switched_off),
    ] {
        let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
        put(&scene, &file);
        all.push((name, scene, file));
    }
    all
}

fn put(scene: &Scene, file: &File) {
    scene.origin.put(&format!("{BOOK}/audio.mp3"), file.clone());
}

fn ca(scene: &Scene) -> PathBuf {
    scene.dir.path().join("certs/ca.pem")
}

fn authorization(scene: &Scene) -> String {
    format!("Authorization: Bearer {}", scene.token("kari"))
}

/// Returns the file's URLs with a signed link, as a query parameter and as the first path segment.
fn links(scene: &Scene) -> [String; 2] {
    let (link, file) = (scene.link(&["--isbn", BOOK]), format!("files/{BOOK}/audio.mp3"));
    [format!("{}/{file}?token={link}", scene.base), format!("{}/~{link}/{file}", scene.base)]
}

/// Returns the size of the partial file, after checking that it is a prefix of the file.
fn partial_size(place: &Path, whole: &[u8]) -> usize {
    let content = std::fs::read(place).unwrap_or_default();
    assert!(whole.starts_with(&content), "{} other bytes", content.len());
    content.len()
}

/// Repeats a command that resumes a download until it succeeds. Each run before adds bytes.
async fn run_until_complete(
    name: &str,
    command: &mut Command,
    cut: &[i32],
    place: &Path,
    whole: &[u8],
) {
    let mut before = 0;
    for run_number in 1..=MAX_RUNS {
        let ran = run(command).await;
        let size = partial_size(place, whole);
        if ran.status.success() {
            assert_eq!(size, whole.len(), "{name}: the file is incomplete");
            assert!(run_number >= MIN_RUNS, "{name}: the download did not break off");
            // A complete file has no further range: 416, which is not a failure.
            let ran = run(command).await;
            assert!(ran.status.success(), "{name}, once more: {}", output_text(&ran));
            assert_eq!(partial_size(place, whole), whole.len(), "{name}, once more");
            return;
        }
        let code = ran.status.code().unwrap_or_default();
        assert!(cut.contains(&code), "{name}, {code}: {}", output_text(&ran));
        assert!(size > before, "{name}: the run added nothing: {}", output_text(&ran));
        before = size;
    }
    panic!("{name}: {before} bytes after {MAX_RUNS} runs");
}

/// Returns the first bytes of the ranges that the origin was requested to send.
fn range_starts(scene: &Scene) -> BTreeSet<u64> {
    let requests = scene.origin.requests();
    let ranges = requests.iter().filter_map(|request| request.headers.get("range")?.to_str().ok());
    ranges
        .map(|range| range["bytes=".len()..].split('-').next().unwrap().parse().unwrap())
        .collect()
}

#[tokio::test]
async fn curl_resumes_a_broken_download() {
    let Some(curl) = program("curl", "curl") else {
        return;
    };
    for (name, scene, file) in breaking().await {
        let whole = file.part(0..SIZE);
        for (protocol, cut) in [("--http1.1", [18, 56]), ("--http2", [18, 92])] {
            let place = scene.dir.path().join(protocol);
            let mut command = direct(&curl);
            // Without --fail: curl 7.88 would treat 416 as a failure. Another error would add wrong
            // bytes.
            command.args(["-q", "-sS", "--noproxy", "*", protocol, "--cacert"]).arg(ca(&scene));
            command.args(["-H", &authorization(&scene), "-C", "-", "-o"]).arg(&place);
            command.arg(format!("{}/files/{BOOK}/audio.mp3", scene.base));
            run_until_complete(&format!("{name}, {protocol}"), &mut command, &cut, &place, &whole)
                .await;
        }
        assert!(range_starts(&scene).len() >= MIN_RUNS - 1, "{name}: {:?}", range_starts(&scene));
        scene.end().await;
    }
}

#[tokio::test]
async fn wget_resumes_a_broken_download() {
    let Some(wget) = program("wget", "wget") else {
        return;
    };
    for (name, scene, file) in breaking().await {
        let whole = file.part(0..SIZE);
        let [by_query, by_path] = links(&scene);
        // Once with one run per break, and once within one run.
        for (url, tries) in [(by_query, "--tries=1"), (by_path, "--tries=20")] {
            let place = scene.dir.path().join(tries);
            let mut command = direct(&wget);
            command.args(["-nv", "--no-config", "--no-hsts", "--no-proxy", "--waitretry=0", tries]);
            command
                .arg("--ca-certificate")
                .arg(ca(&scene))
                .args(["-c", "-O"])
                .arg(&place)
                .arg(&url);
            if tries == "--tries=1" {
                run_until_complete(name, &mut command, &[4], &place, &whole).await;
            } else {
                let ran = run(&mut command).await;
                assert!(ran.status.success(), "{name}: {}", output_text(&ran));
                assert_eq!(partial_size(&place, &whole), whole.len(), "{name}");
            }
        }
        assert!(range_starts(&scene).len() >= MIN_RUNS - 1, "{name}: {:?}", range_starts(&scene));
        scene.end().await;
    }
}

/// Returns an aria2c command with eight connections that writes to this file.
fn eight_connections(aria2c: &Path, scene: &Scene, place: &Path) -> Command {
    let mut command = direct(aria2c);
    command.args([
        "--no-conf",
        "--quiet",
        "--console-log-level=error",
        "--all-proxy=",
        "--no-netrc",
    ]);
    command.args(["-x8", "-s8", "--min-split-size=1M", "--file-allocation=none"]);
    command.args(["--max-tries=0", "--retry-wait=0", "--max-file-not-found=1"]);
    command.arg(format!("--ca-certificate={}", ca(scene).display()));
    command.arg(format!("--dir={}", place.parent().unwrap().display()));
    command.arg(format!("--out={}", place.file_name().unwrap().to_str().unwrap()));
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aria2c_downloads_one_file_over_eight_connections() {
    let Some(aria2c) = program("aria2c", "aria2") else {
        return;
    };
    let config = vec![("name = \"files\"", "name = \"files\"\nidle = \"1s\"")];
    let scene = Scene::start_with(Setting { config, ..Setting::default() }).await;
    // Each origin response stalls until eight run at once, so none completes before all have begun.
    // Then the gate resumes each.
    let file = File::of(SIZE);
    put(&scene, &File { stall_after: Some(300_000), ..file.clone() });
    let place = scene.dir.path().join("drawn");
    let mut command = eight_connections(&aria2c, &scene, &place);
    command.args(["--header", &authorization(&scene)]);
    command.arg(format!("{}/files/{BOOK}/audio.mp3", scene.base));
    let eight = async || metric(&scene.metrics().await, "loangate_streams", "") == 8.0;
    let (ran, ()) = tokio::join!(run(&mut command), async {
        scene.until("eight streams at once", eight).await;
        put(&scene, &file);
    });
    assert!(ran.status.success(), "{}", output_text(&ran));
    assert_eq!(partial_size(&place, &file.part(0..SIZE)), SIZE as usize);
    // The first request has no range.
    assert!(range_starts(&scene).len() >= 7, "{:?}", range_starts(&scene));
    // All connections use one loan.
    assert_eq!(scene.books().await.len(), 1);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aria2c_resumes_each_broken_connection() {
    let Some(aria2c) = program("aria2c", "aria2") else {
        return;
    };
    for (name, scene, file) in breaking().await {
        let file = File { abort_after: Some(700_000), ..file };
        put(&scene, &file);
        for (number, url) in links(&scene).into_iter().enumerate() {
            let place = scene.dir.path().join(format!("drawn-{number}"));
            let ran = run(eight_connections(&aria2c, &scene, &place).arg(url)).await;
            assert!(ran.status.success(), "{name}: {}", output_text(&ran));
            assert_eq!(partial_size(&place, &file.part(0..SIZE)), SIZE as usize, "{name}");
        }
        assert!(range_starts(&scene).len() >= 8, "{name}: {:?}", range_starts(&scene));
        scene.end().await;
    }
}
