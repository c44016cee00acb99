//! The socket options that streams are given.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

/// Silence on a TCP connection after which the peer is probed.
pub(crate) const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);

/// Time between two probes.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Unanswered probes after which the connection is broken.
pub(crate) const KEEPALIVE_PROBES: u32 = 9;

/// Turns Nagle's algorithm off and keep-alive on.
///
/// On Linux the sockets accepted from a listener inherit all of it, so that a listener is given it once and its
/// connections cost no system call. Options that the kernel would apply anyway are left out.
///
/// # Errors
/// The first option that could not be set.
pub(crate) fn set_stream_options(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_tcp_nodelay(true)?;
    set_keepalive(socket)
}

/// Turns keep-alive on. Options that the kernel would apply anyway are left out.
///
/// # Errors
/// The first option that could not be set.
pub fn set_keepalive(socket: &impl AsFd) -> io::Result<()> {
    // Sets SO_KEEPALIVE as well.
    SockRef::from(socket).set_tcp_keepalive(&Probing::of_kernel().changes())
}

/// How many bytes, the end of the stream counting as one, the peer's kernel has not acknowledged yet (SIOCOUTQ in tcp(7)).
///
/// # Errors
/// The socket is gone already.
#[allow(unsafe_code)]
pub(crate) fn unacknowledged(stream: &TcpStream) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open as long as `stream` is borrowed; the pointer is to a live value of the type that this
    // request writes.
    match unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } {
        0 => Ok(usize::try_from(bytes).unwrap_or(0)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What owns a descriptor.
///
/// # Safety
/// The descriptor stays open and the same until the value is dropped.
#[allow(unsafe_code)]
pub(crate) unsafe trait OwnsDescriptor: AsRawFd {}

// SAFETY: neither gives its descriptor away, or changes it, through a shared reference or an `AsyncFd`.
#[allow(unsafe_code)]
unsafe impl OwnsDescriptor for Socket {}
// SAFETY: the same.
#[allow(unsafe_code)]
unsafe impl OwnsDescriptor for UdpSocket {}

/// Registers a non-blocking socket with the runtime of the calling task.
///
/// # Errors
/// The kernel has no room for it.
#[allow(unsafe_code)]
pub(crate) fn register<S: OwnsDescriptor>(socket: S, interest: Interest) -> io::Result<AsyncFd<S>> {
    // SAFETY: the descriptor stays as it is until the socket is dropped, which the `AsyncFd` that takes it over does last.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

/// When and how often a silent peer is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Probing {
    idle: Duration,
    interval: Duration,
    probes: u32,
}

impl Probing {
    const WANTED: Self = Self {
        idle: KEEPALIVE_IDLE,
        interval: KEEPALIVE_INTERVAL,
        probes: KEEPALIVE_PROBES,
    };

    /// What a socket nobody configured does here. Asked once, of a socket of its own, because an inherited listener may
    /// be configured. The settings (`tcp_keepalive_*` below `/proc/sys/net/ipv4`) change about never.
    fn of_kernel() -> Self {
        static KERNEL: OnceLock<Probing> = OnceLock::new();
        // What cannot be asked is never what is wanted, and therefore set.
        const UNKNOWN: Probing = Probing {
            idle: Duration::ZERO,
            interval: Duration::ZERO,
            probes: 0,
        };
        *KERNEL.get_or_init(|| {
            let Ok(fresh) = Socket::new(Domain::IPV4, Type::STREAM, None) else {
                return UNKNOWN;
            };
            Self {
                idle: fresh.tcp_keepalive_time().unwrap_or_default(),
                interval: fresh.tcp_keepalive_interval().unwrap_or_default(),
                probes: fresh.tcp_keepalive_retries().unwrap_or_default(),
            }
        })
    }

    /// What must be set on a socket that does `self` to make it do what is wanted.
    fn changes(self) -> TcpKeepalive {
        let mut changes = TcpKeepalive::new();
        if self.idle != Self::WANTED.idle {
            changes = changes.with_time(Self::WANTED.idle);
        }
        if self.interval != Self::WANTED.interval {
            changes = changes.with_interval(Self::WANTED.interval);
        }
        if self.probes != Self::WANTED.probes {
            changes = changes.with_retries(Self::WANTED.probes);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_as_wanted_whatever_the_kernel_does_by_itself() {
        // Twice: the first time the kernel is asked.
        for _ in 0..2 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            set_stream_options(&socket).unwrap();
            assert!(socket.tcp_nodelay().unwrap());
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
        }
    }
}
