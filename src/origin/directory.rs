//! An origin address that is a directory of this machine.
//!
//! Only regular files are served: a FIFO would block a thread, and a device may have side effects.
//! A symbolic link is followed if its target is below the directory. A link that leads out of it
//! counts as a missing file, unless `follow_symlinks` is set. With `follow_symlinks`, every user
//! who may write to the directory decides what is served. The kernel resolves and opens a path in
//! one call, so a link cannot be swapped in between.
//!
//! If a file is written to during a read, the body breaks, so that no reader gets a mix of two
//! versions. Replacing a file by a rename is safe.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, LAST_MODIFIED};
use http::{HeaderValue, Response, StatusCode};
use percent_encoding::percent_decode_str;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use tokio::task::{JoinHandle, spawn_blocking};

use super::Settings;
use super::body::{Body, Broken, bodiless, not_satisfiable};
use super::connection_limit::{ConnectionLimit, ConnectionLimits, Slot};
use super::exchange::Failure;
use super::file_request::FileRequest;
use super::reachability::Outcome;
use crate::path::FilePath;

/// Start of the year 10000, in seconds since the epoch.
const YEAR_10000: u64 = 253_402_300_800;
/// Size of one read in bytes. A stalled reader holds this much of a file in memory.
const READ_SIZE: u64 = 64 * 1024;

/// Most retries of a path lookup while concurrent renames disturb it.
const MAX_LOOKUP_RETRIES: usize = 16;

#[derive(Debug)]
pub(super) struct Directory {
    root: Arc<Root>,
    /// Limit of open files.
    limit: Arc<ConnectionLimit>,
    queue_timeout: Duration,
}

#[derive(Debug)]
struct Root {
    path: PathBuf,
    follow_symlinks: bool,
}

impl Directory {
    pub(super) fn new(
        settings: &Settings,
        directory: &Path,
        limits: &ConnectionLimits,
    ) -> Result<Directory, String> {
        let follow_symlinks = settings.follow_symlinks;
        let root = Root { path: directory.to_owned(), follow_symlinks };
        let shown = directory.display();
        root.open_below(Path::new(".")).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::NOSYS | Errno::PERM) if !follow_symlinks => format!(
                "{shown} cannot be used: this kernel, its container, or RestrictSUIDSGID= of its \
                 systemd unit forbids openat2 (Linux 5.6), which keeps links from leading out of a \
                 directory. Allow it, or write follow_symlinks = true if only you can make links \
                 there"
            ),
            _ => format!(
                "{shown} is no directory that can be read ({error}). Make it, or name another"
            ),
        })?;
        let (limit, queue_timeout) = (limits.of_directory(directory), settings.queue_timeout());
        Ok(Directory { root: Arc::new(root), limit, queue_timeout })
    }

    /// Checks that the directory can be listed and is not empty.
    pub(super) fn probe(&self) -> Outcome {
        match std::fs::read_dir(&self.root.path).map(|mut entries| entries.next().transpose()) {
            Ok(Ok(Some(_))) => Outcome::Reached("the directory can be read".to_owned()),
            Ok(Ok(None)) => Outcome::Doubtful("the directory is empty. Put files there".to_owned()),
            Ok(Err(error)) | Err(error) => Outcome::Failed(format!(
                "the directory cannot be read: {error}. Check its owner and mode"
            )),
        }
    }

    pub(super) async fn send(
        &self,
        path: &FilePath,
        request: &FileRequest,
    ) -> Result<Response<Body>, Failure> {
        let Ok(name) = percent_decode_str(path.as_str()).decode_utf8() else {
            return Ok(bodiless(StatusCode::NOT_FOUND));
        };
        let slot = self.limit.slot_within(self.queue_timeout).await.ok_or(Failure::Busy)?;
        let (root, name) = (self.root.clone(), PathBuf::from(name.as_ref()));
        // The thread owns the slot, so a hanging disk holds it even after the request timed out.
        let opened = spawn_blocking(move || Ok((root.open_file(&name)?, slot))).await;
        let opened = opened.unwrap_or_else(|error| Err(io::Error::other(error)));
        match opened.map(|(opened, slot)| opened.map(|(file, metadata)| (file, metadata, slot))) {
            Ok(Some((file, metadata, slot))) => respond(file, &metadata, request, slot)
                .map_err(|error| Failure::Broken(error.to_string())),
            Ok(None) => Ok(bodiless(StatusCode::NOT_FOUND)),
            // The fault of one file, and no evidence against the directory.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Ok(bodiless(StatusCode::FORBIDDEN))
            }
            Err(error) if Failure::is_of_descriptors(&error) => Err(Failure::Busy),
            Err(error) => Err(Failure::Broken(error.to_string())),
        }
    }
}

impl Root {
    /// Opens a regular file below the directory. Returns `None` if there is none.
    fn open_file(&self, name: &Path) -> io::Result<Option<(File, Metadata)>> {
        let file = match self.open_below(name) {
            Ok(file) => File::from(file),
            Err(error) => {
                if Errno::from_io_error(&error) == Some(Errno::XDEV) {
                    let directory = self.path.display();
                    tracing::warn!(
                        %directory,
                        "a symbolic link leads out of an origin's directory and was not followed; \
                         follow_symlinks allows it"
                    );
                }
                return if is_no_file(&error) { Ok(None) } else { Err(error) };
            }
        };
        let metadata = file.metadata()?;
        Ok(metadata.is_file().then_some((file, metadata)))
    }

    /// Opens a relative path below the directory. It does not block on a FIFO.
    fn open_below(&self, name: &Path) -> io::Result<OwnedFd> {
        // Opened each time, since another directory may have been moved or mounted there.
        let here = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, &self.path, here, Mode::empty())?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if self.follow_symlinks {
            return Ok(openat(&root, name, flags, Mode::empty())?);
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let mut lookup_retries = 0;
        loop {
            match openat2(&root, name, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if lookup_retries < MAX_LOOKUP_RETRIES => lookup_retries += 1,
                opened => return Ok(opened?),
            }
        }
    }
}

/// Returns whether an error means that there is no such file.
fn is_no_file(error: &io::Error) -> bool {
    let by_kind = [
        ErrorKind::NotFound,
        ErrorKind::NotADirectory,
        ErrorKind::InvalidFilename,
        ErrorKind::IsADirectory,
        ErrorKind::InvalidInput,
    ];
    // Symbolic link loops, links that lead out, sockets, devices without a driver.
    let by_number = [Errno::LOOP, Errno::XDEV, Errno::NXIO, Errno::NODEV, Errno::NAMETOOLONG];
    by_kind.contains(&error.kind())
        || Errno::from_io_error(error).is_some_and(|number| by_number.contains(&number))
}

fn respond(
    file: File,
    metadata: &Metadata,
    request: &FileRequest,
    slot: Slot,
) -> io::Result<Response<Body>> {
    let stamp @ (complete, modified) = stamp(metadata)?;
    let tag = tag_of(metadata, modified);
    let tag_matches = request.only_if.as_ref().is_none_or(|wanted| Some(wanted) == tag.as_ref());
    let mut response = Response::new(Body::empty());
    let (first, length) =
        match request.range.filter(|_| tag_matches).map(|range| (range, range.within(complete))) {
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
    fields.extend(tag.map(|tag| (ETAG, tag)));
    fields.extend(http_date(modified).map(|date| (LAST_MODIFIED, date)));
    if !request.head {
        let open =
            OpenFile { file, seek: (first > 0).then_some(first), left: length, stamp, _slot: slot };
        *response.body_mut() = Body::file(Reading { idle: Some(open), pending: None });
    }
    Ok(response)
}

/// Returns the strong entity tag of a file, made of its inode, modification time and length.
fn tag_of(metadata: &Metadata, modified: SystemTime) -> Option<HeaderValue> {
    let micros = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let (inode, length) = (metadata.ino(), metadata.len());
    HeaderValue::try_from(format!("\"{inode:x}-{micros:x}-{length:x}\"")).ok()
}

/// Formats an HTTP date. Returns `None` for a file's time that no HTTP date can express.
fn http_date(at: SystemTime) -> Option<HeaderValue> {
    let since = at.duration_since(UNIX_EPOCH).ok().filter(|since| since.as_secs() < YEAR_10000)?;
    HeaderValue::try_from(httpdate::fmt_http_date(UNIX_EPOCH + since)).ok()
}

/// A file that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    /// `None` during a read, and after an error.
    idle: Option<OpenFile>,
    pending: Option<JoinHandle<io::Result<(Bytes, OpenFile)>>>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    /// Start of the next read, if it is not the end of the last one.
    seek: Option<u64>,
    left: u64,
    /// The file's length and modification time, as in the response head.
    stamp: (u64, SystemTime),
    /// Freed when the file is closed.
    _slot: Slot,
}

impl Reading {
    /// Polls for the next bytes. Each read checks that the file has not changed.
    pub(super) fn poll_bytes(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Broken>>> {
        if let Some(open) = self.idle.take_if(|open| open.left > 0) {
            self.pending = Some(spawn_blocking(|| open.read()));
        }
        let Some(reading) = &mut self.pending else { return Poll::Ready(None) };
        let read = ready!(Pin::new(reading).poll(context));
        self.pending = None;
        match read {
            Ok(Ok((bytes, open))) => {
                self.idle = Some(open);
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

impl OpenFile {
    fn read(mut self) -> io::Result<(Bytes, OpenFile)> {
        if let Some(first) = self.seek.take() {
            self.file.seek(SeekFrom::Start(first))?;
        }
        let wanted = self.left.min(READ_SIZE);
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
    use super::*;

    #[test]
    fn dates_outside_the_http_range_have_no_field() {
        let epoch = UNIX_EPOCH + Duration::from_secs(1_767_600_000);
        assert_eq!(http_date(epoch).unwrap(), "Mon, 05 Jan 2026 08:00:00 GMT");
        assert_eq!(http_date(UNIX_EPOCH - Duration::from_secs(1)), None);
        assert_eq!(http_date(UNIX_EPOCH + Duration::from_secs(YEAR_10000)), None);
        assert!(http_date(UNIX_EPOCH + Duration::from_secs(YEAR_10000 - 1)).is_some());
    }
}
