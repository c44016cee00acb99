//! The header that `proxy` sends: `layer4.proxy.preambles.v1` and `v2`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::unix::ffi::OsStrExt as _;

use l4_core::schema::Anything;
use l4_core::upstream::{Preamble, Preambles};
use l4_core::{Addr, Connection, Registry};
use proxy_protocol::{ProxyHeader, version1, version2};

use crate::header::Version;

/// Says who the client is by a header of this version.
pub struct SendHeader(pub Version);

impl Preamble for SendHeader {
    fn bytes(&self, client: &Connection) -> Vec<u8> {
        encode(self.0, client.remote(), client.local())
    }
}

pub(crate) fn register(reg: &mut Registry) {
    // The value is that of the field of `proxy`: the name itself.
    reg.add::<Preambles, Anything>("v1", |_, _| Ok(Box::new(SendHeader(Version::V1))))
        .add::<Preambles, Anything>("v2", |_, _| Ok(Box::new(SendHeader(Version::V2))));
}

/// The header of a connection from `remote` to `local`.
pub fn encode(version: Version, remote: &Addr, local: &Addr) -> Vec<u8> {
    let header = match version {
        Version::V1 => ProxyHeader::Version1 {
            addresses: line(remote, local),
        },
        Version::V2 => {
            let (transport_protocol, addresses) = binary(remote, local);
            ProxyHeader::Version2 {
                command: version2::ProxyCommand::Proxy,
                transport_protocol,
                addresses,
            }
        }
    };
    // Only writing could fail, and that is to memory.
    proxy_protocol::encode(header).map_or_else(|_| UNKNOWN.to_vec(), |bytes| bytes.to_vec())
}

const UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";

fn line(remote: &Addr, local: &Addr) -> version1::ProxyAddresses {
    let (Addr::Tcp(remote), Addr::Tcp(local)) = (remote, local) else {
        return version1::ProxyAddresses::Unknown;
    };
    match Pair::new(*remote, *local) {
        Pair::V4(source, destination) => version1::ProxyAddresses::Ipv4 {
            source,
            destination,
        },
        Pair::V6(source, destination) => version1::ProxyAddresses::Ipv6 {
            source,
            destination,
        },
    }
}

fn binary(
    remote: &Addr,
    local: &Addr,
) -> (version2::ProxyTransportProtocol, version2::ProxyAddresses) {
    use version2::ProxyTransportProtocol::{Datagram, Stream, Unspec};
    let (transport, pair) = match (remote, local) {
        (Addr::Tcp(remote), Addr::Tcp(local)) => (Stream, Pair::new(*remote, *local)),
        (Addr::Udp(remote), Addr::Udp(local)) => (Datagram, Pair::new(*remote, *local).specified()),
        (
            Addr::Unix {
                path: remote,
                datagram,
            },
            Addr::Unix {
                path: local,
                datagram: same,
            },
        ) if datagram == same => {
            let addresses = version2::ProxyAddresses::Unix {
                source: name(remote.as_deref()),
                destination: name(local.as_deref()),
            };
            return (if *datagram { Datagram } else { Stream }, addresses);
        }
        _ => return (Unspec, version2::ProxyAddresses::Unspec),
    };
    let addresses = match pair {
        Pair::V4(source, destination) => version2::ProxyAddresses::Ipv4 {
            source,
            destination,
        },
        Pair::V6(source, destination) => version2::ProxyAddresses::Ipv6 {
            source,
            destination,
        },
    };
    (transport, addresses)
}

/// Both ends in one IP version: IPv6 unless both are IPv4.
enum Pair {
    V4(SocketAddrV4, SocketAddrV4),
    V6(SocketAddrV6, SocketAddrV6),
}

impl Pair {
    fn new(remote: SocketAddr, local: SocketAddr) -> Self {
        match (remote.ip().to_canonical(), local.ip().to_canonical()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Self::V4(
                SocketAddrV4::new(source, remote.port()),
                SocketAddrV4::new(destination, local.port()),
            ),
            _ => Self::V6(v6(remote), v6(local)),
        }
    }

    /// A datagram's destination that is not known, because the system does not tell, is this machine. The IP version
    /// stays the one that was chosen, as the reference has it.
    fn specified(self) -> Self {
        match self {
            Self::V4(source, mut destination) => {
                if destination.ip().is_unspecified() {
                    destination.set_ip(Ipv4Addr::LOCALHOST);
                }
                Self::V4(source, destination)
            }
            Self::V6(source, mut destination) => {
                if destination.ip().to_canonical().is_unspecified() {
                    destination.set_ip(Ipv4Addr::LOCALHOST.to_ipv6_mapped());
                }
                Self::V6(source, destination)
            }
        }
    }
}

fn v6(address: SocketAddr) -> SocketAddrV6 {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    SocketAddrV6::new(ip, address.port(), 0, 0)
}

/// The name of a Unix socket, padded with NUL bytes; an abstract one begins with such a byte. What does not fit is cut.
fn name(path: Option<&std::path::Path>) -> [u8; 108] {
    let mut field = [0; 108];
    let bytes = path
        .map(|path| path.as_os_str().as_bytes())
        .unwrap_or_default();
    for (to, from) in field.iter_mut().zip(bytes) {
        *to = *from;
    }
    if let Some(first) = field.first_mut().filter(|first| **first == b'@') {
        *first = 0;
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> Addr {
        Addr::Tcp(text.parse().unwrap())
    }

    fn udp(text: &str) -> Addr {
        Addr::Udp(text.parse().unwrap())
    }

    fn unix(path: &str, datagram: bool) -> Addr {
        let path = Some(path).filter(|path| !path.is_empty());
        let path = path.map(|path| std::path::Path::new(path).into());
        Addr::Unix { path, datagram }
    }

    fn v1(remote: &Addr, local: &Addr) -> String {
        String::from_utf8(encode(Version::V1, remote, local)).unwrap()
    }

    /// Version 2 in hexadecimal digits, without the signature.
    fn v2(remote: &Addr, local: &Addr) -> String {
        let bytes = encode(Version::V2, remote, local);
        let rest = bytes.strip_prefix(crate::header::V2).unwrap();
        rest.iter().map(|byte| format!("{byte:02X}")).collect()
    }

    #[test]
    fn tcp_is_named_in_the_ip_version_of_both_ends() {
        let (four, mapped, six) = (
            tcp("1.2.3.4:5"),
            tcp("[::ffff:9.8.7.6]:10"),
            tcp("[2001:db8::1]:443"),
        );
        assert_eq!(
            v1(&four, &tcp("5.6.7.8:90")),
            "PROXY TCP4 1.2.3.4 5.6.7.8 5 90\r\n"
        );
        assert_eq!(v1(&four, &mapped), "PROXY TCP4 1.2.3.4 9.8.7.6 5 10\r\n");
        assert_eq!(
            v1(&six, &six),
            "PROXY TCP6 2001:db8::1 2001:db8::1 443 443\r\n"
        );
        assert_eq!(
            v1(&four, &six),
            "PROXY TCP6 ::ffff:1.2.3.4 2001:db8::1 5 443\r\n"
        );
        assert_eq!(
            v2(&four, &mapped),
            "2111000C0102030409080706000500 0A".replace(' ', "")
        );
        assert_eq!(
            v2(&six, &four),
            "21210024 20010DB8000000000000000000000001 00000000000000000000FFFF01020304 01BB 0005"
                .replace(' ', "")
        );
    }

    #[test]
    fn udp_is_unknown_to_version_1() {
        let (remote, local) = (udp("1.2.3.4:5"), udp("5.6.7.8:9"));
        assert_eq!(v1(&remote, &local), "PROXY UNKNOWN\r\n");
        assert_eq!(v2(&remote, &local), "2112000C010203040506070800050009");
    }

    #[test]
    fn a_destination_that_is_not_known_is_this_machine_in_the_ip_version_chosen_before() {
        assert_eq!(
            v2(&udp("1.2.3.4:5"), &udp("[::]:6")),
            "21220024 00000000000000000000FFFF01020304 00000000000000000000FFFF7F000001 0005 0006"
                .replace(' ', "")
        );
        assert_eq!(
            v2(&udp("1.2.3.4:5"), &udp("0.0.0.0:6")),
            "2112000C010203047F00000100050006"
        );
        assert_eq!(
            v2(&tcp("1.2.3.4:5"), &tcp("0.0.0.0:6")),
            "2111000C010203040000000000050006",
            "a TCP connection has a destination, so what stands there was said by somebody"
        );
    }

    #[test]
    fn unix_sockets_have_padded_names_and_are_unknown_to_version_1() {
        for (datagram, family) in [(false, "31"), (true, "32")] {
            let (remote, local) = (unix("@c", datagram), unix("/s", datagram));
            assert_eq!(v1(&remote, &local), "PROXY UNKNOWN\r\n");
            let names = format!("{:0<216}{:0<216}", "0063", "2F73");
            assert_eq!(v2(&remote, &local), format!("21{family}00D8{names}"));
        }
        let unnamed = v2(&unix("", false), &unix("", false));
        assert_eq!(unnamed, format!("213100D8{}", "00".repeat(216)));
        let long = encode(
            Version::V2,
            &unix(&"x".repeat(200), false),
            &unix("", false),
        );
        assert_eq!(long.len(), 16 + 216);
    }

    #[test]
    fn ends_of_different_kinds_are_not_named() {
        for (remote, local) in [
            (tcp("1.2.3.4:5"), udp("5.6.7.8:9")),
            (unix("/a", false), tcp("5.6.7.8:9")),
            (unix("/a", false), unix("/b", true)),
        ] {
            assert_eq!(v1(&remote, &local), "PROXY UNKNOWN\r\n");
            assert_eq!(v2(&remote, &local), "21000000");
        }
    }
}
