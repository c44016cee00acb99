//! Connecting to an upstream.
//!
//! [`Target`] is what to connect to, checked once; [`connect`] does it. A name is looked up at every dial, by the system's
//! resolver on a thread of its own, and all its addresses are tried, the two IP versions in turn and a little staggered
//! (RFC 8305), until one answers. An IP address never touches the resolver.

mod choice;
mod error;
mod sockets;
mod target;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use l4_core::config::Family;
use l4_core::{Addr, Io};
use tokio::time::timeout;

use self::choice::{agree, choose, interleave, sources};
use self::sockets::{connect_tcp, connect_udp, connect_unix};
use self::target::Kind;

pub use self::choice::source_address;
pub use self::error::{Attempts, DialError};
pub(crate) use self::target::{Host, UnixKind, interface_index, is_of, unix_name};
pub use self::target::{Target, TargetError};

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

/// One address is the usual case and costs no allocation.
enum Addresses {
    One(SocketAddr),
    Many(Vec<SocketAddr>),
}
