//! The audiobook: a spoken clip, repeated to the length of an audiobook chapter.
//!
//! A clip repeats cleanly because each frame decodes alone (no bit reservoir) and none contains the
//! clip's length. The README in `assets` shows how it was made.

use std::time::Duration;

use bytes::Bytes;

use super::content::Content;

/// The clip: 24 seconds of MPEG-2 layer III, mono, 24 kHz, 64 kbit/s.
const CLIP: &[u8] = include_bytes!("assets/spoken.mp3");
/// The size of each frame in bytes, for 576 samples at that bit rate.
const FRAME_BYTES: usize = 192;
/// The duration of a frame.
const FRAME_DURATION: Duration = Duration::from_millis(24);

/// Builds an audiobook of at least this duration: an info frame, then the clip, repeated.
pub(super) fn build(min: Duration) -> Content {
    let times = min.as_millis().div_ceil(duration(CLIP.len()).as_millis().max(1));
    let times = usize::try_from(times).unwrap_or(1);
    let head = head(CLIP.len().saturating_mul(times));
    Content::repeated(Bytes::from(head), Bytes::from_static(CLIP), times)
}

/// Builds a silent frame with the "Info" tag: the number of frames and bytes that follow. Players
/// need it to seek to any time without reading the whole file.
fn head(audio_len: usize) -> Vec<u8> {
    // The frame header, then the side information (nine bytes for one channel of MPEG-2). All zeros
    // are silence.
    let mut head = CLIP.iter().copied().take(4).collect::<Vec<u8>>();
    head.extend([0; 9]);
    head.extend(b"Info");
    head.extend(3_u32.to_be_bytes()); // flags: the frame and byte counts are present
    head.extend(number(audio_len / FRAME_BYTES));
    head.extend(number(audio_len + FRAME_BYTES));
    head.resize(FRAME_BYTES, 0);
    head
}

fn number(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes()
}

/// Returns the duration of `bytes` bytes of whole frames.
fn duration(bytes: usize) -> Duration {
    FRAME_DURATION.saturating_mul(u32::try_from(bytes / FRAME_BYTES).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::{CHAPTER, WHOLE};
    use super::*;

    #[test]
    fn clip_frames_are_complete_and_independent() {
        assert_eq!(CLIP.len() % FRAME_BYTES, 0);
        for frame in CLIP.chunks(FRAME_BYTES) {
            // The sync word, MPEG-2, layer III, no checksum; 64 kbit/s, 24 kHz, no padding.
            assert_eq!(frame[..3], [0xff, 0xf3, 0x84]);
            // One channel, whose data starts in this frame: main_data_begin is 0.
            assert_eq!(frame[3] >> 6, 0b11);
            assert_eq!(frame[4], 0);
        }
        assert!(!CLIP.windows(4).any(|tag| tag == b"Xing" || tag == b"Info"));
    }

    #[test]
    fn audiobook_exceeds_its_minimum_by_less_than_a_clip() {
        for (min, bytes) in [(CHAPTER, 17_000_000), (WHOLE, 64_000_000)] {
            let audiobook = build(min).to_bytes();
            let lasts = duration(audiobook.len() - FRAME_BYTES);
            assert!(lasts >= min && lasts < min + duration(CLIP.len()), "{lasts:?}");
            assert!(audiobook.len() > bytes);
            let mut frames = audiobook.chunks(FRAME_BYTES);
            assert!(frames.all(|frame| frame.starts_with(&[0xff, 0xf3, 0x84])));
            let frames = u32::try_from(audiobook.len() / FRAME_BYTES - 1).unwrap();
            assert_eq!(audiobook[13..17], *b"Info");
            assert_eq!(audiobook[21..25], frames.to_be_bytes());
            assert_eq!(audiobook[25..29], number(audiobook.len()));
        }
    }
}
