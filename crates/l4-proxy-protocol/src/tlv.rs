//! What version 2 says behind the addresses: type, length, value (section 2.2 of the specification).

use thiserror::Error;

/// The protocol that was negotiated over TLS.
pub const ALPN: u8 = 0x01;
/// The host name that the client asked for, such as the server name of TLS.
pub const AUTHORITY: u8 = 0x02;
/// A checksum over the whole header.
pub const CRC32C: u8 = 0x03;
/// What identifies the connection.
pub const UNIQUE_ID: u8 = 0x05;
/// What is known about TLS; a list of its own follows five bytes.
pub const SSL: u8 = 0x20;
/// The name of the network namespace.
pub const NETNS: u8 = 0x30;

/// Within [`SSL`]: the version, such as `TLSv1.3`.
pub const SSL_VERSION: u8 = 0x21;
/// Within [`SSL`]: the common name of the client's certificate.
pub const SSL_CN: u8 = 0x22;
/// Within [`SSL`]: the cipher suite.
pub const SSL_CIPHER: u8 = 0x23;
/// Within [`SSL`]: how the server's certificate is signed.
pub const SSL_SIG_ALG: u8 = 0x24;
/// Within [`SSL`]: the kind of the server's key.
pub const SSL_KEY_ALG: u8 = 0x25;

/// Type and length of one entry.
const HEAD: usize = 3;

/// A list of entries, each of which is whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tlvs(Box<[u8]>);

/// Why a list is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TlvError {
    /// An entry is longer than what is left.
    #[error("the entry at byte {0} behind the addresses is truncated")]
    Truncated(usize),
    /// The checksum has another size than it has.
    #[error("a CRC32C checksum of {0} bytes")]
    ChecksumLength(usize),
    /// The header was changed on its way.
    #[error("the CRC32C checksum is wrong")]
    Checksum,
    /// The entry about TLS has no room for what it begins with.
    #[error("the entry about TLS is truncated")]
    Ssl,
}

/// The entry about TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ssl<'a> {
    client: u8,
    verify: u32,
    entries: &'a [u8],
}

impl Tlvs {
    /// Reads the entries of a whole header; they begin at its byte `from`.
    ///
    /// # Errors
    /// One of them is not whole, or the checksum is wrong.
    pub fn parse(header: &[u8], from: usize) -> Result<Self, TlvError> {
        let list = header.get(from..).unwrap_or_default();
        let mut at = 0;
        while at < list.len() {
            let (kind, value) = entry(list, at).ok_or(TlvError::Truncated(at))?;
            match kind {
                CRC32C => verify(header, from + at + HEAD, value)?,
                SSL => check_ssl(value)?,
                _ => {}
            }
            at += HEAD + value.len();
        }
        Ok(Self(list.into()))
    }

    /// The entries in order: type and value.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        entries(&self.0)
    }

    /// The value of the first entry of that type.
    pub fn find(&self, kind: u8) -> Option<&[u8]> {
        self.iter()
            .find(|(other, _)| *other == kind)
            .map(|(_, value)| value)
    }

    /// The entry about TLS.
    pub fn ssl(&self) -> Option<Ssl<'_>> {
        Ssl::new(self.find(SSL)?)
    }
}

impl<'a> Ssl<'a> {
    fn new(value: &'a [u8]) -> Option<Self> {
        let (&[client, a, b, c, d], entries) = value.split_first_chunk()?;
        let verify = u32::from_be_bytes([a, b, c, d]);
        Some(Self {
            client,
            verify,
            entries,
        })
    }

    /// Whether the client came over TLS.
    pub fn used(&self) -> bool {
        self.client & 0x01 != 0
    }

    /// Whether it showed a certificate, on this connection or on the one whose session it resumed, and that was found
    /// good.
    pub fn verified(&self) -> bool {
        self.client & 0x06 != 0 && self.verify == 0
    }

    /// The value of the first entry of that type.
    pub fn find(&self, kind: u8) -> Option<&'a [u8]> {
        entries(self.entries)
            .find(|(other, _)| *other == kind)
            .map(|(_, value)| value)
    }
}

fn check_ssl(value: &[u8]) -> Result<(), TlvError> {
    let ssl = Ssl::new(value).ok_or(TlvError::Ssl)?;
    let mut at = 0;
    while at < ssl.entries.len() {
        let (_, value) = entry(ssl.entries, at).ok_or(TlvError::Ssl)?;
        at += HEAD + value.len();
    }
    Ok(())
}

fn entries(list: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let found = entry(list, at)?;
        at += HEAD + found.1.len();
        Some(found)
    })
}

/// Type and value of the entry at byte `at`, if it is whole.
fn entry(list: &[u8], at: usize) -> Option<(u8, &[u8])> {
    let (&[kind, high, low], rest) = list.get(at..)?.split_first_chunk()?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    Some((kind, rest.get(..length)?))
}

/// Compares the checksum `value`, which stands at byte `at` of `header`, with that of the header in which it is zero.
fn verify(header: &[u8], at: usize, value: &[u8]) -> Result<(), TlvError> {
    let stated: [u8; 4] = value
        .try_into()
        .map_err(|_| TlvError::ChecksumLength(value.len()))?;
    let before = header.get(..at).unwrap_or_default();
    let behind = header.get(at + stated.len()..).unwrap_or_default();
    let bytes = before.iter().chain(&[0; 4]).chain(behind);
    match crc32c(bytes) == u32::from_be_bytes(stated) {
        true => Ok(()),
        false => Err(TlvError::Checksum),
    }
}

/// CRC-32C (RFC 9260, appendix A), a bit at a time: a header is short and mostly has none.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    let crc = bytes.fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg())
        })
    });
    !crc
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One entry.
    pub(crate) fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[kind], &length[..], value].concat()
    }

    fn parse(list: &[u8]) -> Result<Tlvs, TlvError> {
        Tlvs::parse(list, 0)
    }

    #[test]
    fn the_checksum_is_the_published_one() {
        assert_eq!(crc32c(b"123456789".iter()), 0xE306_9283);
        assert_eq!(crc32c([0; 32].iter()), 0x8A91_36AA);
    }

    #[test]
    fn entries_are_found_by_type_the_first_of_several() {
        let list = [tlv(ALPN, b"h2"), tlv(0xE0, b""), tlv(ALPN, b"http/1.1")].concat();
        let tlvs = parse(&list).unwrap();
        assert_eq!(tlvs.find(ALPN), Some(&b"h2"[..]));
        assert_eq!(tlvs.find(0xE0), Some(&b""[..]));
        assert_eq!(tlvs.find(AUTHORITY), None);
        assert_eq!(tlvs.iter().count(), 3);
    }

    #[test]
    fn an_entry_that_is_cut_is_an_error() {
        let list = [tlv(ALPN, b"h2"), tlv(UNIQUE_ID, b"abc")].concat();
        assert_eq!(parse(&[]), Ok(Tlvs::default()));
        for cut in 1..list.len() {
            let from = if cut < 5 { 0 } else { 5 };
            let expected = if cut == 5 {
                None
            } else {
                Some(TlvError::Truncated(from))
            };
            assert_eq!(parse(&list[..cut]).err(), expected, "{cut}");
        }
        assert_eq!(
            parse(&[ALPN, 0xFF, 0xFF, b'h']),
            Err(TlvError::Truncated(0))
        );
    }

    #[test]
    fn a_wrong_checksum_is_an_error_and_so_is_one_of_another_size() {
        let mut header = [
            b"header".as_slice(),
            &tlv(CRC32C, &[0; 4]),
            &tlv(ALPN, b"h2"),
        ]
        .concat();
        let sum = crc32c(header.iter()).to_be_bytes();
        header[9..13].copy_from_slice(&sum);
        assert!(Tlvs::parse(&header, 6).is_ok());
        // Changing the type of the entry makes it another one, of which nothing is known.
        for at in (0..header.len()).filter(|at| *at != 6) {
            let mut changed = header.clone();
            changed[at] ^= 1;
            assert!(Tlvs::parse(&changed, 6).is_err(), "byte {at}");
        }
        assert_eq!(
            parse(&tlv(CRC32C, &[0; 3])),
            Err(TlvError::ChecksumLength(3))
        );
        assert_eq!(parse(&tlv(CRC32C, &[])), Err(TlvError::ChecksumLength(0)));
    }

    #[test]
    fn the_entry_about_tls_has_entries_of_its_own() {
        let inner = [tlv(SSL_VERSION, b"TLSv1.3"), tlv(SSL_CN, b"someone")].concat();
        let ssl = |client, verify: u32| {
            let value = [&[client], &verify.to_be_bytes()[..], &inner].concat();
            parse(&tlv(SSL, &value)).unwrap()
        };
        let tlvs = ssl(0x03, 0);
        let found = tlvs.ssl().unwrap();
        assert_eq!(found.find(SSL_CN), Some(&b"someone"[..]));
        assert_eq!(found.find(SSL_CIPHER), None);
        assert!(found.used() && found.verified());
        assert!(
            !ssl(0x03, 20).ssl().unwrap().verified(),
            "a bad certificate"
        );
        assert!(!ssl(0x01, 0).ssl().unwrap().verified(), "no certificate");
        assert!(
            ssl(0x05, 0).ssl().unwrap().verified(),
            "one of an earlier connection"
        );
        assert_eq!(parse(&tlv(SSL, &[1, 0, 0, 0])), Err(TlvError::Ssl));
        let cut = [&[1, 0, 0, 0, 0], &inner[..4]].concat();
        assert_eq!(parse(&tlv(SSL, &cut)), Err(TlvError::Ssl));
    }

    proptest! {
        #[test]
        fn any_list_is_read_back_whole_or_refused(list in proptest::collection::vec(0_u8..40, 0..64)) {
            if let Ok(tlvs) = parse(&list) {
                let again: Vec<u8> = tlvs.iter().flat_map(|(kind, value)| tlv(kind, value)).collect();
                prop_assert_eq!(again, list);
            }
        }
    }
}
