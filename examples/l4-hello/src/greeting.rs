use l4_core::prelude::*;

/// The line `HELLO name`, ended by CR LF. A name is 1 to 64 printable ASCII characters without spaces.
///
/// It is parsed at most once per connection, however many matchers ask for it: that is what [`Fact`] is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Who says hello.
    pub name: String,
    /// How many bytes the line has, with its end.
    pub length: usize,
}

const START: &[u8] = b"HELLO ";
const LONGEST_NAME: usize = 64;

impl Fact for Greeting {
    /// Pure and total: any bytes give an answer. Refuses at the first byte that no greeting has in its place, so that the
    /// routes behind need not wait, and never takes an answer back when more bytes come.
    fn parse(bytes: &[u8]) -> Parsed<Self> {
        match Verdict::prefix(bytes, START) {
            Verdict::Match => {}
            Verdict::More(missing) => return Parsed::More(missing),
            Verdict::No => return Parsed::Not,
        }
        let rest = &bytes[START.len()..];
        let length = rest
            .iter()
            .take_while(|byte| byte.is_ascii_graphic())
            .count();
        let (name, end) = rest.split_at(length);
        match end {
            _ if length > LONGEST_NAME => Parsed::Not,
            [] => Parsed::More(1),
            _ if length == 0 => Parsed::Not,
            [b'\r'] => Parsed::More(1),
            [b'\r', b'\n', ..] => Parsed::Done(Self {
                name: String::from_utf8_lossy(name).into_owned(),
                length: START.len() + length + 2,
            }),
            _ => Parsed::Not,
        }
    }
}
