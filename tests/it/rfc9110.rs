//! Strict conformance to RFC 9110: a table of cases with their sections, and random requests
//! compared with an oracle. The oracle knows the file and the RFC's rules, and nothing of the gate.
//! All run over both HTTP versions and every kind of storage.

use std::ops::Range;

use futures_util::stream::{self, StreamExt};
use http::{Method, StatusCode};

use crate::support::multipart::parts;
use crate::support::storage::{Kind, Storage};
use crate::support::{BOOK, File, Scene};

const SIZE: u64 = 10_000;
const BEFORE: &str = "Sun, 04 Jan 2026 08:00:00 GMT";
const AFTER: &str = "Tue, 06 Jan 2026 08:00:00 GMT";
/// Limits of the gate as its README documents them: the maximum number of parts, and the gap in
/// bytes up to which ranges are merged.
const MAX_PARTS: usize = 16;
const MERGE_GAP: u64 = 100;
/// Maximum number of ranges; a field with more is ignored.
const MAX_RANGES: usize = 100;

/// Properties of a file, from the gate's own response to HEAD.
#[derive(Clone, Debug)]
struct Known {
    path: String,
    size: u64,
    etag: String,
    modified: String,
}

/// The response that the RFC requires.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Expected {
    Whole,
    Part(Range<u64>),
    Parts(Vec<Range<u64>>),
    NotModified,
    Failed,
    NotSatisfiable,
}

impl Expected {
    fn status(&self) -> StatusCode {
        match self {
            Expected::Whole => StatusCode::OK,
            Expected::Part(_) | Expected::Parts(_) => StatusCode::PARTIAL_CONTENT,
            Expected::NotModified => StatusCode::NOT_MODIFIED,
            Expected::Failed => StatusCode::PRECONDITION_FAILED,
            Expected::NotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
        }
    }
}

type Fields = Vec<(&'static str, String)>;
/// Section of the RFC, header fields of the request, and the expected response.
type Row<'a> = (&'a str, Vec<(&'a str, &'a str)>, Expected);

async fn known(scene: &Scene, storage: &Storage, name: &str, file: &File) -> Known {
    storage.put(scene, &format!("{BOOK}/{name}"), file);
    let path = format!("/files/{BOOK}/{name}");
    let request =
        scene.http1().head(format!("{}{path}", scene.base)).bearer_auth(scene.token("kari"));
    let head = request.send().await.unwrap();
    assert_eq!(head.status(), StatusCode::OK);
    let field = |name: &str| head.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(field("content-length"), file.size.to_string());
    Known { path, size: file.size, etag: field("etag"), modified: field("last-modified") }
}

/// Sends a request, and compares the whole response.
async fn compare(
    scene: &Scene,
    client: &reqwest::Client,
    method: &Method,
    known: &Known,
    fields: &Fields,
    expected: &Expected,
    content: &[u8],
) {
    let url = format!("{}{}", scene.base, known.path);
    let mut request = client.request(method.clone(), url).bearer_auth(scene.token("kari"));
    for (name, value) in fields {
        request = request.header(*name, value);
    }
    let answer = request.send().await.unwrap();
    let what = format!("{method} {} of {} bytes with {fields:?}", known.path, known.size);
    assert_eq!(answer.status(), expected.status(), "{what}");
    let field =
        |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let is_file = answer.status().is_success() || answer.status() == StatusCode::NOT_MODIFIED;
    if is_file {
        assert_eq!(field("etag").as_ref(), Some(&known.etag), "{what}");
        assert_eq!(field("last-modified").as_ref(), Some(&known.modified), "{what}");
        assert_eq!(field("accept-ranges").as_deref(), Some("bytes"), "{what}");
    }
    let range = |part: &Range<u64>| format!("bytes {}-{}/{}", part.start, part.end - 1, known.size);
    match expected {
        Expected::Whole => {
            assert_eq!(field("content-length"), Some(known.size.to_string()), "{what}");
            assert_eq!(field("content-range"), None, "{what}");
            let body = answer.bytes().await.unwrap();
            assert!(body == if *method == Method::HEAD { &[][..] } else { content }, "{what}");
        }
        Expected::Part(part) => {
            assert_eq!(field("content-range"), Some(range(part)), "{what}");
            assert_eq!(
                field("content-length"),
                Some((part.end - part.start).to_string()),
                "{what}"
            );
            let body = answer.bytes().await.unwrap();
            assert!(body == content[part.start as usize..part.end as usize], "{what}");
        }
        Expected::Parts(wanted) => {
            let parts = parts(answer).await;
            let told: Vec<Range<u64>> =
                parts.iter().map(|(first, last, ..)| *first..last + 1).collect();
            assert_eq!(&told, wanted, "{what}");
            for (first, last, complete, bytes) in parts {
                assert_eq!(complete, known.size, "{what}");
                assert!(bytes == content[first as usize..=last as usize], "{what}");
            }
        }
        Expected::NotModified => assert!(answer.bytes().await.unwrap().is_empty(), "{what}"),
        Expected::NotSatisfiable => {
            assert_eq!(field("content-range"), Some(format!("bytes */{}", known.size)), "{what}");
        }
        Expected::Failed => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_holds_over_both_versions_and_all_storages() {
    let part = |range| Expected::Part(range);
    for kind in Kind::ALL {
        let (scene, storage) = Storage::scene(kind).await;
        let file = File::of(SIZE);
        let known_file = known(&scene, &storage, "audio.mp3", &file).await;
        let empty = known(&scene, &storage, "empty.mp3", &File::of(0)).await;
        let (etag, modified) = (known_file.etag.as_str(), known_file.modified.as_str());
        let weak = format!("W/{etag}");
        let others = format!("\"x\", {etag}");
        let rows: Vec<Row<'_>> = vec![
            ("§9.3.1", vec![], Expected::Whole),
            ("§14.2: one range", vec![("range", "bytes=0-9")], part(0..10)),
            ("§14.1.2: to the end", vec![("range", "bytes=0-")], part(0..SIZE)),
            ("§14.1.2: beyond the end", vec![("range", "bytes=9000-99999")], part(9000..SIZE)),
            ("§14.1.2: the last", vec![("range", "bytes=-1")], part(SIZE - 1..SIZE)),
            ("§14.1.2: more than there is", vec![("range", "bytes=-99999")], part(0..SIZE)),
            ("§14.1.1: first after last", vec![("range", "bytes=5-4")], Expected::Whole),
            ("§14.2: a unit that is not known", vec![("range", "seconds=0-9")], Expected::Whole),
            ("§14.1: the unit in any case", vec![("range", "Bytes=0-9")], part(0..10)),
            ("§14.2: not a set of ranges", vec![("range", "bytes=a-b")], Expected::Whole),
            (
                "§5.2: a field that is no list, twice",
                vec![("range", "bytes=0-9"), ("range", "bytes=0-9")],
                Expected::Whole,
            ),
            ("§15.5.17", vec![("range", "bytes=10000-")], Expected::NotSatisfiable),
            ("§14.1.2: the last none", vec![("range", "bytes=-0")], Expected::NotSatisfiable),
            (
                "§15.5.17: all outside",
                vec![("range", "bytes=10000-,20000-20001")],
                Expected::NotSatisfiable,
            ),
            ("§14.2: some outside", vec![("range", "bytes=0-9,10000-")], part(0..10)),
            (
                "§15.3.7.2",
                vec![("range", "bytes=0-9,5000-5009")],
                Expected::Parts(vec![0..10, 5000..5010]),
            ),
            ("§15.3.7.2: overlapping", vec![("range", "bytes=0-9,5-19")], part(0..20)),
            ("§13.1.1", vec![("if-match", etag)], Expected::Whole),
            ("§13.1.1: one of several", vec![("if-match", &others)], Expected::Whole),
            ("§13.1.1: any", vec![("if-match", "*")], Expected::Whole),
            ("§13.1.1: another", vec![("if-match", "\"x\"")], Expected::Failed),
            ("§13.1.1: compared strongly", vec![("if-match", &weak)], Expected::Failed),
            ("§13.1.2", vec![("if-none-match", etag)], Expected::NotModified),
            ("§13.1.2: compared weakly", vec![("if-none-match", &weak)], Expected::NotModified),
            ("§13.1.2: one of several", vec![("if-none-match", &others)], Expected::NotModified),
            ("§13.1.2: any", vec![("if-none-match", "*")], Expected::NotModified),
            ("§13.1.2: another", vec![("if-none-match", "\"x\"")], Expected::Whole),
            ("§13.1.3", vec![("if-modified-since", modified)], Expected::NotModified),
            ("§13.1.3: before", vec![("if-modified-since", BEFORE)], Expected::Whole),
            ("§13.1.3: after", vec![("if-modified-since", AFTER)], Expected::NotModified),
            ("§13.1.3: not a date", vec![("if-modified-since", "yesterday")], Expected::Whole),
            ("§13.1.4", vec![("if-unmodified-since", modified)], Expected::Whole),
            ("§13.1.4: before", vec![("if-unmodified-since", BEFORE)], Expected::Failed),
            ("§13.1.4: not a date", vec![("if-unmodified-since", "yesterday")], Expected::Whole),
            ("§13.1.5", vec![("range", "bytes=5-"), ("if-range", etag)], part(5..SIZE)),
            (
                "§13.1.5: another",
                vec![("range", "bytes=5-"), ("if-range", "\"x\"")],
                Expected::Whole,
            ),
            ("§13.1.5: weak", vec![("range", "bytes=5-"), ("if-range", &weak)], Expected::Whole),
            (
                "§13.1.5: the date",
                vec![("range", "bytes=5-"), ("if-range", modified)],
                part(5..SIZE),
            ),
            (
                "§13.1.5: a later date is another",
                vec![("range", "bytes=5-"), ("if-range", AFTER)],
                Expected::Whole,
            ),
            ("§13.1.5: without a range", vec![("if-range", etag)], Expected::Whole),
            (
                "§13.1.5: false, and the range outside",
                vec![("range", "bytes=10000-"), ("if-range", "\"x\"")],
                Expected::Whole,
            ),
            (
                "§13.2.2, step 1 before 2",
                vec![("if-match", etag), ("if-unmodified-since", BEFORE)],
                Expected::Whole,
            ),
            (
                "§13.2.2, step 3 before 4",
                vec![("if-none-match", "\"x\""), ("if-modified-since", modified)],
                Expected::Whole,
            ),
            (
                "§13.2.2, step 1 before 3",
                vec![("if-match", "\"x\""), ("if-none-match", etag)],
                Expected::Failed,
            ),
            (
                "§13.2.2, step 3 after 1",
                vec![("if-match", etag), ("if-none-match", etag)],
                Expected::NotModified,
            ),
            (
                "§13.2.2, step 3 before 5",
                vec![("if-none-match", etag), ("range", "bytes=0-9")],
                Expected::NotModified,
            ),
            (
                "§13.2.2, step 2 before 5",
                vec![("if-unmodified-since", BEFORE), ("range", "bytes=10000-")],
                Expected::Failed,
            ),
        ];
        let content = file.part(0..SIZE);
        for client in [scene.http1(), scene.http2()] {
            for (section, fields, expected) in &rows {
                println!("{kind:?} {section}");
                let fields: Fields = fields
                    .iter()
                    .map(|(name, value)| (static_name(name), (*value).to_owned()))
                    .collect();
                compare(&scene, &client, &Method::GET, &known_file, &fields, expected, &content)
                    .await;
                // §9.3.2: HEAD is like GET without the body. §14.2: Range applies to GET only.
                let expected = match expected {
                    Expected::Part(_) | Expected::Parts(_) | Expected::NotSatisfiable => {
                        &Expected::Whole
                    }
                    expected => expected,
                };
                compare(&scene, &client, &Method::HEAD, &known_file, &fields, expected, &content)
                    .await;
            }
            for (range, expected) in [
                ("bytes=0-", Expected::NotSatisfiable),
                ("bytes=0-0", Expected::NotSatisfiable),
                ("bytes=-5", Expected::Whole),
                ("bytes=0-,-5", Expected::Whole),
                ("bytes=-0", Expected::NotSatisfiable),
            ] {
                println!("{kind:?} §14.1.2, of nothing: {range}");
                let fields = vec![("range", range.to_owned())];
                compare(&scene, &client, &Method::GET, &empty, &fields, &expected, &[]).await;
            }
        }
        scene.end().await;
    }
}

fn static_name(name: &str) -> &'static str {
    const NAMES: [&str; 6] = [
        "range",
        "if-match",
        "if-none-match",
        "if-modified-since",
        "if-unmodified-since",
        "if-range",
    ];
    NAMES.into_iter().find(|known| *known == name).unwrap()
}

/// One range of a request: first and last byte, from a first byte on, or the last bytes.
#[derive(Clone, Copy, Debug)]
enum Spec {
    Int(u64, Option<u64>),
    Suffix(u64),
}

impl Spec {
    fn text(self) -> String {
        match self {
            Spec::Int(first, None) => format!("{first}-"),
            Spec::Int(first, Some(last)) => format!("{first}-{last}"),
            Spec::Suffix(count) => format!("-{count}"),
        }
    }

    /// Returns the bytes that it selects by §14.1.2; none of an empty file for a suffix.
    fn of(self, size: u64) -> Option<Range<u64>> {
        match self {
            Spec::Int(first, _) if first >= size => None,
            Spec::Int(first, last) => {
                Some(first..last.map_or(size, |last| size.min(last.saturating_add(1))))
            }
            Spec::Suffix(0) => None,
            Spec::Suffix(count) => Some(size.saturating_sub(count)..size),
        }
    }
}

/// The value of a Range field and its ranges; `None` for a field that must be ignored.
#[derive(Clone, Debug)]
struct RangeField {
    text: String,
    specs: Option<Vec<Spec>>,
}

/// A random request for one of the files.
#[derive(Clone, Debug)]
struct Random {
    method: Method,
    file: usize,
    range: Option<RangeField>,
    fields: Fields,
}

/// Returns the response that the RFC requires.
fn oracle(random: &Random, known: &Known) -> Expected {
    let field = |name: &str| {
        random.fields.iter().find(|(other, _)| *other == name).map(|(_, value)| value.as_str())
    };
    let at = |date: &str| httpdate::parse_http_date(date).ok();
    let modified = at(&known.modified).unwrap();
    let tags = |list: &str| list.split(", ").map(str::to_owned).collect::<Vec<_>>();
    // §13.2.2, step by step.
    match (field("if-match"), field("if-unmodified-since").and_then(at)) {
        (Some("*"), _) => {}
        (Some(list), _) if !tags(list).contains(&known.etag) => return Expected::Failed,
        (None, Some(since)) if modified > since => return Expected::Failed,
        _ => {}
    }
    match (field("if-none-match"), field("if-modified-since").and_then(at)) {
        (Some("*"), _) => return Expected::NotModified,
        (Some(list), _)
            if tags(list).iter().any(|tag| tag.trim_start_matches("W/") == known.etag) =>
        {
            return Expected::NotModified;
        }
        (None, Some(since)) if modified <= since => return Expected::NotModified,
        _ => {}
    }
    let specs = random.range.as_ref().and_then(|range_field| range_field.specs.as_ref());
    let (Some(specs), true) = (specs, random.method == Method::GET) else { return Expected::Whole };
    if field("if-range")
        .is_some_and(|validator| validator != known.etag && validator != known.modified)
    {
        return Expected::Whole;
    }
    ranges(specs, known.size)
}

/// Returns the parts by §14.2 and §15.3.7, merged as the gate documents.
fn ranges(specs: &[Spec], size: u64) -> Expected {
    if specs.len() > MAX_RANGES {
        return Expected::Whole;
    }
    let mut wanted: Vec<Range<u64>> = specs.iter().filter_map(|spec| spec.of(size)).collect();
    if wanted.is_empty() {
        return Expected::NotSatisfiable;
    }
    wanted.retain(|range| !range.is_empty());
    wanted.sort_by_key(|range| (range.start, range.end));
    let mut apart: Vec<Range<u64>> = Vec::new();
    for range in wanted {
        match apart.last_mut() {
            Some(last) if specs.len() > 1 && range.start < last.end + MERGE_GAP => {
                last.end = last.end.max(range.end)
            }
            _ => apart.push(range),
        }
    }
    let bytes: u64 = apart.iter().map(|range| range.end - range.start + MERGE_GAP).sum();
    match apart.as_slice() {
        [] => Expected::Whole,
        [one] => Expected::Part(one.clone()),
        several if several.len() > MAX_PARTS || bytes >= size => Expected::Whole,
        several => Expected::Parts(several.to_vec()),
    }
}

/// Returns a number near a boundary.
fn number(random: &mut fastrand::Rng, size: u64) -> u64 {
    match random.u32(..6) {
        0 => 0,
        1 => size.saturating_sub(random.u64(..3)),
        2 => size + random.u64(..3),
        3 => u64::MAX - random.u64(..2),
        _ => random.u64(..size.max(1)),
    }
}

fn spec(random: &mut fastrand::Rng, size: u64) -> Spec {
    let first = number(random, size);
    match random.u32(..4) {
        0 => Spec::Suffix(number(random, size)),
        1 => Spec::Int(first, None),
        2 => Spec::Int(first, Some(first.saturating_add(random.u64(..300)))),
        _ => Spec::Int(first, Some(first.max(number(random, size)))),
    }
}

fn range_field(random: &mut fastrand::Rng, size: u64) -> RangeField {
    if random.u32(..10) == 0 {
        let texts = [
            "bytes=",
            "bytes=5-4",
            "bytes=1-2,5-4",
            "bytes 0-1",
            "items=0-1",
            "bytes=--1",
            "bytes=1",
            "0-1",
        ];
        return RangeField { text: texts[random.usize(..texts.len())].to_owned(), specs: None };
    }
    let count = [1, 1, 1, 1, 2, 2, 3, 5, 20, 120][random.usize(..10)];
    let specs: Vec<Spec> = (0..count).map(|_| spec(random, size)).collect();
    let between = if random.bool() { "," } else { ", " };
    let texts: Vec<String> = specs.iter().map(|spec| spec.text()).collect();
    RangeField { text: format!("bytes={}", texts.join(between)), specs: Some(specs) }
}

fn request(random: &mut fastrand::Rng, files: &[Known]) -> Random {
    let file = random.usize(..files.len());
    let known = &files[file];
    let tag = |random: &mut fastrand::Rng| match random.u32(..5) {
        0 => "*".to_owned(),
        1 => format!("W/{}", known.etag),
        2 => "\"x\"".to_owned(),
        3 => format!("\"x\", {}", known.etag),
        _ => known.etag.clone(),
    };
    let date = |random: &mut fastrand::Rng| match random.u32(..4) {
        0 => BEFORE.to_owned(),
        1 => AFTER.to_owned(),
        2 => "soon".to_owned(),
        _ => known.modified.clone(),
    };
    let mut fields = Fields::new();
    for name in ["if-match", "if-none-match", "if-unmodified-since", "if-modified-since"] {
        if random.u32(..6) == 0 {
            let value = if name.contains("since") { date(random) } else { tag(random) };
            fields.push((name, value));
        }
    }
    let range = (random.u32(..5) > 0).then(|| range_field(random, known.size));
    if random.u32(..4) == 0 {
        let validators = [
            known.etag.clone(),
            known.modified.clone(),
            format!("W/{}", known.etag),
            BEFORE.to_owned(),
        ];
        fields.push(("if-range", validators[random.usize(..4)].clone()));
    }
    fields.extend(range.as_ref().map(|range_field| ("range", range_field.text.clone())));
    let method = if random.u32(..6) == 0 { Method::HEAD } else { Method::GET };
    Random { method, file, range, fields }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_random_requests_match_the_oracle() {
    let seed = std::env::var("LOANGATE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("LOANGATE_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut kinds: Vec<(std::mem::Discriminant<Expected>, usize)> = Vec::new();
    for kind in Kind::ALL {
        let (scene, storage) = Storage::scene(kind).await;
        let mut files = Vec::new();
        let mut contents = Vec::new();
        for (number, size) in [0, 1, 150, 20_000, 300_000].into_iter().enumerate() {
            let file = File::of(size);
            files.push(known(&scene, &storage, &format!("{number}.mp3"), &file).await);
            contents.push(file.part(0..size));
        }
        let clients = [scene.http1(), scene.http2()];
        let requests: Vec<Random> = (0..3334).map(|_| request(&mut random, &files)).collect();
        for request in &requests {
            let kind = std::mem::discriminant(&oracle(request, &files[request.file]));
            match kinds.iter_mut().find(|(other, _)| *other == kind) {
                Some((_, count)) => *count += 1,
                None => kinds.push((kind, 1)),
            }
        }
        let compared = stream::iter(requests.iter().enumerate()).map(|(number, request)| {
            let (known, content) = (&files[request.file], &contents[request.file]);
            let expected = oracle(request, known);
            let client = &clients[number % 2];
            let scene = &scene;
            async move {
                compare(scene, client, &request.method, known, &request.fields, &expected, content)
                    .await;
            }
        });
        compared.buffer_unordered(16).collect::<Vec<()>>().await;
        scene.end().await;
    }
    assert!(
        kinds.len() == 6 && kinds.iter().all(|(_, count)| *count > 50),
        "a kind of response is missing: {kinds:?}"
    );
}
