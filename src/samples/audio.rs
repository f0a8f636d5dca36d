//! The audiobook: one spoken clip, repeated until it is as long as an audiobook's chapter.
//!
//! The collection calls it; it calls nothing of ours. A clip can be repeated byte by byte because each of its
//! frames stands alone (no bit reservoir) and none tells how long the clip is. The README beside it says how it
//! was made.

use std::time::Duration;

use bytes::Bytes;

/// 24 seconds of MPEG-2 layer III, mono, 24 kHz, 64 kbit/s.
const CLIP: &[u8] = include_bytes!("assets/spoken.mp3");
/// How many bytes each of its frames has: 576 samples at that rate.
const FRAME: usize = 192;
/// How long a frame sounds.
const FRAME_LASTS: Duration = Duration::from_millis(24);
/// How long the audiobook is at least.
const AT_LEAST: Duration = Duration::from_secs(36 * 60);

/// The whole audiobook, over 17 MB.
pub(super) fn build() -> Bytes {
    let times = AT_LEAST.as_millis().div_ceil(duration(CLIP.len()).as_millis().max(1));
    Bytes::from(CLIP.repeat(usize::try_from(times).unwrap_or(1)))
}

/// How long so many bytes of whole frames sound.
fn duration(bytes: usize) -> Duration {
    FRAME_LASTS.saturating_mul(u32::try_from(bytes / FRAME).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_of_the_clip_is_whole_and_stands_alone() {
        assert_eq!(CLIP.len() % FRAME, 0);
        for frame in CLIP.chunks(FRAME) {
            // The sync word, MPEG-2, layer III, no checksum; 64 kbit/s, 24 kHz, no padding.
            assert_eq!(frame[..3], [0xff, 0xf3, 0x84]);
            // One channel, whose data starts in this frame: main_data_begin is 0.
            assert_eq!(frame[3] >> 6, 0b11);
            assert_eq!(frame[4], 0);
        }
        assert!(!CLIP.windows(4).any(|tag| tag == b"Xing" || tag == b"Info"));
    }

    #[test]
    fn the_audiobook_is_long_enough_and_no_longer_than_a_clip_more() {
        let audiobook = build();
        let lasts = duration(audiobook.len());
        assert!(lasts >= AT_LEAST && lasts < AT_LEAST + duration(CLIP.len()), "{lasts:?}");
        assert!(audiobook.len() > 10_000_000);
        assert!(audiobook.chunks(FRAME).all(|frame| frame.starts_with(&[0xff, 0xf3, 0x84])));
    }
}
