//! A place that is a directory of this machine.
//!
//! Links in it are followed, wherever they lead: who may write there says what is served. A file that is written to while
//! it is read breaks the body, so that no reader gets a part of the old one and a part of the new; a new file that is moved
//! into its place does not.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, LAST_MODIFIED};
use http::{HeaderValue, Response, StatusCode};
use object_store::local::LocalFileSystem;
use object_store::{GetOptions, GetResult, GetResultPayload, ObjectMeta, ObjectStore};
use tokio::task::{JoinHandle, spawn_blocking};

use super::ask::Ask;
use super::body::{Body, Broken, bodiless, not_satisfiable};
use super::exchange::Failure;
use crate::path::FilePath;

/// The first second of the year 10000, since the epoch.
const YEAR_10000: u64 = 253_402_300_800;
/// How much is read at once: what a reader that stalls holds of a file.
const READ: u64 = 64 * 1024;

#[derive(Debug)]
pub(super) struct Directory(LocalFileSystem);

impl Directory {
    pub(super) fn new(directory: &Path) -> Result<Directory, String> {
        let shown = directory.display();
        if !directory.is_dir() {
            return Err(format!("{shown} is no directory that can be read. Make it, or name another"));
        }
        match LocalFileSystem::new_with_prefix(directory) {
            Ok(files) => Ok(Directory(files)),
            Err(error) => Err(format!("{shown} cannot be used: {error}")),
        }
    }

    pub(super) async fn ask(&self, path: &FilePath, ask: &Ask) -> Result<Response<Body>, Failure> {
        let Ok(location) = object_store::path::Path::from_url_path(path.as_str()) else {
            return Ok(bodiless(StatusCode::NOT_FOUND));
        };
        match self.0.get_opts(&location, GetOptions::default()).await {
            Ok(found) => answer(found, ask).map_err(Failure::Broken),
            Err(error) if is_no_file(&error) => Ok(bodiless(StatusCode::NOT_FOUND)),
            Err(error) => Err(Failure::Broken(error.to_string())),
        }
    }
}

/// Whether an error says that there is no such file, in whatever way.
fn is_no_file(error: &object_store::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(
            io,
            Some(
                ErrorKind::NotFound
                    | ErrorKind::NotADirectory
                    | ErrorKind::InvalidFilename
                    | ErrorKind::IsADirectory
            )
        ) {
            return true;
        }
        cause = error.source();
    }
    matches!(error, object_store::Error::NotFound { .. } | object_store::Error::InvalidPath { .. })
}

fn answer(found: GetResult, ask: &Ask) -> Result<Response<Body>, String> {
    let GetResultPayload::File(file, _) = found.payload else {
        return Err("a directory gave no file".to_owned());
    };
    let complete = found.meta.size;
    let is_it = ask.only_if.as_ref().is_none_or(|tag| Some(tag.as_bytes()) == tag_of(&found.meta));
    let mut response = Response::new(Body::empty());
    let (first, length) = match ask.range.filter(|_| is_it).map(|asked| (asked, asked.within(complete))) {
        None => (0, complete),
        Some((_, Some((first, last)))) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let field = HeaderValue::try_from(format!("bytes {first}-{last}/{complete}"));
            response.headers_mut().extend(field.ok().map(|field| (CONTENT_RANGE, field)));
            (first, last - first + 1)
        }
        Some((_, None)) => return Ok(not_satisfiable(complete)),
    };
    let fields = response.headers_mut();
    fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
    fields.extend(tag_of(&found.meta).and_then(|tag| Some((ETAG, HeaderValue::from_bytes(tag).ok()?))));
    let modified = SystemTime::from(found.meta.last_modified);
    fields.extend(http_date(modified).map(|date| (LAST_MODIFIED, date)));
    if !ask.head {
        let stamp = (complete, modified);
        let open = Open { file, seek: (first > 0).then_some(first), left: length, stamp };
        *response.body_mut() = Body::file(Reading { at_rest: Some(open), under_way: None });
    }
    Ok(response)
}

/// A moment as HTTP writes it; none for one that it cannot write, which a file may have all the same.
fn http_date(at: SystemTime) -> Option<HeaderValue> {
    let since = at.duration_since(UNIX_EPOCH).ok().filter(|since| since.as_secs() < YEAR_10000)?;
    HeaderValue::try_from(httpdate::fmt_http_date(UNIX_EPOCH + since)).ok()
}

fn tag_of(meta: &ObjectMeta) -> Option<&[u8]> {
    meta.e_tag.as_ref().map(String::as_bytes)
}

/// A file that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    /// None while a read is under way, and after an error.
    at_rest: Option<Open>,
    under_way: Option<JoinHandle<io::Result<(Bytes, Open)>>>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Where the next read begins, if not where the last one ended.
    seek: Option<u64>,
    left: u64,
    /// The file as the head of the answer tells of it: its length, and when it was written to.
    stamp: (u64, SystemTime),
}

impl Reading {
    /// The next bytes; each read has the file's state looked at, so that none of a file that has changed is given.
    pub(super) fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        if let Some(open) = self.at_rest.take_if(|open| open.left > 0) {
            self.under_way = Some(spawn_blocking(|| open.read()));
        }
        let Some(reading) = &mut self.under_way else { return Poll::Ready(None) };
        let read = ready!(Pin::new(reading).poll(context));
        self.under_way = None;
        match read {
            Ok(Ok((bytes, open))) => {
                self.at_rest = Some(open);
                Poll::Ready(Some(Ok(bytes)))
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "a file of a directory could not be read to its end");
                Poll::Ready(Some(Err(Broken)))
            }
            Err(_) => Poll::Ready(Some(Err(Broken))),
        }
    }
}

impl Open {
    fn read(mut self) -> io::Result<(Bytes, Open)> {
        if let Some(first) = self.seek.take() {
            self.file.seek(SeekFrom::Start(first))?;
        }
        let wanted = self.left.min(READ);
        let mut bytes = Vec::with_capacity(usize::try_from(wanted).unwrap_or_default());
        (&self.file).take(wanted).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != wanted || stamp(&self.file.metadata()?)? != self.stamp {
            return Err(io::Error::other("it was written to while it was read"));
        }
        self.left -= wanted;
        Ok((Bytes::from(bytes), self))
    }
}

fn stamp(metadata: &Metadata) -> io::Result<(u64, SystemTime)> {
    Ok((metadata.len(), metadata.modified()?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_file_of_any_date_can_be_told_of() {
        let epoch = UNIX_EPOCH + Duration::from_secs(1_767_600_000);
        assert_eq!(http_date(epoch).unwrap(), "Mon, 05 Jan 2026 08:00:00 GMT");
        assert_eq!(http_date(UNIX_EPOCH - Duration::from_secs(1)), None);
        assert_eq!(http_date(UNIX_EPOCH + Duration::from_secs(YEAR_10000)), None);
        assert!(http_date(UNIX_EPOCH + Duration::from_secs(YEAR_10000 - 1)).is_some());
    }
}
