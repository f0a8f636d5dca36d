//! The bytes of a file: a beginning, then a block that repeats. A long file takes no more memory
//! than a short one. A file can be paced, so that a client does not have all of it at once.

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

/// The maximum size of one body frame, in bytes.
const SLICE_BYTES: usize = 128 * 1024;
/// The slices per second of a paced body.
const SLICES_PER_SECOND: u32 = 8;

/// The bytes of a file. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Content {
    beginning: Bytes,
    block: Bytes,
    len: usize,
    /// The bytes per second of a paced body.
    pace: Option<usize>,
}

impl Content {
    /// Creates the content of a file that is in memory.
    pub(super) fn whole(bytes: Bytes) -> Content {
        Content { len: bytes.len(), beginning: bytes, block: Bytes::new(), pace: None }
    }

    /// Creates the content of a file that consists of a beginning and this many equal blocks.
    pub(super) fn repeated(beginning: Bytes, block: Bytes, times: usize) -> Content {
        let len = beginning.len().saturating_add(block.len().saturating_mul(times));
        Content { beginning, block, len, pace: None }
    }

    /// Returns the same content, of which a body sends this number of bytes per second.
    pub(super) fn paced(self, bytes_per_second: usize) -> Content {
        Content { pace: Some(bytes_per_second), ..self }
    }

    pub(super) fn is_paced(&self) -> bool {
        self.pace.is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns these bytes as a body.
    pub(super) fn slices(&self, range: Range<usize>) -> Slices {
        let range = range.start.min(self.len)..range.end.min(self.len);
        Slices { content: self.clone(), range, pause: None }
    }

    /// Returns all bytes in one buffer.
    pub(super) fn to_bytes(&self) -> Bytes {
        if self.beginning.len() == self.len {
            return self.beginning.clone();
        }
        self.slices(0..self.len).fold(Vec::with_capacity(self.len), joined).into()
    }

    /// Returns the SHA-256, in lower-case hexadecimal.
    pub(super) fn sha256(&self) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        self.slices(0..self.len).for_each(|slice| context.update(&slice));
        HEXLOWER.encode(context.finish().as_ref())
    }
}

fn joined(mut all: Vec<u8>, slice: Bytes) -> Vec<u8> {
    all.extend_from_slice(&slice);
    all
}

/// A part of a file in slices that share its memory. It is a response body.
#[derive(Debug)]
pub(super) struct Slices {
    content: Content,
    range: Range<usize>,
    /// The wait before the next slice of a paced body.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Slices {
    /// Creates a body in memory.
    pub(super) fn of(bytes: Bytes) -> Slices {
        let content = Content::whole(bytes);
        Slices { range: 0..content.len, content, pause: None }
    }

    pub(super) fn len(&self) -> usize {
        self.range.len()
    }

    /// Returns the next bytes, at most this number.
    fn next_of(&mut self, most: usize) -> Option<Bytes> {
        let Content { beginning, block, .. } = &self.content;
        let wanted = self.range.len().min(most);
        let (from, start) = match self.range.start.checked_sub(beginning.len()) {
            Some(after) => (block, after.checked_rem(block.len())?),
            None => (beginning, self.range.start),
        };
        let slice = from.slice(start..from.len().min(start + wanted));
        self.range.start += slice.len();
        (!slice.is_empty()).then_some(slice)
    }
}

impl Iterator for Slices {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.next_of(SLICE_BYTES)
    }
}

impl Body for Slices {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut most = SLICE_BYTES;
        if let Some(pace) = self.content.pace {
            let interval = Duration::from_secs(1) / SLICES_PER_SECOND;
            most = (pace / SLICES_PER_SECOND as usize).max(1);
            match &mut self.pause {
                Some(pause) => {
                    ready!(pause.as_mut().poll(context));
                    pause.as_mut().reset(Instant::now() + interval);
                }
                None => self.pause = Some(Box::pin(sleep(interval))),
            }
        }
        Poll::Ready(self.next_of(most).map(|slice| Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.range.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.range.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn body_yields_slices_of_the_shared_bytes() {
        let content = Bytes::from(vec![7; 2 * SLICE_BYTES + 1]);
        let mut at = 0;
        for slice in Slices::of(content.clone()) {
            assert_eq!(slice.as_ptr(), content[at..].as_ptr());
            assert!(slice.len() <= SLICE_BYTES);
            at += slice.len();
        }
        assert_eq!(at, content.len());
    }

    #[tokio::test(start_paused = true)]
    async fn paced_body_takes_its_time() {
        let content = Content::whole(Bytes::from(vec![7; 4096])).paced(1024);
        let began = Instant::now();
        let body = BodyExt::collect(content.slices(0..4096)).await.unwrap().to_bytes();
        assert_eq!(body.len(), 4096);
        let took = began.elapsed();
        assert!(took > Duration::from_secs(3) && took < Duration::from_secs(5), "{took:?}");
        let first = content.slices(0..2).frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap().len(), 2);
        assert!(began.elapsed() == took, "the first bytes do not wait");
    }

    #[test]
    fn every_range_of_a_repeated_block_has_its_bytes() {
        let content = Content::repeated(Bytes::from("head"), Bytes::from("abc"), 3);
        let all = b"headabcabcabc";
        assert_eq!(content.to_bytes(), &all[..]);
        let whole = Content::whole(Bytes::from_static(all));
        assert_eq!(content.sha256(), whole.sha256());
        for start in 0..=all.len() {
            for end in start..=all.len() {
                let slices = content.slices(start..end);
                assert_eq!(slices.len(), end - start);
                assert_eq!(slices.fold(Vec::new(), joined), all[start..end], "{start}..{end}");
            }
        }
    }
}
