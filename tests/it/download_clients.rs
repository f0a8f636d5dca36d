//! Download programs as people have them: a download that breaks is gone on with by `curl -C -` and
//! `wget -c`, and aria2c draws one file over eight connections. What comes is the file, to the
//! byte.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::external_program::{direct, run, said};
use crate::support::scene::Setting;
use crate::support::{BOOK, File, Scene, metric, program};

const SIZE: u64 = 16_000_000;
/// Where the origin breaks off each answer, so that a download takes at least five.
const CUT: u64 = 3_500_000;
const LEAST: usize = 5;
/// More runs than any client needs.
const MOST: usize = 20;

/// A gate that does not go on by itself where its origin breaks off, in each of the ways that this
/// comes about.
async fn breaking() -> Vec<(&'static str, Scene, File)> {
    let file = || File { cut_after: Some(CUT), ..File::of(SIZE) };
    let switched_off = vec![("name = \"files\"", "name = \"files\"\nresumes = 0")];
    let mut all = Vec::new();
    for (name, file, config) in [
        ("without a strong validator", file().field("etag", ""), Vec::new()),
        ("without resumes", file(), switched_off),
    ] {
        let scene = Scene::set(Setting { config, ..Setting::default() }).await;
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

/// The file's address under a signed link, as a query and as a first path segment.
fn links(scene: &Scene) -> [String; 2] {
    let (link, file) = (scene.link(&["--isbn", BOOK]), format!("files/{BOOK}/audio.mp3"));
    [format!("{}/{file}?token={link}", scene.base), format!("{}/~{link}/{file}", scene.base)]
}

/// How much of the file is there; it is the file's first part.
fn so_far(place: &Path, whole: &[u8]) -> usize {
    let there = std::fs::read(place).unwrap_or_default();
    assert!(whole.starts_with(&there), "{} other bytes", there.len());
    there.len()
}

/// Runs a command that goes on with a download until it is content; each run is cut, and brings
/// something.
async fn again_and_again(
    name: &str,
    command: &mut Command,
    cut: &[i32],
    place: &Path,
    whole: &[u8],
) {
    let mut before = 0;
    for run_number in 1..=MOST {
        let ran = run(command).await;
        let there = so_far(place, whole);
        if ran.status.success() {
            assert_eq!(there, whole.len(), "{name}: a clean end");
            assert!(run_number >= LEAST, "{name}: it was not cut");
            // Of what is whole there is no rest: 416, which is no failure.
            let ran = run(command).await;
            assert!(ran.status.success(), "{name}, once more: {}", said(&ran));
            assert_eq!(so_far(place, whole), whole.len(), "{name}, once more");
            return;
        }
        let code = ran.status.code().unwrap_or_default();
        assert!(cut.contains(&code), "{name}, {code}: {}", said(&ran));
        assert!(there > before, "{name}: nothing came: {}", said(&ran));
        before = there;
    }
    panic!("{name}: {before} bytes after {MOST} runs");
}

/// Where the ranges begin that the origin was asked for.
fn begins(scene: &Scene) -> BTreeSet<u64> {
    let asked = scene.origin.asked();
    let ranges = asked.iter().filter_map(|asked| asked.headers.get("range")?.to_str().ok());
    ranges
        .map(|range| range["bytes=".len()..].split('-').next().unwrap().parse().unwrap())
        .collect()
}

#[tokio::test]
async fn curl_goes_on_where_the_download_broke() {
    let Some(curl) = program("curl", "curl") else {
        return;
    };
    for (name, scene, file) in breaking().await {
        let whole = file.part(0..SIZE);
        for (protocol, cut) in [("--http1.1", [18, 56]), ("--http2", [18, 92])] {
            let place = scene.dir.path().join(protocol);
            let mut command = direct(&curl);
            // Without --fail, under which curl 7.88 takes 416 for a failure; another refusal would
            // be other bytes.
            command.args(["-q", "-sS", "--noproxy", "*", protocol, "--cacert"]).arg(ca(&scene));
            command.args(["-H", &authorization(&scene), "-C", "-", "-o"]).arg(&place);
            command.arg(format!("{}/files/{BOOK}/audio.mp3", scene.base));
            again_and_again(&format!("{name}, {protocol}"), &mut command, &cut, &place, &whole)
                .await;
        }
        assert!(begins(&scene).len() >= LEAST - 1, "{name}: {:?}", begins(&scene));
        scene.end().await;
    }
}

#[tokio::test]
async fn wget_goes_on_where_the_download_broke() {
    let Some(wget) = program("wget", "wget") else {
        return;
    };
    for (name, scene, file) in breaking().await {
        let whole = file.part(0..SIZE);
        let [by_query, by_path] = links(&scene);
        // By a run for each break, and within one run.
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
                again_and_again(name, &mut command, &[4], &place, &whole).await;
            } else {
                let ran = run(&mut command).await;
                assert!(ran.status.success(), "{name}: {}", said(&ran));
                assert_eq!(so_far(&place, &whole), whole.len(), "{name}");
            }
        }
        assert!(begins(&scene).len() >= LEAST - 1, "{name}: {:?}", begins(&scene));
        scene.end().await;
    }
}

/// aria2c over eight connections, to this place.
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
async fn aria2c_draws_one_file_over_eight_connections() {
    let Some(aria2c) = program("aria2c", "aria2") else {
        return;
    };
    let config = vec![("name = \"files\"", "name = \"files\"\nidle = \"1s\"")];
    let scene = Scene::set(Setting { config, ..Setting::default() }).await;
    // The origin stands still in each answer until there are eight, so that nothing is over before
    // all have begun. Then the gate goes on with each.
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
    assert!(ran.status.success(), "{}", said(&ran));
    assert_eq!(so_far(&place, &file.part(0..SIZE)), SIZE as usize);
    // The first is asked for from the start.
    assert!(begins(&scene).len() >= 7, "{:?}", begins(&scene));
    // One loan, however many connections there are.
    assert_eq!(scene.books().await.len(), 1);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aria2c_mends_each_of_its_connections_that_break() {
    let Some(aria2c) = program("aria2c", "aria2") else {
        return;
    };
    for (name, scene, file) in breaking().await {
        let file = File { cut_after: Some(700_000), ..file };
        put(&scene, &file);
        for (number, url) in links(&scene).into_iter().enumerate() {
            let place = scene.dir.path().join(format!("drawn-{number}"));
            let ran = run(eight_connections(&aria2c, &scene, &place).arg(url)).await;
            assert!(ran.status.success(), "{name}: {}", said(&ran));
            assert_eq!(so_far(&place, &file.part(0..SIZE)), SIZE as usize, "{name}");
        }
        assert!(begins(&scene).len() >= 8, "{name}: {:?}", begins(&scene));
        scene.end().await;
    }
}
