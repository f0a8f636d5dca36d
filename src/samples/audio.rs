//! The audiobook: one spoken clip, repeated until it is as long as an audiobook's chapter.
//!
//! The collection calls it; it calls nothing of ours. A clip can be repeated byte by byte because
//! each of its frames stands alone (no bit reservoir) and none tells how long the clip is. The
//! README beside it says how it was made.

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

/// The whole audiobook, over 17 MB: a frame that tells of all the others, then the clip again and
/// again.
pub(super) fn build() -> Bytes {
    let times = AT_LEAST.as_millis().div_ceil(duration(CLIP.len()).as_millis().max(1));
    let sound = CLIP.repeat(usize::try_from(times).unwrap_or(1));
    Bytes::from([head(sound.len()), sound].concat())
}

/// A silent frame that tells how many frames and bytes follow, and that all are of one length (the
/// "Info" tag), so that a player can jump to any time without reading what lies before it.
fn head(sound: usize) -> Vec<u8> {
    // The frame's own header, and its side information (nine bytes for one channel of MPEG-2), all
    // zeros: silence.
    let mut head = CLIP.iter().copied().take(4).collect::<Vec<u8>>();
    head.extend([0; 9]);
    head.extend(b"Info");
    head.extend(3_u32.to_be_bytes()); // the next two numbers are there
    head.extend(number(sound / FRAME));
    head.extend(number(sound + FRAME));
    head.resize(FRAME, 0);
    head
}

fn number(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes()
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
        let lasts = duration(audiobook.len() - FRAME);
        assert!(lasts >= AT_LEAST && lasts < AT_LEAST + duration(CLIP.len()), "{lasts:?}");
        assert!(audiobook.len() > 10_000_000);
        assert!(audiobook.chunks(FRAME).all(|frame| frame.starts_with(&[0xff, 0xf3, 0x84])));
        let frames = u32::try_from(audiobook.len() / FRAME - 1).unwrap();
        assert_eq!(audiobook[13..17], *b"Info");
        assert_eq!(audiobook[21..25], frames.to_be_bytes());
        assert_eq!(audiobook[25..29], number(audiobook.len()));
    }
}
