//! Connecting to an upstream.
//!
//! [`Target`] is what to connect to, checked once; [`connect`] does it. A name is looked up at every dial, by the system's
//! resolver on a thread of its own, and all its addresses are tried, the two IP versions in turn and a little staggered
//! (RFC 8305), until one answers. An IP address never touches the resolver.

use std::borrow::Cow;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU16;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, ready};
use std::time::{Duration, SystemTime};

use l4_core::config::{Address, Family, Network};
use l4_core::{Addr, Io};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixDatagram, UnixStream};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::datagrams::Datagrams;
use crate::seqpacket::SeqPacket;

/// How long a connection attempt is alone before the next address is tried beside it (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// What to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target(Kind);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
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

/// How to connect.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DialOptions {
    /// Everything together, the lookup included, may take this long. `None`: as long as the system lets it, which for
    /// an address that does not answer is about two minutes.
    pub limit: Option<Duration>,
    /// Addresses of this machine to connect from, tried in order: those of the IP version that is connected to. A port of
    /// 0 leaves the choice to the system. With none of that IP version, or none at all, the system chooses the address.
    /// Unix sockets have no use for them.
    pub sources: Vec<SocketAddr>,
    /// Which IP version to connect to where a name has both.
    pub preference: Option<Preference>,
    /// Our end sends as soon as a TCP connection is there. What completes the handshake then goes out together with the
    /// first bytes, which spares both ends a packet; should none follow after all, it goes by itself after 200 ms at most.
    pub speaks_first: bool,
}

impl DialOptions {
    /// With a time limit.
    pub fn within(limit: Option<Duration>) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }
}

/// Which IP version to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// IPv4 and nothing else.
    V4Only,
    /// IPv6 and nothing else.
    V6Only,
    /// IPv4 if the name has it, otherwise IPv6.
    V4First,
    /// IPv6 if the name has it, otherwise IPv4.
    V6First,
}

impl Preference {
    /// The only version that is connected to, if there is one.
    pub fn only(self) -> Option<Family> {
        match self {
            Self::V4Only => Some(Family::V4),
            Self::V6Only => Some(Family::V6),
            Self::V4First | Self::V6First => None,
        }
    }

    fn first(self) -> Family {
        match self {
            Self::V4Only | Self::V4First => Family::V4,
            Self::V6Only | Self::V6First => Family::V6,
        }
    }
}

/// As it is configured.
impl fmt::Display for Preference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4Only => "ipv4_only",
            Self::V6Only => "ipv6_only",
            Self::V4First => "ipv4_first",
            Self::V6First => "ipv6_first",
        })
    }
}

/// Reads an address to connect from: `192.0.2.1`, `192.0.2.1:5000`, `2001:db8::1`, `[2001:db8::1]:5000`, the IPv6 ones also
/// with a zone. `None` if it is none, or its zone is not here.
pub fn source_address(text: &str) -> Option<SocketAddr> {
    let bare = |text: &str, port| match Host::parse(text) {
        Host::Ip(ip) => Some(SocketAddr::new(ip, port)),
        Host::Zoned(ip, zone) => {
            Some(SocketAddrV6::new(ip, port, 0, interface_index(&zone)?).into())
        }
        Host::Unspecified | Host::Name(_) => None,
    };
    bare(text, 0).or_else(|| {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => text.split_at_checked(text.find(':')?)?,
        };
        let port = match port.strip_prefix(':') {
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => port.parse().ok()?,
            None if port.is_empty() => 0,
            _ => return None,
        };
        bare(host, port).filter(|address| text.starts_with('[') == address.is_ipv6())
    })
}

/// A connection that was made.
pub struct Dialled {
    /// The socket: `Io::Datagram` for `udp` and `unixgram`, a stream otherwise.
    pub io: Io,
    /// Its other end: the one address, of those the name has, that answered.
    pub peer: Addr,
}

/// Finds the addresses of a name.
pub trait Resolve {
    /// The addresses of `host`, the preferred first, each with `port`.
    fn lookup(
        &self,
        host: &str,
        port: u16,
    ) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;
}

/// The resolver of the system: hosts file, name servers and order as it is configured.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SystemResolver;

impl Resolve for SystemResolver {
    async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// The addresses of `host`, a name or an IP address, in the system's order.
///
/// # Errors
/// The name does not exist, or nobody could be asked.
pub async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    SystemResolver.lookup(host, port).await
}

/// Connects to `target`: the one entrance for every network.
///
/// Dropping the future gives up; nothing stays behind.
///
/// # Errors
/// No address of it could be connected to in time. The error says what was tried.
pub async fn connect(target: &Target, options: &DialOptions) -> Result<Dialled, DialError> {
    connect_with(&SystemResolver, target, options).await
}

/// As [`connect`], with another resolver.
///
/// # Errors
/// As [`connect`].
pub async fn connect_with(
    resolver: &impl Resolve,
    target: &Target,
    options: &DialOptions,
) -> Result<Dialled, DialError> {
    let mut progress = Progress::default();
    let Some(limit) = options.limit else {
        return attempt(resolver, target, options, &mut progress).await;
    };
    let outcome = timeout(limit, attempt(resolver, target, options, &mut progress)).await;
    outcome.unwrap_or_else(|_| {
        Err(DialError::Timeout {
            target: target.to_string(),
            limit,
            resolving: progress.resolving,
            attempts: Attempts(progress.failed),
        })
    })
}

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The name could not be looked up.
    #[error("{target}: the name cannot be resolved")]
    Lookup {
        /// What was to be connected to.
        target: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The name has no address of the wanted IP version, or none at all.
    #[error("{target}: no suitable address found{}", of_family(*family))]
    NoSuitableAddress {
        /// What was to be connected to.
        target: String,
        /// The wanted IP version.
        family: Family,
    },
    /// The name has no address of the only IP version that is allowed.
    #[error("{target}: resolver_preference {preference} but no {} records found for {host}",
        if *preference == Preference::V4Only { "A" } else { "AAAA" })]
    NoRecords {
        /// What was to be connected to.
        target: String,
        /// The name.
        host: String,
        /// What was allowed.
        preference: Preference,
    },
    /// The address itself, or its network, is of another IP version than the only one that is allowed.
    #[error("{target}: resolver_preference {preference} but destination is {is}")]
    Contradiction {
        /// What was to be connected to.
        target: String,
        /// What was allowed.
        preference: Preference,
        /// What it is.
        is: String,
    },
    /// The zone of an IPv6 address is not here.
    #[error("{target}: there is no network interface {zone:?}")]
    UnknownZone {
        /// What was to be connected to.
        target: String,
        /// The name of the interface.
        zone: String,
    },
    /// Every address refused, or could not be reached.
    #[error("connecting to {target}: {}", attempts.of(target))]
    Connect {
        /// What was to be connected to.
        target: String,
        /// What was tried.
        attempts: Attempts,
    },
    /// There was no answer in time.
    #[error("connecting to {target}: {} within {limit:?}{}",
        if *resolving { "the name was not resolved" } else { "no answer" }, attempts.before(target))]
    Timeout {
        /// What was to be connected to.
        target: String,
        /// The time there was.
        limit: Duration,
        /// Whether it was the lookup that took so long.
        resolving: bool,
        /// What had failed by then.
        attempts: Attempts,
    },
}

impl DialError {
    /// Whether nobody was asked: what was to be connected to contradicts what is allowed, and says nothing about a peer.
    pub fn is_contradiction(&self) -> bool {
        matches!(self, Self::Contradiction { .. })
    }

    /// Whether there was no answer, rather than a bad one.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Connect { attempts, .. } => attempts
                .best()
                .is_some_and(|error| error.kind() == io::ErrorKind::TimedOut),
            _ => false,
        }
    }

    /// The system's reason that says most about the target.
    pub fn reason(&self) -> Option<&io::Error> {
        match self {
            Self::Lookup { source, .. } => Some(source),
            Self::Connect { attempts, .. } | Self::Timeout { attempts, .. } => attempts.best(),
            _ => None,
        }
    }
}

/// The addresses that were tried in vain, and what became of each.
#[derive(Debug, Default)]
pub struct Attempts(Vec<(Addr, io::Error)>);

impl Attempts {
    /// Each address with what the system said about it, in the order in which they failed.
    pub fn iter(&self) -> impl Iterator<Item = (&Addr, &io::Error)> {
        self.0.iter().map(|(addr, error)| (addr, error))
    }

    /// A server that answered, if only to refuse, says more than a route or an IP version that is missing here.
    fn best(&self) -> Option<&io::Error> {
        self.0
            .iter()
            .map(|(_, error)| error)
            .min_by_key(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => 0,
                io::ErrorKind::TimedOut => 1,
                io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound => 2,
                io::ErrorKind::HostUnreachable => 4,
                io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => 5,
                _ => 3,
            })
    }

    /// The attempts as text; an address that is the whole target is not repeated.
    fn of(&self, target: &str) -> String {
        let mut text = String::new();
        for (addr, error) in &self.0 {
            if !text.is_empty() {
                text.push_str("; ");
            }
            let addr = addr.to_string();
            if !target.ends_with(&addr) {
                text.push_str(&addr);
                text.push_str(": ");
            }
            text.push_str(&error.to_string());
        }
        text
    }

    fn before(&self, target: &str) -> String {
        if self.0.is_empty() {
            String::new()
        } else {
            format!("; before that {}", self.of(target))
        }
    }
}

fn of_family(family: Family) -> &'static str {
    match family {
        Family::Any => "",
        Family::V4 => ", it has no IPv4 address",
        Family::V6 => ", it has no IPv6 address",
    }
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

/// How far a dial has come: for the error when time is over.
#[derive(Default)]
struct Progress {
    resolving: bool,
    failed: Vec<(Addr, io::Error)>,
}

async fn attempt(
    resolver: &impl Resolve,
    target: &Target,
    options: &DialOptions,
    progress: &mut Progress,
) -> Result<Dialled, DialError> {
    let (datagrams, family, host, port) = match &target.0 {
        Kind::Ip {
            datagrams,
            family,
            host,
            port,
        } => (*datagrams, *family, host, *port),
        Kind::Unix { socket, path } => return connect_unix(target, *socket, path).await,
    };
    if let Some(preference) = options.preference {
        agree(target, family, host, preference)?;
    }
    let chooses = options.preference.is_some() || !options.sources.is_empty();
    let addresses = match host {
        // This machine, as the reference has it: IPv4 unless IPv6 was asked for.
        Host::Unspecified if family == Family::V6 => {
            Addresses::One((Ipv6Addr::LOCALHOST, port).into())
        }
        Host::Unspecified if chooses && family == Family::Any => {
            let both = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            Addresses::Many(both.map(|ip: IpAddr| (ip, port).into()).into())
        }
        Host::Unspecified => Addresses::One((Ipv4Addr::LOCALHOST, port).into()),
        Host::Ip(ip) => Addresses::One((*ip, port).into()),
        Host::Zoned(ip, zone) => {
            let scope = interface_index(zone).ok_or_else(|| DialError::UnknownZone {
                target: target.to_string(),
                zone: zone.to_string(),
            })?;
            Addresses::One(SocketAddrV6::new(*ip, port, 0, scope).into())
        }
        Host::Name(name) => {
            progress.resolving = true;
            let found = resolver
                .lookup(name, port)
                .await
                .map_err(|source| DialError::Lookup {
                    target: target.to_string(),
                    source,
                })?;
            progress.resolving = false;
            Addresses::Many(interleave(
                found.into_iter().filter(|a| is_of(family, a.ip())),
            ))
        }
    };
    let addresses = match addresses {
        Addresses::Many(found) if chooses => {
            let host = target.name().unwrap_or_default();
            Addresses::Many(choose(target, host, found, options)?)
        }
        addresses => addresses,
    };
    let addresses = match &addresses {
        Addresses::One(address) => std::slice::from_ref(address),
        Addresses::Many(addresses) => addresses,
    };
    if addresses.is_empty() {
        return Err(DialError::NoSuitableAddress {
            target: target.to_string(),
            family,
        });
    }
    for source in sources(target, addresses, &options.sources) {
        let dialled = match datagrams {
            true => connect_udp(addresses, source, progress),
            false => connect_tcp(addresses, source, options.speaks_first, progress).await,
        };
        if let Some(dialled) = dialled {
            return Ok(dialled);
        }
    }
    Err(DialError::Connect {
        target: target.to_string(),
        attempts: Attempts(std::mem::take(&mut progress.failed)),
    })
}

/// Whether what is fixed about a target agrees with the only IP version that is allowed.
fn agree(
    target: &Target,
    family: Family,
    host: &Host,
    preference: Preference,
) -> Result<(), DialError> {
    let Some(only) = preference.only() else {
        return Ok(());
    };
    let contradiction = |is| {
        Err(DialError::Contradiction {
            target: target.to_string(),
            preference,
            is,
        })
    };
    let number = |six| if six { "IPv6" } else { "IPv4" };
    match host.ip() {
        Some(ip) if !is_of(only, ip) => {
            contradiction(format!("{} literal ({ip})", number(ip.is_ipv6())))
        }
        None if family != Family::Any && family != only => {
            contradiction(format!("of an {} network", number(family == Family::V6)))
        }
        _ => Ok(()),
    }
}

/// Of the addresses of a name, those of the IP version to connect to. Which one that is depends on what the name has, not
/// on what answers: the preferred one, or without a preference that of the first source address.
fn choose(
    target: &Target,
    host: &str,
    mut found: Vec<SocketAddr>,
    options: &DialOptions,
) -> Result<Vec<SocketAddr>, DialError> {
    let first = match (options.preference, options.sources.first()) {
        (Some(preference), _) => preference.first(),
        (None, Some(SocketAddr::V6(_))) => Family::V6,
        (None, _) => Family::V4,
    };
    let has_it = found.iter().any(|address| is_of(first, address.ip()));
    match options.preference {
        Some(preference) if !has_it && preference.only().is_some() => {
            return Err(DialError::NoRecords {
                target: target.to_string(),
                host: host.to_owned(),
                preference,
            });
        }
        _ => {}
    }
    if has_it {
        found.retain(|address| is_of(first, address.ip()));
    }
    Ok(found)
}

/// Where to connect from, in order; `None` leaves it to the system. The addresses are of one IP version wherever there are
/// sources to choose from.
fn sources<'o>(
    target: &Target,
    addresses: &[SocketAddr],
    all: &'o [SocketAddr],
) -> impl Iterator<Item = Option<SocketAddr>> + use<'o> {
    let v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let fitting = move || all.iter().filter(move |source| source.is_ipv6() == v6);
    let count = fitting().count();
    if !all.is_empty() {
        let dest_family = if v6 { "ipv6" } else { "ipv4" };
        let upstream_network = if target.is_datagram() { "udp" } else { "tcp" };
        debug!(
            target: "layer4.handlers.proxy", upstream_network, count, dest_family,
            "selected local addresses"
        );
        if count == 0 && TOLD.due() {
            warn!(
                target: "layer4.handlers.proxy", upstream = %target, dest_family,
                "no local address of the upstream's IP version is configured, so the system chooses one"
            );
        }
    }
    let system = (count == 0).then_some(None);
    fitting().copied().map(Some).chain(system)
}

/// When it was last said that no source address fits. Once a minute is enough: it would be said for every connection.
struct Told(AtomicU64);

static TOLD: Told = Told(AtomicU64::new(0));

impl Told {
    fn due(&self) -> bool {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = since.map_or(0, |since| since.as_secs());
        let last = self.0.load(Ordering::Relaxed);
        now.saturating_sub(last) >= 60
            && self
                .0
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// One address is the usual case and costs no allocation.
enum Addresses {
    One(SocketAddr),
    Many(Vec<SocketAddr>),
}

/// IPv6 and IPv4 in turn, beginning with the version the resolver put first, and in its order otherwise (RFC 8305,
/// section 4).
fn interleave(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    let Some(first) = all.first().map(SocketAddr::is_ipv6) else {
        return all;
    };
    let (mut preferred, mut other): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|address| address.is_ipv6() == first);
    let mut mixed = Vec::with_capacity(preferred.len() + other.len());
    let (mut preferred, mut other) = (preferred.drain(..), other.drain(..));
    loop {
        match (preferred.next(), other.next()) {
            (None, None) => return mixed,
            (a, b) => mixed.extend([a, b].into_iter().flatten()),
        }
    }
}

/// Tries the addresses until one answers: the next when one has failed, or has been silent for a while.
async fn connect_tcp(
    addresses: &[SocketAddr],
    source: Option<SocketAddr>,
    speaks_first: bool,
    progress: &mut Progress,
) -> Option<Dialled> {
    if let [address] = addresses {
        return match connect_tcp_to(*address, source, speaks_first).await {
            Ok(socket) => Some(dialled_tcp(socket, *address)),
            Err(error) => {
                progress.failed.push((Addr::Tcp(*address), error));
                None
            }
        };
    }
    let mut waiting = addresses.iter().copied();
    let mut running = Vec::new();
    loop {
        if let Some(address) = waiting.next() {
            running.push((
                address,
                Box::pin(connect_tcp_to(address, source, speaks_first)),
            ));
        }
        if running.is_empty() {
            return None;
        }
        let more = waiting.len() > 0;
        let mut delay = std::pin::pin!(sleep(ATTEMPT_DELAY));
        let event = poll_fn(|cx| {
            for i in 0..running.len() {
                if let Poll::Ready(result) = running[i].1.as_mut().poll(cx) {
                    return Poll::Ready(Some((running.swap_remove(i).0, result)));
                }
            }
            match more {
                true => Pin::as_mut(&mut delay).poll(cx).map(|()| None),
                false => Poll::Pending,
            }
        });
        match event.await {
            // The others are given up by being dropped.
            Some((address, Ok(socket))) => return Some(dialled_tcp(socket, address)),
            Some((address, Err(error))) => progress.failed.push((Addr::Tcp(address), error)),
            None => {}
        }
    }
}

fn dialled_tcp(socket: TcpStream, peer: SocketAddr) -> Dialled {
    Dialled {
        io: Io::Tcp(socket),
        peer: Addr::Tcp(peer),
    }
}

async fn connect_tcp_to(
    address: SocketAddr,
    source: Option<SocketAddr>,
    speaks_first: bool,
) -> io::Result<TcpStream> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
    if let Some(source) = source {
        if source.port() == 0 {
            bind_without_port(&socket, source)?;
        } else {
            // Several connections to different places may share the port, and one that has ended does not keep it.
            socket.set_reuse_address(true)?;
            bind(&socket, source)?;
        }
    }
    // Keep-alive comes when the connection has lasted: see `keepalive.rs`.
    socket.set_tcp_nodelay(true)?;
    if speaks_first {
        // What holds the last acknowledgement of the handshake back is that the socket counts as interactive (tcp(7)). It
        // saves a packet and nothing else, so that it cannot be had is no error.
        let _ = socket.set_tcp_quickack(false);
    }
    let connected = begin_to_connect(&socket, address)?;
    let stream = TcpStream::from_std(socket.into())?;
    if !connected {
        wait_until_connected(&stream).await?;
    }
    match is_connected_to_itself(&stream, address) {
        true => Err(io::ErrorKind::ConnectionRefused.into()),
        false => Ok(stream),
    }
}

/// Begins a handshake. Whether it is over already, as it is within this machine unless the listener's queue is full: there
/// the answer has come by the time `connect` returns, though it does not say so, and asking costs less than to be told.
fn begin_to_connect(socket: &Socket, address: SocketAddr) -> io::Result<bool> {
    let to = address.into();
    let begun = connect_once(socket, &to)?;
    if begun || !address.ip().to_canonical().is_loopback() {
        return Ok(begun);
    }
    connect_once(socket, &to)
}

/// `connect(2)`. Whether the socket is connected; if not, it will be, or fail, later.
fn connect_once(socket: &Socket, address: &SockAddr) -> io::Result<bool> {
    match socket.connect(address) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINPROGRESS | libc::EALREADY) => Ok(false),
            _ => Err(error),
        },
    }
}

async fn wait_until_connected(stream: &TcpStream) -> io::Result<()> {
    let ready = poll_fn(|cx| {
        ready!(stream.poll_write_ready(cx))?;
        // Waiting for this would enter a list of waiters, and leave it. What is there already is answered at once.
        let ready = pin!(stream.ready(Interest::WRITABLE | Interest::ERROR)).poll(cx);
        if ready.is_pending() {
            // Not again ready by now: nobody has asked to be woken.
            cx.waker().wake_by_ref();
        }
        ready
    })
    .await?;
    // The kernel says with the event whether there is an error to ask for: on success the question is spared.
    if ready.is_error() || ready.is_write_closed() {
        return Err(stream
            .take_error()?
            .unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()));
    }
    Ok(())
}

/// A port nobody listens on can be the very one the kernel picks for our end; then the two ends are one (simultaneous
/// open, RFC 9293 section 3.5), and the server that comes back finds its port taken. Asked only where it can happen.
fn is_connected_to_itself(stream: &TcpStream, address: SocketAddr) -> bool {
    static EPHEMERAL: OnceLock<(u16, u16)> = OnceLock::new();
    let (first, last) = *EPHEMERAL.get_or_init(|| {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let range = range.unwrap_or_default();
        let mut numbers = range
            .split_whitespace()
            .map_while(|number| number.parse().ok());
        numbers
            .next()
            .zip(numbers.next())
            .unwrap_or((1024, u16::MAX))
    });
    (first..=last).contains(&address.port())
        && stream
            .local_addr()
            .is_ok_and(|local| (local.ip(), local.port()) == (address.ip(), address.port()))
}

fn bind(socket: &Socket, source: SocketAddr) -> io::Result<()> {
    // An error of connecting is about the other end; say that this one is about ours.
    let of_ours = |error: io::Error| {
        let text = match source.port() {
            0 => format!("from {}: {error}", source.ip()),
            _ => format!("from {source}: {error}"),
        };
        io::Error::new(error.kind(), text)
    };
    socket.bind(&source.into()).map_err(of_ours)
}

/// Binds the address and leaves the port to `connect`, which can give one port to many connections as long as they go to
/// different places: `bind` could give each away only once, and would run out of them (`IP_BIND_ADDRESS_NO_PORT`, ip(7)).
#[allow(unsafe_code)]
fn bind_without_port(socket: &Socket, source: SocketAddr) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open as long as `socket` is borrowed, and the pointer is to an integer of the size given
    // that outlives the call.
    let _ = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    // Without the option, on a kernel before 4.2, there are only fewer ports.
    bind(socket, source)
}

/// Connecting a datagram socket sends nothing: it fails only if there is no way to an address.
fn connect_udp(
    addresses: &[SocketAddr],
    source: Option<SocketAddr>,
    progress: &mut Progress,
) -> Option<Dialled> {
    for address in addresses {
        let socket = || {
            let domain = Domain::for_address(*address);
            let socket = Socket::new(domain, Type::DGRAM.nonblocking(), None)?;
            if let Some(source) = source {
                bind(&socket, source)?;
            }
            socket.connect(&(*address).into())?;
            Datagrams::udp(socket.into())
        };
        match socket() {
            Ok(session) => {
                let io = Io::Datagram(Box::new(session));
                return Some(Dialled {
                    io,
                    peer: Addr::Udp(*address),
                });
            }
            Err(error) => progress.failed.push((Addr::Udp(*address), error)),
        }
    }
    None
}

async fn connect_unix(
    target: &Target,
    kind: UnixKind,
    path: &Arc<Path>,
) -> Result<Dialled, DialError> {
    let peer = Addr::Unix {
        path: Some(path.clone()),
        datagram: kind == UnixKind::Datagram,
    };
    match connect_unix_to(kind, &path.to_string_lossy()).await {
        Ok(io) => Ok(Dialled { io, peer }),
        Err(error) => Err(DialError::Connect {
            target: target.to_string(),
            attempts: Attempts(vec![(peer, error)]),
        }),
    }
}

async fn connect_unix_to(kind: UnixKind, path: &str) -> io::Result<Io> {
    let name = unix_name(path)?;
    let socket = Socket::new(Domain::UNIX, kind.socket_type().nonblocking(), None)?;
    if kind == UnixKind::Datagram {
        // An unnamed socket cannot be answered. Binding to nothing gives it an abstract name of the kernel's choice;
        // where that is not possible, the peer at least receives.
        let _ = SockAddr::unix("").and_then(|nothing| socket.bind(&nothing));
    }
    let mut pause = Duration::from_millis(2);
    loop {
        match socket.connect(&name) {
            Ok(()) => break,
            // The listener's queue is full. There is no event for its having room again.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(100));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(match kind {
        UnixKind::Stream => Io::Unix(UnixStream::from_std(socket.into())?),
        UnixKind::Packet => Io::Layer(Box::new(SeqPacket::new(socket)?)),
        UnixKind::Datagram => Io::Datagram(Box::new(Datagrams::unix(UnixDatagram::from_std(
            socket.into(),
        )?))),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ip_versions_take_turns_beginning_with_the_resolvers_first() {
        let mixed = interleave(
            addresses(&[
                "[::1]:1",
                "[::2]:1",
                "[::3]:1",
                "1.1.1.1:1",
                "[::1]:1",
                "1.1.1.2:1",
            ])
            .into_iter(),
        );
        let expected = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "[::3]:1"];
        assert_eq!(mixed, addresses(&expected));
        let four_first = interleave(addresses(&["1.1.1.1:1", "[::1]:1"]).into_iter());
        assert_eq!(four_first, addresses(&["1.1.1.1:1", "[::1]:1"]));
        assert_eq!(interleave(std::iter::empty()), []);
    }

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

    #[tokio::test]
    async fn a_socket_connected_to_itself_is_noticed() {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let first: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        let (address, stream) = 'search: {
            for port in first..first + 100 {
                let address = SocketAddr::from(([127, 0, 0, 1], port));
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                // A port that somebody has is no help here.
                if socket.bind(address).is_ok()
                    && let Ok(stream) = socket.connect(address).await
                {
                    break 'search (address, stream);
                }
            }
            panic!("no free port");
        };
        assert!(is_connected_to_itself(&stream, address));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        assert!(!is_connected_to_itself(&stream, address));
    }

    #[test]
    fn the_reason_that_says_most_is_given() {
        let attempt = |code| (Addr::UNNAMED, io::Error::from_raw_os_error(code));
        let best = |codes: &[i32]| {
            let attempts = Attempts(codes.iter().map(|&code| attempt(code)).collect());
            attempts.best().and_then(io::Error::raw_os_error)
        };
        assert_eq!(
            best(&[libc::ENETUNREACH, libc::ECONNREFUSED]),
            Some(libc::ECONNREFUSED)
        );
        assert_eq!(
            best(&[libc::ETIMEDOUT, libc::EHOSTUNREACH]),
            Some(libc::ETIMEDOUT)
        );
        assert_eq!(
            best(&[libc::EHOSTUNREACH, libc::ENETUNREACH]),
            Some(libc::EHOSTUNREACH)
        );
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn source_addresses_are_read_with_and_without_a_port() {
        for (text, expected) in [
            ("192.0.2.1", "192.0.2.1:0"),
            ("192.0.2.1:5000", "192.0.2.1:5000"),
            ("2001:db8::1", "[2001:db8::1]:0"),
            ("[2001:db8::1]", "[2001:db8::1]:0"),
            ("[2001:db8::1]:5000", "[2001:db8::1]:5000"),
            ("::1", "[::1]:0"),
            ("[fe80::1%1]:5", "[fe80::1%1]:5"),
            ("fe80::1%lo", "[fe80::1%1]:0"),
        ] {
            let address = source_address(text).unwrap();
            assert_eq!(address.to_string(), expected, "{text}");
        }
        for bad in [
            "",
            " 192.0.2.1",
            "192.0.2.1:",
            "192.0.2.1:+5",
            "192.0.2.1:65536",
            "192.0.2",
            "[192.0.2.1]:5",
            "[::1",
            "[::1]5",
            "[::1]:",
            "tcp/192.0.2.1",
            "192.0.2.0/24",
            "localhost",
            "fe80::1%nowhere0",
        ] {
            assert_eq!(source_address(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_source_without_a_port_gets_one_only_when_it_connects() {
        for source in ["127.0.0.2:0", "[::1]:0"] {
            let source: SocketAddr = source.parse().unwrap();
            let socket = Socket::new(Domain::for_address(source), Type::STREAM, None).unwrap();
            bind_without_port(&socket, source).unwrap();
            let bound = socket.local_addr().unwrap().as_socket().unwrap();
            assert_eq!(bound, source);
        }
    }

    #[test]
    fn that_no_source_fits_is_said_once_a_minute() {
        let told = Told(AtomicU64::new(0));
        assert!(told.due());
        assert!(!told.due());
    }
}
