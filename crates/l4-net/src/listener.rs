//! Opening the sockets that are listened on.
//!
//! Two steps. `Endpoint::of` finds out what an address means to the kernel: names are looked up, all ways to write "every
//! interface" become one, paths lose their detours. Equal endpoints are the same socket. `Endpoint::open` then opens it.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use l4_core::Addr;
use l4_core::config::{Address, AddressError, Family, Network};
use socket2::{Domain, SockAddr, Socket, Type};
use tracing::warn;

use crate::dial::{Host, Resolve, UnixKind, interface_index, is_of, unix_name};
use crate::{owner, sockopt};

/// The mode of a Unix socket's file unless the address names one: only its owner, and root, may connect.
const DEFAULT_MODE: u32 = 0o200;

/// More than any system allows: the kernel makes it what `net.core.somaxconn` says.
const BACKLOG: i32 = i32::MAX;

/// What an address means to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Endpoint {
    Ip {
        datagrams: bool,
        address: SocketAddr,
        /// An IPv6 socket that takes IPv4 as well.
        dual: bool,
    },
    /// A path without detours, or an abstract name with its `@`.
    Unix { socket: UnixKind, path: PathBuf },
    /// A descriptor that the process was started with.
    Inherited { datagrams: bool, number: RawFd },
}

impl Endpoint {
    /// What `address`, which has one port at most, means. Names are looked up; IPv4 is preferred.
    pub(crate) async fn of(
        address: &Address,
        resolver: &impl Resolve,
    ) -> Result<Self, ListenError> {
        let socket = match &address.network {
            Network::Tcp(family) => return Self::ip(false, *family, address, resolver).await,
            Network::Udp(family) => return Self::ip(true, *family, address, resolver).await,
            Network::Unix => UnixKind::Stream,
            Network::Unixpacket => UnixKind::Packet,
            Network::Unixgram => UnixKind::Datagram,
            Network::Fd | Network::Fdgram => {
                let number = RawFd::try_from(address.descriptor()?).unwrap_or(RawFd::MAX);
                return Ok(Self::Inherited {
                    datagrams: address.is_datagram(),
                    number,
                });
            }
            Network::Other(name) => return Err(ListenError::Unsupported(name.to_string())),
        };
        unix_name(&address.host).map_err(ListenError::BadPath)?;
        let path = match address.host.starts_with('@') {
            true => PathBuf::from(&*address.host),
            false => real_path(Path::new(&*address.host))?,
        };
        Ok(Self::Unix { socket, path })
    }

    async fn ip(
        datagrams: bool,
        family: Family,
        address: &Address,
        resolver: &impl Resolve,
    ) -> Result<Self, ListenError> {
        let port = address.ports.unwrap_or_default().first;
        let of_ip = |ip: IpAddr| Self::Ip {
            datagrams,
            address: (ip, port).into(),
            dual: false,
        };
        let unsuitable = || ListenError::NoSuitableAddress {
            host: address.host.clone(),
            family,
        };
        match Host::parse(&address.host) {
            Host::Unspecified | Host::Ip(_)
                if family == Family::Any && is_everywhere(&address.host) =>
            {
                Ok(match has_ipv6() {
                    true => {
                        let address = (Ipv6Addr::UNSPECIFIED, port).into();
                        Self::Ip {
                            datagrams,
                            address,
                            dual: true,
                        }
                    }
                    false => of_ip(Ipv4Addr::UNSPECIFIED.into()),
                })
            }
            Host::Unspecified if family == Family::V6 => Ok(of_ip(Ipv6Addr::UNSPECIFIED.into())),
            Host::Unspecified => Ok(of_ip(Ipv4Addr::UNSPECIFIED.into())),
            Host::Ip(ip) if is_of(family, ip) => Ok(of_ip(ip)),
            Host::Zoned(ip, zone) if is_of(family, ip.into()) => {
                let scope = interface_index(&zone)
                    .ok_or(ListenError::UnknownZone { zone: zone.clone() })?;
                let address = SocketAddrV6::new(ip, port, 0, scope).into();
                Ok(Self::Ip {
                    datagrams,
                    address,
                    dual: false,
                })
            }
            Host::Ip(_) | Host::Zoned(..) => Err(unsuitable()),
            Host::Name(name) => {
                let found = resolver.lookup(&name, port).await;
                let found = found.map_err(|source| ListenError::Lookup { host: name, source })?;
                let usable = || found.iter().filter(|found| is_of(family, found.ip()));
                let chosen = usable()
                    .find(|found| found.is_ipv4())
                    .or_else(|| usable().next());
                let address = *chosen.ok_or_else(unsuitable)?;
                Ok(Self::Ip {
                    datagrams,
                    address,
                    dual: false,
                })
            }
        }
    }

    /// What no two sockets of the process may have in common: a file has one kind of socket behind it.
    pub(crate) fn place(&self) -> Self {
        match self {
            Self::Unix { path, .. } if !is_abstract(path) => Self::Unix {
                socket: UnixKind::Stream,
                path: path.clone(),
            },
            Self::Inherited { number, .. } => Self::Inherited {
                datagrams: false,
                number: *number,
            },
            other => other.clone(),
        }
    }

    /// Whether the kernel chooses the port, so that every opening gives another socket.
    pub(crate) fn is_any_port(&self) -> bool {
        matches!(self, Self::Ip { address, .. } if address.port() == 0)
    }

    /// Opens the socket, which begins to queue connections at once; a TCP socket that others may share does when
    /// [`Bound::listen`] is called. `address` is what the endpoint was made of.
    pub(crate) fn open(
        &self,
        address: &Address,
        sharing: Sharing,
    ) -> Result<(Option<SocketFile>, Bound), ListenError> {
        let bound = match self {
            Self::Unix { socket, path } => return open_unix(*socket, path, address),
            Self::Inherited { datagrams, number } => open_inherited(*number, *datagrams),
            Self::Ip {
                datagrams,
                address,
                dual,
            } => {
                match open_ip(*datagrams, *address, *dual, sharing) {
                    // There is IPv6, but no address of it: it was turned off.
                    Err(ListenError::NotAvailable { .. }) if *dual => {
                        let everywhere = (Ipv4Addr::UNSPECIFIED, address.port()).into();
                        open_ip(*datagrams, everywhere, false, sharing)
                    }
                    opened => opened,
                }
            }
        };
        Ok((None, bound?))
    }
}

/// Whether others may have a socket for the same port and an address that overlaps, such as `0.0.0.0` and `127.0.0.1`.
///
/// The kernel lets sockets of one user share a port if all of them have `SO_REUSEPORT`, and then gives each a part of the
/// connections: that is how a process takes over from another and loses hardly any (one whose handshake is not complete when
/// the first closes is reset, unless `net.ipv4.tcp_migrate_req` is set). So that nobody does so unawares, a socket
/// is bound without it first, and only given it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    Not,
    Allowed,
}

/// A socket that is listened on.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) socket: Socket,
    pub(crate) carries: Carries,
    /// What it is bound to, with the port that the kernel chose.
    pub(crate) actual: Addr,
    /// The local address of all its connections, if there can be only one.
    pub(crate) local: Option<Addr>,
}

impl Bound {
    /// Begins to queue connections at a TCP socket that others may share. From now on it gets a part of theirs.
    pub(crate) fn listen(&self) -> Result<(), ListenError> {
        self.socket
            .listen(BACKLOG)
            .map_err(|error| match self.actual.socket() {
                Some(address) => ip_error(error, address, false, first_free_port()),
                None => doing("listening")(error),
            })
    }

    /// One more socket for the address of this one, which is of UDP. The kernel gives each of them all datagrams of a part of
    /// the peers, the same part as long as their number stays. From now on other processes of this user can bind to the
    /// address, too.
    pub(crate) fn beside(&self) -> Result<Socket, ListenError> {
        let Some(address) = self.actual.socket() else {
            return Err(ListenError::Unsupported(self.actual.to_string()));
        };
        // Where the kernel chose the port, nobody was to share it.
        self.socket
            .set_reuse_port(true)
            .map_err(doing("sharing the port among the shards"))?;
        let dual = address.is_ipv6()
            && address.ip().is_unspecified()
            && !self
                .socket
                .only_v6()
                .map_err(doing("asking whether it takes both IP versions"))?;
        let beside = open_ip(true, address, dual, Sharing::Allowed)?;
        Ok(beside.socket)
    }
}

/// What arrives at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carries {
    Tcp,
    Unix,
    Packets,
    Udp,
    Unixgrams,
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// A network nobody provides.
    #[error("unsupported network type: {0}")]
    Unsupported(String),
    /// The descriptor is not a number.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The name could not be looked up.
    #[error("the name {host} cannot be resolved: {source}")]
    Lookup {
        /// The name.
        host: Box<str>,
        /// What the resolver said.
        source: io::Error,
    },
    /// There is no address of the wanted IP version.
    #[error("no suitable address found: {host} is not, and has not, an {} address",
        match family { Family::V4 => "IPv4", Family::V6 => "IPv6", Family::Any => "IP" })]
    NoSuitableAddress {
        /// The name or address.
        host: Box<str>,
        /// The wanted IP version.
        family: Family,
    },
    /// The zone of an IPv6 address is not here.
    #[error("there is no network interface {zone:?}")]
    UnknownZone {
        /// The name of the interface.
        zone: Box<str>,
    },
    /// Somebody else has the port.
    #[error("{address} is already in use by {}", owner.as_deref().unwrap_or("another process"))]
    InUse {
        /// The address as the kernel was given it.
        address: Addr,
        /// The process that has it, if it was found out.
        owner: Option<String>,
    },
    /// The user may not bind this port.
    #[error(
        "permission denied: ports below {first_free} are for processes with CAP_NET_BIND_SERVICE; \
         grant it with `setcap cap_net_bind_service=+ep` on the executable, or with \
         `AmbientCapabilities=CAP_NET_BIND_SERVICE` in the systemd unit"
    )]
    PrivilegedPort {
        /// The lowest port that everybody may bind.
        first_free: u16,
    },
    /// The address belongs to no interface.
    #[error("{ip} is not an address of this machine")]
    NotAvailable {
        /// The address.
        ip: IpAddr,
    },
    /// A path that the system cannot take.
    #[error("{0}")]
    BadPath(#[source] io::Error),
    /// The directory of a socket file is not there.
    #[error("the directory {} does not exist", directory.display())]
    NoDirectory {
        /// The directory.
        directory: PathBuf,
    },
    /// The user may not create files there.
    #[error("permission denied: this user may not create or replace {}", path.display())]
    NotWritable {
        /// The path.
        path: PathBuf,
    },
    /// There is a file in the way that is not a socket.
    #[error("{} exists and is not a socket; it was left as it is", path.display())]
    NotASocketFile {
        /// The path.
        path: PathBuf,
    },
    /// The running configuration uses the file for another kind of socket.
    #[error("{} is in use as another kind of Unix socket; a reload cannot change that, choose another path", path.display())]
    OtherKind {
        /// The path.
        path: PathBuf,
    },
    /// The process was not started with such a descriptor.
    #[error("file descriptor {number} is not open: it was not passed to this process")]
    NotInherited {
        /// The descriptor.
        number: RawFd,
    },
    /// The descriptor is not what the configuration says.
    #[error("file descriptor {number} is {found}, {needed} is needed")]
    WrongDescriptor {
        /// The descriptor.
        number: RawFd,
        /// What it is.
        found: &'static str,
        /// What it should be.
        needed: &'static str,
    },
    /// Another entry means the same socket.
    #[error("this is the same socket as {address} at {pointer}; remove one of them")]
    Twice {
        /// The other entry's address.
        address: String,
        /// The other entry's place in the document.
        pointer: String,
    },
    /// The system refused for another reason.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl ListenError {
    /// Finds out which process is in the way, if one is. Reads much of `/proc`.
    pub(crate) fn with_owner(mut self) -> Self {
        if let Self::InUse { address, owner } = &mut self {
            *owner = owner::of(address);
        }
        self
    }
}

/// Passed to `map_err`: names what was being done.
fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> ListenError {
    move |source| ListenError::System { doing, source }
}

fn open_ip(
    datagrams: bool,
    address: SocketAddr,
    dual: bool,
    sharing: Sharing,
) -> Result<Bound, ListenError> {
    let failed = |error| ip_error(error, address, datagrams, first_free_port());
    let kind = if datagrams { Type::DGRAM } else { Type::STREAM };
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), None)
        .map_err(doing("opening a socket"))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket
            .set_only_v6(!dual)
            .map_err(doing("choosing between IPv6 and both IP versions"))?;
    }
    if datagrams {
        socket
            .set_broadcast(true)
            .map_err(doing("allowing broadcasts"))?;
    } else {
        // Or the port would stay taken for a minute after the process has ended.
        socket
            .set_reuse_address(true)
            .map_err(doing("allowing the address to be reused"))?;
    }
    if sharing == Sharing::Allowed {
        not_fatal("SO_REUSEPORT", address, socket.set_reuse_port(true));
    }
    if !datagrams {
        not_fatal(
            "TCP_NODELAY and keep-alive",
            address,
            sockopt::set_stream_options(&socket),
        );
    }
    socket.bind(&address.into()).map_err(failed)?;
    // Nobody shares a port that the kernel chose and nobody knew beforehand.
    if address.port() != 0 {
        not_fatal("SO_REUSEPORT", address, socket.set_reuse_port(true));
    }
    if !datagrams && sharing == Sharing::Not {
        socket.listen(BACKLOG).map_err(failed)?;
    }
    let actual = socket
        .local_addr()
        .map_err(doing("asking for the local address"))?;
    let actual = actual.as_socket().unwrap_or(address);
    let addr = if datagrams {
        Addr::Udp(actual)
    } else {
        Addr::Tcp(actual)
    };
    Ok(Bound {
        socket,
        carries: if datagrams {
            Carries::Udp
        } else {
            Carries::Tcp
        },
        local: (!actual.ip().is_unspecified()).then(|| addr.clone()),
        actual: addr,
    })
}

fn not_fatal(option: &str, address: impl std::fmt::Display, result: io::Result<()>) {
    if let Err(error) = result {
        warn!(%address, option, %error, "listening goes on without a socket option");
    }
}

fn ip_error(
    error: io::Error,
    address: SocketAddr,
    datagrams: bool,
    first_free: u16,
) -> ListenError {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            let address = if datagrams {
                Addr::Udp(address)
            } else {
                Addr::Tcp(address)
            };
            ListenError::InUse {
                address,
                owner: None,
            }
        }
        Some(libc::EADDRNOTAVAIL) => ListenError::NotAvailable { ip: address.ip() },
        Some(libc::EACCES) if address.port() < first_free => {
            ListenError::PrivilegedPort { first_free }
        }
        _ => ListenError::System {
            doing: "binding",
            source: error,
        },
    }
}

/// The lowest port that every user may bind. Containers often have 0.
fn first_free_port() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

fn open_unix(
    kind: UnixKind,
    path: &Path,
    address: &Address,
) -> Result<(Option<SocketFile>, Bound), ListenError> {
    let name = unix_name(&address.host).map_err(ListenError::BadPath)?;
    let mode = mode(address);
    let mut socket = Socket::new(Domain::UNIX, kind.socket_type().nonblocking(), None)
        .map_err(doing("opening a socket"))?;
    let in_file = !is_abstract(path);
    if in_file {
        remove_stale(path)?;
        socket = with_mode(socket, mode).map_err(doing("setting the mode"))?;
    }
    socket
        .bind(&name)
        .map_err(|error| unix_error(error, path))?;
    let file = if in_file {
        Some(SocketFile::at(path)?)
    } else {
        None
    };
    if let Some(file) = &file {
        // What the umask took away.
        file.set_mode(mode)
            .map_err(doing("setting the mode of the socket file"))?;
    }
    if kind != UnixKind::Datagram {
        socket
            .listen(BACKLOG)
            .map_err(|error| unix_error(error, path))?;
    }
    let datagram = kind == UnixKind::Datagram;
    let actual = Addr::Unix {
        path: Some(Path::new(&*address.host).into()),
        datagram,
    };
    let carries = match kind {
        UnixKind::Stream => Carries::Unix,
        UnixKind::Packet => Carries::Packets,
        UnixKind::Datagram => Carries::Unixgrams,
    };
    Ok((
        file,
        Bound {
            socket,
            carries,
            local: Some(actual.clone()),
            actual,
        },
    ))
}

/// Gives an unbound socket a mode. Its file gets the same when it is bound, less the umask: there is no moment at which
/// somebody could connect who may not.
fn with_mode(socket: Socket, mode: u32) -> io::Result<Socket> {
    let inode = File::from(OwnedFd::from(socket));
    inode.set_permissions(Permissions::from_mode(mode & 0o777))?;
    Ok(OwnedFd::from(inode).into())
}

fn unix_error(error: io::Error, path: &Path) -> ListenError {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            let address = Addr::Unix {
                path: Some(path.into()),
                datagram: false,
            };
            ListenError::InUse {
                address,
                owner: None,
            }
        }
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            ListenError::NotWritable { path: path.into() }
        }
        _ => ListenError::System {
            doing: "binding",
            source: error,
        },
    }
}

/// Removes the socket that an earlier process left behind.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            fs::remove_file(path).map_err(|error| unix_error(error, path))
        }
        Ok(_) => Err(ListenError::NotASocketFile { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(unix_error(error, path)),
    }
}

/// `path` as everybody would write it: from the root, without symbolic links in its directory.
fn real_path(path: &Path) -> Result<PathBuf, ListenError> {
    let Some(name) = path.file_name() else {
        let why = io::Error::new(io::ErrorKind::InvalidInput, "the path names a directory");
        return Err(ListenError::BadPath(why));
    };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match fs::canonicalize(directory) {
        Ok(real) => Ok(real.join(name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ListenError::NoDirectory {
            directory: directory.into(),
        }),
        Err(error) => Err(unix_error(error, path)),
    }
}

fn is_abstract(path: &Path) -> bool {
    path.as_os_str().as_bytes().starts_with(b"@")
}

/// The mode that the socket file of `address` is to have.
pub(crate) fn mode(address: &Address) -> u32 {
    address.mode.unwrap_or(DEFAULT_MODE)
}

/// The file of a bound Unix socket. Removed when dropped, if it still is that of our socket.
///
/// Drop it before the socket: the kernel gives the number of a file to another one only after the socket is closed.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn at(path: &Path) -> Result<Self, ListenError> {
        let found = fs::symlink_metadata(path).map_err(doing("looking at the socket file"))?;
        Ok(Self {
            path: path.into(),
            device: found.dev(),
            inode: found.ino(),
        })
    }

    /// Gives the file the mode that the configuration says, if it has another.
    pub(crate) fn set_mode(&self, mode: u32) -> io::Result<()> {
        match self.ours() {
            Some(found) if found.permissions().mode() & 0o7777 != mode => {
                fs::set_permissions(&self.path, Permissions::from_mode(mode))
            }
            _ => Ok(()),
        }
    }

    /// Whether clients that go by the path still find our socket.
    pub(crate) fn is_in_place(&self) -> bool {
        self.ours().is_some()
    }

    /// The file, unless it was removed or replaced.
    fn ours(&self) -> Option<fs::Metadata> {
        let found = fs::symlink_metadata(&self.path).ok()?;
        (found.dev() == self.device && found.ino() == self.inode).then_some(found)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_in_place()
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(path = %self.path.display(), %error, "a socket file stays behind");
        }
    }
}

fn open_inherited(number: RawFd, datagrams: bool) -> Result<Bound, ListenError> {
    let needed = match datagrams {
        true => "a datagram socket",
        false => "a listening stream socket",
    };
    let wrong = |found| ListenError::WrongDescriptor {
        number,
        found,
        needed,
    };
    let socket = duplicate(number)?;
    let kind = match socket.r#type() {
        Ok(kind) => kind,
        Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => {
            return Err(wrong("not a socket"));
        }
        Err(source) => {
            return Err(ListenError::System {
                doing: "asking for its type",
                source,
            });
        }
    };
    let domain = socket.domain().map_err(doing("asking for its domain"))?;
    let is_unix = domain == Domain::UNIX;
    if !is_unix && domain != Domain::IPV4 && domain != Domain::IPV6 {
        return Err(wrong("a socket of another kind of network"));
    }
    let carries = match (kind, is_unix) {
        (Type::STREAM, false) => Carries::Tcp,
        (Type::STREAM, true) => Carries::Unix,
        (Type::SEQPACKET, true) => Carries::Packets,
        (Type::DGRAM, false) => Carries::Udp,
        (Type::DGRAM, true) => Carries::Unixgrams,
        _ => return Err(wrong("a raw socket")),
    };
    let is_datagram = matches!(carries, Carries::Udp | Carries::Unixgrams);
    if is_datagram && !datagrams {
        return Err(wrong("a datagram socket (fdgram/ is for those)"));
    }
    if !is_datagram && datagrams {
        return Err(wrong("a stream socket (fd/ is for those)"));
    }
    if !is_datagram
        && !socket
            .is_listener()
            .map_err(doing("asking whether it listens"))?
    {
        return Err(wrong("a stream socket that does not listen"));
    }
    socket
        .set_nonblocking(true)
        .map_err(doing("making it non-blocking"))?;
    let bound = socket
        .local_addr()
        .map_err(doing("asking for the local address"))?;
    let actual = match bound.as_socket() {
        Some(address) if is_datagram => Addr::Udp(address),
        Some(address) => Addr::Tcp(address),
        None => unix_addr(&bound, is_datagram),
    };
    if carries == Carries::Tcp {
        not_fatal(
            "TCP_NODELAY and keep-alive",
            &actual,
            sockopt::set_stream_options(&socket),
        );
    }
    // An IP socket that somebody else made may be transparent (TPROXY), and then takes connections to any address.
    let local = is_unix.then(|| actual.clone());
    Ok(Bound {
        socket,
        carries,
        actual,
        local,
    })
}

/// A descriptor of our own for an inherited socket: closing it leaves the inherited number open for the next reload.
#[allow(unsafe_code)]
fn duplicate(number: RawFd) -> Result<Socket, ListenError> {
    // SAFETY: takes no pointers; a number that is not open is an error.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy >= 0 {
        // SAFETY: the kernel just made this descriptor, and nobody else knows of it.
        return Ok(unsafe { OwnedFd::from_raw_fd(copy) }.into());
    }
    let source = io::Error::last_os_error();
    match source.raw_os_error() {
        Some(libc::EBADF) => Err(ListenError::NotInherited { number }),
        _ => Err(ListenError::System {
            doing: "duplicating the descriptor",
            source,
        }),
    }
}

/// The address of a Unix socket as the kernel names it.
pub(crate) fn unix_addr(name: &SockAddr, datagram: bool) -> Addr {
    let path = match (name.as_pathname(), name.as_abstract_namespace()) {
        (Some(path), _) => Some(path.into()),
        (None, Some(name)) => {
            let path = std::ffi::OsString::from_vec([b"@", name].concat());
            Some(PathBuf::from(path).into())
        }
        // What most clients are; allocates nothing.
        (None, None) => None,
    };
    Addr::Unix { path, datagram }
}

/// Whether `host` means every interface.
fn is_everywhere(host: &str) -> bool {
    host.is_empty() || host.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified())
}

/// Whether this system can open sockets that take both IP versions.
fn has_ipv6() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        Socket::new(Domain::IPV6, Type::STREAM, None)
            .and_then(|socket| socket.set_only_v6(false))
            .is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::SystemResolver;

    async fn endpoint(text: &str) -> Endpoint {
        Endpoint::of(&text.parse().unwrap(), &SystemResolver)
            .await
            .unwrap()
    }

    #[test]
    fn the_systems_refusals_are_put_into_words() {
        let refusal = |code, address: &str| {
            ip_error(
                io::Error::from_raw_os_error(code),
                address.parse().unwrap(),
                false,
                1024,
            )
        };
        let privileged = refusal(libc::EACCES, "0.0.0.0:1");
        assert!(matches!(privileged, ListenError::PrivilegedPort { .. }));
        assert!(privileged.to_string().contains("CAP_NET_BIND_SERVICE"));
        // Not a matter of the port: some security module.
        let other = refusal(libc::EACCES, "0.0.0.0:60000");
        assert_eq!(
            other.to_string(),
            "binding: Permission denied (os error 13)"
        );
        assert_eq!(
            refusal(libc::EADDRINUSE, "0.0.0.0:80").to_string(),
            "0.0.0.0:80 is already in use by another process"
        );
        let unix = unix_error(
            io::Error::from_raw_os_error(libc::EACCES),
            Path::new("/run/x"),
        );
        assert_eq!(
            unix.to_string(),
            "permission denied: this user may not create or replace /run/x"
        );
    }

    #[test]
    fn a_socket_file_never_has_more_bits_than_it_is_to_have() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("s");
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        let socket = with_mode(socket, 0o200).unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        // Before anything is done to the file.
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777 & !0o200, 0);
    }

    #[tokio::test]
    async fn a_path_has_one_endpoint_however_it_is_written() {
        let here = fs::canonicalize(".").unwrap();
        let absolute = Endpoint::Unix {
            socket: UnixKind::Stream,
            path: here.join("x.sock"),
        };
        let up = format!(
            "unix/{}/../{}/x.sock",
            here.display(),
            here.file_name().unwrap().display()
        );
        for text in ["unix/x.sock", "unix/./x.sock|0660", &*up] {
            assert_eq!(endpoint(text).await, absolute, "{text}");
        }
        assert_ne!(endpoint("unixgram/x.sock").await, absolute);
        assert_eq!(endpoint("unixgram/x.sock").await.place(), absolute.place());
        // Abstract names of different kinds are different sockets.
        assert_ne!(
            endpoint("unixgram/@x").await.place(),
            endpoint("unix/@x").await.place()
        );
    }

    #[tokio::test]
    async fn all_interfaces_are_one_endpoint() {
        let everywhere = endpoint(":80").await;
        for text in ["0.0.0.0:80", "[::]:80", "tcp/:80"] {
            assert_eq!(endpoint(text).await, everywhere, "{text}");
        }
        for text in ["tcp4/:80", "tcp6/:80", "udp/:80", ":81", "127.0.0.1:80"] {
            assert_ne!(endpoint(text).await, everywhere, "{text}");
        }
        assert_eq!(
            endpoint("127.0.0.1:80").await,
            endpoint("[::ffff:127.0.0.1]:80").await
        );
    }
}
