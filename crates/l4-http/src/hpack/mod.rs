//! HPACK, RFC 7541: a decoder for the first header blocks of a connection.
//!
//! Everything a block can make the decoder hold is bounded by the block: a literal costs its own length (8/5 of it
//! where Huffman-coded), the dynamic table holds places in that text, and fields are handed on one by one without
//! being kept. The caller bounds what it keeps of them, because one octet can repeat a long field.
//!
//! The text of literals is never given back, so this is not a decoder for a long-lived connection.

mod huffman;
mod table;

use table::{DynamicTable, ENTRY_OVERHEAD, Entry, STATIC_TABLE, Span};

/// A block that no encoder may produce, or one that the receiver of its fields refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Invalid;

/// The size of a field as `SETTINGS_MAX_HEADER_LIST_SIZE` counts it, RFC 9113 section 6.5.2.
pub(crate) fn list_size(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + ENTRY_OVERHEAD
}

/// Decodes header blocks in the order they were sent.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: DynamicTable,
    /// Names and values of literals.
    text: Vec<u8>,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self {
            table: DynamicTable::new(),
            text: Vec::new(),
        }
    }

    /// Decodes one complete block and gives every field, name and value, to `emit` in order.
    ///
    /// # Errors
    /// [`Invalid`] if the block is malformed or `emit` says so. The decoder is of no use then.
    pub(crate) fn decode(
        &mut self,
        block: &[u8],
        mut emit: impl FnMut(&[u8], &[u8]) -> Result<(), Invalid>,
    ) -> Result<(), Invalid> {
        let mut input = Input(block);
        let mut at_start = true;
        while let Some(&first) = input.0.first() {
            if first & 0xe0 == RESIZE {
                // Allowed only before the first field, section 4.2.
                if !at_start || !self.table.resize(input.integer(5)?) {
                    return Err(Invalid);
                }
                continue;
            }
            at_start = false;
            if first & INDEXED != 0 {
                let index = input.integer(7)?;
                let (name, value) = self.indexed(index)?;
                emit(name, value)?;
                continue;
            }
            let kept = first & 0xc0 == LITERAL_KEPT;
            let name = match input.integer(if kept { 6 } else { 4 })? {
                0 => self.string(&mut input)?,
                index => self.name(index)?,
            };
            let value = self.string(&mut input)?;
            emit(name.of(&self.text), value.of(&self.text))?;
            if kept {
                self.table.insert(Entry { name, value });
            }
        }
        Ok(())
    }

    /// The field with the index, section 2.3.3.
    fn indexed(&self, index: usize) -> Result<(&[u8], &[u8]), Invalid> {
        let at = index.checked_sub(1).ok_or(Invalid)?;
        if let Some((name, value)) = STATIC_TABLE.get(at) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.table.entry(at - STATIC_TABLE.len()).ok_or(Invalid)?;
        Ok((entry.name.of(&self.text), entry.value.of(&self.text)))
    }

    /// The name of the field with the index, as text of ours.
    fn name(&mut self, index: usize) -> Result<Span, Invalid> {
        let at = index.checked_sub(1).ok_or(Invalid)?;
        if let Some((name, _)) = STATIC_TABLE.get(at) {
            let start = self.text.len();
            self.text.extend_from_slice(name.as_bytes());
            return Ok(Span::new(start, self.text.len()));
        }
        Ok(self
            .table
            .entry(at - STATIC_TABLE.len())
            .ok_or(Invalid)?
            .name)
    }

    /// A string literal, section 5.2.
    fn string(&mut self, input: &mut Input<'_>) -> Result<Span, Invalid> {
        let coded = *input.0.first().ok_or(Invalid)? & HUFFMAN != 0;
        let length = input.integer(7)?;
        let octets = input.take(length)?;
        let start = self.text.len();
        if coded {
            huffman::decode(octets, &mut self.text).ok_or(Invalid)?;
        } else {
            self.text.extend_from_slice(octets);
        }
        Ok(Span::new(start, self.text.len()))
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// An integer whose first octet has `prefix` bits of it, section 5.1. Values from 2^28 are refused: no length or
    /// index comes near.
    fn integer(&mut self, prefix: u32) -> Result<usize, Invalid> {
        let (&first, mut rest) = self.0.split_first().ok_or(Invalid)?;
        let full = (1 << prefix) - 1;
        let mut value = usize::from(first) & full;
        if value == full {
            let mut shift = 0;
            loop {
                let (&octet, after) = rest.split_first().ok_or(Invalid)?;
                rest = after;
                if shift > 21 {
                    return Err(Invalid);
                }
                value += usize::from(octet & 0x7f) << shift;
                shift += 7;
                if octet & 0x80 == 0 {
                    break;
                }
            }
        }
        self.0 = rest;
        Ok(value)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Invalid> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Invalid)?;
        self.0 = rest;
        Ok(taken)
    }
}

/// First bits of a representation, section 6. A literal that is not kept has neither.
const INDEXED: u8 = 0x80;
const LITERAL_KEPT: u8 = 0x40;
const RESIZE: u8 = 0x20;
/// First bit of a string.
const HUFFMAN: u8 = 0x80;

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    type Fields = Vec<(Vec<u8>, Vec<u8>)>;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, Invalid> {
        let mut fields = Vec::new();
        decoder.decode(block, |name, value| {
            fields.push((name.to_vec(), value.to_vec()));
            Ok(())
        })?;
        Ok(fields)
    }

    fn decode_alone(block: &[u8]) -> Result<Fields, Invalid> {
        decode(&mut Decoder::new(), block)
    }

    pub(crate) fn hex(text: &str) -> Vec<u8> {
        let digits = text.split_whitespace().collect::<String>();
        digits
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// How [`encode`] writes a field.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Style {
        pub(crate) representation: Representation,
        pub(crate) huffman: bool,
        /// Names that a table has are written as an index.
        pub(crate) named: bool,
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    pub(crate) enum Representation {
        /// An index if a table has the field, else a literal that is kept.
        Indexed,
        Kept,
        NotKept,
        NeverKept,
    }

    pub(crate) fn integer(first: u8, prefix: u32, value: usize) -> Vec<u8> {
        let full = (1 << prefix) - 1;
        if value < full {
            return vec![first | value as u8];
        }
        let mut out = vec![first | full as u8];
        let mut rest = value - full;
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
        out
    }

    fn string(text: &[u8], huffman: bool) -> Vec<u8> {
        let (mark, octets) = if huffman {
            (HUFFMAN, huffman::tests::encode(text))
        } else {
            (0, text.to_vec())
        };
        [integer(mark, 7, octets.len()), octets].concat()
    }

    /// An encoder with every representation of RFC 7541 section 6. Its dynamic table is a plain list.
    #[derive(Default)]
    pub(crate) struct Encoder {
        table: Fields,
        max_size: Option<usize>,
    }

    impl Encoder {
        fn find(&self, found: impl Fn(&[u8], &[u8]) -> bool) -> Option<usize> {
            let fixed = STATIC_TABLE
                .iter()
                .map(|(n, v)| (n.as_bytes(), v.as_bytes()));
            let kept = self.table.iter().map(|(n, v)| (&n[..], &v[..]));
            fixed
                .chain(kept)
                .position(|(name, value)| found(name, value))
                .map(|at| at + 1)
        }

        fn evict(&mut self) {
            let max_size = self.max_size.unwrap_or(4096);
            while self
                .table
                .iter()
                .map(|(n, v)| list_size(n, v))
                .sum::<usize>()
                > max_size
            {
                self.table.pop();
            }
        }

        pub(crate) fn resize(&mut self, max_size: usize) -> Vec<u8> {
            self.max_size = Some(max_size);
            self.evict();
            integer(RESIZE, 5, max_size)
        }

        pub(crate) fn field(&mut self, name: &[u8], value: &[u8], style: Style) -> Vec<u8> {
            if style.representation == Representation::Indexed
                && let Some(index) = self.find(|n, v| n == name && v == value)
            {
                return integer(INDEXED, 7, index);
            }
            let (mark, prefix) = match style.representation {
                Representation::Indexed | Representation::Kept => (LITERAL_KEPT, 6),
                Representation::NotKept => (0, 4),
                Representation::NeverKept => (0x10, 4),
            };
            let named = if style.named {
                self.find(|n, _| n == name)
            } else {
                None
            };
            let mut out = integer(mark, prefix, named.unwrap_or(0));
            if named.is_none() {
                out.extend(string(name, style.huffman));
            }
            out.extend(string(value, style.huffman));
            if prefix == 6 {
                self.table.insert(0, (name.to_vec(), value.to_vec()));
                self.evict();
            }
            out
        }
    }

    /// Stories: blocks that share a context, `w HEX`, each followed by its fields, `f NAME TAB VALUE`. The format is
    /// described with the files.
    fn check_stories(stories: &str) -> usize {
        let mut decoder = Decoder::new();
        let mut expected: Option<(Fields, Fields)> = None;
        let mut blocks = 0;
        for line in stories.lines().chain(["s end"]) {
            let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
            if kind != "f"
                && let Some((got, wanted)) = expected.take()
            {
                assert_eq!(got, wanted);
                blocks += 1;
            }
            match kind {
                "#" => {}
                "s" => decoder = Decoder::new(),
                "t" => assert!(decoder.table.resize(rest.parse().unwrap())),
                "w" => expected = Some((decode(&mut decoder, &hex(rest)).unwrap(), Vec::new())),
                "f" => {
                    let (name, value) = rest.split_once('\t').unwrap();
                    let wanted = &mut expected.as_mut().unwrap().1;
                    wanted.push((name.into(), value.into()));
                }
                other => panic!("{other}"),
            }
        }
        blocks
    }

    #[test]
    fn the_examples_of_appendix_c_decode() {
        assert_eq!(
            check_stories(include_str!("../../testdata/hpack/rfc7541-appendix-c.txt")),
            16
        );
    }

    #[test]
    fn what_other_encoders_wrote_decodes() {
        assert!(check_stories(include_str!("../../testdata/hpack/stories.txt")) > 50);
    }

    #[test]
    fn integers_of_section_5_1_and_their_limits() {
        for (octets, prefix, value) in [
            (&[0b1110_1010][..], 5, 10),
            (&[0b0001_1111, 0b1001_1010, 0b0000_1010], 5, 1337),
            (&[42], 8, 42),
            (&[0x1f, 0x80, 0x80, 0x00], 5, 31),
            (&[0x7f, 0xff, 0xff, 0xff, 0x7f], 7, 0x0fff_ffff + 127),
        ] {
            assert_eq!(Input(octets).integer(prefix), Ok(value));
        }
        for octets in [
            &[0x7f][..],
            &[0x7f, 0x80],
            &[0x7f, 0x80, 0x80, 0x80, 0x80, 0x00],
            &[],
        ] {
            assert_eq!(Input(octets).integer(7), Err(Invalid), "{octets:?}");
        }
        let endless = [&[0x7f][..], &[0xff; 1000]].concat();
        assert_eq!(Input(&endless).integer(7), Err(Invalid));
    }

    #[test]
    fn malformed_blocks_are_refused() {
        for (block, why) in [
            ("80", "index 0"),
            ("be", "index 62 of an empty dynamic table"),
            ("ffffffffff0f", "an index that overflows 32 bits"),
            ("40", "a literal without a name"),
            ("4005 6162", "a name cut short"),
            ("4001 61", "a literal without a value"),
            ("4001 61 7f ffffff7f", "a value of 268 million octets"),
            ("82 3fe11f", "a table size after a field"),
            ("3fe21f", "a table of 4097 octets"),
            ("0081 ff 0161", "padding of 8 bits"),
            ("7f", "an index cut short"),
        ] {
            assert_eq!(decode_alone(&hex(block)), Err(Invalid), "{why}");
        }
        assert_eq!(
            decode_alone(&hex("3fe11f 82")).unwrap().len(),
            1,
            "4096 is allowed"
        );
    }

    #[test]
    fn a_table_resized_to_nothing_forgets() {
        let mut decoder = Decoder::new();
        assert_eq!(
            decode(&mut decoder, &hex("4001 61 01 62 be"))
                .unwrap()
                .len(),
            2
        );
        assert_eq!(decode(&mut decoder, &hex("20 be")), Err(Invalid));
    }

    #[test]
    fn a_field_larger_than_the_table_empties_it() {
        let mut encoder = Encoder::default();
        let style = Style {
            representation: Representation::Kept,
            huffman: false,
            named: false,
        };
        let mut block = encoder.field(b"a", b"b", style);
        block.extend(encoder.field(b"long", &[b'x'; 4096], style));
        assert_eq!(decode_alone(&block).unwrap().len(), 2);
        block.push(0xbe);
        assert_eq!(decode_alone(&block), Err(Invalid));
    }

    #[test]
    fn the_receiver_ends_a_block_of_repetitions() {
        let style = Style {
            representation: Representation::Kept,
            huffman: false,
            named: false,
        };
        let mut bomb = Encoder::default().field(b"a", &[b'x'; 4000], style);
        bomb.extend([0xbe; 12_000]);
        let mut room = 64 * 1024;
        let ended = Decoder::new().decode(&bomb, |name, value| {
            room = usize::checked_sub(room, list_size(name, value)).ok_or(Invalid)?;
            Ok(())
        });
        assert_eq!(ended, Err(Invalid));
    }

    fn style() -> impl Strategy<Value = Style> {
        use Representation::{Indexed, Kept, NeverKept, NotKept};
        let representation = prop::sample::select(vec![Indexed, Kept, NotKept, NeverKept]);
        (representation, any::<bool>(), any::<bool>()).prop_map(
            |(representation, huffman, named)| Style {
                representation,
                huffman,
                named,
            },
        )
    }

    fn field() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let known = prop::sample::select(STATIC_TABLE.to_vec())
            .prop_map(|(name, value)| (name.into(), value.into()));
        let octets = || prop::collection::vec(any::<u8>(), 0..80);
        let few = (0..4_u8, 0..4_u8).prop_map(|(n, v)| (vec![b'a' + n], vec![b'0' + v]));
        let long =
            (0..3_u8, 300..1500_usize).prop_map(|(n, len)| (vec![b'l' + n], vec![b'x'; len]));
        prop_oneof![known, (octets(), octets()), few, long]
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            blocks in prop::collection::vec(
                (prop::option::of(0..4096_usize), prop::collection::vec((field(), style()), 0..30)),
                1..4,
            ),
        ) {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new());
            for (resize, fields) in blocks {
                let mut block = resize.map(|size| encoder.resize(size)).unwrap_or_default();
                for ((name, value), style) in &fields {
                    block.extend(encoder.field(name, value, *style));
                }
                let expected = fields.into_iter().map(|(field, _)| field).collect::<Vec<_>>();
                prop_assert_eq!(decode(&mut decoder, &block), Ok(expected));
            }
        }

        #[test]
        fn arbitrary_octets_are_decoded_or_refused(block in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut decoder = Decoder::new();
            let _ = decode(&mut decoder, &block);
            prop_assert!(decoder.text.len() <= block.len() * 32, "names of the static table are short");
        }
    }
}
