//! The Huffman code of RFC 7541 appendix B.
//!
//! It is a canonical code: codes of one length are consecutive numbers in the order of their symbols, and follow those
//! of the length before. So the lengths alone define it, and everything else here is computed from them when this
//! crate is compiled.

/// Decodes `coded` and appends the octets to `out`, never more than 8 for every 5 of `coded`. `None` if it is not what
/// an encoder may produce: the end-of-string symbol, or padding that is longer than 7 bits or not all ones
/// (section 5.2).
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.reserve(coded.len() * 8 / MIN_LENGTH);
    // The next `held` bits of the text, from the most significant.
    let mut window = 0_u64;
    let mut held = 0;
    let mut rest = coded.iter();
    loop {
        while held <= 56 {
            let Some(&byte) = rest.next() else { break };
            window |= u64::from(byte) << (56 - held);
            held += 8;
        }
        // Bits past the end are zeros; a code made of them is longer than what is held and refused below.
        let (length, symbol) = match SHORT[(window >> (64 - SHORT_BITS)) as usize] {
            (0, _) => long_code(window)?,
            (length, symbol) => (usize::from(length), u16::from(symbol)),
        };
        if length > held {
            break;
        }
        // The end-of-string symbol is the only one that is not an octet.
        out.push(u8::try_from(symbol).ok()?);
        window <<= length;
        held -= length;
    }
    // Padding is the beginning of the end-of-string code: ones.
    (held < 8 && (held == 0 || (!window) >> (64 - held) == 0)).then_some(())
}

/// Length and symbol of the code that `window` begins with, where it is longer than [`SHORT_BITS`].
fn long_code(window: u64) -> Option<(usize, u16)> {
    let window = window >> 32;
    (SHORT_BITS + 1..=MAX_LENGTH).find_map(|length| {
        let code = (window as u32) >> (32 - length);
        let Level {
            first_code,
            first_rank,
            count,
        } = LEVELS[length];
        let rank = code.checked_sub(first_code).filter(|&rank| rank < count)?;
        RANKED
            .get((first_rank + rank) as usize)
            .map(|&symbol| (length, symbol))
    })
}

/// The codes of one length.
#[derive(Clone, Copy)]
struct Level {
    first_code: u32,
    /// How many codes are shorter.
    first_rank: u32,
    count: u32,
}

const MIN_LENGTH: usize = 5;
const MAX_LENGTH: usize = 30;
/// Codes up to this length, which are those of letters, digits and common punctuation, are looked up at once.
const SHORT_BITS: usize = 8;

const LEVELS: [Level; MAX_LENGTH + 1] = {
    let mut levels = [Level {
        first_code: 0,
        first_rank: 0,
        count: 0,
    }; MAX_LENGTH + 1];
    let mut symbol = 0;
    while symbol < LENGTHS.len() {
        levels[LENGTHS[symbol] as usize].count += 1;
        symbol += 1;
    }
    let mut length = 1;
    while length <= MAX_LENGTH {
        let shorter = levels[length - 1];
        levels[length].first_code = (shorter.first_code + shorter.count) << 1;
        levels[length].first_rank = shorter.first_rank + shorter.count;
        length += 1;
    }
    levels
};

/// Symbols by length of code, then by number.
const RANKED: [u16; 257] = {
    let mut ranked = [0; 257];
    let mut rank = 0;
    let mut length = 1;
    while length <= MAX_LENGTH {
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                ranked[rank] = symbol as u16;
                rank += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    ranked
};

/// Length and symbol of the code that an octet begins with; length 0 where the code is longer.
const SHORT: [(u8, u8); 1 << SHORT_BITS] = {
    let mut table = [(0, 0); 1 << SHORT_BITS];
    let mut length = MIN_LENGTH;
    while length <= SHORT_BITS {
        let level = LEVELS[length];
        let mut rank = 0;
        while rank < level.count {
            let symbol = RANKED[(level.first_rank + rank) as usize] as u8;
            let free_bits = SHORT_BITS - length;
            let first = ((level.first_code + rank) as usize) << free_bits;
            let mut at = first;
            while at < first + (1 << free_bits) {
                table[at] = (length as u8, symbol);
                at += 1;
            }
            rank += 1;
        }
        length += 1;
    }
    table
};

/// Length of the code of every octet, then of the end of the string.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The code of a symbol and its length.
    fn code(symbol: u16) -> (u32, usize) {
        let rank = RANKED.iter().position(|&s| s == symbol).unwrap() as u32;
        let length = usize::from(LENGTHS[usize::from(symbol)]);
        (
            LEVELS[length].first_code + rank - LEVELS[length].first_rank,
            length,
        )
    }

    pub(in crate::hpack) fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = String::new();
        for &byte in text {
            let (code, length) = code(byte.into());
            bits.push_str(&format!("{code:0length$b}"));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        bits.as_bytes()
            .chunks(8)
            .map(|octet| u8::from_str_radix(std::str::from_utf8(octet).unwrap(), 2).unwrap())
            .collect()
    }

    fn decoded(coded: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        decode(coded, &mut out)?;
        assert!(out.len() * 5 <= coded.len() * 8);
        Some(out)
    }

    #[test]
    fn the_code_is_that_of_appendix_b() {
        let listed = include_str!("../../testdata/hpack/huffman.txt");
        let rows = listed
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect::<Vec<_>>();
        assert_eq!(rows.len(), 257);
        for (symbol, row) in rows.iter().enumerate() {
            let mut columns = row.split_whitespace();
            assert_eq!(columns.next(), Some(&*symbol.to_string()));
            let (code, length) = code(symbol as u16);
            assert_eq!(columns.next(), Some(&*format!("{code:x}")), "{symbol}");
            assert_eq!(columns.next(), Some(&*length.to_string()), "{symbol}");
        }
    }

    #[test]
    fn every_octet_survives_alone_and_in_company() {
        for octet in 0..=255_u8 {
            for text in [
                vec![octet],
                vec![b'a', octet],
                vec![octet, octet, b'0', octet],
            ] {
                assert_eq!(decoded(&encode(&text)), Some(text));
            }
        }
    }

    #[test]
    fn padding_is_short_and_all_ones() {
        // `a` is 00011.
        assert_eq!(decoded(&[0b0001_1111]).as_deref(), Some(&b"a"[..]));
        assert_eq!(decoded(&[0b0001_1110]), None);
        assert_eq!(decoded(&[0b0001_1111, 0xff]), None, "11 bits");
        assert_eq!(decoded(&[0xff]), None, "8 bits");
        assert_eq!(decoded(&[]).as_deref(), Some(&b""[..]));
    }

    #[test]
    fn the_end_of_string_symbol_is_refused() {
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xfd]), None);
    }
}
