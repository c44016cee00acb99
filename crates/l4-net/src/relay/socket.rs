//! A stream socket under a transport, TCP or Unix.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll};

use l4_core::{Io, Transport};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// What bytes can be moved on in the kernel, or read and written without asking the runtime to wait.
pub(super) enum Socket<'a> {
    Tcp(&'a TcpStream),
    Unix(&'a UnixStream),
}

impl<'a> Socket<'a> {
    pub(super) fn of(transport: &'a Transport) -> Option<Self> {
        match transport.io() {
            Io::Tcp(socket) => Some(Self::Tcp(socket)),
            Io::Unix(socket) => Some(Self::Unix(socket)),
            Io::Datagram(_) | Io::Layer(_) => None,
        }
    }

    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_read_ready(cx),
            Self::Unix(socket) => socket.poll_read_ready(cx),
        }
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_write_ready(cx),
            Self::Unix(socket) => socket.poll_write_ready(cx),
        }
    }

    /// Calls `f` if the socket is believed ready, and stops believing it when `f` would block.
    pub(super) fn try_io<T>(
        &self,
        interest: Interest,
        f: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Self::Tcp(socket) => socket.try_io(interest, f),
            Self::Unix(socket) => socket.try_io(interest, f),
        }
    }

    /// Sends what there is room for, if there is believed to be any.
    pub(super) fn try_send(&self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.try_write(data),
            Self::Unix(socket) => socket.try_write(data),
        }
    }

    /// Sends what there is room for, whether the runtime believes in any or not: of a socket that was just registered it
    /// does not know yet.
    pub(super) fn send_at_once(&self, data: &[u8]) -> io::Result<usize> {
        SockRef::from(self).send_with_flags(data, libc::MSG_NOSIGNAL)
    }
}

impl AsFd for Socket<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}
