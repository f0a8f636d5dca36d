//! The rules of RFC 9110 for conditions, ranges and partial responses, without an origin.

use http::header::{
    ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_MATCH, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::*;
use crate::language::Sentence;

const DAY: &str = "Thu, 15 Jan 2026 12:00:00 GMT";
/// The answer to what does not continue a download.
const EXPIRED: Problem = Problem::ReaderUnauthenticated(&Sentence {
    english: "The link has expired.",
    norwegian: "Lenken er utløpt.",
});

fn map(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
}

/// The fields of a file of 1000 bytes.
fn file() -> HeaderMap {
    map(&[(CONTENT_LENGTH, "1000"), (ETAG, "\"a\""), (LAST_MODIFIED, DAY)])
}

/// The fields of a 206 with this part of the file.
fn part(range: &'static str, length: &'static str) -> HeaderMap {
    map(&[(CONTENT_RANGE, range), (CONTENT_LENGTH, length), (ETAG, "\"a\"")])
}

fn plan(request: &[(HeaderName, &'static str)]) -> Result<Plan, Problem> {
    Planner::new(&map(request), 4, None).plan(Some(&file()))
}

/// Plans a request that may only continue a download.
fn plan_continuation(request: &[(HeaderName, &'static str)]) -> Result<Plan, Problem> {
    Planner::new(&map(request), 4, Some(EXPIRED)).plan(Some(&file()))
}

fn judge(
    request: &[(HeaderName, &'static str)],
    status: StatusCode,
    response: &HeaderMap,
    range: Option<ByteRange>,
) -> Result<Judgement, Refusal> {
    Planner::new(&map(request), 4, None).judge(status, response, range)
}

/// The selection of a response that is sent.
fn selected(status: StatusCode, response: &HeaderMap, range: Option<ByteRange>) -> Selection {
    match judge(&[], status, response, range) {
        Ok(Judgement::Send(selection)) => selection,
        other => panic!("{other:?}"),
    }
}

const NOT_SATISFIABLE: Result<Plan, Problem> =
    Err(Problem::RangeNotSatisfiable { complete_length: 1000 });

#[test]
fn plain_requests_are_planned_without_metadata() {
    let use_of = |request: &[(HeaderName, &'static str)]| {
        Planner::new(&map(request), 4, None).metadata_use()
    };
    assert_eq!(use_of(&[]), MetadataUse::Unused);
    assert_eq!(use_of(&[(RANGE, "bytes=0-99")]), MetadataUse::Unused);
    assert_eq!(use_of(&[(RANGE, "bytes=-99")]), MetadataUse::Unused);
    assert_eq!(use_of(&[(RANGE, "bytes=100-")]), MetadataUse::IfCached);
    assert_eq!(use_of(&[(RANGE, "bytes=0-9,20-29")]), MetadataUse::Required);
    assert_eq!(use_of(&[(IF_NONE_MATCH, "\"a\"")]), MetadataUse::Required);
    assert_eq!(use_of(&[(RANGE, "bytes=0-99"), (IF_RANGE, "\"a\"")]), MetadataUse::Required);
}

/// RFC 9110 §13.2.2: the conditions of a GET, before any Range.
#[test]
fn conditions_decide_before_ranges() {
    assert_eq!(plan(&[(IF_NONE_MATCH, "\"a\""), (RANGE, "bytes=0-9")]), Ok(Plan::NotModified));
    assert_eq!(plan(&[(IF_MODIFIED_SINCE, DAY)]), Ok(Plan::NotModified));
    assert_eq!(plan(&[(IF_NONE_MATCH, "\"b\"")]), Ok(Plan::Whole));
    assert_eq!(
        plan(&[(IF_MATCH, "\"b\""), (RANGE, "bytes=2000-")]),
        Err(Problem::PreconditionFailed)
    );
}

/// RFC 9110 §14.2: Range is defined for GET only.
#[test]
fn head_has_conditions_but_no_ranges() {
    let head = |request: &[(HeaderName, &'static str)]| {
        Planner::new(&map(request), 4, None).plan_head(&file())
    };
    assert_eq!(head(&[(RANGE, "bytes=2000-")]), Ok(StatusCode::OK));
    assert_eq!(head(&[(IF_NONE_MATCH, "\"a\"")]), Ok(StatusCode::NOT_MODIFIED));
    assert_eq!(head(&[(IF_MATCH, "\"b\"")]), Err(Problem::PreconditionFailed));
}

/// RFC 9110 §14.1.2 and §15.5.17.
#[test]
fn range_outside_the_file_is_not_satisfiable() {
    assert_eq!(plan(&[(RANGE, "bytes=999-")]), Ok(Plan::Range(ByteRange::From(999))));
    assert_eq!(plan(&[(RANGE, "bytes=1000-")]), NOT_SATISFIABLE);
    assert_eq!(plan(&[(RANGE, "bytes=-0")]), NOT_SATISFIABLE);
    assert_eq!(plan(&[(RANGE, "bytes=-5000")]), Ok(Plan::Range(ByteRange::Last(5000))));
    assert_eq!(plan(&[(RANGE, "bytes=1000-,2000-")]), NOT_SATISFIABLE);
    // Without the file's length, the origin decides.
    let headers = map(&[(RANGE, "bytes=1000-")]);
    let planned = Planner::new(&headers, 4, None).plan(None);
    assert_eq!(planned, Ok(Plan::Range(ByteRange::From(1000))));
}

/// RFC 9110 §14.2: a server ignores a Range that it does not understand.
#[test]
fn malformed_range_is_ignored() {
    for range in ["bytes=5-4", "chapters=1-2", "bytes 0-9"] {
        assert_eq!(plan(&[(RANGE, range)]), Ok(Plan::Whole), "{range}");
    }
}

/// RFC 9110 §14.2 and §14.6: overlapping ranges are merged, and egregious ones are ignored.
#[test]
fn several_ranges_become_parts_a_range_or_the_file() {
    let bounds = |range: &'static str| match plan(&[(RANGE, range)]) {
        Ok(Plan::Parts(parts)) => parts.iter().map(|part| (part.first, part.last)).collect(),
        Ok(Plan::Whole) => Vec::new(),
        Ok(Plan::Range(ByteRange::Between(first, last))) => vec![(first, last)],
        other => panic!("{range}: {other:?}"),
    };
    assert_eq!(bounds("bytes=500-509,0-9"), [(0, 9), (500, 509)]);
    assert_eq!(bounds("bytes=0-9,5-19"), [(0, 19)]);
    assert_eq!(bounds("bytes=0-9,5000-"), [(0, 9)]);
    assert_eq!(bounds("bytes=0-499,600-"), [], "with the part headers, longer than the file");
    assert_eq!(bounds("bytes=0-0,200-200,400-400,600-600,800-800"), [], "more than four");
}

/// RFC 9110 §13.1.5: a false If-Range means that Range is ignored.
#[test]
fn if_range_of_another_file_selects_the_whole_file() {
    let range = (RANGE, "bytes=10-19");
    let planned = Ok(Plan::Range(ByteRange::Between(10, 19)));
    assert_eq!(plan(&[range.clone(), (IF_RANGE, "\"a\"")]), planned);
    assert_eq!(plan(&[range.clone(), (IF_RANGE, DAY)]), planned);
    for validator in ["\"b\"", "W/\"a\"", "Wed, 14 Jan 2026 12:00:00 GMT"] {
        assert_eq!(plan(&[range.clone(), (IF_RANGE, validator)]), Ok(Plan::Whole), "{validator}");
    }
}

/// RFC 9110 §15.3.7: a 206 has the Content-Range of its part, and the part's length.
#[test]
fn partial_response_describes_its_part() {
    let response = part("bytes 10-19/1000", "10");
    let range = Some(ByteRange::Between(10, 19));
    let selection = selected(StatusCode::PARTIAL_CONTENT, &response, range);
    assert_eq!(selection.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!((selection.skip, selection.length), (0, Some(10)));
    assert_eq!(selection.bounds(), (10, Some(19)));
    let mut fields = HeaderMap::new();
    let path = FilePath::of_decoded("book.epub").unwrap();
    selection.add_fields(response, Kind::Gated, &path, &mut fields);
    for (name, value) in [
        (CONTENT_RANGE, "bytes 10-19/1000"),
        (CONTENT_LENGTH, "10"),
        (ETAG, "\"a\""),
        (ACCEPT_RANGES, "bytes"),
        (CONTENT_TYPE, "application/epub+zip"),
    ] {
        assert_eq!(fields.get(&name).unwrap(), value, "{name}");
    }
}

/// RFC 9110 §14.2: an origin may ignore Range. The gate then extracts the part.
#[test]
fn part_is_extracted_from_a_full_response() {
    let selection = selected(StatusCode::OK, &file(), Some(ByteRange::Last(100)));
    assert_eq!(selection.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!((selection.skip, selection.length), (900, Some(100)));
    assert_eq!(selection.bounds(), (900, Some(999)));
    let outside = judge(&[], StatusCode::OK, &file(), Some(ByteRange::From(1000)));
    let problem = Problem::RangeNotSatisfiable { complete_length: 1000 };
    assert_eq!(outside, Err(Refusal::Problem(problem)));
}

#[test]
fn empty_file_and_unknown_length_are_sent_whole() {
    let empty = map(&[(CONTENT_LENGTH, "0")]);
    let selection = selected(StatusCode::OK, &empty, Some(ByteRange::Last(5)));
    assert_eq!((selection.status(), selection.length), (StatusCode::OK, Some(0)));
    assert_eq!(selection.bounds(), (0, None));
    let chunked = map(&[(TRANSFER_ENCODING, "chunked")]);
    let selection = selected(StatusCode::OK, &chunked, Some(ByteRange::From(5)));
    assert_eq!((selection.status(), selection.length), (StatusCode::OK, None));
}

#[test]
fn unusable_responses_are_refused() {
    let range = Some(ByteRange::Between(10, 19));
    let unusable = |status, response: &HeaderMap, range| {
        matches!(judge(&[], status, response, range), Err(Refusal::Unusable(_)))
    };
    for (text, length) in [
        ("bytes 10-18/1000", "9"),
        ("bytes 10-19/1000", "11"),
        ("bytes 0-9/1000", "10"),
        ("bytes 10-19/*", "10"),
        ("chapters 10-19/1000", "10"),
    ] {
        let response = part(text, length);
        assert!(unusable(StatusCode::PARTIAL_CONTENT, &response, range), "{text}, {length}");
    }
    assert!(unusable(StatusCode::OK, &HeaderMap::new(), None), "its end cannot be detected");
    let encoded = map(&[(CONTENT_LENGTH, "1000"), (CONTENT_ENCODING, "gzip")]);
    assert!(unusable(StatusCode::OK, &encoded, range), "a part of encoded bytes");
    assert!(selected(StatusCode::OK, &encoded, None).is_encoded);
}

/// The file may be replaced between the plan and the origin's response.
#[test]
fn response_of_a_changed_file_is_judged_again() {
    let changed =
        map(&[(CONTENT_RANGE, "bytes 10-19/1000"), (CONTENT_LENGTH, "10"), (ETAG, "\"b\"")]);
    let (status, range) = (StatusCode::PARTIAL_CONTENT, Some(ByteRange::Between(10, 19)));
    let if_range = judge(&[(IF_RANGE, "\"a\"")], status, &changed, range);
    assert_eq!(if_range, Ok(Judgement::RequestWhole));
    let if_match = judge(&[(IF_MATCH, "\"a\"")], status, &changed, range);
    assert_eq!(if_match, Err(Refusal::Changed(Problem::PreconditionFailed)));
    let if_none_match = judge(&[(IF_NONE_MATCH, "\"b\"")], status, &changed, range);
    assert!(matches!(if_none_match, Ok(Judgement::Send(_))), "sent, not 304: {if_none_match:?}");
}

#[test]
fn continuation_is_one_later_part_of_the_same_file() {
    let later = (RANGE, "bytes=10-19");
    let planned = Ok(Plan::Range(ByteRange::Between(10, 19)));
    assert_eq!(plan_continuation(&[later.clone(), (IF_RANGE, "\"a\"")]), planned);
    assert_eq!(plan_continuation(&[later.clone(), (IF_MATCH, "\"a\"")]), planned);
    for request in [
        vec![later.clone(), (IF_RANGE, "\"b\"")],
        vec![later.clone(), (IF_MATCH, "\"b\"")],
        vec![later, (IF_MATCH, "\"a\""), (IF_NONE_MATCH, "\"a\"")],
        vec![(RANGE, "bytes=10-19,500-509"), (IF_RANGE, "\"a\"")],
        vec![(IF_MATCH, "\"a\"")],
    ] {
        assert_eq!(plan_continuation(&request), Err(EXPIRED), "{request:?}");
    }
}

#[test]
fn continuation_never_gets_the_first_byte() {
    let headers = map(&[(RANGE, "bytes=-1000"), (IF_MATCH, "\"a\"")]);
    let planner = Planner::new(&headers, 4, Some(EXPIRED));
    // Only the response shows that the suffix is the whole file.
    assert_eq!(planner.plan(Some(&file())), Ok(Plan::Range(ByteRange::Last(1000))));
    let all = part("bytes 0-999/1000", "1000");
    let range = Some(ByteRange::Last(1000));
    let refused = Err(Refusal::Problem(EXPIRED));
    assert_eq!(planner.judge(StatusCode::PARTIAL_CONTENT, &all, range), refused);
    assert_eq!(planner.judge(StatusCode::OK, &file(), range), refused);
    assert_eq!(planner.select(StatusCode::OK, &file(), None), Err(Refusal::Problem(EXPIRED)));
}
