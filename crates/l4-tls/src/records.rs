//! A handshake message inside TLS records, read from the front (RFC 8446 section 5.1).

use std::ops::RangeInclusive;

/// Why reading came to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// No continuation can be right.
    Not,
    /// So many more bytes are needed before anything can be decided.
    More(usize),
}

pub(crate) type Step<T> = Result<T, Stop>;

/// A place in a handshake message that is spread over records in any way, down to one byte each.
///
/// Nothing is gathered: reading steps over the record headers, so that a copy of the cursor is all it takes to come
/// back to a place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'a> {
    /// What has arrived and was not read.
    bytes: &'a [u8],
    /// What is left of the current record, as its header declares.
    record: usize,
    /// What is left of the message.
    message: usize,
}

impl<'a> Cursor<'a> {
    /// At the first of `length` message bytes; `bytes` begins with a record header.
    pub(crate) fn new(bytes: &'a [u8], length: usize) -> Self {
        Self {
            bytes,
            record: 0,
            message: length,
        }
    }

    /// How many bytes of the message are left.
    pub(crate) fn left(&self) -> usize {
        self.message
    }

    /// Says how many bytes are left, once they are known.
    pub(crate) fn set_left(&mut self, length: usize) {
        self.message = length;
    }

    /// Reads a big-endian number of `SIZE` bytes. It is refused at the first byte that takes it out of `range`.
    #[inline]
    pub(crate) fn number<const SIZE: usize>(
        &mut self,
        range: RangeInclusive<usize>,
    ) -> Step<usize> {
        if range.is_empty() || SIZE > self.message {
            return Err(Stop::Not);
        }
        if SIZE <= self.record
            && let Some((number, rest)) = self.bytes.split_first_chunk::<SIZE>()
        {
            self.bytes = rest;
            self.record -= SIZE;
            self.message -= SIZE;
            let value = number
                .iter()
                .fold(0, |value, byte| value << 8 | usize::from(*byte));
            return if range.contains(&value) {
                Ok(value)
            } else {
                Err(Stop::Not)
            };
        }
        self.number_in_pieces::<SIZE>(range)
    }

    /// The number that has not arrived whole, or that lies in several records.
    #[cold]
    fn number_in_pieces<const SIZE: usize>(&mut self, range: RangeInclusive<usize>) -> Step<usize> {
        let mut value = 0;
        for missing in (0..SIZE).rev() {
            value = value << 8 | usize::from(self.byte()?);
            let unknown = (1 << (8 * missing)) - 1;
            let least = value << (8 * missing);
            if least > *range.end() || least | unknown < *range.start() {
                return Err(Stop::Not);
            }
        }
        Ok(value)
    }

    /// Reads at least one and at most `limit` bytes, as many as lie together.
    #[inline]
    pub(crate) fn chunk(&mut self, limit: usize) -> Step<&'a [u8]> {
        if limit > self.message {
            return Err(Stop::Not);
        }
        self.enter_record()?;
        let n = limit.min(self.record).min(self.bytes.len());
        if n == 0 {
            return Err(Stop::More(1));
        }
        let (chunk, rest) = self.bytes.split_at(n);
        self.bytes = rest;
        self.record -= n;
        self.message -= n;
        Ok(chunk)
    }

    /// Steps over `n` bytes that may have any value.
    pub(crate) fn skip(&mut self, mut n: usize) -> Step<()> {
        while n > 0 {
            self.enter_record()?;
            if self.bytes.is_empty() {
                // The byte behind them can decide, be it of the message or of a record header. Behind the last byte
                // of the message there is none.
                let here = n.min(self.record);
                return Err(Stop::More(if here < self.message {
                    here + 1
                } else {
                    here
                }));
            }
            n -= self.chunk(n)?.len();
        }
        Ok(())
    }

    #[inline]
    fn byte(&mut self) -> Step<u8> {
        self.chunk(1)
            .map(|chunk| chunk.first().copied().unwrap_or_default())
    }

    #[inline]
    fn enter_record(&mut self) -> Step<()> {
        if self.record == 0 {
            self.read_header()
        } else {
            Ok(())
        }
    }

    fn read_header(&mut self) -> Step<()> {
        let header = &self.bytes[..self.bytes.len().min(HEADER)];
        let wrong = |at: usize, right: fn(u8) -> bool| header.get(at).is_some_and(|b| !right(*b));
        // The minor version says nothing: clients write 1, 3 or, to get through old middleboxes, anything.
        if wrong(0, |kind| kind == HANDSHAKE) || wrong(1, |major| major == 3) {
            return Err(Stop::Not);
        }
        if wrong(3, |high| usize::from(high) <= MAX_RECORD >> 8) {
            return Err(Stop::Not);
        }
        let [_, _, _, high, low] = *header else {
            return Err(Stop::More(1));
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        // Handshake records cannot be empty (RFC 8446 section 5.1).
        if length == 0 || length > MAX_RECORD {
            return Err(Stop::Not);
        }
        self.bytes = &self.bytes[HEADER..];
        self.record = length;
        Ok(())
    }
}

const HANDSHAKE: u8 = 22;
const HEADER: usize = 5;
const MAX_RECORD: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(bytes: &[u8], length: usize) -> Cursor<'_> {
        Cursor::new(bytes, length)
    }

    #[test]
    fn numbers_and_chunks_step_over_record_headers() {
        let bytes = [22, 3, 1, 0, 1, 0xAA, 22, 3, 3, 0, 3, 0xBB, 1, 2];
        let mut at = cursor(&bytes, 4);
        assert_eq!(at.number::<2>(0..=0xFFFF), Ok(0xAABB));
        assert_eq!(at.chunk(2), Ok(&[1, 2][..]));
        assert_eq!(at.left(), 0);
        assert_eq!(at.chunk(1), Err(Stop::Not));
    }

    #[test]
    fn number_is_refused_at_the_first_byte_that_rules_it_out() {
        let of = |bytes: &[u8]| {
            let bytes = [&[22, 3, 1, 0, 9], bytes].concat();
            cursor(&bytes, 9).number::<2>(0x1234..=0x1310)
        };
        assert_eq!(of(&[0x11]), Err(Stop::Not));
        assert_eq!(of(&[0x12]), Err(Stop::More(1)));
        assert_eq!(of(&[0x13]), Err(Stop::More(1)));
        assert_eq!(of(&[0x14]), Err(Stop::Not));
        assert_eq!(of(&[0x12, 0x33]), Err(Stop::Not));
        assert_eq!(of(&[0x12, 0x34]), Ok(0x1234));
        assert_eq!(of(&[0x13, 0x10]), Ok(0x1310));
        assert_eq!(of(&[0x13, 0x11]), Err(Stop::Not));
        #[allow(clippy::reversed_empty_ranges)]
        let nothing_fits = 2..=1;
        assert_eq!(cursor(&[], 9).number::<1>(nothing_fits), Err(Stop::Not));
    }

    #[test]
    fn skipping_asks_for_all_that_cannot_decide_and_one_byte_that_can() {
        assert_eq!(cursor(&[22, 3, 1, 0, 9], 9).skip(4), Err(Stop::More(5)));
        assert_eq!(cursor(&[22, 3, 1, 0, 9, 0], 9).skip(4), Err(Stop::More(4)));
        assert_eq!(cursor(&[22, 3, 1, 0, 2], 9).skip(4), Err(Stop::More(3)));
        assert_eq!(cursor(&[22, 3, 1, 0, 9], 9).skip(9), Err(Stop::More(9)));
        assert_eq!(
            cursor(&[22, 3, 1, 0, 1, 0, 22, 3], 4).skip(4),
            Err(Stop::More(1))
        );
    }

    #[test]
    fn every_header_byte_is_judged_as_it_arrives() {
        for (bytes, expected) in [
            (&[][..], Stop::More(1)),
            (&[21], Stop::Not),
            (&[22], Stop::More(1)),
            (&[22, 2], Stop::Not),
            (&[22, 254], Stop::Not),
            (&[22, 3, 255], Stop::More(1)),
            (&[22, 3, 1, 0x41], Stop::Not),
            (&[22, 3, 1, 0x40], Stop::More(1)),
            (&[22, 3, 1, 0x40, 1], Stop::Not),
            (&[22, 3, 1, 0x40, 0], Stop::More(4)),
            (&[22, 3, 1, 0, 0], Stop::Not),
        ] {
            assert_eq!(cursor(bytes, 4).skip(4), Err(expected), "{bytes:?}");
        }
    }
}
