//! A budget for HTTP/2 frames that do no work, such as PING. It counts frames by their headers.
//!
//! `tls_stream` passes it the plaintext that `h2` reads, because `h2` exposes no such counters. It
//! validates nothing; `h2` does. A client may send 1 MiB of such frames, plus an eighth of the
//! transferred payload, since a fast download needs many WINDOW_UPDATE frames.

/// The client's connection preface without its SETTINGS (RFC 9113 §3.4), in bytes.
const PREFACE_LENGTH: usize = 24;
/// The header of a frame (RFC 9113 §4.1), in bytes.
const HEADER_LENGTH: usize = 9;
/// Bytes of one request's head that count as work: the largest accepted head.
const MAX_HEAD: usize = 16 * 1024;
/// Bytes of frames without work that every connection may send.
const FREE_NOISE: u64 = 1024 * 1024;
/// The divisor of the transferred payload that gives the additional budget.
const PAYLOAD_PER_NOISE: u64 = 8;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// The frames that a client has sent on one HTTP/2 connection.
#[derive(Debug)]
pub(super) struct FrameBudget {
    /// Missing bytes of the preface.
    preface: usize,
    has_settings: bool,
    /// The received part of a frame's header.
    header: [u8; HEADER_LENGTH],
    header_length: usize,
    frame: Frame,
    /// Received bytes of an incomplete head; none between heads.
    head: Option<usize>,
    heads: u64,
    resets: u64,
    /// Bytes of DATA payload, without padding.
    payload: u64,
    /// Bytes of frames without work.
    noise: u64,
}

/// The frame whose payload is arriving.
#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    kind: u8,
    flags: u8,
    length: usize,
    /// Missing bytes of its payload.
    left: usize,
}

impl FrameBudget {
    pub(super) fn new() -> FrameBudget {
        FrameBudget {
            preface: PREFACE_LENGTH,
            has_settings: false,
            header: [0; HEADER_LENGTH],
            header_length: 0,
            frame: Frame::default(),
            head: None,
            heads: 0,
            resets: 0,
            payload: 0,
            noise: 0,
        }
    }

    /// Counts bytes from the client, in chunks of any length.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        let (preface, mut bytes) = bytes.split_at(bytes.len().min(self.preface));
        self.preface -= preface.len();
        while !bytes.is_empty() {
            bytes = if self.frame.left > 0 {
                self.read_payload(bytes)
            } else {
                self.read_header(bytes)
            };
        }
    }

    /// Whether the preface, its SETTINGS included, is incomplete.
    pub(super) fn awaits_preface(&self) -> bool {
        !self.has_settings
    }

    /// Whether a head has begun to arrive, or the header of a frame that may be one.
    pub(super) fn is_within_head(&self) -> bool {
        self.head.is_some() || self.header_length > 0
    }

    /// The number of complete heads, trailers included.
    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    /// The number of streams that the client has reset.
    pub(super) fn resets(&self) -> u64 {
        self.resets
    }

    /// Whether the budget is overspent. `sent` is the payload that the gate has sent, in bytes.
    pub(super) fn is_overspent(&self, sent: u64) -> bool {
        self.noise > FREE_NOISE + (self.payload + sent) / PAYLOAD_PER_NOISE
    }

    fn read_header<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let (read, rest) = bytes.split_at(bytes.len().min(HEADER_LENGTH - self.header_length));
        for (to, byte) in self.header.iter_mut().skip(self.header_length).zip(read) {
            *to = *byte;
        }
        self.header_length += read.len();
        if self.header_length == HEADER_LENGTH {
            let [a, b, c, kind, flags, ..] = self.header;
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            self.header_length = 0;
            self.begin(Frame { kind, flags, length, left: length });
        }
        rest
    }

    fn begin(&mut self, frame: Frame) {
        self.frame = frame;
        let whole = (HEADER_LENGTH + frame.length) as u64;
        match frame.kind {
            DATA if frame.length == 0 => self.noise += whole,
            // The first byte of the payload has the length of the padding.
            DATA if frame.flags & PADDED != 0 => {}
            DATA => self.payload += frame.length as u64,
            HEADERS => {
                self.head = Some(0);
                self.read_head(frame.length);
            }
            CONTINUATION => {
                self.noise += HEADER_LENGTH as u64;
                self.read_head(frame.length);
            }
            kind => {
                self.resets += u64::from(kind == RST_STREAM);
                self.noise += whole;
            }
        }
        if frame.length == 0 {
            self.end();
        }
    }

    /// Counts a part of a head. Bytes beyond the largest head are no work.
    fn read_head(&mut self, length: usize) {
        let before = self.head.unwrap_or(MAX_HEAD);
        let head = before.saturating_add(length);
        self.noise += (head.max(MAX_HEAD) - before.max(MAX_HEAD)) as u64;
        self.head = Some(head);
    }

    fn read_payload<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let Frame { kind, flags, length, left } = self.frame;
        if let (DATA, true, true, Some(padding)) =
            (kind, flags & PADDED != 0, left == length, bytes.first())
        {
            match length.saturating_sub(1 + usize::from(*padding)) {
                0 => self.noise += (HEADER_LENGTH + length) as u64,
                data => self.payload += data as u64,
            }
        }
        let (read, rest) = bytes.split_at(bytes.len().min(left));
        self.frame.left -= read.len();
        if self.frame.left == 0 {
            self.end();
        }
        rest
    }

    fn end(&mut self) {
        let Frame { kind, flags, .. } = self.frame;
        match kind {
            HEADERS | CONTINUATION if flags & END_HEADERS != 0 => {
                self.heads += 1;
                self.head = None;
            }
            SETTINGS => self.has_settings = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.extend(payload);
        bytes
    }

    fn opening() -> Vec<u8> {
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, &[0; 12])].concat()
    }

    fn after(frames: &[Vec<u8>]) -> FrameBudget {
        let mut budget = FrameBudget::new();
        budget.read(&opening());
        frames.iter().for_each(|frame| budget.read(frame));
        budget
    }

    fn noise(frames: &[Vec<u8>]) -> u64 {
        after(frames).noise - after(&[]).noise
    }

    #[test]
    fn preface_ends_with_its_settings() {
        let bytes = opening();
        let mut budget = FrameBudget::new();
        for byte in &bytes[..bytes.len() - 1] {
            budget.read(std::slice::from_ref(byte));
            assert!(budget.awaits_preface());
        }
        budget.read(&bytes[bytes.len() - 1..]);
        assert!(!budget.awaits_preface() && !budget.is_within_head());
    }

    #[test]
    fn frames_without_work_are_counted_with_their_header() {
        assert_eq!(noise(&[frame(6, 0, &[0; 8])]), 17, "PING");
        assert_eq!(noise(&[frame(8, 0, &[0; 4])]), 13, "WINDOW_UPDATE");
        assert_eq!(noise(&[frame(SETTINGS, 0, &[0; 6])]), 15);
        assert_eq!(noise(&[frame(RST_STREAM, 0, &[0; 4])]), 13);
        assert_eq!(noise(&[frame(0xbe, 0, &[0; 100])]), 109, "a frame of an unknown type");
        assert_eq!(noise(&[frame(DATA, 0, &[])]), 9, "empty DATA");
        assert_eq!(noise(&[frame(DATA, PADDED, &[3, 0, 0, 0])]), 13, "DATA that is padding");
        assert_eq!(noise(&[frame(CONTINUATION, 0, &[])]), 9);
    }

    #[test]
    fn requests_and_their_data_are_work() {
        let request = [frame(HEADERS, END_HEADERS, &[0; 500]), frame(DATA, 0, &[0; 1000])];
        let padded = frame(DATA, PADDED, &[&[4_u8][..], &[0; 104]].concat());
        let budget = after(&[request.concat(), padded]);
        assert_eq!(budget.noise, after(&[]).noise);
        assert_eq!((budget.payload, budget.heads()), (1100, 1));
        let in_parts =
            [frame(HEADERS, 0, &[0; 10_000]), frame(CONTINUATION, END_HEADERS, &[0; 6000])];
        assert_eq!(noise(&in_parts), HEADER_LENGTH as u64, "the header of the second frame");
    }

    #[test]
    fn continuation_flood_is_no_work() {
        let mut frames = vec![frame(HEADERS, 0, &[0; 10])];
        frames.extend((0..100).map(|_| frame(CONTINUATION, 0, &[0; 16_000])));
        let noise = noise(&frames);
        assert!(noise > 1_550_000, "{noise}");
        assert!(after(&frames).is_overspent(0) && after(&frames).is_within_head());
        assert_eq!(after(&frames).heads(), 0);
    }

    #[test]
    fn counts_do_not_depend_on_chunk_lengths() {
        let stream = [
            opening(),
            frame(HEADERS, 0, &[1; 300]),
            frame(CONTINUATION, END_HEADERS, &[2; 20_000]),
            frame(DATA, PADDED, &[&[7_u8][..], &[0; 57]].concat()),
            frame(DATA, 0, &[]),
            frame(RST_STREAM, 0, &[0; 4]),
            frame(6, 0, &[0; 8]),
        ]
        .concat();
        let counts = |size: usize| {
            let mut budget = FrameBudget::new();
            stream.chunks(size).for_each(|chunk| budget.read(chunk));
            assert!(!budget.is_within_head(), "{size}");
            (budget.heads, budget.resets, budget.payload, budget.noise)
        };
        let whole = counts(stream.len());
        assert_eq!((whole.0, whole.1, whole.2), (1, 1, 50));
        for size in [1, 2, 3, 8, 9, 10, 100, 4096] {
            assert_eq!(counts(size), whole, "{size}");
        }
    }

    #[test]
    fn partial_head_is_detected() {
        let head = frame(HEADERS, END_HEADERS, &[0; 20]);
        for length in 1..head.len() {
            assert!(after(&[head[..length].to_vec()]).is_within_head(), "{length}");
        }
        assert!(!after(&[head]).is_within_head());
        assert!(after(&[frame(HEADERS, 0, &[0; 20])]).is_within_head());
    }

    #[test]
    fn transfer_pays_for_its_window_updates() {
        let pings = after(&vec![frame(6, 0, &[0; 8]); 60_000]);
        assert!(!pings.is_overspent(0));
        let flood = after(&vec![frame(6, 0, &[0; 8]); 62_000]);
        assert!(flood.is_overspent(0), "1 MiB of PINGs");
        assert!(flood.is_overspent(17 * 1000), "their acknowledgements add little budget");
        // A client that opens its window for every 1 KiB still downloads a gigabyte.
        let updates = after(&vec![frame(8, 0, &[0; 4]); 1 << 20]);
        assert!(!updates.is_overspent(1 << 30) && updates.is_overspent(1 << 20));
        let resets = after(&vec![frame(RST_STREAM, 0, &[0; 4]); 7]);
        assert_eq!(resets.resets(), 7);
    }
}
