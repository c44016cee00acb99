//! HTTP/2 with prior knowledge, RFC 9113: from the client preface to the end of the first header block.

use std::borrow::Cow;

use l4_core::Parsed;

/// The client preface, section 3.4: what looks like a request head, and what follows it.
pub(crate) const PREFACE_HEAD: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
pub(crate) const PREFACE_REST: &[u8] = b"SM\r\n\r\n";

/// Finds the first header block in the frames behind the preface. Borrowed if it came in one piece.
///
/// Frames that a client cannot send before its first request are `Not`, by their header alone where that suffices.
pub(crate) fn header_block(frames: &[u8]) -> Parsed<Cow<'_, [u8]>> {
    let mut rest = frames;
    for left in (0..MAX_FRAMES).rev() {
        let Some(header) = FrameHeader::read(rest) else {
            return Parsed::Not;
        };
        let is_headers = header.kind.map(|kind| kind == HEADERS);
        if !header.is_acceptable() || left == 0 && is_headers == Some(false) {
            return Parsed::Not;
        }
        let padding = match header.padding(rest) {
            Parsed::Done(padding) => padding,
            Parsed::More(n) => return Parsed::More(n),
            Parsed::Not => return Parsed::Not,
        };
        let frame = match header.frame(rest) {
            Parsed::Done(frame) => frame,
            Parsed::More(n) => return Parsed::More(n),
            Parsed::Not => return Parsed::Not,
        };
        rest = frame.rest;
        if is_headers == Some(true) {
            let padded = frame.payload.len() - padding;
            let fragment = frame
                .payload
                .get(header.overhead()..padded)
                .unwrap_or_default();
            return match header.flags & END_HEADERS {
                0 => continued(fragment, header.stream, rest),
                _ => Parsed::Done(Cow::Borrowed(fragment)),
            };
        }
    }
    Parsed::Not
}

/// Joins the CONTINUATION frames to a header block, section 6.10.
fn continued<'a>(first: &[u8], stream: u32, frames: &'a [u8]) -> Parsed<Cow<'a, [u8]>> {
    let mut rest = frames;
    loop {
        let Some(header) = FrameHeader::read(rest) else {
            return Parsed::Not;
        };
        // Nothing may come in between.
        if header.kind.is_some_and(|kind| kind != CONTINUATION)
            || header.is_whole && header.stream != stream
        {
            return Parsed::Not;
        }
        match header.frame(rest) {
            Parsed::Done(frame) => rest = frame.rest,
            Parsed::More(n) => return Parsed::More(n),
            Parsed::Not => return Parsed::Not,
        }
        if header.flags & END_HEADERS != 0 {
            break;
        }
    }
    // All pieces are there: only now is memory taken.
    let mut block = first.to_vec();
    let mut joined = frames;
    while joined.len() > rest.len() {
        let Some(header) = FrameHeader::read(joined) else {
            return Parsed::Not;
        };
        let Parsed::Done(frame) = header.frame(joined) else {
            return Parsed::Not;
        };
        block.extend_from_slice(frame.payload);
        joined = frame.rest;
    }
    Parsed::Done(Cow::Owned(block))
}

/// A frame header, section 4.1, or its beginning.
struct FrameHeader {
    length: usize,
    /// Once it is there.
    kind: Option<u8>,
    flags: u8,
    stream: u32,
    /// All nine octets are there.
    is_whole: bool,
}

struct Frame<'a> {
    payload: &'a [u8],
    rest: &'a [u8],
}

impl FrameHeader {
    /// `None` if the frame is longer than we, as any server without settings of its own, accept.
    fn read(bytes: &[u8]) -> Option<Self> {
        let octet = |at: usize| bytes.get(at).copied();
        // What is not there yet counts as 0: the length is at least that.
        let length = [0, 1, 2].map(|at| usize::from(octet(at).unwrap_or_default()));
        let length = length[0] << 16 | length[1] << 8 | length[2];
        let stream = bytes
            .get(5..)
            .and_then(<[u8]>::first_chunk)
            .map(|&id| u32::from_be_bytes(id));
        (length <= MAX_FRAME).then_some(Self {
            length,
            kind: octet(3),
            flags: octet(4).unwrap_or_default(),
            // The first bit is reserved and ignored.
            stream: stream.unwrap_or_default() & 0x7fff_ffff,
            is_whole: stream.is_some(),
        })
    }

    /// Whether a client may send it before its first request, as far as the header tells.
    fn is_acceptable(&self) -> bool {
        let Some(kind) = self.kind else { return true };
        let on_connection = !self.is_whole || self.stream == 0;
        let on_stream = !self.is_whole || self.stream != 0;
        match kind {
            // Streams of a client have odd numbers, section 5.1.1.
            HEADERS => !self.is_whole || self.stream % 2 == 1,
            PRIORITY => on_stream && self.length == 5,
            SETTINGS => {
                on_connection
                    && self.length.is_multiple_of(6)
                    && (self.flags & ACK == 0 || self.length == 0)
            }
            PING => on_connection && self.length == 8,
            GOAWAY => on_connection && self.length >= 8,
            WINDOW_UPDATE => self.length == 4,
            // The first three need a stream that was opened, the last one a header block.
            DATA | RST_STREAM | PUSH_PROMISE | CONTINUATION => false,
            // Unknown types are ignored, section 4.1.
            _ => true,
        }
    }

    /// How many octets of padding end the payload of a HEADERS frame, section 6.2. `Not` if there is no room for them.
    fn padding(&self, bytes: &[u8]) -> Parsed<usize> {
        if self.kind != Some(HEADERS) || !self.is_whole {
            return Parsed::Done(0);
        }
        let Some(room) = self.length.checked_sub(self.overhead()) else {
            return Parsed::Not;
        };
        match (self.flags & PADDED, bytes.get(FRAME_HEADER)) {
            (0, _) => Parsed::Done(0),
            (_, None) => Parsed::More(1),
            (_, Some(&padding)) if usize::from(padding) <= room => Parsed::Done(padding.into()),
            (_, Some(_)) => Parsed::Not,
        }
    }

    /// What stands before the fragment in the payload of a HEADERS frame.
    fn overhead(&self) -> usize {
        let length = |flag, length| if self.flags & flag != 0 { length } else { 0 };
        length(PADDED, 1) + length(PRIORITY_FIELDS, 5)
    }

    /// The frame, once all of it is there, and its header was found acceptable. A wish is for as much as cannot be
    /// refused: the rest of the payload, and the first octet of the next frame if there must be one.
    fn frame<'a>(&self, bytes: &'a [u8]) -> Parsed<Frame<'a>> {
        let len = FRAME_HEADER + self.length;
        let ends_block = self.flags & END_HEADERS != 0;
        let is_last = matches!(self.kind, Some(HEADERS | CONTINUATION)) && ends_block;
        match bytes.split_at_checked(len) {
            Some((frame, rest)) => Parsed::Done(Frame {
                payload: &frame[FRAME_HEADER..],
                rest,
            }),
            None if !self.is_whole => Parsed::More(1),
            None => Parsed::More(len - bytes.len() + usize::from(!is_last)),
        }
    }
}

const FRAME_HEADER: usize = 9;
/// `SETTINGS_MAX_FRAME_SIZE` until a server says otherwise.
const MAX_FRAME: usize = 16_384;
/// How many frames may come until HEADERS, which is one of them.
const MAX_FRAMES: usize = 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY_FIELDS: u8 = 0x20;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    fn settings() -> Vec<u8> {
        frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])
    }

    fn block(frames: &[Vec<u8>]) -> Parsed<Vec<u8>> {
        header_block(&frames.concat()).map(Cow::into_owned)
    }

    #[test]
    fn padding_and_priority_are_taken_off() {
        for (flags, payload) in [
            (0, &b"block"[..]),
            (PADDED, b"\x03block\0\0\0"),
            (PADDED, b"\0block"),
            (PRIORITY_FIELDS, b"\x80\0\0\0\x10block"),
            (PADDED | PRIORITY_FIELDS, b"\x02\0\0\0\0\0block\0\0"),
        ] {
            let headers = frame(HEADERS, flags | END_HEADERS, 1, payload);
            assert_eq!(
                block(&[settings(), headers]),
                Parsed::Done(b"block".into()),
                "{flags}"
            );
        }
        for (flags, payload) in [
            (PADDED, &b""[..]),
            (PADDED, b"\x06block"),
            (PRIORITY_FIELDS, b"four"),
            (PADDED | PRIORITY_FIELDS, b"\x01\0\0\0\0\0"),
        ] {
            let headers = frame(HEADERS, flags | END_HEADERS, 1, payload);
            assert_eq!(
                block(&[settings(), headers]),
                Parsed::Not,
                "{flags} {payload:?}"
            );
        }
    }

    /// Row M-07 of docs/defects.md.
    #[test]
    fn continuation_is_joined_and_nothing_may_come_in_between() {
        let frames = [
            settings(),
            frame(HEADERS, PADDED, 3, b"\x01one\0"),
            frame(CONTINUATION, 0, 3, b""),
            frame(CONTINUATION, 0, 3, b"two"),
            frame(CONTINUATION, END_HEADERS, 3, b"three"),
        ];
        assert_eq!(block(&frames), Parsed::Done(b"onetwothree".into()));
        assert_eq!(block(&frames[..4]), Parsed::More(1));
        for other in [
            frame(CONTINUATION, END_HEADERS, 5, b""),
            frame(PING, 0, 0, &[0; 8]),
            frame(HEADERS, END_HEADERS, 3, b""),
        ] {
            assert_eq!(block(&[frames[1].clone(), other]), Parsed::Not);
        }
    }

    #[test]
    fn ten_frames_are_looked_at() {
        let mut frames = vec![frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]); 9];
        frames.push(frame(HEADERS, END_HEADERS, 1, b"block"));
        assert_eq!(block(&frames), Parsed::Done(b"block".into()));
        frames.insert(0, settings());
        assert_eq!(block(&frames), Parsed::Not);
        assert_eq!(block(&frames[..10]), Parsed::Not, "the tenth decides");
    }

    /// Row M-08 of docs/defects.md.
    #[test]
    fn frames_before_the_request_are_skipped_or_refused_by_their_header() {
        let request = || frame(HEADERS, END_HEADERS, 1, b"block");
        for skipped in [
            frame(SETTINGS, 0, 0, &[0; 16_380]),
            frame(SETTINGS, ACK, 0, b""),
            frame(PRIORITY, 0, 3, &[0; 5]),
            frame(PING, 0, 0, &[0; 8]),
            frame(GOAWAY, 0, 0, &[0; 9]),
            frame(WINDOW_UPDATE, 0, 7, &[0, 0, 0, 1]),
            frame(0xfa, 0xff, 0x8000_0000, b"grease"),
        ] {
            assert_eq!(block(&[skipped, request()]), Parsed::Done(b"block".into()));
        }
        for refused in [
            frame(DATA, 0, 1, b""),
            frame(RST_STREAM, 0, 1, &[0; 4]),
            frame(PUSH_PROMISE, 0, 1, &[0; 4]),
            frame(CONTINUATION, 0, 1, b""),
            frame(HEADERS, END_HEADERS, 0, b"block"),
            frame(HEADERS, END_HEADERS, 2, b"block"),
            frame(SETTINGS, 0, 1, b""),
            frame(SETTINGS, 0, 0, &[0; 5]),
            frame(SETTINGS, ACK, 0, &[0; 6]),
            frame(PRIORITY, 0, 0, &[0; 5]),
            frame(PRIORITY, 0, 1, &[0; 4]),
            frame(PING, 0, 1, &[0; 8]),
            frame(PING, 0, 0, &[0; 7]),
            frame(GOAWAY, 0, 0, &[0; 7]),
            frame(WINDOW_UPDATE, 0, 0, &[0; 5]),
            frame(0xfa, 0, 0, &[0; 16_385]),
        ] {
            assert_eq!(
                header_block(&refused[..9]),
                Parsed::Not,
                "{:?}",
                &refused[..9]
            );
        }
        // Often its beginning is enough.
        assert_eq!(header_block(&[1]), Parsed::Not);
        assert_eq!(header_block(&[0, 0x40, 1]), Parsed::Not);
        assert_eq!(header_block(&[0, 0, 5, PING]), Parsed::Not);
    }

    #[test]
    fn more_is_what_cannot_be_refused() {
        assert_eq!(header_block(b""), Parsed::More(1));
        assert_eq!(header_block(&[0, 0, 6]), Parsed::More(1));
        assert_eq!(header_block(&settings()[..12]), Parsed::More(3 + 1));
        let headers = |flags| frame(HEADERS, flags, 1, &[0; 20]);
        assert_eq!(header_block(&headers(END_HEADERS)[..12]), Parsed::More(17));
        assert_eq!(header_block(&headers(0)[..12]), Parsed::More(17 + 1));
    }
}
