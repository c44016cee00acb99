//! Network addresses as the configuration writes them.
//!
//! ```text
//! address = [ network "/" ] rest
//! network = text before the first slash, letter case and outer spaces ignored
//! rest    = path [ "|" octal ]                    network starts with "unix"
//!         | number                                network starts with "fd"
//!         | [ host ] [ ":" port [ "-" port ] ]    every other network
//! host    = name | IPv4 | "[" IPv6 [ "%" zone ] "]" | nothing, for all interfaces
//! ```
//!
//! They look like URLs and are none. Nothing is looked up or opened here, and placeholders have
//! been replaced before.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use super::suggest::closest;

/// Where to listen or what to dial: a network, a host and a range of ports.
///
/// Two addresses are equal when they mean the same, also when one left its port to the default.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Address {
    /// Transport and address family.
    pub network: Network,
    /// Name or IP address without brackets, path of a socket file (`@name` is an abstract
    /// socket), or number of an inherited descriptor. Empty for all interfaces.
    pub host: Box<str>,
    /// Ports, `None` for networks that have none.
    pub ports: Option<PortRange>,
    /// Mode bits a Unix socket file was given with `|0660`. Binding uses `0200` without them.
    pub mode: Option<u32>,
    /// How many octal digits the mode was written with, for the text form.
    mode_digits: usize,
    port_written: bool,
}

/// Transport of an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    /// `tcp`, `tcp4`, `tcp6`
    Tcp(Family),
    /// `udp`, `udp4`, `udp6`
    Udp(Family),
    /// `unix`, a stream socket file
    Unix,
    /// `unixgram`, a datagram socket file
    Unixgram,
    /// `unixpacket`, a socket file that keeps message boundaries in a connection
    Unixpacket,
    /// `fd`, an inherited stream socket
    Fd,
    /// `fdgram`, an inherited datagram socket
    Fdgram,
    /// Anything else, in lower case. It can be written but not used, see [`Address::unsupported`].
    Other(Box<str>),
}

/// Which IP versions an address may use.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// Both.
    #[default]
    Any,
    /// Only IPv4.
    V4,
    /// Only IPv6.
    V6,
}

/// A range of ports, both ends included; one port is a range of itself.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortRange {
    /// Lowest port. Zero lets the system choose.
    pub first: u16,
    /// Highest port, not below the first.
    pub last: u16,
}

/// What a text leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressDefaults {
    /// Network of a text without a slash.
    pub network: Network,
    /// Port of a text without one, where the network has ports.
    pub port: u16,
}

/// `tcp` and port 0, as for listeners.
impl Default for AddressDefaults {
    fn default() -> Self {
        Self {
            network: Network::Tcp(Family::Any),
            port: 0,
        }
    }
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Brackets that do not surround an IPv6 address.
    #[error(
        "misplaced bracket in host {host:?}, an IPv6 address with port is written \"[::1]:80\""
    )]
    MisplacedBracket {
        /// Host and port as written.
        host: String,
    },
    /// The only or first port is not a number that fits.
    #[error("invalid start port: {port:?} is not a number from 0 to 65535")]
    InvalidStartPort {
        /// The port as written.
        port: String,
    },
    /// The last port is not a number that fits.
    #[error("invalid end port: {port:?} is not a number from 0 to 65535")]
    InvalidEndPort {
        /// The port as written.
        port: String,
    },
    /// A range that runs backwards.
    #[error("end port must not be less than start port, write {last}-{first}")]
    ReversedPorts {
        /// The start as written.
        first: u16,
        /// The end as written.
        last: u16,
    },
    /// Something other than mode bits after a `|`.
    #[error(
        "could not parse octal permission bits in {path:?}, \
         after \"|\" a mode from 0200 to 7777 such as 0660 is expected"
    )]
    InvalidMode {
        /// Path and mode as written.
        path: String,
    },
    /// Mode bits nobody could use the socket with.
    #[error(
        "owner of the socket requires '-w-' (write) permission, instead of {mode:04o} write {}",
        writable(*mode)
    )]
    OwnerCannotWrite {
        /// The mode as written.
        mode: u32,
    },
    /// An inherited descriptor that is not a number.
    #[error("invalid file descriptor: {text:?}, write a number such as fd/3")]
    InvalidDescriptor {
        /// The host part as written.
        text: String,
    },
}

impl Address {
    /// Reads an address.
    ///
    /// Accepts everything the reference accepts: any host text, and networks nobody provides
    /// ([`unsupported`](Self::unsupported) finds those). Mind that a text such as `80` or
    /// `::1:443` is a host without a port; [`port_was_missing`](Self::port_was_missing) tells.
    pub fn parse(text: &str, defaults: &AddressDefaults) -> Result<Self, AddressError> {
        let (network, rest) = match text.split_once('/') {
            Some((network, rest)) => (network.trim().to_lowercase(), rest),
            None => (String::new(), text),
        };
        let network = match network.as_str() {
            "" => defaults.network.clone(),
            name => Network::from_name(name),
        };
        if network.is_unix() {
            return Self::parse_unix(network, rest);
        }
        if !network.has_ports() {
            return Ok(Self::new(network, rest, None));
        }
        let (host, port) = split_host_port(rest)?;
        let ports = match port {
            "" => PortRange {
                first: defaults.port,
                last: defaults.port,
            },
            port => port.parse()?,
        };
        let address = Self::new(network, host, Some(ports));
        Ok(Self {
            port_written: !port.is_empty(),
            ..address
        })
    }

    /// An address from its parts. `ports` is ignored for networks without.
    pub fn new(network: Network, host: impl Into<Box<str>>, ports: Option<PortRange>) -> Self {
        let ports = network.has_ports().then(|| ports.unwrap_or_default());
        Self {
            network,
            host: host.into(),
            ports,
            mode: None,
            mode_digits: 0,
            port_written: true,
        }
    }

    fn parse_unix(network: Network, rest: &str) -> Result<Self, AddressError> {
        let Some((path, octal)) = rest.split_once('|') else {
            return Ok(Self::new(network, rest, None));
        };
        let unreadable = || AddressError::InvalidMode { path: rest.into() };
        if octal.is_empty() || !octal.bytes().all(|c| matches!(c, b'0'..=b'7')) {
            return Err(unreadable());
        }
        let mode = u32::from_str_radix(octal, 8).map_err(|_| unreadable())?;
        if mode > MODE_MAX {
            return Err(unreadable());
        }
        if mode & OWNER_WRITES == 0 {
            return Err(AddressError::OwnerCannotWrite { mode });
        }
        let address = Self::new(network, path, None);
        Ok(Self {
            mode: Some(mode),
            mode_digits: octal.len(),
            ..address
        })
    }

    /// Whether connections arrive here.
    pub fn is_stream(&self) -> bool {
        matches!(
            self.network,
            Network::Tcp(_) | Network::Unix | Network::Unixpacket | Network::Fd
        )
    }

    /// Whether single datagrams arrive here.
    pub fn is_datagram(&self) -> bool {
        matches!(
            self.network,
            Network::Udp(_) | Network::Unixgram | Network::Fdgram
        )
    }

    /// Whether the text named a port. Always false for networks without ports.
    pub fn has_port_text(&self) -> bool {
        self.ports.is_some() && self.port_written
    }

    /// Whether the default port was taken, which for a listener is a random one and rarely meant.
    pub fn port_was_missing(&self) -> bool {
        self.ports.is_some() && !self.port_written
    }

    /// How many single addresses this is.
    pub fn count(&self) -> usize {
        self.ports.map_or(1, PortRange::count)
    }

    /// One address per port, in ascending order; the address itself when it has no ports.
    pub fn expand(&self) -> impl Iterator<Item = Self> {
        let portless = self.ports.is_none().then(|| self.clone());
        let single = |port| Self {
            ports: Some(PortRange {
                first: port,
                last: port,
            }),
            ..self.clone()
        };
        let ports = self
            .ports
            .into_iter()
            .flat_map(|ports| ports.first..=ports.last);
        portless.into_iter().chain(ports.map(single))
    }

    /// The address without mode bits, which do not tell sockets apart.
    #[must_use]
    pub fn without_mode(&self) -> Self {
        Self {
            mode: None,
            mode_digits: 0,
            ..self.clone()
        }
    }

    /// Number of the inherited descriptor: decimal, `0x…`, `0b…`, or octal after `0` or `0o`.
    ///
    /// # Errors
    ///
    /// The host part is not such a number, or the network is neither `fd` nor `fdgram`.
    pub fn descriptor(&self) -> Result<u32, AddressError> {
        let text = &*self.host;
        let lower = text.to_ascii_lowercase();
        let (digits, radix) = match lower.as_str() {
            "0" => ("0", 10),
            text => RADIX_PREFIXES
                .iter()
                .find_map(|&(prefix, radix)| Some((text.strip_prefix(prefix)?, radix)))
                .unwrap_or((text, 10)),
        };
        let inherited = matches!(self.network, Network::Fd | Network::Fdgram);
        Some(digits)
            .filter(|digits| inherited && digits.bytes().all(|c| c.is_ascii_alphanumeric()))
            .and_then(|digits| u32::from_str_radix(digits, radix).ok())
            .filter(|&number| number <= i32::MAX as u32)
            .ok_or_else(|| AddressError::InvalidDescriptor { text: text.into() })
    }

    /// Why nobody can listen on or dial this network, with the likely correction.
    pub fn unsupported(&self) -> Option<String> {
        let Network::Other(name) = &self.network else {
            return None;
        };
        if ["ip", "ip4", "ip6"].contains(&name.split(':').next().unwrap_or_default()) {
            return Some(format!(
                "unsupported network type: {name}; raw IP packets are not routed, use tcp or udp"
            ));
        }
        let hint = if name.ends_with(':') {
            "an address is not a URL, write host:port.".to_owned()
        } else if name.contains(':') {
            format!("an address has no path, write {name}.")
        } else if let Some(near) = closest(name, Network::NAMES) {
            format!("did you mean {near}?")
        } else {
            "the text before a slash names the network.".to_owned()
        };
        let valid = Network::NAMES.join(", ");
        Some(format!(
            "unsupported network type: {name}; {hint} Valid networks: {valid}"
        ))
    }
}

impl FromStr for Address {
    type Err = AddressError;

    /// With the defaults of listeners.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text, &AddressDefaults::default())
    }
}

/// The text form: `tcp` is left out, a port is always there where the network has ports, and an
/// IPv6 host stands in brackets.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.network != Network::Tcp(Family::Any) {
            write!(f, "{}/", self.network)?;
        }
        match self.ports {
            Some(ports) if self.host.contains(':') => write!(f, "[{}]:{ports}", self.host),
            Some(ports) => write!(f, "{}:{ports}", self.host),
            None => f.write_str(&self.host),
        }?;
        match self.mode {
            Some(mode) => write!(f, "|{mode:0digits$o}", digits = self.mode_digits),
            None => Ok(()),
        }
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.meaning() == other.meaning()
    }
}

impl Eq for Address {}

impl Hash for Address {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.meaning().hash(state);
    }
}

impl Address {
    /// Everything but how it was written.
    fn meaning(&self) -> (&Network, &str, Option<PortRange>, Option<u32>) {
        (&self.network, &self.host, self.ports, self.mode)
    }
}

impl Network {
    /// All networks that can be used.
    const NAMES: [&'static str; 11] = [
        "tcp",
        "tcp4",
        "tcp6",
        "udp",
        "udp4",
        "udp6",
        "unix",
        "unixgram",
        "unixpacket",
        "fd",
        "fdgram",
    ];

    fn from_name(name: &str) -> Self {
        match name {
            "tcp" => Self::Tcp(Family::Any),
            "tcp4" => Self::Tcp(Family::V4),
            "tcp6" => Self::Tcp(Family::V6),
            "udp" => Self::Udp(Family::Any),
            "udp4" => Self::Udp(Family::V4),
            "udp6" => Self::Udp(Family::V6),
            "unix" => Self::Unix,
            "unixgram" => Self::Unixgram,
            "unixpacket" => Self::Unixpacket,
            "fd" => Self::Fd,
            "fdgram" => Self::Fdgram,
            other => Self::Other(other.into()),
        }
    }

    /// The name as it is written before the slash.
    pub fn name(&self) -> &str {
        match self {
            Self::Tcp(Family::Any) => "tcp",
            Self::Tcp(Family::V4) => "tcp4",
            Self::Tcp(Family::V6) => "tcp6",
            Self::Udp(Family::Any) => "udp",
            Self::Udp(Family::V4) => "udp4",
            Self::Udp(Family::V6) => "udp6",
            Self::Unix => "unix",
            Self::Unixgram => "unixgram",
            Self::Unixpacket => "unixpacket",
            Self::Fd => "fd",
            Self::Fdgram => "fdgram",
            Self::Other(name) => name,
        }
    }

    /// Socket files, of unknown kinds too: the reference goes by the first letters.
    pub fn is_unix(&self) -> bool {
        self.name().starts_with("unix")
    }

    /// Whether addresses of this network have ports.
    pub fn has_ports(&self) -> bool {
        !self.is_unix() && !self.name().starts_with("fd")
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PortRange {
    /// How many ports, at least one.
    pub fn count(self) -> usize {
        usize::from(self.last.saturating_sub(self.first)) + 1
    }
}

/// `80`, or `80-90` for more than one.
impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl FromStr for PortRange {
    type Err = AddressError;

    /// Digits only: no sign, no spaces, no service names. Leading zeros are fine.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (start, end) = text.split_once('-').unwrap_or((text, text));
        let first =
            port(start).ok_or_else(|| AddressError::InvalidStartPort { port: start.into() })?;
        let last = port(end).ok_or_else(|| AddressError::InvalidEndPort { port: end.into() })?;
        if last < first {
            return Err(AddressError::ReversedPorts { first, last });
        }
        Ok(Self { first, last })
    }
}

/// `str::parse` alone would take a plus sign.
fn port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// Splits `host:port`. A text that cannot be split is a host without a port, as long as it needs
/// no brackets inside: `::1` and `[::1` are the host `::1`.
fn split_host_port(text: &str) -> Result<(&str, &str), AddressError> {
    if let Some(parts) = split_at_port(text) {
        return Ok(parts);
    }
    let host = text.trim_matches(['[', ']']);
    if host.contains(['[', ']']) {
        return Err(AddressError::MisplacedBracket { host: text.into() });
    }
    Ok((host, ""))
}

/// The usual rules: the last colon starts the port, a host with colons needs brackets, and
/// brackets stand nowhere else.
fn split_at_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(bracketed) => {
            let (host, rest) = bracketed.split_once(']')?;
            (host, rest.strip_prefix(':')?)
        }
        None => text
            .rsplit_once(':')
            .filter(|(host, _)| !host.contains(':'))?,
    };
    let stray = |part: &str| part.contains(['[', ']']);
    (!stray(host) && !stray(port) && !port.contains(':')).then_some((host, port))
}

/// A mode with the missing permission added, as one would write it.
fn writable(mode: u32) -> String {
    format!("{:04o}", mode | OWNER_WRITES)
}

const OWNER_WRITES: u32 = 0o200;
const MODE_MAX: u32 = 0o7777;
/// Longer prefixes first.
const RADIX_PREFIXES: [(&str, u32); 4] = [("0x", 16), ("0b", 2), ("0o", 8), ("0", 8)];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Address {
        text.parse()
            .unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    #[test]
    fn texts_mean_what_the_reference_makes_of_them() {
        let rows = [
            ("", "tcp", "", "0", ":0"),
            (":", "tcp", "", "0", ":0"),
            (":80", "tcp", "", "80", ":80"),
            ("80", "tcp", "80", "0", "80:0"),
            ("localhost", "tcp", "localhost", "0", "localhost:0"),
            (
                "localhost:80-90",
                "tcp",
                "localhost",
                "80-90",
                "localhost:80-90",
            ),
            (":0-65535", "tcp", "", "0-65535", ":0-65535"),
            (":080", "tcp", "", "80", ":80"),
            ("::", "tcp", "::", "0", "[::]:0"),
            ("[::]", "tcp", "::", "0", "[::]:0"),
            ("::1", "tcp", "::1", "0", "[::1]:0"),
            ("[::1]:443", "tcp", "::1", "443", "[::1]:443"),
            ("::1:443", "tcp", "::1:443", "0", "[::1:443]:0"),
            (
                "[fe80::1%eth0]:53",
                "tcp",
                "fe80::1%eth0",
                "53",
                "[fe80::1%eth0]:53",
            ),
            ("[::1", "tcp", "::1", "0", "[::1]:0"),
            ("::1]", "tcp", "::1", "0", "[::1]:0"),
            ("a:b:80", "tcp", "a:b:80", "0", "[a:b:80]:0"),
            ("TCP/:80", "tcp", "", "80", ":80"),
            (" udp /:53", "udp", "", "53", "udp/:53"),
            ("udp/", "udp", "", "0", "udp/:0"),
            ("tcp6/[::]:80", "tcp6", "::", "80", "tcp6/[::]:80"),
            ("tcp/ host:80", "tcp", " host", "80", " host:80"),
            ("tcp//run/x:80", "tcp", "/run/x", "80", "/run/x:80"),
            ("/x:80", "tcp", "x", "80", "x:80"),
            ("host/:80", "host", "", "80", "host/:80"),
            ("http://x:80", "http:", "/x", "80", "http://x:80"),
            (
                "localhost:80/path",
                "localhost:80",
                "path",
                "0",
                "localhost:80/path:0",
            ),
            ("{env.H}:80", "tcp", "{env.H}", "80", "{env.H}:80"),
            (
                "unix//run/a.sock",
                "unix",
                "/run/a.sock",
                "-",
                "unix//run/a.sock",
            ),
            ("unix/rel.sock", "unix", "rel.sock", "-", "unix/rel.sock"),
            ("unix/@name", "unix", "@name", "-", "unix/@name"),
            ("unix//a|0220", "unix", "/a", "-", "unix//a|0220"),
            ("unix//a|222", "unix", "/a", "-", "unix//a|222"),
            ("unix//a:0666", "unix", "/a:0666", "-", "unix//a:0666"),
            ("fd/3", "fd", "3", "-", "fd/3"),
            ("fdgram/4", "fdgram", "4", "-", "fdgram/4"),
            ("fd/0x3", "fd", "0x3", "-", "fd/0x3"),
            ("fd/", "fd", "", "-", "fd/"),
            ("fd/abc", "fd", "abc", "-", "fd/abc"),
        ];
        for (text, network, host, ports, form) in rows {
            let address = parse(text);
            let shown_ports = address
                .ports
                .map_or("-".to_owned(), |ports| ports.to_string());
            let seen = (address.network.name(), &*address.host, &*shown_ports);
            assert_eq!(seen, (network, host, ports), "{text:?}");
            assert_eq!(address.to_string(), form, "{text:?}");
        }
        assert_eq!(parse("unix//a|0220").mode, Some(0o220));
        assert_eq!(parse("unix//a|222").mode, Some(0o222));
        assert_eq!(parse("unix//a").mode, None);
    }

    #[test]
    fn wrong_texts_are_refused_and_say_what_is_wrong() {
        let rows = [
            ("[::1]x:80", "misplaced bracket"),
            (
                ":80-79",
                "end port must not be less than start port, write 79-80",
            ),
            (":80-", "invalid end port"),
            (":-80", "invalid start port"),
            (":65536", "invalid start port"),
            (":1-65536", "invalid end port"),
            (":http", "invalid start port: \"http\""),
            (":+80", "invalid start port"),
            (": 80", "invalid start port"),
            ("localhost:{env.P}", "invalid start port"),
            ("unix//a|0422", "owner of the socket requires '-w-'"),
            ("unix//a|0522", "instead of 0522 write 0722"),
            ("unix//a|", "could not parse octal permission bits in"),
            ("unix//a|u=w", "could not parse octal permission bits in"),
            ("unix//a|888", "could not parse octal permission bits in"),
            (
                "unix//a|123456|0660",
                "could not parse octal permission bits in",
            ),
            ("unix//a|77777", "could not parse octal permission bits in"),
            ("[a[b]:80", "misplaced bracket"),
            ("a]b:80", "misplaced bracket"),
        ];
        for (text, words) in rows {
            let error = text.parse::<Address>().expect_err(text).to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn left_out_parts_come_from_the_defaults() {
        let defaults = AddressDefaults {
            network: Network::Udp(Family::V4),
            port: 53,
        };
        let address = Address::parse("ns.example", &defaults).unwrap();
        assert_eq!(address.to_string(), "udp4/ns.example:53");
        assert!(address.port_was_missing());
        let address = Address::parse("tcp/ns.example:5353", &defaults).unwrap();
        assert_eq!(address.to_string(), "ns.example:5353");
        assert!(address.has_port_text());
    }

    #[test]
    fn missing_ports_are_told_apart_from_port_zero() {
        assert!(parse("80").port_was_missing());
        assert!(parse("::1:443").port_was_missing());
        assert!(parse("localhost:").port_was_missing());
        assert!(!parse(":0").port_was_missing());
        assert!(!parse("unix//a").port_was_missing());
        assert!(!parse("unix//a").has_port_text());
        assert_eq!(parse("a"), parse("a:0"));
    }

    #[test]
    fn ranges_become_one_address_per_port() {
        let texts = |text| {
            parse(text)
                .expand()
                .map(|a| a.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            texts("udp/[::1]:7-9"),
            ["udp/[::1]:7", "udp/[::1]:8", "udp/[::1]:9"]
        );
        assert_eq!(texts(":80"), [":80"]);
        assert_eq!(texts("unix//a|0660"), ["unix//a|0660"]);
        assert_eq!(parse(":0-65535").expand().count(), 65536);
        assert_eq!(parse(":0-65535").count(), 65536);
        assert_eq!(parse("fd/3").count(), 1);
    }

    #[test]
    fn networks_are_streams_or_datagrams_or_neither() {
        let kinds = |text| (parse(text).is_stream(), parse(text).is_datagram());
        for text in ["tcp6/:1", "unix/a", "unixpacket/a", "fd/3"] {
            assert_eq!(kinds(text), (true, false), "{text}");
        }
        for text in ["udp/:1", "unixgram/a", "fdgram/3"] {
            assert_eq!(kinds(text), (false, true), "{text}");
        }
        assert_eq!(kinds("sctp/:1"), (false, false));
    }

    #[test]
    fn unknown_networks_come_with_a_correction() {
        let message = |text| parse(text).unsupported().unwrap_or_default();
        assert!(message("tpc/:80").starts_with("unsupported network type: tpc; did you mean tcp?"));
        assert!(message("tpc/:80").contains("udp6, unix, unixgram"));
        assert!(message("http://x:80").contains("not a URL"));
        assert!(message("localhost:80/path").contains("write localhost:80"));
        assert!(message("ip4:icmp/1.1.1.1").contains("raw IP packets"));
        assert!(message("unixfoo/a").contains("unsupported network type: unixfoo"));
        assert_eq!(parse("udp4/:53").unsupported(), None);
    }

    #[test]
    fn descriptors_take_the_usual_number_forms() {
        let number = |text| parse(text).descriptor();
        for (text, expected) in [
            ("fd/3", 3),
            ("fd/0", 0),
            ("fd/0x1F", 31),
            ("fdgram/010", 8),
            ("fd/0b11", 3),
            ("fd/0o7", 7),
        ] {
            assert_eq!(number(text), Ok(expected), "{text}");
        }
        for text in [
            "fd/",
            "fd/abc",
            "fd/-1",
            "fd/+1",
            "fd/09",
            "fd/0x",
            "fd/4294967296",
            "tcp/3",
        ] {
            let error = number(text).expect_err(text).to_string();
            assert!(error.contains("invalid file descriptor"), "{error}");
        }
    }

    #[test]
    fn mode_bits_do_not_tell_sockets_apart() {
        assert_ne!(parse("unix//a|0660"), parse("unix//a"));
        assert_eq!(parse("unix//a|0660").without_mode(), parse("unix//a"));
        assert_eq!(parse("unix//a|660"), parse("unix//a|0660"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn any_text_is_parsed_or_refused(text in "[a-z0-9:/|@ %.{}\\[\\]-]{0,24}|\\PC{0,24}") {
            if let Ok(address) = text.parse::<Address>() {
                let _ = (address.to_string(), address.descriptor(), address.unsupported());
            }
        }

        #[test]
        fn text_form_means_the_same(
            network in "(tcp|udp)[46]?",
            host in "[a-z0-9.-]{0,12}|[0-9a-f:]{2,12}(%[a-z]{1,4})?",
            ports in (any::<u16>(), any::<u16>()).prop_map(|(a, b)| (a.min(b), a.max(b))),
        ) {
            let ports = PortRange { first: ports.0, last: ports.1 };
            let address = Address::new(Network::from_name(&network), host, Some(ports));
            prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
        }

        #[test]
        fn text_form_of_socket_files_means_the_same(
            text in "(unix|unixgram|unixpacket)/[@a-z/.:]{1,12}(\\|0?[2367][0-7]{2})?",
        ) {
            let address = parse(&text);
            prop_assert_eq!(address.to_string(), text);
        }
    }
}
