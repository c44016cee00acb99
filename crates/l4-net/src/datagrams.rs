//! A connected datagram socket, as a session.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use l4_core::Addr;
use l4_core::conn::{SendNow, Session};
use quinn_udp::{RecvMeta, UdpSocketState};
use tokio::io::ReadBuf;
use tokio::net::UnixDatagram;

use crate::segments::{self, BATCH, Room, Runs, STRIDE, SegmentLimit, UdpReader};
use crate::udp::sockopt;

/// The datagrams exchanged with one server, over a socket that was connected to it.
///
/// It ends only by being dropped, or when the socket itself breaks: a server that is away, which the kernel reports as
/// "connection refused", can come back, and its answers are read then.
pub(crate) struct Datagrams {
    socket: Socket,
    /// How much is read at once. Most sessions get one answer at a time. Then a plain read and another one that finds nothing
    /// take 0.4 µs less than one that asks for two.
    expecting: Expecting,
    /// Whether the kernel merges datagrams, so that one read may give several.
    merging: bool,
    /// Set while the kernel has no room for what is to be sent.
    room: Option<Arc<Room>>,
    /// Read and not yet received: what was merged with a datagram that was received alone.
    ahead: VecDeque<Bytes>,
}

enum Socket {
    Udp(Arc<Connected>),
    Unix(UnixDatagram),
}

/// A connected UDP socket, which others may send on.
struct Connected {
    socket: UdpReader,
    limit: SegmentLimit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expecting {
    /// One datagram.
    Little,
    /// As before, and one was read since the socket was last found empty.
    Another,
    Much,
}

impl Datagrams {
    /// Of a socket that is connected and does not block.
    pub(crate) fn udp(socket: UdpSocket) -> io::Result<Self> {
        Ok(Self::new(Socket::Udp(Arc::new(Connected {
            socket: UdpReader::new(socket)?,
            limit: SegmentLimit::default(),
        }))))
    }

    pub(crate) fn unix(socket: UnixDatagram) -> Self {
        Self::new(Socket::Unix(socket))
    }

    fn new(socket: Socket) -> Self {
        Self {
            socket,
            expecting: Expecting::Little,
            merging: false,
            room: None,
            ahead: VecDeque::new(),
        }
    }

    /// Receives one datagram of a socket that gives them one by one.
    fn poll_one(
        &self,
        cx: &mut Context<'_>,
        each: &mut dyn FnMut(&[&[u8]]),
    ) -> Poll<io::Result<()>> {
        // A datagram must be taken whole, and how long it is shows only afterwards.
        segments::with_scratch(|scratch| {
            let buf = scratch.get_mut(..LONGEST).unwrap_or_default();
            let len = match &self.socket {
                Socket::Udp(connected) => {
                    ready!(connected.socket.poll_read(cx, |socket| socket.recv(buf)))?
                }
                Socket::Unix(socket) => {
                    let mut buf = ReadBuf::new(buf);
                    ready!(socket.poll_recv(cx, &mut buf))?;
                    buf.filled().len()
                }
            };
            each(&[buf.get(..len).unwrap_or_default()]);
            Poll::Ready(Ok(()))
        })
    }

    /// Receives what is there, of a UDP socket.
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        each: &mut dyn FnMut(&[&[u8]]),
    ) -> Poll<io::Result<()>> {
        let (Socket::Udp(connected), Some(reader)) = (&self.socket, reader()) else {
            return self.poll_one(cx, each);
        };
        if !self.merging && self.expecting != Expecting::Much {
            let received = self.poll_one(cx, each);
            self.expecting = match (&received, self.expecting) {
                (Poll::Ready(Ok(())), Expecting::Little) => Expecting::Another,
                // Two were waiting.
                (Poll::Ready(Ok(())), _) => Expecting::Much,
                _ => Expecting::Little,
            };
            return received;
        }
        let received = connected.socket.poll_read_many(cx, |socket| {
            let (count, batch) = match self.expecting {
                Expecting::Much => receive::<BATCH>(reader, socket, each),
                _ => receive::<FEW>(reader, socket, each),
            }?;
            // Fewer than there was room for: nothing is left, or an error has come meanwhile, which the kernel announces.
            Ok((batch == Batch::Full, (count, batch)))
        });
        let (count, batch) = ready!(received)?;
        if count >= MANY && !self.merging {
            // Not before: a merged datagram is told by a control message, which each one then costs.
            self.merging = true;
            merge(connected.socket.get());
        }
        match batch {
            Batch::Full => self.expecting = Expecting::Much,
            Batch::One => self.expecting = Expecting::Little,
            Batch::Some => {}
        }
        Poll::Ready(Ok(()))
    }

    /// Has `receive` repeated while it gives nothing but reports about datagrams sent earlier. `None` when the socket is
    /// broken.
    fn poll_past_reports(
        &mut self,
        cx: &mut Context<'_>,
        mut receive: impl FnMut(&mut Self, &mut Context<'_>) -> Poll<io::Result<()>>,
    ) -> Poll<Option<()>> {
        for _ in 0..REPORTS_AT_ONCE {
            match ready!(receive(self, cx)) {
                Ok(()) => return Poll::Ready(Some(())),
                Err(error) if is_final(&error) => return Poll::Ready(None),
                Err(_) => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Session for Datagrams {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ahead.is_empty() {
            let mut ahead = std::mem::take(&mut self.ahead);
            let mut keep = |datagrams: &[&[u8]]| {
                ahead.extend(datagrams.iter().map(|d| Bytes::copy_from_slice(d)));
            };
            let received = match self.merging {
                true => self.poll_past_reports(cx, |this, cx| this.poll_batch(cx, &mut keep)),
                false => self.poll_past_reports(cx, |this, cx| this.poll_one(cx, &mut keep)),
            };
            self.ahead = ahead;
            ready!(received);
        }
        Poll::Ready(self.ahead.pop_front())
    }

    fn poll_recv_many(
        &mut self,
        cx: &mut Context<'_>,
        each: &mut dyn FnMut(&[&[u8]]),
    ) -> Poll<Option<()>> {
        if let Some(datagram) = self.ahead.pop_front() {
            each(&[&datagram]);
            return Poll::Ready(Some(()));
        }
        self.poll_past_reports(cx, |this, cx| this.poll_batch(cx, each))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        self.poll_send_many(cx, &[datagram]).map_ok(drop)
    }

    fn poll_send_many(
        &mut self,
        cx: &mut Context<'_>,
        datagrams: &[&[u8]],
    ) -> Poll<io::Result<usize>> {
        let connected = match &self.socket {
            Socket::Udp(connected) => connected,
            Socket::Unix(socket) => {
                let first = datagrams.first().copied().unwrap_or_default();
                let mut sent = socket.poll_send(cx, first);
                if matches!(&sent, Poll::Ready(Err(error)) if is_hearsay(error)) {
                    sent = socket.poll_send(cx, first);
                }
                return sent.map_ok(|_| 1);
            }
        };
        loop {
            if let Some(room) = &self.room {
                ready!(room.poll(cx))?;
                self.room = None;
            }
            // Not asked for readiness first, which costs as much as it saves.
            match connected.send_now(datagrams) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Nobody can be told of room without one more descriptor; then this datagram is lost alone.
                    let full = |_| io::Error::from_raw_os_error(libc::ENOBUFS);
                    self.room = Some(connected.socket.room().map_err(full)?);
                }
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn send_now(&self) -> Option<Arc<dyn SendNow>> {
        match &self.socket {
            Socket::Udp(connected) => Some(connected.clone()),
            Socket::Unix(_) => None,
        }
    }

    fn local(&self) -> Addr {
        match &self.socket {
            Socket::Udp(connected) => {
                (connected.socket.get().local_addr()).map_or(Addr::UNNAMED, Addr::Udp)
            }
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

impl SendNow for Connected {
    fn send_now(&self, datagrams: &[&[u8]]) -> io::Result<usize> {
        let socket = self.socket.get();
        self.limit.send(
            datagrams,
            |run| segments::send(socket, None, None, run),
            |datagram| {
                let mut sent = socket.send(datagram);
                if sent.as_ref().is_err_and(is_hearsay) {
                    sent = socket.send(datagram);
                }
                sent.map(drop)
            },
        )
    }
}

/// Whether it is about a datagram sent earlier; the call reports it in place of sending this one.
fn is_hearsay(error: &io::Error) -> bool {
    error.kind() == ErrorKind::ConnectionRefused
}

/// What a read gave.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Batch {
    /// As much as there was room for: there may be more.
    Full,
    Some,
    /// One datagram, or one run.
    One,
}

/// Reads up to `N` buffers, two at least, and gives what is in them to `each`, in order. How many had something.
fn receive<const N: usize>(
    reader: &UdpSocketState,
    socket: &UdpSocket,
    each: &mut dyn FnMut(&[&[u8]]),
) -> io::Result<(usize, Batch)> {
    segments::with_scratch(|scratch| {
        let mut chunks = scratch.chunks_mut(STRIDE);
        let mut buffers: [_; N] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let mut metas = [RecvMeta::default(); N];
        let count = reader.recv(socket.into(), &mut buffers, &mut metas)?;
        if let (1, [meta, ..], [buffer, ..]) = (count, &metas[..], &buffers[..])
            && meta.stride >= meta.len
        {
            each(&[buffer.get(..meta.len).unwrap_or(buffer)]);
            return Ok((count, Batch::One));
        }
        let mut runs = Runs::new();
        for (meta, buffer) in metas.iter().zip(&buffers).take(count) {
            let bytes = buffer.get(..meta.len).unwrap_or(buffer);
            for datagram in segments::datagrams(bytes, meta.stride) {
                runs.push(datagram, each);
            }
        }
        runs.flush(each);
        let batch = match count {
            n if n == N => Batch::Full,
            1 => Batch::One,
            _ => Batch::Some,
        };
        Ok((count, batch))
    })
}

/// What reads batches, where that can be done. One for all sockets: reading keeps nothing in it, and to make one for each
/// would cost a dozen system calls and set options that a connected socket is better without.
fn reader() -> Option<&'static UdpSocketState> {
    static READER: OnceLock<Option<UdpSocketState>> = OnceLock::new();
    let make = || {
        if !cfg!(any(target_os = "linux", target_os = "android")) {
            return None;
        }
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let socket = UdpSocket::bind(&loopback.map(|ip| SocketAddr::new(ip, 0))[..]);
        UdpSocketState::new((&socket.ok()?).into()).ok()
    };
    READER.get_or_init(make).as_ref()
}

/// Has the kernel merge what comes, where it can.
fn merge(socket: &UdpSocket) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // Without it there is a buffer for each datagram.
    let _ = sockopt::set(socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = socket;
}

/// The buffers of a session that gets one merged run at a time: the second finds out that there is no more.
const FEW: usize = 2;

/// From so many datagrams waiting at once the kernel is to merge them.
const MANY: usize = 8;

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
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        drop(server);
        let socket = bound();
        let ours = socket.local_addr().unwrap();
        socket.connect(address).unwrap();
        let mut session = Datagrams::udp(socket).unwrap();
        poll_fn(|cx| session.poll_send(cx, b"anybody there?"))
            .await
            .unwrap();
        let receiving = poll_fn(|cx| session.poll_recv(cx));
        // The refusal is received here, and is not the end.
        let early = tokio::time::timeout(Duration::from_millis(100), receiving).await;
        assert!(early.is_err(), "{early:?}");
        let server = UdpSocket::bind(address).unwrap();
        server.send_to(b"here I am", ours).unwrap();
        let answer = poll_fn(|cx| session.poll_recv(cx)).await;
        assert_eq!(answer.as_deref(), Some(b"here I am".as_slice()));
        server.send_to(b"", ours).unwrap();
        let empty = poll_fn(|cx| session.poll_recv(cx)).await;
        assert_eq!(empty.as_deref(), Some(b"".as_slice()));
    }

    /// A session, and the server it is connected to.
    async fn pair() -> (Datagrams, tokio::net::UdpSocket) {
        let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let socket = bound();
        socket.connect(server.local_addr().unwrap()).unwrap();
        server.connect(socket.local_addr().unwrap()).await.unwrap();
        (Datagrams::udp(socket).unwrap(), server)
    }

    fn bound() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    /// Datagrams of sizes that do and do not go together, the empty one among them, all different.
    fn burst() -> Vec<Vec<u8>> {
        let sizes = [
            &[100; 70][..],
            &[30],
            &[0],
            &[0],
            &[1400; 50],
            &[1],
            &[2, 3],
        ]
        .concat();
        let fill = |(i, size): (usize, &usize)| vec![i as u8; *size];
        sizes.iter().enumerate().map(fill).collect()
    }

    async fn received(session: &mut Datagrams, count: usize) -> Vec<Vec<u8>> {
        let mut got = Vec::new();
        while got.len() < count {
            let mut keep = |all: &[&[u8]]| got.extend(all.iter().map(|d| d.to_vec()));
            let more = poll_fn(|cx| session.poll_recv_many(cx, &mut keep));
            let more = tokio::time::timeout(Duration::from_secs(5), more).await;
            assert_eq!(more.unwrap(), Some(()));
        }
        got
    }

    #[tokio::test]
    async fn a_burst_of_answers_is_received_in_order_whatever_the_kernel_merges() {
        let (mut session, server) = pair().await;
        let burst = burst();
        for _ in 0..2 {
            for datagram in &burst {
                server.send(datagram).await.unwrap();
            }
            assert_eq!(received(&mut session, burst.len()).await, burst);
        }
        assert!(session.merging, "many at once turn merging on");
        // In one call, so that they are merged.
        let run: [&[u8]; 4] = [&[1; 500], &[2; 500], &[3; 500], &[4; 9]];
        segments::send(&server, None, None, &run).unwrap();
        assert_eq!(received(&mut session, 4).await, run);
        // One by one they come apart as well.
        segments::send(&server, None, None, &run).unwrap();
        for datagram in run {
            let one = poll_fn(|cx| session.poll_recv(cx)).await.unwrap();
            assert_eq!(one, datagram);
        }
        server.send(b"").await.unwrap();
        assert_eq!(received(&mut session, 1).await, [b""]);
    }

    #[tokio::test]
    async fn a_few_answers_at_once_are_received_in_order_and_cost_no_control_messages() {
        let (mut session, server) = pair().await;
        for count in [1, 2, 3, 1, MANY - 1, 1, 1] {
            let burst: Vec<_> = (1..=count).map(|size| vec![size as u8; size]).collect();
            for datagram in &burst {
                server.send(datagram).await.unwrap();
            }
            assert_eq!(received(&mut session, count).await, burst);
            assert!(!session.merging);
        }
    }

    #[tokio::test]
    async fn what_is_sent_in_runs_arrives_as_it_would_singly() {
        for limit in [SegmentLimit::default(), SegmentLimit::none()] {
            let (mut session, server) = pair().await;
            let Socket::Udp(connected) = &mut session.socket else {
                unreachable!()
            };
            Arc::get_mut(connected).unwrap().limit = limit;
            let burst = burst();
            let slices: Vec<&[u8]> = burst.iter().map(Vec::as_slice).collect();
            let (mut rest, mut buf) = (&slices[..], vec![0; 65_536]);
            while !rest.is_empty() {
                let sent = poll_fn(|cx| session.poll_send_many(cx, rest))
                    .await
                    .unwrap();
                for datagram in &rest[..sent] {
                    let len = server.recv(&mut buf).await.unwrap();
                    assert_eq!(&buf[..len], *datagram);
                }
                rest = &rest[sent..];
            }
        }
    }

    #[tokio::test]
    async fn a_datagram_that_is_too_long_is_an_error_of_its_own() {
        let (mut session, server) = pair().await;
        let long = vec![0; 65_508];
        let error = poll_fn(|cx| session.poll_send_many(cx, &[&long, &long]))
            .await
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        let sent = poll_fn(|cx| session.poll_send_many(cx, &[b"short", b"ones"])).await;
        assert_eq!(sent.unwrap(), 2);
        let mut buf = [0; 100];
        assert_eq!(server.recv(&mut buf).await.unwrap(), 5);
        assert_eq!(server.recv(&mut buf).await.unwrap(), 4);
    }
}
