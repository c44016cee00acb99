//! The first message of a client ("Message Formats" in the PostgreSQL documentation, messages without a type byte).

use std::ops::RangeInclusive;

use l4_core::Parsed;

/// What a client can begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Asks for TLS.
    SslRequest,
    /// Asks for GSSAPI encryption.
    GssEncRequest,
    /// Asks on a connection of its own to cancel a query.
    CancelRequest,
    /// Begins a session.
    Startup,
}

/// The first message of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstMessage<'a> {
    /// One without parameters.
    Request(Kind),
    /// A StartupMessage.
    Startup(Startup<'a>),
}

impl<'a> FirstMessage<'a> {
    /// Parses the message that `bytes` begin with. What follows it is ignored, and so are messages of kinds that are
    /// not `wanted`.
    pub fn parse(bytes: &'a [u8], wanted: impl Fn(Kind) -> bool) -> Parsed<Self> {
        let mut possible = SHAPES
            .iter()
            .filter(|shape| wanted(shape.kind) && shape.admits(bytes));
        let Some(shape) = possible.next() else {
            return Parsed::Not;
        };
        // Within the header the next byte can rule out every kind.
        let Some((header, _)) = bytes.split_first_chunk::<8>() else {
            return Parsed::More(1);
        };
        // The code is complete, and no two kinds share one.
        let [a, b, c, d, ..] = *header;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let body = &bytes[header.len()..bytes.len().min(length)];
        let missing = length - header.len() - body.len();
        match (shape.kind, missing) {
            (Kind::Startup, _) => {
                Startup::check(body, missing).map(|()| Self::Startup(Startup { parameters: body }))
            }
            (kind, 0) => Parsed::Done(Self::Request(kind)),
            // Any bytes can be the key of a session, so none of them refuses.
            (_, missing) => Parsed::More(missing),
        }
    }
}

/// How a kind of message begins: its length, which counts itself, then its code.
struct Shape {
    kind: Kind,
    length: RangeInclusive<u32>,
    /// The first bytes of the code; of a StartupMessage the major protocol version.
    code: &'static [u8],
}

impl Shape {
    /// Whether bytes that begin with `bytes` can be of this kind, as far as the header tells.
    fn admits(&self, bytes: &[u8]) -> bool {
        let length = &bytes[..bytes.len().min(4)];
        let (mut least, mut most) = ([0; 4], [u8::MAX; 4]);
        least[..length.len()].copy_from_slice(length);
        most[..length.len()].copy_from_slice(length);
        let code = bytes.get(4..).unwrap_or_default();
        let n = code.len().min(self.code.len());
        u32::from_be_bytes(least) <= *self.length.end()
            && u32::from_be_bytes(most) >= *self.length.start()
            && code[..n] == self.code[..n]
    }
}

const SHAPES: [Shape; 4] = [
    Shape {
        kind: Kind::SslRequest,
        length: 8..=8,
        code: &80_877_103_u32.to_be_bytes(),
    },
    Shape {
        kind: Kind::GssEncRequest,
        length: 8..=8,
        code: &80_877_104_u32.to_be_bytes(),
    },
    Shape {
        kind: Kind::CancelRequest,
        // Process id, then a key: four bytes up to protocol 3.0, up to 256 from 3.2 on.
        length: 16..=268,
        code: &80_877_102_u32.to_be_bytes(),
    },
    Shape {
        kind: Kind::Startup,
        // At least the NUL that ends the parameters. Servers take no more than 10000 bytes.
        length: 9..=16_388,
        code: &[0, 3],
    },
];

/// The parameters of a StartupMessage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Startup<'a> {
    /// Names and values in turn, each ended by a NUL, then one more.
    parameters: &'a [u8],
}

impl<'a> Startup<'a> {
    /// Whether `parameters`, of which `missing` bytes are not there yet, are well-formed.
    fn check(parameters: &[u8], missing: usize) -> Parsed<()> {
        let mut rest = parameters;
        loop {
            match rest {
                // The end of the parameters, which must be that of the message.
                [0] if missing == 0 => return Parsed::Done(()),
                [0, ..] => return Parsed::Not,
                _ => {}
            }
            match pair(rest) {
                Some((.., after)) => rest = after,
                None if missing == 0 => return Parsed::Not,
                None => return Parsed::More(1),
            }
        }
    }

    /// Names and values, in the order sent.
    pub fn parameters(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut rest = self.parameters;
        std::iter::from_fn(move || {
            let (name, value, after) = pair(rest).filter(|(name, ..)| !name.is_empty())?;
            rest = after;
            Some((name, value))
        })
    }

    /// The value of a parameter. Of one that was sent twice the last counts, as it does for servers; an empty one is
    /// as good as none.
    pub fn parameter(&self, name: &str) -> Option<&'a [u8]> {
        self.parameters()
            .filter(|(key, _)| *key == name.as_bytes())
            .last()
            .map(|(_, value)| value)
            .filter(|value| !value.is_empty())
    }
}

/// The first name and value, and what follows them.
fn pair(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name, rest) = text(bytes)?;
    let (value, rest) = text(rest)?;
    Some((name, value, rest))
}

/// What comes before the first NUL, and what after it.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matcher::tests::startup;

    fn parsed(bytes: &[u8]) -> Parsed<FirstMessage<'_>> {
        FirstMessage::parse(bytes, |_| true)
    }

    #[test]
    fn the_last_of_two_equal_parameters_counts_and_an_empty_one_is_none() {
        let bytes = startup(&[
            ("user", "alice"),
            ("database", "a"),
            ("user", "bob"),
            ("database", ""),
        ]);
        let Parsed::Done(FirstMessage::Startup(message)) = parsed(&bytes) else {
            panic!("{bytes:?}")
        };
        assert_eq!(message.parameters().count(), 4);
        assert_eq!(message.parameter("user"), Some(&b"bob"[..]));
        assert_eq!(message.parameter("database"), None);
        assert_eq!(message.parameter("User"), None);
    }

    #[test]
    fn lengths_are_bounded_for_each_kind() {
        let message = |length: u32, code: u32, body: &[u8]| {
            [&length.to_be_bytes()[..], &code.to_be_bytes(), body].concat()
        };
        let long_value = |length: usize| {
            let mut body = b"user\0".to_vec();
            body.resize(length - 8 - 2, b'a');
            [&body[..], b"\0\0"].concat()
        };
        for (length, code, body, expected) in [
            (8, 80_877_103, vec![], true),
            (9, 80_877_103, vec![0], false),
            (8, 80_877_104, vec![], true),
            (8, 80_877_102, vec![], false),
            (15, 80_877_102, vec![1; 7], false),
            (16, 80_877_102, vec![0; 8], true),
            (268, 80_877_102, vec![0; 260], true),
            (269, 80_877_102, vec![0; 261], false),
            (8, 0x0003_0000, vec![], false),
            (9, 0x0003_0000, vec![0], true),
            (9, 0x0003_0002, vec![0], true),
            (9, 0x0003_270f, vec![0], true),
            (9, 0x0002_0000, vec![0], false),
            (9, 0x0004_0000, vec![0], false),
            (9, 0x0003_0000, vec![b'a'], false),
            (16_388, 0x0003_0000, long_value(16_388), true),
            (16_389, 0x0003_0000, long_value(16_389), false),
            (u32::MAX, 0x0003_0000, vec![0], false),
            (0, 80_877_103, vec![], false),
        ] {
            let message = message(length, code, &body);
            let answer = parsed(&message).map(|_| ());
            let expected = if expected {
                Parsed::Done(())
            } else {
                Parsed::Not
            };
            assert_eq!(answer, expected, "length {length}, code {code}");
        }
    }
}
