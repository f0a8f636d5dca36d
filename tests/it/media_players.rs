//! Readers' programs on delivered files: epubcheck on the book, ffprobe and ffmpeg on the
//! audiobook. They use HTTPS with a token and with a signed link.

use std::process::Command;

use crate::support::external_program::{output_text, run, trusting};
use crate::support::{AUDIO, BOOK, Demo, LIBRARY, metric, program};

/// Duration of the audiobook, in seconds.
const DURATION_SECONDS: f64 = 2181.8;
/// Maximum number of bytes for a player that reads the start and plays five seconds of the middle.
/// The file has 17 MB. Each of three aborted requests also transfers what is in buffers.
const MAX_TRANSFERRED: u64 = 2_000_000;

/// Returns a command for epubcheck, if it is installed.
fn epubcheck() -> Option<Command> {
    let file = program("epubcheck", "epubcheck")?;
    let works = Command::new(&file).arg("--version").output().is_ok_and(|ran| ran.status.success());
    if works {
        return Some(Command::new(file));
    }
    // Debian installs the archive itself, which starts only with a kernel handler for it.
    let mut java = Command::new(program("java", "default-jre-headless")?);
    java.args(["-jar", "/usr/share/java/epubcheck.jar"]);
    Some(java)
}

/// Returns the request lines of the log, without the first `skip`.
fn request_lines(log: &str, skip: usize) -> Vec<&str> {
    log.lines().filter(|line| line.contains(" loangate::request: ")).skip(skip).collect()
}

/// Returns the number in a field such as `bytes=17`. The last field of the name counts, since a
/// range also contains it.
fn number(line: &str, name: &str) -> u64 {
    let value = line.rsplit_once(&format!(" {name}=")).unwrap().1;
    value.split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn delivered_book_is_a_valid_epub() {
    let Some(mut epubcheck) = epubcheck() else {
        return;
    };
    let demo = Demo::start();
    let url = format!("{}/files/{BOOK}/book.epub", demo.base());
    let answer = demo.client().get(url).bearer_auth(demo.token("kari")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let file = demo.dir().join("through.epub");
    std::fs::write(&file, answer.bytes().await.unwrap()).unwrap();
    let ran = run(epubcheck.arg(&file)).await;
    assert!(ran.status.success(), "{}", output_text(&ran));
    assert!(output_text(&ran).contains("No errors or warnings detected"), "{}", output_text(&ran));
    // With half of the file, epubcheck must find errors.
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let again = run(&mut epubcheck).await;
    assert!(!again.status.success(), "{}", output_text(&again));
}

#[tokio::test]
async fn player_reads_the_duration_by_token_and_by_link() {
    let Some(ffprobe) = program("ffprobe", "ffmpeg") else {
        return;
    };
    let demo = Demo::start();
    let field = format!("Authorization: Bearer {}\r\n", demo.token("kari"));
    let file = format!("files/{AUDIO}/audio.mp3");
    let link = demo.mint("link", &["--library", LIBRARY, "--borrower", "kari", "--isbn", AUDIO]);
    let by_token = (format!("{}/{file}", demo.base()), Some(field));
    let by_path = (format!("{}/~{link}/{file}", demo.base()), None);
    let by_query = (format!("{}/{file}?token={link}", demo.base()), None);
    for (url, field) in [by_token, by_path, by_query] {
        let mut command = trusting(&ffprobe, &demo.ca());
        if let Some(field) = field {
            command.args(["-headers", &field]);
        }
        command.args(["-show_entries", "format=duration", "-of", "csv=p=0", &url]);
        let ran = run(&mut command).await;
        assert!(ran.status.success(), "{}", output_text(&ran));
        let seconds: f64 = String::from_utf8(ran.stdout).unwrap().trim().parse().unwrap();
        assert!((seconds - DURATION_SECONDS).abs() < 1.0, "{seconds}");
    }
}

#[tokio::test]
async fn player_that_seeks_transfers_little_more_than_it_plays() {
    let Some(ffmpeg) = program("ffmpeg", "ffmpeg") else {
        return;
    };
    let demo = Demo::start();
    let url = format!("{}/files/{AUDIO}/audio.mp3", demo.base());
    let token = demo.token("kari");
    let start =
        demo.client().get(&url).bearer_auth(&token).header("range", "bytes=0-1").send().await;
    assert_eq!(start.unwrap().bytes().await.unwrap().len(), 2);
    let mut command = trusting(&ffmpeg, &demo.ca());
    command.arg("-nostdin").args(["-headers", &format!("Authorization: Bearer {token}\r\n")]);
    // ffmpeg seeks to the position of the time at a constant bit rate. Without fastseek it reads
    // every MP3 from its start.
    command.args(["-fflags", "+fastseek", "-ss", "1200", "-t", "5", "-i", &url]);
    command.args(["-progress", "pipe:1", "-f", "null", "-"]);
    let before = delivered(&demo).await;
    let ran = run(&mut command).await;
    assert!(ran.status.success(), "{}", output_text(&ran));
    // ffmpeg decoded five seconds without a warning.
    assert!(ran.stderr.is_empty(), "{}", output_text(&ran));
    let progress = output_text(&ran);
    let mut times = progress.lines().rev().filter_map(|line| line.strip_prefix("out_time_us="));
    let played: u64 = times.next().unwrap().parse().unwrap();
    assert!((4_900_000..=5_100_000).contains(&played), "{played} µs");
    demo.wait_for_streams().await;
    let log = demo.log();
    let lines = request_lines(&log, 1);
    assert!(!lines.is_empty(), "{log}");
    assert!(lines.iter().any(|line| number(line, "status") == 206), "{lines:#?}");
    let moved: u64 = lines.iter().map(|line| number(line, "bytes")).sum();
    assert!(moved < MAX_TRANSFERRED, "{moved} bytes:\n{}", lines.join("\n"));
    assert_eq!(moved, delivered(&demo).await - before, "log and metrics count the same bytes");
}

async fn delivered(demo: &Demo) -> u64 {
    demo.wait_for_streams().await;
    metric(&demo.admin("/metrics").await, "loangate_delivered_bytes_total", "") as u64
}
