//! HLS made and played by ffmpeg: a playlist and its segments under one signed link. The relative
//! addresses keep the link's token, and each segment needs the loan.

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use crate::support::external_program::{output_text, run, trusting};
use crate::support::{AUDIO, File, Scene, program};

/// Duration of the tone, in seconds.
const DURATION_SECONDS: f64 = 13.0;
const SEGMENT_SECONDS: &str = "2";
/// Minimum number of segments. Segments end at frames and may be longer than configured.
const MIN_SEGMENTS: usize = 5;

/// Encodes a tone as an HLS set in this directory. Returns its files, the playlist first.
async fn made(ffmpeg: &Path, directory: &Path) -> Vec<(String, Bytes)> {
    std::fs::create_dir(directory).unwrap();
    let mut command = Command::new(ffmpeg);
    command.args(["-v", "error", "-nostdin", "-f", "lavfi"]);
    command.args([
        "-i",
        &format!("sine=frequency=440:duration={DURATION_SECONDS}"),
        "-c:a",
        "aac",
        "-b:a",
        "64k",
    ]);
    command.args([
        "-f",
        "hls",
        "-hls_time",
        SEGMENT_SECONDS,
        "-hls_playlist_type",
        "vod",
        "-hls_segment_filename",
    ]);
    command.arg(directory.join("part%02d.ts")).arg(directory.join("index.m3u8"));
    let ran = run(&mut command).await;
    assert!(ran.status.success(), "{}", output_text(&ran));
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let read = |entry: std::fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap().into())
    };
    let mut files: Vec<(String, Bytes)> = entries.map(read).collect();
    files.sort();
    assert!(files.len() > MIN_SEGMENTS && files[0].0 == "index.m3u8", "{:?}", files.len());
    files
}

/// Puts the set at the origin, with no type or a generic one, as storages do.
fn put(scene: &Scene, files: &[(String, Bytes)]) {
    for (name, content) in files {
        let kind = if name.ends_with(".ts") { "application/octet-stream" } else { "" };
        let file = File::with(content.clone()).field("content-type", kind);
        scene.origin.put(&format!("{AUDIO}/{name}"), file);
    }
}

/// Returns a response's status, Content-Type and body.
async fn get(scene: &Scene, path: &str) -> (StatusCode, String, Bytes) {
    let answer = scene.http2().get(format!("{}{path}", scene.base)).send().await.unwrap();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    (answer.status(), kind, answer.bytes().await.unwrap())
}

/// Parses the duration that ffprobe prints, in seconds.
fn seconds(text: &str) -> f64 {
    text.trim().parse().unwrap_or_else(|_| panic!("no number: {text}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ffmpeg_plays_a_playlist_behind_a_link_to_its_end() {
    let (Some(ffmpeg), Some(ffprobe)) = (program("ffmpeg", "ffmpeg"), program("ffprobe", "ffmpeg"))
    else {
        return;
    };
    let scene = Scene::start().await;
    let files = made(&ffmpeg, &scene.dir.path().join("hls")).await;
    put(&scene, &files);
    let ca = scene.dir.path().join("certs/ca.pem");
    let link = scene.link(&["--isbn", AUDIO]);
    let url = format!("{}/~{link}/files/{AUDIO}/index.m3u8", scene.base);

    let mut command = trusting(&ffprobe, &ca);
    let ran = run(command.args(["-show_entries", "format=duration", "-of", "csv=p=0", &url])).await;
    assert!(ran.status.success(), "{}", output_text(&ran));
    let duration = seconds(&String::from_utf8_lossy(&ran.stdout));
    assert!((duration - DURATION_SECONDS).abs() < 0.2, "{duration} s");

    // ffmpeg does not pass the certificate options on to segments, but resolves their addresses
    // relative to the playlist's.
    let before = scene.origin.requests().len();
    let mut command = trusting(&ffmpeg, &ca);
    command.args(["-nostdin", "-xerror", "-i", &url, "-progress", "pipe:1", "-f", "null", "-"]);
    let ran = run(&mut command).await;
    assert!(ran.status.success() && ran.stderr.is_empty(), "{}", output_text(&ran));
    let progress = output_text(&ran);
    let mut times = progress.lines().rev().filter_map(|line| line.strip_prefix("out_time_us="));
    let played = times.next().unwrap().parse::<f64>().unwrap() / 1e6;
    assert!((played - DURATION_SECONDS).abs() < 0.2, "{played} s");
    let requests = &scene.origin.requests()[before..];
    for (name, _) in &files {
        assert!(
            requests.iter().any(|request| request.path == format!("/{AUDIO}/{name}")),
            "{name} was not requested"
        );
    }
    assert_eq!(scene.books().await.len(), 1, "one loan");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn playlist_is_unchanged_and_each_segment_needs_the_loan() {
    let Some(ffmpeg) = program("ffmpeg", "ffmpeg") else {
        return;
    };
    let scene = Scene::start().await;
    let files = made(&ffmpeg, &scene.dir.path().join("hls")).await;
    put(&scene, &files);
    let link = scene.link(&["--isbn", AUDIO]);
    let under = |first: &str, name: &str| format!("{first}/files/{AUDIO}/{name}");
    for (name, content) in &files {
        let wanted =
            if name.ends_with(".ts") { "video/mp2t" } else { "application/vnd.apple.mpegurl" };
        let (status, kind, body) = get(&scene, &under(&format!("/~{link}"), name)).await;
        assert_eq!((status, kind.as_str()), (StatusCode::OK, wanted), "{name}");
        assert!(body == content, "{name}: other bytes");
    }
    let of_another_title = scene.link(&["--isbn", crate::support::BOOK]);
    let requests = scene.origin.requests().len();
    for (name, _) in &files {
        let (status, ..) = get(&scene, &under("", name)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{name}: without a token");
        let (status, ..) = get(&scene, &under(&format!("/~{of_another_title}"), name)).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{name}: with a link of another title");
    }
    let (status, _) =
        scene.call_api("DELETE", &format!("/loans/{AUDIO}"), &scene.token("kari"), "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    for (name, _) in &files {
        let (status, kind, body) = get(&scene, &under(&format!("/~{link}"), name)).await;
        let problem: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (status, kind.as_str()),
            (StatusCode::FORBIDDEN, "application/problem+json"),
            "{name}"
        );
        assert!(problem["type"].as_str().unwrap().ends_with("loan-ended"), "{name}: {problem}");
    }
    assert_eq!(scene.origin.requests().len(), requests, "a refused request reached the origin");
    scene.end().await;
}
