//! A socket for each kind of address, connected.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, ready};
use std::time::Duration;

use l4_core::{Addr, Io};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixDatagram, UnixStream};
use tokio::time::sleep;

use super::error::Attempts;
use super::target::{Target, UnixKind, unix_name};
use super::{DialError, Dialled, Progress};
use crate::datagrams::Datagrams;
use crate::seqpacket::SeqPacket;

/// How long a connection attempt is alone before the next address is tried beside it (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Tries the addresses until one answers: the next when one has failed, or has been silent for a while.
pub(super) async fn connect_tcp(
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
pub(super) fn connect_udp(
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

pub(super) async fn connect_unix(
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_source_without_a_port_gets_one_only_when_it_connects() {
        for source in ["127.0.0.2:0", "[::1]:0"] {
            let source: SocketAddr = source.parse().unwrap();
            let socket = Socket::new(Domain::for_address(source), Type::STREAM, None).unwrap();
            bind_without_port(&socket, source).unwrap();
            let bound = socket.local_addr().unwrap().as_socket().unwrap();
            assert_eq!(bound, source);
        }
    }
}
