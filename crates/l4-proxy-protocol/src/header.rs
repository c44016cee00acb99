//! The header, as it stands at the beginning of a stream or datagram: found and read.
//!
//! [`parse`] finds the end of the header and checks everything before any of it is used; only then is the address block
//! given to the crate `proxy-protocol`, as exactly the bytes of one header. The sections named are those of the PROXY
//! protocol's specification, versions 1 and 2.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use l4_core::{Addr, Verdict};
use proxy_protocol::{ProxyHeader, version1, version2};
use thiserror::Error;

use crate::tlv::{TlvError, Tlvs};

/// How a header of version 1 begins (section 2.1).
pub(crate) const V1: &[u8] = b"PROXY ";

/// The signature of version 2 (section 2.2), chosen by its authors so that every other protocol chokes on it.
pub(crate) const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line of version 1, CR LF included.
const LONGEST_LINE: usize = 107;

/// Signature, version and command, family and transport, length.
const FIXED: usize = 16;

/// The most that version 2 may declare. What senders add to the addresses is a few hundred bytes; the certificate that
/// some can pass on fits as well.
const LONGEST_REST: usize = 4096;

/// Room for the name of a Unix socket in version 2.
const UNIX_NAME: usize = 108;

/// What the first bytes of a stream or datagram are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// No header: something else begins here.
    NotAHeader,
    /// Nothing is certain yet, or a header is not complete.
    More,
    /// A header, and how many bytes it takes.
    Complete(Header, usize),
    /// They begin as a header does, and are none.
    Malformed(HeaderError),
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its version.
    pub version: Version,
    /// Who talks to whom; `None` if the sender speaks for itself, or does not say.
    pub addresses: Option<Addresses>,
    /// What else version 2 says.
    pub tlvs: Tlvs,
}

/// The two versions of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// The ends of the connection that the sender speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// Where it comes from.
    pub source: Addr,
    /// Where it was going.
    pub destination: Addr,
}

/// Why bytes that begin as a header does are none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// No end of the line where it must be at the latest.
    #[error("the line is longer than {LONGEST_LINE} bytes")]
    LineTooLong,
    /// CR or LF alone.
    #[error("the line does not end in CR LF")]
    MissingCrlf,
    /// Version 1 with another word.
    #[error("{0:?} is none of TCP4, TCP6 and UNKNOWN")]
    UnknownProtocol(String),
    /// Version 2 with bits that mean nothing.
    #[error("0x{0:02x} is no address family and transport")]
    BadFamily(u8),
    /// Version 1 with something else for an address.
    #[error("{0:?} is not an address of {1}")]
    BadAddress(String, &'static str),
    /// Version 1 with something else for a port.
    #[error("{0:?} is not a port")]
    BadPort(String),
    /// A version or command that does not exist.
    #[error("0x{0:02x} is no version and command")]
    BadVersion(u8),
    /// Version 2 declares less than the addresses take, or more than is taken.
    #[error(
        "{declared} bytes are declared, but {needed} needed and at most {LONGEST_REST} allowed"
    )]
    BadLength {
        /// What the header says follows.
        declared: usize,
        /// What the addresses take.
        needed: usize,
    },
    /// What follows the addresses.
    #[error(transparent)]
    Tlv(#[from] TlvError),
    /// The crate that reads addresses found something that the checks before it let pass.
    #[error("the addresses cannot be read")]
    Unreadable,
}

/// Whether `bytes` begin as a header of any kind does: with `PROXY` and a space, or with the signature of version 2.
pub fn beginning(bytes: &[u8]) -> Verdict {
    match Verdict::prefix(bytes, V1) {
        Verdict::No => Verdict::prefix(bytes, V2),
        // Neither beginning is one of the other.
        decided => decided,
    }
}

/// Reads the header that `bytes` begin with. An answer other than [`Parsed::More`] stays the same whatever follows.
pub fn parse(bytes: &[u8]) -> Parsed {
    let parsed = match beginning(bytes) {
        Verdict::No => return Parsed::NotAHeader,
        Verdict::More(_) => return Parsed::More,
        Verdict::Match if bytes.starts_with(V1) => line(bytes),
        Verdict::Match => binary(bytes),
    };
    match parsed {
        Ok(Some((header, length))) => Parsed::Complete(header, length),
        Ok(None) => Parsed::More,
        Err(error) => Parsed::Malformed(error),
    }
}

/// Version 1. `None`: its end is not there yet.
fn line(bytes: &[u8]) -> Result<Option<(Header, usize)>, HeaderError> {
    let end = bytes
        .iter()
        .take(LONGEST_LINE - 1)
        .position(|b| matches!(b, b'\r' | b'\n'));
    let Some(end) = end else {
        return if bytes.len() < LONGEST_LINE - 1 {
            Ok(None)
        } else {
            Err(HeaderError::LineTooLong)
        };
    };
    match bytes.get(end..end + 2) {
        Some(b"\r\n") => {}
        None if bytes.get(end) == Some(&b'\r') => return Ok(None),
        _ => return Err(HeaderError::MissingCrlf),
    }
    let words = bytes.get(V1.len()..end).unwrap_or_default();
    let header = Header {
        version: Version::V1,
        addresses: line_addresses(words)?,
        tlvs: Tlvs::default(),
    };
    Ok(Some((header, end + 2)))
}

/// What follows `PROXY` on the line.
fn line_addresses(words: &[u8]) -> Result<Option<Addresses>, HeaderError> {
    let mut words = words.split(|b| *b == b' ');
    let mut word = || words.next().unwrap_or_default();
    let protocol = match word() {
        // "The receiver must ignore anything presented before the CRLF is found."
        b"UNKNOWN" => return Ok(None),
        b"TCP4" => "TCP4",
        b"TCP6" => "TCP6",
        other => return Err(HeaderError::UnknownProtocol(shown(other))),
    };
    let source = address(word(), protocol)?;
    let destination = address(word(), protocol)?;
    let (source_port, destination_port) = (port(word())?, port(word())?);
    // Rewritten as the crate accepts it: without more words, and with an IPv4 address of TCP6, which some senders give
    // for the half of a connection that is IPv4, in its IPv6 form.
    let text =
        format!("PROXY {protocol} {source} {destination} {source_port} {destination_port}\r\n");
    match proxy_protocol::parse(&mut text.as_bytes()) {
        Ok(ProxyHeader::Version1 { addresses }) => match addresses {
            version1::ProxyAddresses::Ipv4 {
                source,
                destination,
            } => Ok(Some(tcp(source, destination))),
            version1::ProxyAddresses::Ipv6 {
                source,
                destination,
            } => Ok(Some(tcp(source, destination))),
            version1::ProxyAddresses::Unknown => Err(HeaderError::Unreadable),
        },
        _ => Err(HeaderError::Unreadable),
    }
}

/// The address in `word`, in the form of `protocol`.
fn address(word: &[u8], protocol: &'static str) -> Result<IpAddr, HeaderError> {
    let ip = str::from_utf8(word).ok().and_then(|text| text.parse().ok());
    match (protocol, ip) {
        ("TCP4", Some(IpAddr::V4(ip))) => Ok(ip.into()),
        ("TCP6", Some(IpAddr::V4(ip))) => Ok(ip.to_ipv6_mapped().into()),
        ("TCP6", Some(IpAddr::V6(ip))) => Ok(ip.into()),
        _ => Err(HeaderError::BadAddress(shown(word), protocol)),
    }
}

fn port(word: &[u8]) -> Result<u16, HeaderError> {
    // A number of the standard library may have a sign.
    let digits = !word.is_empty() && word.iter().all(u8::is_ascii_digit);
    let number = str::from_utf8(word).ok().filter(|_| digits);
    number
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| HeaderError::BadPort(shown(word)))
}

/// Version 2. `None`: its end is not there yet.
fn binary(bytes: &[u8]) -> Result<Option<(Header, usize)>, HeaderError> {
    let Some(&command) = bytes.get(V2.len()) else {
        return Ok(None);
    };
    let local = match command {
        0x20 => true,
        0x21 => false,
        other => return Err(HeaderError::BadVersion(other)),
    };
    let Some(&family) = bytes.get(V2.len() + 1) else {
        return Ok(None);
    };
    // "The receiver must use the real connection endpoints and discard the protocol block including the family."
    let needed = match family {
        _ if local => 0,
        0x00 => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 2 * UNIX_NAME,
        other => return Err(HeaderError::BadFamily(other)),
    };
    let Some(&[high, low]) = bytes.get(FIXED - 2..FIXED) else {
        return Ok(None);
    };
    let declared = usize::from(u16::from_be_bytes([high, low]));
    if declared < needed || declared > LONGEST_REST {
        return Err(HeaderError::BadLength { declared, needed });
    }
    let Some(bytes) = bytes.get(..FIXED + declared) else {
        return Ok(None);
    };
    let mut header = Header {
        version: Version::V2,
        addresses: None,
        tlvs: Tlvs::default(),
    };
    if !local {
        header.tlvs = Tlvs::parse(bytes, FIXED + needed)?;
        if needed > 0 {
            header.addresses = Some(binary_addresses(bytes, family & 0x0F == 2)?);
        }
    }
    Ok(Some((header, bytes.len())))
}

/// The address block of a whole header that has one.
fn binary_addresses(mut header: &[u8], datagram: bool) -> Result<Addresses, HeaderError> {
    let Ok(ProxyHeader::Version2 { addresses, .. }) = proxy_protocol::parse(&mut header) else {
        return Err(HeaderError::Unreadable);
    };
    let (source, destination) = match addresses {
        version2::ProxyAddresses::Ipv4 {
            source,
            destination,
        } => (source.into(), destination.into()),
        version2::ProxyAddresses::Ipv6 {
            source,
            destination,
        } => (source.into(), destination.into()),
        version2::ProxyAddresses::Unix {
            source,
            destination,
        } => {
            return Ok(Addresses {
                source: unix(&source, datagram),
                destination: unix(&destination, datagram),
            });
        }
        version2::ProxyAddresses::Unspec => return Err(HeaderError::Unreadable),
    };
    Ok(match datagram {
        true => Addresses {
            source: Addr::Udp(source),
            destination: Addr::Udp(destination),
        },
        false => tcp(source, destination),
    })
}

fn tcp(source: impl Into<SocketAddr>, destination: impl Into<SocketAddr>) -> Addresses {
    Addresses {
        source: Addr::Tcp(source.into()),
        destination: Addr::Tcp(destination.into()),
    }
}

/// The name of a Unix socket: up to the first NUL byte, or abstract if that comes first.
fn unix(field: &[u8; UNIX_NAME], datagram: bool) -> Addr {
    let until_nul =
        |bytes: &[u8]| -> Vec<u8> { bytes.iter().copied().take_while(|b| *b != 0).collect() };
    let name = match field.split_first() {
        Some((0, rest)) => match until_nul(rest) {
            name if name.is_empty() => name,
            name => [b"@".as_slice(), &name].concat(),
        },
        _ => until_nul(field),
    };
    let path = (!name.is_empty()).then(|| Arc::from(Path::new(std::ffi::OsStr::from_bytes(&name))));
    Addr::Unix { path, datagram }
}

/// What a stranger wrote, for an error.
fn shown(word: &[u8]) -> String {
    String::from_utf8_lossy(word).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tlv;
    use crate::tlv::tests::tlv;

    macro_rules! vector {
        ($name:literal) => {
            include_bytes!(concat!("../testdata/", $name, ".bin"))
        };
    }

    /// Version 2 with these two bytes, declaring what follows.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2, &[command, family], &length, rest].concat()
    }

    /// The addresses 192.0.2.1:258 and 198.51.100.2:443.
    const FOUR: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 2, 1, 2, 1, 187];

    fn complete(bytes: &[u8]) -> (Header, usize) {
        match parse(bytes) {
            Parsed::Complete(header, length) => (header, length),
            other => panic!("{}: {other:?}", bytes.escape_ascii()),
        }
    }

    fn malformed(bytes: &[u8]) -> HeaderError {
        match parse(bytes) {
            Parsed::Malformed(error) => error,
            other => panic!("{}: {other:?}", bytes.escape_ascii()),
        }
    }

    /// Source and destination as text, `tcp` first where they are.
    fn ends(bytes: &[u8]) -> String {
        complete(bytes)
            .0
            .addresses
            .map_or("none".into(), |addresses| {
                let network = addresses.source.network();
                format!("{network} {} {}", addresses.source, addresses.destination)
            })
    }

    /// What is decided about `bytes` was not decided otherwise about fewer of them.
    fn monotone(bytes: &[u8]) {
        let last = parse(bytes);
        let mut decided = None;
        for n in 0..=bytes.len() {
            let parsed = parse(&bytes[..n]);
            if let Parsed::Complete(_, length) = &parsed {
                assert!(*length <= n);
            }
            match &decided {
                Some(before) => assert_eq!(&parsed, before, "after {n} bytes"),
                None if parsed != Parsed::More => decided = Some(parsed),
                None => {}
            }
        }
        assert_eq!(decided.unwrap_or(Parsed::More), last);
    }

    #[test]
    fn what_haproxy_and_curl_send_is_read() {
        let tcp4 = ends(vector!("haproxy-v1-tcp4"));
        assert!(tcp4.starts_with("tcp 127.0.0.1:"), "{tcp4}");
        assert_eq!(ends(vector!("haproxy-v1-unknown")), "none");
        assert_eq!(ends(vector!("haproxy-v2-local")), "none");
        assert_eq!(ends(vector!("haproxy-v2-unix")), "none");
        for (vector, start) in [
            (&vector!("haproxy-v1-tcp6")[..], "tcp [::1]:"),
            (vector!("haproxy-v1-check"), "tcp 127.0.0.1:"),
            (vector!("haproxy-v2-tcp4"), "tcp 127.0.0.1:"),
            (vector!("haproxy-v2-tcp6"), "tcp [::1]:"),
            (vector!("haproxy-v2-tlv"), "tcp 127.0.0.1:"),
            (vector!("curl"), "tcp 127.0.0.1:"),
        ] {
            let ends = ends(vector);
            assert!(ends.starts_with(start), "{ends}");
            monotone(vector);
        }
        let tlvs = complete(vector!("haproxy-v2-tlv")).0.tlvs;
        assert!(tlvs.find(tlv::CRC32C).is_some() && tlvs.find(tlv::UNIQUE_ID).is_some());
        let curl = vector!("curl");
        assert!(curl[complete(curl).1..].starts_with(b"GET / HTTP/1.1\r\n"));
    }

    #[test]
    fn the_line_of_version_1_is_read() {
        for (line, expected) in [
            (
                "TCP4 1.2.3.4 5.6.7.8 9 65535",
                "tcp 1.2.3.4:9 5.6.7.8:65535",
            ),
            ("TCP6 ::1 2001:db8::2 0 1", "tcp [::1]:0 [2001:db8::2]:1"),
            (
                "TCP6 1.2.3.4 2001:db8::2 5 6",
                "tcp 1.2.3.4:5 [2001:db8::2]:6",
            ),
            (
                "TCP6 ::ffff:1.2.3.4 ::ffff:5.6.7.8 5 6",
                "tcp 1.2.3.4:5 5.6.7.8:6",
            ),
            (
                "TCP4 1.2.3.4 5.6.7.8 1 2 and more",
                "tcp 1.2.3.4:1 5.6.7.8:2",
            ),
            ("UNKNOWN", "none"),
            ("UNKNOWN  whatever \0", "none"),
        ] {
            let bytes = format!("PROXY {line}\r\npayload");
            assert_eq!(ends(bytes.as_bytes()), expected);
            assert_eq!(complete(bytes.as_bytes()).1, line.len() + 8);
            monotone(bytes.as_bytes());
        }
    }

    #[test]
    fn a_mapped_address_is_kept_as_ipv6() {
        let (header, _) = complete(b"PROXY TCP6 1.2.3.4 ::1 5 6\r\n");
        let source = header.addresses.unwrap().source.socket().unwrap();
        assert_eq!(source, "[::ffff:1.2.3.4]:5".parse().unwrap());
    }

    #[test]
    fn a_line_of_107_bytes_is_the_longest() {
        let line = |length: usize| format!("{:<1$}\r\n", "PROXY UNKNOWN ", length - 2).into_bytes();
        assert_eq!(complete(&line(107)).1, 107);
        assert_eq!(malformed(&line(108)), HeaderError::LineTooLong);
        assert_eq!(malformed(&line(108)[..106]), HeaderError::LineTooLong);
        monotone(&line(107));
        monotone(&line(108));
        monotone(&line(300));
    }

    #[test]
    fn every_fault_of_a_line_has_its_reason() {
        use HeaderError::{BadAddress, BadPort, MissingCrlf, UnknownProtocol};
        let address = |text: &str, protocol| BadAddress(text.into(), protocol);
        for (line, expected) in [
            ("TCP4 1.2.3.4 5.6.7.8 9 10\n", MissingCrlf),
            ("TCP4 1.2.3.4 5.6.7.8 9 10\rx", MissingCrlf),
            (
                "UDP4 1.2.3.4 5.6.7.8 9 10\r\n",
                UnknownProtocol("UDP4".into()),
            ),
            ("UNKNOWNS\r\n", UnknownProtocol("UNKNOWNS".into())),
            (
                "tcp4 1.2.3.4 5.6.7.8 9 10\r\n",
                UnknownProtocol("tcp4".into()),
            ),
            ("\r\n", UnknownProtocol(String::new())),
            ("TCP4 ::1 5.6.7.8 9 10\r\n", address("::1", "TCP4")),
            ("TCP4 1.2.3.4 5.6.7 9 10\r\n", address("5.6.7", "TCP4")),
            ("TCP4  1.2.3.4 5.6.7.8 9 10\r\n", address("", "TCP4")),
            ("TCP4 1.2.3.4\r\n", address("", "TCP4")),
            (
                "TCP6 fe80::1%eth0 ::1 9 10\r\n",
                address("fe80::1%eth0", "TCP6"),
            ),
            ("TCP4 1.2.3.4 5.6.7.8 9\r\n", BadPort(String::new())),
            ("TCP4 1.2.3.4 5.6.7.8 +9 10\r\n", BadPort("+9".into())),
            ("TCP4 1.2.3.4 5.6.7.8 65536 10\r\n", BadPort("65536".into())),
            ("TCP4 1.2.3.4 5.6.7.8 9 x\r\n", BadPort("x".into())),
        ] {
            let bytes = format!("PROXY {line}");
            assert_eq!(malformed(bytes.as_bytes()), expected, "{line}");
            monotone(bytes.as_bytes());
        }
    }

    #[test]
    fn a_line_cut_anywhere_is_waited_for() {
        // R8: the rest of a line may come in any number of segments.
        let line = b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n";
        for cut in 0..line.len() {
            assert_eq!(parse(&line[..cut]), Parsed::More, "{cut}");
        }
        assert_eq!(complete(line).1, line.len());
    }

    #[test]
    fn version_2_is_read() {
        let unix = |name: &[u8]| [name, &vec![0; 108 - name.len()]].concat();
        let six = [[0; 15].as_slice(), &[1], &[0; 15], &[2], &[0, 9, 0, 10]].concat();
        for (family, rest, expected) in [
            (0x11, FOUR.to_vec(), "tcp 192.0.2.1:258 198.51.100.2:443"),
            (0x12, FOUR.to_vec(), "udp 192.0.2.1:258 198.51.100.2:443"),
            (0x21, six.clone(), "tcp [::1]:9 [::2]:10"),
            (0x22, six, "udp [::1]:9 [::2]:10"),
            (
                0x31,
                [unix(b"/run/a"), unix(b"\0b")].concat(),
                "unix /run/a @b",
            ),
            (
                0x32,
                [unix(&[b'x'; 108]), unix(b"")].concat(),
                &format!("unixgram {} @", "x".repeat(108)),
            ),
            (0x00, vec![], "none"),
        ] {
            let bytes = [v2(0x21, family, &rest), b"payload".to_vec()].concat();
            assert_eq!(ends(&bytes), expected);
            assert_eq!(complete(&bytes).1, FIXED + rest.len());
            monotone(&bytes);
        }
    }

    #[test]
    fn proxy_without_addresses_is_a_header() {
        // R6
        let (header, length) = complete(&v2(0x21, 0x00, &tlv(tlv::ALPN, b"h2")));
        assert_eq!((header.addresses, length), (None, 21));
        assert_eq!(header.tlvs.find(tlv::ALPN), Some(&b"h2"[..]));
    }

    #[test]
    fn a_sender_that_speaks_for_itself_may_put_anything_behind() {
        for (family, rest) in [
            (0x11, &b"short"[..]),
            (0xFF, b"\xFF\xFF"),
            (0x00, b""),
            (0x11, FOUR),
        ] {
            let (header, length) = complete(&v2(0x20, family, rest));
            assert_eq!((header.addresses, length), (None, FIXED + rest.len()));
            assert_eq!(header.tlvs, Tlvs::default());
        }
    }

    #[test]
    fn every_fault_of_version_2_has_its_reason() {
        for command in [0x00, 0x10, 0x11, 0x22, 0x2F, 0x31] {
            let bytes = v2(command, 0x11, FOUR);
            assert_eq!(malformed(&bytes), HeaderError::BadVersion(command));
            monotone(&bytes);
        }
        // R3: families without a transport, and transports without a family.
        for family in [0x01, 0x02, 0x10, 0x13, 0x20, 0x23, 0x30, 0x40, 0x41, 0xFF] {
            for rest in [&b""[..], FOUR, &[0; 300]] {
                let bytes = v2(0x21, family, rest);
                assert_eq!(malformed(&bytes), HeaderError::BadFamily(family));
                monotone(&bytes);
            }
        }
        for (family, needed) in [
            (0x11, 12),
            (0x12, 12),
            (0x21, 36),
            (0x22, 36),
            (0x31, 216),
            (0x32, 216),
        ] {
            for declared in [0, needed - 1, 4097, 0xFFFF] {
                let bytes = v2(0x21, family, &vec![0; declared]);
                assert_eq!(
                    malformed(&bytes),
                    HeaderError::BadLength { declared, needed }
                );
                assert_eq!(
                    malformed(&bytes[..FIXED]),
                    HeaderError::BadLength { declared, needed }
                );
                monotone(&bytes);
            }
        }
        let declared = 4097;
        assert_eq!(
            malformed(&v2(0x20, 0, &vec![0; declared])),
            HeaderError::BadLength {
                declared,
                needed: 0
            },
            "also of a sender that speaks for itself"
        );
        let cut = v2(0x21, 0x11, &[FOUR, &[1, 0]].concat());
        assert_eq!(malformed(&cut), HeaderError::Tlv(TlvError::Truncated(0)));
        let mut changed = vector!("haproxy-v2-tlv").to_vec();
        changed[20] ^= 1;
        assert_eq!(malformed(&changed), HeaderError::Tlv(TlvError::Checksum));
    }

    #[test]
    fn a_declared_length_beyond_what_is_there_asks_for_more() {
        assert_eq!(parse(&v2(0x21, 0x11, FOUR)[..27]), Parsed::More);
        let longest = v2(0x20, 0x11, &vec![0; 4096]);
        assert_eq!(parse(&longest[..longest.len() - 1]), Parsed::More);
        assert_eq!(complete(&longest).1, longest.len());
    }

    #[test]
    fn what_begins_otherwise_is_no_header() {
        for (bytes, expected) in [
            (&b""[..], Parsed::More),
            (b"P", Parsed::More),
            (b"PROXY", Parsed::More),
            (b"PROXYING", Parsed::NotAHeader),
            (b"PROXY\r\n", Parsed::NotAHeader),
            (b"proxy ", Parsed::NotAHeader),
            (b"\r", Parsed::More),
            (b"\r\n\r\n\0\r\nQUIT", Parsed::More),
            (b"\r\n\r\n\0\r\nQUIT\r", Parsed::NotAHeader),
            (b"\r\n\r\nGET", Parsed::NotAHeader),
            (b"GET / HTTP/1.1\r\n", Parsed::NotAHeader),
        ] {
            assert_eq!(parse(bytes), expected, "{}", bytes.escape_ascii());
            monotone(bytes);
        }
    }

    /// Bytes that are headers now and then.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            Just("TCP4".to_owned()),
            Just("TCP6".to_owned()),
            Just("UNKNOWN".to_owned()),
            "[0-9a-f:.]{0,8}",
            any::<[u8; 4]>().prop_map(|ip| IpAddr::from(ip).to_string()),
            any::<u128>().prop_map(|ip| std::net::Ipv6Addr::from(ip).to_string()),
            any::<u16>().prop_map(|port| port.to_string()),
        ];
        let line = proptest::collection::vec(word, 0..7)
            .prop_map(|words| format!("PROXY {}\r\n", words.join(" ")).into_bytes());
        let family =
            proptest::sample::select(vec![0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32, 0x10, 0x42]);
        let rest = proptest::collection::vec(any::<u8>(), 0..240);
        let binary = (
            proptest::sample::select(vec![0x20, 0x21, 0x22]),
            family,
            rest,
        )
            .prop_map(|(command, family, rest)| v2(command, family, &rest));
        let sound = (
            proptest::sample::select(vec![
                (0x11, 12),
                (0x12, 12),
                (0x21, 36),
                (0x22, 36),
                (0x31, 216),
            ]),
            any::<[[u8; 36]; 6]>(),
        )
            .prop_map(|((family, length), rest)| v2(0x21, family, &rest.as_flattened()[..length]));
        let sound_line = (any::<[u8; 4]>(), any::<u128>(), any::<u16>(), any::<bool>()).prop_map(
            |(four, six, port, is_six)| {
                let (four, six) = (IpAddr::from(four), std::net::Ipv6Addr::from(six));
                match is_six {
                    true => format!("PROXY TCP6 {six} {six} {port} {port}\r\n").into_bytes(),
                    false => format!("PROXY TCP4 {four} {four} {port} {port}\r\n").into_bytes(),
                }
            },
        );
        let anything = proptest::collection::vec(any::<u8>(), 0..40);
        (
            prop_oneof![line, binary, sound, sound_line, anything.clone()],
            anything,
            0_usize..400,
        )
            .prop_map(|(start, rest, cut)| {
                let mut bytes = [start, rest].concat();
                bytes.truncate(cut);
                bytes
            })
    }

    proptest! {
        #[test]
        fn what_is_decided_stays_decided(bytes in bytes()) {
            monotone(&bytes);
        }

        /// What we call a header the crate reads as the same one, given just its bytes. It is stricter about words that
        /// follow the ports and about an IPv4 address of TCP6, and so are its ports.
        #[test]
        fn headers_are_those_of_the_crate(bytes in bytes()) {
            let Parsed::Complete(header, length) = parse(&bytes) else { return Ok(()) };
            let theirs = match proxy_protocol::parse(&mut &bytes[..length]) {
                Ok(ProxyHeader::Version1 { addresses: version1::ProxyAddresses::Ipv4 { source, destination } }) =>
                    Some((SocketAddr::from(source), SocketAddr::from(destination))),
                Ok(ProxyHeader::Version1 { addresses: version1::ProxyAddresses::Ipv6 { source, destination } }) =>
                    Some((source.into(), destination.into())),
                Ok(ProxyHeader::Version2 { command: version2::ProxyCommand::Proxy, addresses, .. }) => match addresses {
                    version2::ProxyAddresses::Ipv4 { source, destination } => Some((source.into(), destination.into())),
                    version2::ProxyAddresses::Ipv6 { source, destination } => Some((source.into(), destination.into())),
                    _ => None,
                },
                Ok(_) => None,
                Err(_) => {
                    prop_assert!(header.version == Version::V1 || bytes[V2.len()] == 0x20);
                    return Ok(());
                }
            };
            let ours = header.addresses.as_ref().and_then(|a| Some((a.source.socket()?, a.destination.socket()?)));
            prop_assert_eq!(ours, theirs);
        }

        #[test]
        fn what_is_sent_is_what_is_read(source in any::<u128>(), mapped in any::<bool>(), port in any::<u16>()) {
            let ip = std::net::Ipv6Addr::from(source);
            let ip = if mapped { IpAddr::from(ip.octets().first_chunk::<4>().copied().unwrap()) } else { ip.into() };
            let (remote, local) = (Addr::Tcp((ip, port).into()), Addr::Tcp("198.51.100.1:443".parse().unwrap()));
            for version in [Version::V1, Version::V2] {
                let (header, _) = complete(&crate::preamble::encode(version, &remote, &local));
                let ends = header.addresses.unwrap();
                prop_assert_eq!(ends.source.ip(), remote.ip());
                prop_assert_eq!(ends.destination.to_string(), local.to_string());
            }
        }
    }
}
