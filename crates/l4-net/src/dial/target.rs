//! What to connect to: an address, checked once and taken apart.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::Arc;

use l4_core::config::{Address, Family, Network};
use socket2::{SockAddr, Type};

/// What to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target(pub(super) Kind);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Ip {
        datagrams: bool,
        family: Family,
        host: Host,
        port: u16,
    },
    Unix {
        socket: UnixKind,
        path: Arc<Path>,
    },
}

/// The three kinds of Unix sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum UnixKind {
    Stream,
    Packet,
    Datagram,
}

impl UnixKind {
    pub(crate) fn socket_type(self) -> Type {
        match self {
            Self::Stream => Type::STREAM,
            Self::Packet => Type::SEQPACKET,
            Self::Datagram => Type::DGRAM,
        }
    }
}

/// The host part of an address, taken apart once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    /// None was given.
    Unspecified,
    /// An IP address; an IPv4 address in IPv6 form is an IPv4 address.
    Ip(IpAddr),
    /// An IPv6 address with the interface it is valid on.
    Zoned(Ipv6Addr, Box<str>),
    /// Anything else is for the resolver.
    Name(Box<str>),
}

/// Why an address is nothing to connect to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// A network that can only be listened on, or none at all.
    #[error("{address}: {network} addresses cannot be dialled")]
    NotDialable {
        /// The address.
        address: String,
        /// Its network.
        network: String,
    },
    /// More than one port.
    #[error("{address}: port ranges are currently not supported")]
    PortRange {
        /// The address.
        address: String,
    },
    /// No port, or port 0.
    #[error("{address}: nothing listens on port 0, write host:port")]
    NoPort {
        /// The address.
        address: String,
    },
    /// A Unix socket without a path, or with one that the system cannot take.
    #[error("{address}: {why}")]
    BadPath {
        /// The address.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// `tcp4` with an IPv6 address, or the reverse.
    #[error("{address}: not an address of network {network}")]
    WrongFamily {
        /// The address.
        address: String,
        /// Its network.
        network: String,
    },
}

impl Target {
    /// What `address` stands for; its mode bits do not matter.
    ///
    /// # Errors
    /// It is no single place that can be connected to.
    pub fn new(address: &Address) -> Result<Self, TargetError> {
        let (text, network) = (|| address.to_string(), || address.network.to_string());
        let socket = match &address.network {
            Network::Tcp(family) => return Self::ip(false, *family, address),
            Network::Udp(family) => return Self::ip(true, *family, address),
            Network::Unix => UnixKind::Stream,
            Network::Unixpacket => UnixKind::Packet,
            Network::Unixgram => UnixKind::Datagram,
            _ => {
                return Err(TargetError::NotDialable {
                    address: text(),
                    network: network(),
                });
            }
        };
        unix_name(&address.host).map_err(|why| TargetError::BadPath {
            address: text(),
            why: why.to_string(),
        })?;
        Ok(Self(Kind::Unix {
            socket,
            path: Path::new(&*address.host).into(),
        }))
    }

    fn ip(datagrams: bool, family: Family, address: &Address) -> Result<Self, TargetError> {
        let text = || address.to_string();
        let ports = address.ports.unwrap_or_default();
        if ports.first != ports.last {
            return Err(TargetError::PortRange { address: text() });
        }
        if ports.first == 0 {
            return Err(TargetError::NoPort { address: text() });
        }
        let host = Host::parse(&address.host);
        if host.ip().is_some_and(|ip| !is_of(family, ip)) {
            let network = address.network.to_string();
            return Err(TargetError::WrongFamily {
                address: text(),
                network,
            });
        }
        Ok(Self(Kind::Ip {
            datagrams,
            family,
            host,
            port: ports.first,
        }))
    }

    /// Whether it takes datagrams rather than a stream.
    pub fn is_datagram(&self) -> bool {
        match self.0 {
            Kind::Ip { datagrams, .. } => datagrams,
            Kind::Unix { socket, .. } => socket == UnixKind::Datagram,
        }
    }

    /// The same host with another port. A Unix socket has none and is returned as it is.
    #[must_use]
    pub fn with_port(&self, port: NonZeroU16) -> Self {
        let mut target = self.clone();
        if let Kind::Ip { port: current, .. } = &mut target.0 {
            *current = port.get();
        }
        target
    }

    /// What is connected to, without the port: a name, an IP address without brackets and zone, or the path of a socket
    /// file. No host is this machine, which goes by the name of `localhost`.
    pub fn host(&self) -> Cow<'_, str> {
        match &self.0 {
            Kind::Ip { host, .. } => match host {
                Host::Unspecified => Cow::Borrowed("localhost"),
                Host::Name(name) => Cow::Borrowed(name),
                Host::Ip(ip) => Cow::Owned(ip.to_string()),
                Host::Zoned(ip, _) => Cow::Owned(ip.to_string()),
            },
            Kind::Unix { path, .. } => path.to_string_lossy(),
        }
    }

    /// The port; a socket file has none.
    pub fn port(&self) -> Option<u16> {
        match self.0 {
            Kind::Ip { port, .. } => Some(port),
            Kind::Unix { .. } => None,
        }
    }

    /// The name that is looked up at each dial, if it is one.
    pub fn name(&self) -> Option<&str> {
        match &self.0 {
            Kind::Ip {
                host: Host::Name(name),
                ..
            } => Some(name),
            _ => None,
        }
    }

    /// `unix`, `unixpacket` or `unixgram`, if it is a socket file.
    pub fn unix_network(&self) -> Option<&'static str> {
        match self.0 {
            Kind::Ip { .. } => None,
            Kind::Unix { socket, .. } => Some(match socket {
                UnixKind::Stream => "unix",
                UnixKind::Packet => "unixpacket",
                UnixKind::Datagram => "unixgram",
            }),
        }
    }
}

/// The text form of the address.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Ip {
                datagrams,
                family,
                host,
                port,
            } => {
                f.write_str(match (datagrams, family) {
                    (false, Family::Any) => "",
                    (false, Family::V4) => "tcp4/",
                    (false, Family::V6) => "tcp6/",
                    (true, Family::Any) => "udp/",
                    (true, Family::V4) => "udp4/",
                    (true, Family::V6) => "udp6/",
                })?;
                match host {
                    Host::Unspecified => write!(f, ":{port}"),
                    Host::Ip(ip) => SocketAddr::new(*ip, *port).fmt(f),
                    Host::Zoned(ip, zone) => write!(f, "[{ip}%{zone}]:{port}"),
                    Host::Name(name) if name.contains(':') => write!(f, "[{name}]:{port}"),
                    Host::Name(name) => write!(f, "{name}:{port}"),
                }
            }
            Kind::Unix { socket, path } => {
                f.write_str(match socket {
                    UnixKind::Stream => "unix/",
                    UnixKind::Packet => "unixpacket/",
                    UnixKind::Datagram => "unixgram/",
                })?;
                path.display().fmt(f)
            }
        }
    }
}

impl Host {
    pub(crate) fn parse(text: &str) -> Self {
        if text.is_empty() {
            return Self::Unspecified;
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Self::Ip(ip.to_canonical());
        }
        let zoned = text.split_once('%').filter(|(_, zone)| !zone.is_empty());
        match zoned.and_then(|(ip, zone)| Some((ip.parse().ok()?, zone))) {
            Some((ip, zone)) => Self::Zoned(ip, zone.into()),
            None => Self::Name(text.into()),
        }
    }

    /// The IP address, if it is one.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip) => Some(*ip),
            Self::Zoned(ip, _) => Some((*ip).into()),
            Self::Unspecified | Self::Name(_) => None,
        }
    }
}

/// Whether addresses of `family` include `ip`.
pub(crate) fn is_of(family: Family, ip: IpAddr) -> bool {
    match family {
        Family::Any => true,
        Family::V4 => ip.is_ipv4(),
        Family::V6 => ip.is_ipv6(),
    }
}

/// The number of the network interface `zone`, which may be a number itself.
#[allow(unsafe_code)]
pub(crate) fn interface_index(zone: &str) -> Option<u32> {
    if let Ok(number) = zone.parse() {
        return Some(number);
    }
    let name = std::ffi::CString::new(zone).ok()?;
    // SAFETY: the pointer is to a NUL-terminated string that lives until after the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// The socket address of a path or, with a leading `@`, of an abstract name.
pub(crate) fn unix_name(path: &str) -> io::Result<SockAddr> {
    let invalid = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
    match path.strip_prefix('@') {
        _ if path.is_empty() => Err(invalid("a Unix socket needs a path")),
        _ if path.contains('\0') => Err(invalid("a path has no NUL byte")),
        _ if path.len() >= SUN_PATH => Err(invalid("a Unix socket's path has at most 107 bytes")),
        Some(name) => SockAddr::unix(format!("\0{name}")),
        None => SockAddr::unix(path),
    }
}

/// The room for a path in `sockaddr_un`, the final NUL included.
const SUN_PATH: usize = 108;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_port_leaves_the_rest_of_a_target_alone() {
        let port = NonZeroU16::new(8080).unwrap();
        for (text, expected) in [
            ("udp6/[2001:db8::1]:53", "udp6/[2001:db8::1]:8080"),
            ("a.example:443", "a.example:8080"),
            ("unix//run/x.sock", "unix//run/x.sock"),
        ] {
            let target = Target::new(&text.parse().unwrap()).unwrap();
            assert_eq!(target.with_port(port).to_string(), expected);
        }
    }

    #[test]
    fn the_host_of_a_target_is_what_a_certificate_can_be_for() {
        for (text, host, port) in [
            ("a.example:443", "a.example", Some(443)),
            ("10.0.0.1:443", "10.0.0.1", Some(443)),
            ("[2001:db8::1]:443", "2001:db8::1", Some(443)),
            ("[fe80::1%eth0]:443", "fe80::1", Some(443)),
            (":443", "localhost", Some(443)),
            ("unix//run/x.sock", "/run/x.sock", None),
        ] {
            let target = Target::new(&text.parse().unwrap()).unwrap();
            assert_eq!((&*target.host(), target.port()), (host, port), "{text}");
        }
    }

    #[test]
    fn hosts_are_told_apart() {
        let ip = |text: &str| Host::Ip(text.parse().unwrap());
        assert_eq!(Host::parse(""), Host::Unspecified);
        assert_eq!(Host::parse("127.0.0.1"), ip("127.0.0.1"));
        assert_eq!(Host::parse("::ffff:127.0.0.1"), ip("127.0.0.1"));
        assert_eq!(
            Host::parse("fe80::1%eth0"),
            Host::Zoned("fe80::1".parse().unwrap(), "eth0".into())
        );
        for name in [
            "example.com",
            "fe80::1%",
            "127.0.0.1%eth0",
            "a:b",
            "::1:443x",
            " 127.0.0.1",
        ] {
            assert_eq!(Host::parse(name), Host::Name(name.into()));
        }
    }
}
