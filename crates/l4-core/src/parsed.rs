//! What an incremental parser answers, and facts: parsed once, kept on the connection.

/// The answer of a parser that has seen the first bytes of a stream, perhaps not all of them.
///
/// A parser is *prefix-monotone*: once it said `Done` or `Not` for some bytes, appending more never changes that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<T> {
    /// The bytes hold the whole thing.
    Done(T),
    /// No continuation of these bytes can become one.
    Not,
    /// Undecided: at least this many more bytes are needed (never 0; 1 if the parser cannot tell).
    More(usize),
}

impl<T> Parsed<T> {
    /// Applies `f` to a finished value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Parsed<U> {
        match self {
            Self::Done(value) => Parsed::Done(f(value)),
            Self::Not => Parsed::Not,
            Self::More(n) => Parsed::More(n),
        }
    }

    /// A reference to a finished value.
    pub fn as_ref(&self) -> Parsed<&T> {
        match self {
            Self::Done(value) => Parsed::Done(value),
            Self::Not => Parsed::Not,
            Self::More(n) => Parsed::More(*n),
        }
    }
}

/// Something worth parsing once per connection: a ClientHello, a request head.
///
/// The engine keeps the result until the bytes it was parsed from are consumed or a layer is put on top, so any number
/// of matchers and placeholders share one parse.
///
/// ```
/// use l4_core::prelude::*;
///
/// /// The name in the first line.
/// struct Name(String);
///
/// impl Fact for Name {
///     fn parse(bytes: &[u8]) -> Parsed<Self> {
///         match bytes.iter().take(80).position(|byte| *byte == b'\n') {
///             Some(end) => Parsed::Done(Self(String::from_utf8_lossy(&bytes[..end]).into())),
///             None if bytes.len() >= 80 => Parsed::Not,
///             None => Parsed::More(1),
///         }
///     }
/// }
///
/// /// Any number of these costs one parse.
/// struct Called(&'static str);
///
/// impl Matcher for Called {
///     fn matches(&self, view: &mut View<'_>) -> Verdict {
///         match view.fact::<Name>() {
///             Parsed::Done(name) => Verdict::from_bool(name.0 == self.0),
///             Parsed::Not => Verdict::No,
///             Parsed::More(n) => Verdict::More(n),
///         }
///     }
/// }
///
/// l4_testkit::check(&Called("alice"), b"alice\n", Verdict::Match);
/// l4_testkit::check(&Called("alice"), b"bob\n", Verdict::No);
/// ```
pub trait Fact: Sized + Send + Sync + 'static {
    /// Parses the unread bytes, from the first. Pure, total, prefix-monotone.
    fn parse(bytes: &[u8]) -> Parsed<Self>;

    /// What [`parse`](Self::parse) says of `bytes`, whose first `seen` it found too few before. For parsers that can tell
    /// from the new bytes alone, mostly, that they are still too few: a sender of single bytes costs one parse each
    /// otherwise.
    fn parse_on(bytes: &[u8], seen: usize) -> Parsed<Self> {
        let _ = seen;
        Self::parse(bytes)
    }
}
