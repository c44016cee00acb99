//! The ClientHello: what a TLS client says before anything is encrypted (RFC 8446 section 4.1.2).

use std::borrow::Cow;

use l4_core::{Fact, Parsed};

use crate::records::{Cursor, Step, Stop};

/// What a TLS client says about itself in its first message.
///
/// Parsed from the unread bytes of a connection, however records and segments cut the message; up to 16 KiB. A message
/// that is malformed anywhere is not a hello, so that nobody routes by half of it: wrong lengths, an extension or a
/// host name given twice, a host name that is not one. GREASE values (RFC 8701) are left out of every list of numbers.
/// Of an encrypted hello only the outer part is visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    legacy_version: u16,
    /// As sent, and in lower case if that is not the same.
    server_name: Option<(Box<str>, Option<Box<str>>)>,
    /// As on the wire: each name after its length.
    alpn: Box<[u8]>,
    /// Supported versions, cipher suites, groups and signature schemes, one after the other.
    numbers: Vec<u16>,
    /// Where the first three of them end.
    ends: [usize; 3],
    offers_session: bool,
}

impl ClientHello {
    /// The server name as sent. It consists of letters, digits, `-`, `_` and single dots between them.
    pub fn server_name(&self) -> Option<&str> {
        self.server_name.as_ref().map(|(sent, _)| &**sent)
    }

    /// The server name in lower case; empty if the client named none.
    pub fn server_name_lower(&self) -> &str {
        self.server_name
            .as_ref()
            .map_or("", |(sent, lower)| lower.as_ref().unwrap_or(sent))
    }

    /// The protocols that the client offers by ALPN, in its order.
    pub fn alpn(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &*self.alpn;
        std::iter::from_fn(move || {
            let (length, names) = rest.split_first()?;
            let (name, names) = names.split_at_checked(usize::from(*length))?;
            rest = names;
            Some(name)
        })
    }

    /// The protocol versions that the client supports, in its order. A client that sends no list supports TLS 1.0 up
    /// to its legacy version.
    pub fn versions(&self) -> &[u16] {
        &self.numbers[..self.ends[0]]
    }

    /// The highest version that the client supports.
    pub fn version(&self) -> u16 {
        let known = self
            .versions()
            .iter()
            .filter(|version| (SSL_3_0..=TLS_1_3).contains(*version));
        known
            .max()
            .or(self.versions().iter().max())
            .copied()
            .unwrap_or(self.legacy_version)
    }

    /// The version field of the message itself, which TLS 1.3 froze at 0x0303.
    pub fn legacy_version(&self) -> u16 {
        self.legacy_version
    }

    /// The cipher suites that the client offers, in its order.
    pub fn cipher_suites(&self) -> &[u16] {
        &self.numbers[self.ends[0]..self.ends[1]]
    }

    /// The key exchange groups that the client supports, in its order.
    pub fn groups(&self) -> &[u16] {
        &self.numbers[self.ends[1]..self.ends[2]]
    }

    /// The signature schemes that the client accepts, in its order.
    pub fn signature_schemes(&self) -> &[u16] {
        &self.numbers[self.ends[2]..]
    }

    /// Whether the client has a session of TLS 1.3 that it would resume.
    pub fn offers_session(&self) -> bool {
        self.offers_session
    }
}

impl Fact for ClientHello {
    fn parse(bytes: &[u8]) -> Parsed<Self> {
        // `More` asks for the bytes up to the next one that can refuse, not for the whole message: somebody who speaks
        // another protocol and waits for an answer must not be kept waiting for bytes he will not send.
        match Layout::read(bytes) {
            Ok(layout) => Parsed::Done(layout.into()),
            Err(Stop::Not) => Parsed::Not,
            Err(Stop::More(n)) => Parsed::More(n),
        }
    }
}

/// Where the parts of a complete and well-formed hello are. Nothing is copied before there is one.
#[derive(Default)]
struct Layout<'a> {
    legacy_version: u16,
    cipher_suites: Option<Field<'a>>,
    server_name: Option<Field<'a>>,
    alpn: Option<Field<'a>>,
    versions: Option<Field<'a>>,
    groups: Option<Field<'a>>,
    signature_schemes: Option<Field<'a>>,
    offers_session: bool,
}

/// The content of a vector.
#[derive(Clone, Copy)]
struct Field<'a> {
    start: Cursor<'a>,
    length: usize,
}

impl<'a> Layout<'a> {
    fn read(bytes: &'a [u8]) -> Step<Self> {
        let mut layout = Self::default();
        let mut at = Cursor::new(bytes, MESSAGE_HEADER);
        at.number::<1>(CLIENT_HELLO..=CLIENT_HELLO)?;
        let length = at.number::<3>(MIN_LENGTH..=MAX_LENGTH)?;
        at.set_left(length);

        layout.legacy_version =
            u16::try_from(at.number::<2>(usize::from(SSL_3_0)..=0xFFFF)?).unwrap_or(0);
        at.skip(RANDOM)?;
        // Each length leaves room for the shortest of what follows, which `MIN_LENGTH` grants the first of them.
        let session_id = at.number::<1>(0..=(at.left() - 7).min(MAX_SESSION_ID))?;
        at.skip(session_id)?;

        let length = at.number::<2>(2..=at.left() - 4)?;
        if length % 2 == 1 {
            return Err(Stop::Not);
        }
        layout.cipher_suites = Some(Field { start: at, length });
        at.skip(length)?;

        let compression = at.number::<1>(1..=at.left() - 1)?;
        if at.left() - compression == 1 {
            return Err(Stop::Not);
        }
        at.skip(compression)?;
        // Clients that know no extensions end here.
        if at.left() > 0 {
            let length = at.left() - 2;
            at.number::<2>(length..=length)?;
            layout.read_extensions(&mut at)?;
        }
        Ok(layout)
    }

    fn read_extensions(&mut self, at: &mut Cursor<'a>) -> Step<()> {
        // Nearly all assigned types, and all that anything here reads, are below 64. A set of all 65 536 would have
        // to be cleared for every hello.
        let mut seen = 0_u64;
        while at.left() > 0 {
            if at.left() < EXTENSION_HEADER {
                return Err(Stop::Not);
            }
            let kind = at.number::<2>(0..=0xFFFF)?;
            let bit = u32::try_from(kind)
                .ok()
                .and_then(|kind| 1_u64.checked_shl(kind))
                .unwrap_or(0);
            if seen & bit != 0 {
                return Err(Stop::Not);
            }
            seen |= bit;

            let length = at.number::<2>(0..=at.left() - 2)?;
            let after = at.left() - length;
            if (1..EXTENSION_HEADER).contains(&after) {
                return Err(Stop::Not);
            }
            match kind {
                SERVER_NAME => self.server_name = server_name(at, length)?,
                ALPN => self.alpn = Some(alpn(at, length)?),
                SUPPORTED_VERSIONS => self.versions = Some(numbers::<1>(at, length)?),
                SUPPORTED_GROUPS => self.groups = Some(numbers::<2>(at, length)?),
                SIGNATURE_ALGORITHMS => self.signature_schemes = Some(numbers::<2>(at, length)?),
                PRE_SHARED_KEY => self.offers_session = true,
                _ => {}
            }
            at.skip(at.left() - after)?;
        }
        Ok(())
    }
}

/// The length of the one vector that fills an extension of `length` bytes.
fn only_vector<const SIZE: usize>(at: &mut Cursor<'_>, length: usize) -> Step<usize> {
    match length.checked_sub(SIZE) {
        Some(content @ 1..) => at.number::<SIZE>(content..=content),
        _ => Err(Stop::Not),
    }
}

/// A list of 16-bit numbers, not empty.
fn numbers<'a, const SIZE: usize>(at: &mut Cursor<'a>, length: usize) -> Step<Field<'a>> {
    if length.saturating_sub(SIZE) % 2 == 1 {
        return Err(Stop::Not);
    }
    let length = only_vector::<SIZE>(at, length)?;
    Ok(Field { start: *at, length })
}

/// The host name of a server_name extension, RFC 6066 section 3. Names of other kinds are passed over.
fn server_name<'a>(at: &mut Cursor<'a>, length: usize) -> Step<Option<Field<'a>>> {
    let mut left = only_vector::<2>(at, length)?;
    let mut found = None;
    while left > 0 {
        let Some(longest) = left.checked_sub(ENTRY_HEADER) else {
            return Err(Stop::Not);
        };
        let kind = at.number::<1>(0..=0xFF)?;
        // "MUST NOT contain more than one name of the same name_type".
        if kind == HOST_NAME && found.is_some() {
            return Err(Stop::Not);
        }
        let lengths = if kind == HOST_NAME {
            1..=longest.min(MAX_HOST_NAME)
        } else {
            0..=longest
        };
        let length = at.number::<2>(lengths)?;
        left = longest - length;
        if (1..ENTRY_HEADER).contains(&left) {
            return Err(Stop::Not);
        }
        if kind == HOST_NAME {
            found = Some(Field { start: *at, length });
            read_host_name(at, length)?;
        } else {
            at.skip(length)?;
        }
    }
    Ok(found)
}

fn read_host_name(at: &mut Cursor<'_>, mut length: usize) -> Step<()> {
    let mut name = HostName::default();
    while length > 0 {
        let chunk = at.chunk(length)?;
        length -= chunk.len();
        if !name.goes_on_with(chunk) {
            return Err(Stop::Not);
        }
    }
    if name.is_complete() {
        Ok(())
    } else {
        Err(Stop::Not)
    }
}

/// The list of protocol names, RFC 7301 section 3.1.
fn alpn<'a>(at: &mut Cursor<'a>, length: usize) -> Step<Field<'a>> {
    let length = only_vector::<2>(at, length)?;
    let field = Field { start: *at, length };
    let mut left = length;
    while left > 0 {
        let name = at.number::<1>(1..=left - 1)?;
        left -= 1 + name;
        // Not even a length and one byte are left for a further name.
        if left == 1 {
            return Err(Stop::Not);
        }
        at.skip(name)?;
    }
    Ok(field)
}

/// Whether text that comes in pieces is a host name.
///
/// RFC 6066 wants a fully qualified DNS name in ASCII without a trailing dot. Underscores are not allowed in one and
/// used nonetheless; IPv4 literals are forbidden and look like one.
#[derive(Default)]
pub(crate) struct HostName {
    in_label: bool,
}

impl HostName {
    /// False at the first byte that cannot be part of a host name.
    pub(crate) fn goes_on_with(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().all(|byte| match byte {
            b'.' => std::mem::take(&mut self.in_label),
            b'-' | b'_' => {
                self.in_label = true;
                true
            }
            _ => {
                self.in_label = true;
                byte.is_ascii_alphanumeric()
            }
        })
    }

    /// Whether it may end here.
    pub(crate) fn is_complete(&self) -> bool {
        self.in_label
    }
}

impl From<Layout<'_>> for ClientHello {
    fn from(layout: Layout<'_>) -> Self {
        let lists = [
            layout.versions,
            layout.cipher_suites,
            layout.groups,
            layout.signature_schemes,
        ];
        let count: usize = lists.iter().flatten().map(|list| list.length / 2).sum();
        let mut numbers = Vec::with_capacity(count + LEGACY_VERSIONS.len());
        if layout.versions.is_none() {
            // RFC 8446 section 4.2.1: TLS 1.2 or older then, whatever the legacy version says.
            numbers.extend(
                LEGACY_VERSIONS
                    .into_iter()
                    .filter(|v| *v <= layout.legacy_version),
            );
        }
        let [versions, suites, groups, _] = lists.map(|list| {
            if let Some(list) = list {
                list.numbers(&mut numbers);
            }
            numbers.len()
        });
        Self {
            legacy_version: layout.legacy_version,
            server_name: layout.server_name.map(|name| {
                let name = name.bytes();
                // Every byte of it was found to be ASCII.
                let sent = Box::<str>::from(std::str::from_utf8(&name).unwrap_or_default());
                let upper = sent.bytes().any(|byte| byte.is_ascii_uppercase());
                let lower = upper.then(|| sent.to_ascii_lowercase().into());
                (sent, lower)
            }),
            alpn: layout
                .alpn
                .map(|names| names.bytes().into())
                .unwrap_or_default(),
            numbers,
            ends: [versions, suites, groups],
            offers_session: layout.offers_session,
        }
    }
}

/// A layout exists only of a complete hello, so the cursors cannot stop short here.
impl<'a> Field<'a> {
    /// The content, gathered only where a record ends in it.
    fn bytes(mut self) -> Cow<'a, [u8]> {
        let first = self.start.chunk(self.length).unwrap_or_default();
        let mut left = self.length - first.len();
        if left == 0 {
            return Cow::Borrowed(first);
        }
        let mut bytes = Vec::with_capacity(self.length);
        bytes.extend_from_slice(first);
        while left > 0
            && let Ok(chunk) = self.start.chunk(left)
        {
            bytes.extend_from_slice(chunk);
            left -= chunk.len();
        }
        Cow::Owned(bytes)
    }

    fn numbers(self, out: &mut Vec<u16>) {
        let bytes = self.bytes();
        let numbers = bytes
            .chunks_exact(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        out.extend(numbers.filter(|n| !is_grease(*n)));
    }
}

/// Values that clients sprinkle in so that servers learn to ignore what they do not know (RFC 8701).
fn is_grease(value: u16) -> bool {
    let [high, low] = value.to_be_bytes();
    high == low && low & 0x0F == 0x0A
}

const CLIENT_HELLO: usize = 1;
const MESSAGE_HEADER: usize = 4;
const RANDOM: usize = 32;
const MAX_SESSION_ID: usize = 32;
/// Version, random, and the least of session id, cipher suites and compression methods.
const MIN_LENGTH: usize = 2 + RANDOM + 1 + (2 + 2) + (1 + 1);
const MAX_LENGTH: usize = 1 << 14;
const EXTENSION_HEADER: usize = 4;

const SERVER_NAME: usize = 0;
const SUPPORTED_GROUPS: usize = 10;
const SIGNATURE_ALGORITHMS: usize = 13;
const ALPN: usize = 16;
const PRE_SHARED_KEY: usize = 41;
const SUPPORTED_VERSIONS: usize = 43;

const HOST_NAME: usize = 0;
const ENTRY_HEADER: usize = 3;
const MAX_HOST_NAME: usize = 255;

const SSL_3_0: u16 = 0x0300;
const TLS_1_3: u16 = 0x0304;
const LEGACY_VERSIONS: [u16; 3] = [0x0303, 0x0302, 0x0301];

#[cfg(test)]
mod tests;
