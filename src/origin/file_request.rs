//! What an origin is asked: a file or a part of it, in one form for every kind of origin.

use http::HeaderValue;

/// One question.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FileRequest {
    /// Only the fields, as HEAD has them.
    pub head: bool,
    /// The part that is wanted; none for the whole file.
    pub range: Option<ByteRange>,
    /// Only of the file that has this strong entity tag: of another one nothing, or all of it.
    pub only_if: Option<HeaderValue>,
    /// On a new connection, since an idle one turned out to be closed.
    pub fresh: bool,
}

/// One range (RFC 9110 §14.1.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ByteRange {
    /// From this byte to the end.
    From(u64),
    /// From the first to the second, both included.
    Between(u64, u64),
    /// The last so many.
    Last(u64),
}

impl FileRequest {
    /// The fields of a file.
    pub fn head() -> FileRequest {
        FileRequest { head: true, ..FileRequest::default() }
    }

    /// A part of a file, or the whole.
    pub fn get(range: Option<ByteRange>) -> FileRequest {
        FileRequest { range, ..FileRequest::default() }
    }
}

impl ByteRange {
    /// As the field Range says it.
    pub(super) fn text(self) -> String {
        match self {
            ByteRange::From(first) => format!("bytes={first}-"),
            ByteRange::Between(first, last) => format!("bytes={first}-{last}"),
            ByteRange::Last(count) => format!("bytes=-{count}"),
        }
    }

    /// Whether it means anything of a file of this length (RFC 9110 §14.1.2): the end of an empty
    /// file is all of it, although that is no byte.
    pub fn is_satisfiable(self, complete: u64) -> bool {
        match self {
            ByteRange::From(first) | ByteRange::Between(first, _) => first < complete,
            ByteRange::Last(count) => count > 0,
        }
    }

    /// The first and the last byte in a file of this length; none where it lies outside.
    pub fn within(self, complete: u64) -> Option<(u64, u64)> {
        let end = complete.checked_sub(1)?;
        let (first, last) = match self {
            ByteRange::From(first) => (first, end),
            ByteRange::Between(first, last) => (first, last.min(end)),
            ByteRange::Last(0) => return None,
            ByteRange::Last(count) => (complete.saturating_sub(count), end),
        };
        (first <= last).then_some((first, last))
    }
}
