//! A connected datagram socket, as a session.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use l4_core::Addr;
use l4_core::conn::Session;
use tokio::io::ReadBuf;
use tokio::net::{UdpSocket, UnixDatagram};

/// The datagrams exchanged with one server, over a socket that was connected to it.
///
/// It ends only by being dropped, or when the socket itself breaks: a server that is away, which the kernel reports as
/// "connection refused", can come back, and its answers are read then.
pub(crate) struct Datagrams(Socket);

enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

impl Datagrams {
    pub(crate) fn udp(socket: UdpSocket) -> Self {
        Self(Socket::Udp(socket))
    }

    pub(crate) fn unix(socket: UnixDatagram) -> Self {
        Self(Socket::Unix(socket))
    }
}

impl Session for Datagrams {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        thread_local! {
            // A datagram must be taken whole, and how long it is shows only afterwards.
            static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; LONGEST].into());
        }
        SCRATCH.with_borrow_mut(|scratch| {
            for _ in 0..REPORTS_AT_ONCE {
                let mut buf = ReadBuf::new(scratch);
                let received = match &self.0 {
                    Socket::Udp(socket) => socket.poll_recv(cx, &mut buf),
                    Socket::Unix(socket) => socket.poll_recv(cx, &mut buf),
                };
                match ready!(received) {
                    Ok(()) => return Poll::Ready(Some(Bytes::copy_from_slice(buf.filled()))),
                    Err(error) if is_final(&error) => return Poll::Ready(None),
                    // About a datagram sent earlier.
                    Err(_) => {}
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        let mut send = || match &self.0 {
            Socket::Udp(socket) => socket.poll_send(cx, datagram).map_ok(drop),
            Socket::Unix(socket) => socket.poll_send(cx, datagram).map_ok(drop),
        };
        match send() {
            // This is about a datagram sent earlier; the call reports it in place of sending this one.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => send(),
            sent => sent,
        }
    }

    fn local(&self) -> Addr {
        match &self.0 {
            Socket::Udp(socket) => socket.local_addr().map_or(Addr::UNNAMED, Addr::Udp),
            Socket::Unix(socket) => Addr::Unix {
                path: socket
                    .local_addr()
                    .ok()
                    .and_then(|a| a.as_pathname().map(Into::into)),
                datagram: true,
            },
        }
    }
}

/// The longest datagram of either network that is passed on.
const LONGEST: usize = 65_535;

/// After this many errors in a row other tasks get their turn.
const REPORTS_AT_ONCE: usize = 8;

/// Errors that the socket would give again and again.
fn is_final(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADF | libc::ENOTSOCK | libc::ENOTCONN | libc::EINVAL | libc::EFAULT)
    )
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_server_that_was_away_is_heard_when_it_is_back() {
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        drop(server);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let ours = socket.local_addr().unwrap();
        socket.connect(address).await.unwrap();
        let mut session = Datagrams::udp(socket);
        poll_fn(|cx| session.poll_send(cx, b"anybody there?"))
            .await
            .unwrap();
        let receiving = poll_fn(|cx| session.poll_recv(cx));
        // The refusal is received here, and is not the end.
        let early = tokio::time::timeout(Duration::from_millis(100), receiving).await;
        assert!(early.is_err(), "{early:?}");
        let server = std::net::UdpSocket::bind(address).unwrap();
        server.send_to(b"here I am", ours).unwrap();
        let answer = poll_fn(|cx| session.poll_recv(cx)).await;
        assert_eq!(answer.as_deref(), Some(b"here I am".as_slice()));
        server.send_to(b"", ours).unwrap();
        let empty = poll_fn(|cx| session.poll_recv(cx)).await;
        assert_eq!(empty.as_deref(), Some(b"".as_slice()));
    }
}
