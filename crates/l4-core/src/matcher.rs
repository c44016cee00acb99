//! Matchers: pure, three-valued answers over the bytes received so far.

use std::any::Any;
use std::borrow::Cow;
use std::net::IpAddr;
use std::time::SystemTime;

use crate::conn::{Addr, Capture, Inner};
use crate::placeholder::{Scope, Template};
use crate::{Fact, Parsed};

/// What a matcher answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Match,
    /// It is not, whatever follows.
    No,
    /// Undecided: with fewer than this many more bytes it stays so, whatever they are (1 if the matcher cannot tell).
    /// It is not asked again before they came, so a wish for more than a `No` needs holds up the routes behind.
    More(usize),
}

impl Verdict {
    /// `Match` or `No`.
    pub fn from_bool(yes: bool) -> Self {
        if yes { Self::Match } else { Self::No }
    }

    /// `Match`, `No` or `More`, by comparing the bytes with a fixed beginning. Refuses at the first other byte, and
    /// therefore asks for one byte at a time: a wish for all that is missing would put off that refusal.
    pub fn prefix(bytes: &[u8], expected: &[u8]) -> Self {
        let n = bytes.len().min(expected.len());
        if bytes[..n] != expected[..n] {
            Self::No
        } else if n < expected.len() {
            Self::More(1)
        } else {
            Self::Match
        }
    }
}

/// How expensive a matcher is; members of a set are asked in this order, so that a cheap no spares a parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// Needs no bytes: addresses, variables, time.
    Meta,
    /// Compares the first few bytes.
    Prefix,
    /// Parses a message.
    Parse,
    /// Runs a regular expression.
    Regex,
}

/// Decides whether the beginning of a connection is what it looks for.
///
/// # Contract
/// * *Pure*: the same bytes and metadata give the same answer; nothing is read, nothing blocks.
/// * *Prefix-monotone*: `Match` and `No` stay when bytes are appended.
/// * *Early no*: `No` at the first byte that makes a match impossible. Strict route order is free only if this holds.
/// * *No allocation on `No`*, and no panic on any input.
///
/// `l4-testkit` checks the contract for every prefix of the vectors of a module.
///
/// On a datagram session a matcher sees the first datagram, which is whole: `More` then counts as `No`, unless
/// [`spans_datagrams`](Self::spans_datagrams) says otherwise.
///
/// ```
/// use l4_core::prelude::*;
///
/// /// A line of at most eighty bytes.
/// struct Line;
///
/// impl Matcher for Line {
///     fn matches(&self, view: &mut View<'_>) -> Verdict {
///         let bytes = view.bytes();
///         match bytes.iter().take(80).any(|byte| *byte == b'\n') {
///             true => Verdict::Match,
///             false if bytes.len() >= 80 => Verdict::No,
///             false => Verdict::More(1),
///         }
///     }
/// }
///
/// // Over every prefix of the bytes, too.
/// l4_testkit::check(&Line, b"hello\nworld", Verdict::Match);
/// l4_testkit::check(&Line, b"hello", Verdict::More(0));
/// l4_testkit::check(&Line, &[b'x'; 100], Verdict::No);
/// ```
pub trait Matcher: Send + Sync + 'static {
    /// The answer for the bytes received so far.
    fn matches(&self, view: &mut View<'_>) -> Verdict;

    /// How expensive [`matches`](Self::matches) is.
    fn cost(&self) -> Cost {
        Cost::Parse
    }

    /// The equality keys this matcher stands for, if it can only match when one of them is met. They let a list with
    /// thousands of routes find its candidates by a look-up. The index proposes, the matcher decides.
    fn keys(&self) -> Option<Keys> {
        None
    }

    /// Whether it may need more than the first datagram of a session (QUIC).
    fn spans_datagrams(&self) -> bool {
        false
    }
}

/// Equality keys of a matcher in one dimension.
pub struct Keys {
    /// What the keys are compared with.
    pub dimension: &'static dyn Dimension,
    /// Lower-case names; leading labels may be `*` (`*.example.com`, `*.*.example.com`), each standing for one label.
    pub keys: Vec<String>,
}

/// Something of a connection that keys are compared with: the SNI, the Host.
pub trait Dimension: Sync {
    /// Unique name, such as `tls.sni`.
    fn name(&self) -> &'static str;

    /// Writes the lower-case name that the connection carries into `name` and answers `Match`; `No` if it cannot carry
    /// one (another protocol), which rules every keyed route of the dimension out; `More` while undecided.
    fn probe(&self, view: &View<'_>, name: &mut String) -> Verdict;
}

/// What a matcher may look at: the unread bytes, and what is known of the connection without reading.
///
/// ```
/// use l4_core::prelude::*;
///
/// /// SOCKS of either version, for clients on this machine.
/// struct LocalSocks;
///
/// impl Matcher for LocalSocks {
///     fn matches(&self, view: &mut View<'_>) -> Verdict {
///         if !view.remote_ip().is_some_and(|ip| ip.is_loopback()) {
///             return Verdict::No;
///         }
///         match view.bytes().first() {
///             Some(version) => Verdict::from_bool(matches!(version, 4 | 5)),
///             None => Verdict::More(1),
///         }
///     }
/// }
///
/// let mut conn = l4_testkit::received(b"\x05\x01\x00");
/// assert_eq!(l4_testkit::conn_verdict(&LocalSocks, &mut conn), Verdict::No);
/// conn.set_addresses("127.0.0.1:4000".parse().map(Addr::Tcp).unwrap(), conn.local().clone());
/// assert_eq!(l4_testkit::conn_verdict(&LocalSocks, &mut conn), Verdict::Match);
/// ```
pub struct View<'a> {
    inner: &'a mut Inner,
}

impl<'a> View<'a> {
    pub(crate) fn new(inner: &'a mut Inner) -> Self {
        Self { inner }
    }

    /// The unread bytes from the first; on a datagram session the first datagram.
    pub fn bytes(&self) -> &[u8] {
        self.inner.bytes()
    }

    /// Whether the connection carries datagrams.
    pub fn is_datagram(&self) -> bool {
        self.inner.is_datagram()
    }

    /// All unread datagrams of a session, in order.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.inner.datagrams()
    }

    /// Nothing has been received yet (an empty datagram is something).
    pub fn is_dry(&self) -> bool {
        self.inner.is_dry()
    }

    /// The effective remote address.
    pub fn remote(&self) -> &Addr {
        self.inner.remote()
    }

    /// The effective local address; costs a system call the first time.
    pub fn local(&self) -> &Addr {
        self.inner.local()
    }

    /// The effective remote IP address; `None` on a Unix socket.
    pub fn remote_ip(&self) -> Option<IpAddr> {
        self.inner.remote().ip()
    }

    /// The effective local IP address; `None` on a Unix socket.
    pub fn local_ip(&self) -> Option<IpAddr> {
        self.inner.local().ip()
    }

    /// When the connection was accepted.
    pub fn accepted_at(&self) -> SystemTime {
        self.inner.record().accepted_at()
    }

    /// A fact about the unread bytes, parsed at most once per connection.
    pub fn fact<T: Fact>(&self) -> Parsed<&T> {
        self.inner.fact()
    }

    /// The value of a variable.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.inner.var(name)
    }

    /// What a module left on the connection.
    pub fn extension<T: Any>(&self) -> Option<&T> {
        self.inner.extension()
    }

    /// A template filled in for this connection; borrowed when it has no placeholders.
    pub fn expand<'t>(&self, template: &'t Template) -> Cow<'t, str> {
        template.expand(Scope::new(self.inner))
    }

    /// Keeps what a regular expression captured. It stays only if the whole set matches.
    pub fn capture(&mut self, capture: Capture) {
        self.inner.captures().push(capture);
    }

    pub(crate) fn captures(&mut self) -> &mut Vec<Capture> {
        self.inner.captures()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_refused_at_the_first_other_byte() {
        assert_eq!(Verdict::prefix(b"", b"SSH-"), Verdict::More(1));
        assert_eq!(Verdict::prefix(b"SS", b"SSH-"), Verdict::More(1));
        assert_eq!(Verdict::prefix(b"SSX", b"SSH-"), Verdict::No);
        assert_eq!(Verdict::prefix(b"SSH-2.0", b"SSH-"), Verdict::Match);
    }
}
