//! A request for a file or a part of it, in one form for every kind of origin.

use http::HeaderValue;

/// A request for one file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct FileRequest {
    /// Whether to request only the fields, like HEAD.
    pub head: bool,
    /// The requested range; `None` for the whole file.
    pub range: Option<ByteRange>,
    /// Sends the range only if the file has this strong entity tag. For another file, the origin
    /// sends no body or the whole file.
    pub only_if: Option<HeaderValue>,
    /// Whether to use a new connection, because an idle one was closed.
    pub fresh: bool,
}

/// One byte range (RFC 9110 §14.1.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ByteRange {
    /// From this byte to the end.
    From(u64),
    /// From the first to the second byte, both inclusive.
    Between(u64, u64),
    /// This many bytes at the end of the file.
    Last(u64),
}

impl FileRequest {
    /// Requests the fields of a file.
    pub(crate) fn head() -> FileRequest {
        FileRequest { head: true, ..FileRequest::default() }
    }

    /// Requests a range of a file, or the whole file.
    pub(crate) fn get(range: Option<ByteRange>) -> FileRequest {
        FileRequest { range, ..FileRequest::default() }
    }
}

impl ByteRange {
    /// Returns the value of the Range field.
    pub(super) fn text(self) -> String {
        match self {
            ByteRange::From(first) => format!("bytes={first}-"),
            ByteRange::Between(first, last) => format!("bytes={first}-{last}"),
            ByteRange::Last(count) => format!("bytes=-{count}"),
        }
    }

    /// Returns whether the range is satisfiable for a file of this length (RFC 9110 §14.1.2). A
    /// suffix of an empty file is satisfiable: it selects the whole, empty file.
    pub(crate) fn is_satisfiable(self, complete: u64) -> bool {
        match self {
            ByteRange::From(first) | ByteRange::Between(first, _) => first < complete,
            ByteRange::Last(count) => count > 0,
        }
    }

    /// Returns the first and last byte in a file of this length; `None` if the range selects none.
    pub(crate) fn within(self, complete: u64) -> Option<(u64, u64)> {
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
