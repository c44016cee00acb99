//! Datagrams in bulk: reading many of a connected socket at once, and sending a run of one size in one system call.
//!
//! Sending is generic segmentation offload (UDP_SEGMENT, udp(7)): the kernel takes the run through its stack as one packet
//! and cuts it as late as it can. What it cuts is never fragmented, so a size that does not fit the path is refused, and
//! sent singly from then on; some devices refuse all of it. Reading is `recvmmsg` with its counterpart, receive offload,
//! which gives such a run back in one buffer.

use std::cell::RefCell;
use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sockopt::register;

/// Datagrams, or runs of datagrams that the kernel has put together, read at once.
pub(crate) const BATCH: usize = quinn_udp::BATCH_SIZE;

/// The size of a receive buffer: what a run of merged datagrams, or the longest one, may have.
pub(crate) const STRIDE: usize = 64 * 1024;

/// The most datagrams that are passed on together: what Linux cuts one packet into (UDP_MAX_SEGMENTS before 6.12).
pub(crate) const RUN: usize = 64;

/// What a run may have in all: an IPv4 packet.
const LONGEST_RUN: usize = 65_507;

/// A UDP socket of which the runtime is told when there is something to read, and not that there is room to send again: that
/// is so after each datagram sent, and would be an event for each.
pub(crate) struct UdpReader {
    socket: AsyncFd<UdpSocket>,
    /// Shared by all who wait for it.
    room: Mutex<Weak<Room>>,
}

impl UdpReader {
    /// Of a socket that does not block.
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        Ok(Self {
            socket: register(socket, Interest::READABLE)?,
            room: Mutex::default(),
        })
    }

    /// The socket, for sending.
    pub(crate) fn get(&self) -> &UdpSocket {
        self.socket.get_ref()
    }

    /// Waits for something to read.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await.map(drop)
    }

    /// Reads with `read` once there is something.
    pub(crate) fn poll_read<T>(
        &self,
        cx: &mut Context<'_>,
        mut read: impl FnMut(&UdpSocket) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        self.poll_read_many(cx, |socket| Ok((true, read(socket)?)))
    }

    /// As [`Self::poll_read`]; `read` says as well whether there may be more. If not, nothing is read before the kernel
    /// tells of something.
    pub(crate) fn poll_read_many<T>(
        &self,
        cx: &mut Context<'_>,
        mut read: impl FnMut(&UdpSocket) -> io::Result<(bool, T)>,
    ) -> Poll<io::Result<T>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            match read(self.get()) {
                Ok((more, got)) => {
                    if !more {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(got));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Reads with `read` if there may be something, which says as well whether there may be more.
    pub(crate) fn try_read<T>(
        &self,
        read: impl FnOnce(&UdpSocket) -> io::Result<(bool, T)>,
    ) -> io::Result<T> {
        let mut got = None;
        let tried = self.socket.try_io(Interest::READABLE, |socket| {
            let (more, what) = read(socket)?;
            got = Some(what);
            // This has the runtime wait for an event before it calls the socket readable again.
            more.then_some(())
                .ok_or_else(|| io::ErrorKind::WouldBlock.into())
        });
        match got {
            Some(got) => Ok(got),
            None => Err(tried
                .err()
                .unwrap_or_else(|| io::ErrorKind::WouldBlock.into())),
        }
    }

    /// What tells that there is room to send, where a send would have blocked. One descriptor, however many wait.
    ///
    /// # Errors
    /// There is none left.
    pub(crate) fn room(&self) -> io::Result<Arc<Room>> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = room.upgrade() {
            return Ok(room);
        }
        let socket = self.get().try_clone()?;
        let new = Arc::new(Room(register(socket, Interest::WRITABLE)?));
        *room = Arc::downgrade(&new);
        Ok(new)
    }
}

/// A second descriptor of a socket, of which the runtime is told that there is room to send. Belief that proved wrong stays as
/// long as somebody holds it: who was told and found none waits by time.
pub(crate) struct Room(AsyncFd<UdpSocket>);

impl Room {
    /// For one task at a time.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write_ready(cx).map_ok(drop)
    }

    pub(crate) async fn wait(&self) -> io::Result<()> {
        self.0.writable().await.map(drop)
    }
}

/// Runs `f` with room for a batch, which is the thread's: untouched pages cost nothing, and thousands of sockets that are
/// idle would each have touched some. Not held across an await.
pub(crate) fn with_scratch<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; BATCH * STRIDE]);
    }
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut scratch) => f(&mut scratch),
        // A session that reads another while it hands out its own datagrams.
        Err(_) => f(&mut vec![0; BATCH * STRIDE]),
    })
}

/// The datagrams that one receive put into one buffer: `stride` bytes each, the last one possibly shorter.
pub(crate) fn datagrams(bytes: &[u8], stride: usize) -> impl Iterator<Item = &[u8]> {
    let stride = if stride == 0 { bytes.len() } else { stride };
    // `chunks` sees nothing in an empty datagram.
    let empty = bytes.is_empty().then_some(bytes);
    empty.into_iter().chain(bytes.chunks(stride.max(1)))
}

/// Collects datagrams and hands them out in runs.
pub(crate) struct Runs<'a> {
    datagrams: [&'a [u8]; RUN],
    len: usize,
}

impl<'a> Runs<'a> {
    pub(crate) fn new() -> Self {
        Self {
            datagrams: [&[]; RUN],
            len: 0,
        }
    }

    /// Adds a datagram; gives `each` those before it if there is no more room.
    pub(crate) fn push(&mut self, datagram: &'a [u8], each: &mut dyn FnMut(&[&[u8]])) {
        if self.len == RUN {
            self.flush(each);
        }
        if let Some(slot) = self.datagrams.get_mut(self.len) {
            *slot = datagram;
            self.len += 1;
        }
    }

    /// Gives `each` what is there.
    pub(crate) fn flush(&mut self, each: &mut dyn FnMut(&[&[u8]])) {
        let run = self.datagrams.get(..self.len).unwrap_or_default();
        if !run.is_empty() {
            each(run);
        }
        self.len = 0;
    }
}

/// The longest datagram that is sent as part of a run on one way. It is found out by trying.
#[derive(Debug)]
pub(crate) struct SegmentLimit(AtomicUsize);

impl Default for SegmentLimit {
    fn default() -> Self {
        let supported = cfg!(any(target_os = "linux", target_os = "android"));
        Self(AtomicUsize::new(if supported { usize::MAX } else { 0 }))
    }
}

impl SegmentLimit {
    /// Every datagram is sent singly.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Sends the first datagrams with `together`, if they are a run, or else the first one with `alone`. How many.
    pub(crate) fn send(
        &self,
        datagrams: &[&[u8]],
        together: impl FnOnce(&[&[u8]]) -> io::Result<()>,
        alone: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> io::Result<usize> {
        let run = self.run(datagrams);
        let Some(first) = run.first() else {
            return Ok(0);
        };
        if run.len() > 1 {
            match together(run) {
                Ok(()) => return Ok(run.len()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => self.learn(first.len(), &error),
            }
        }
        alone(first)?;
        Ok(1)
    }

    /// The first datagrams, as far as the kernel takes them together: all of one size, but for the last, which may be
    /// shorter.
    fn run<'a, 'b>(&self, datagrams: &'a [&'b [u8]]) -> &'a [&'b [u8]] {
        let size = datagrams.first().map_or(0, |first| first.len());
        let (mut len, mut total) = (1, size);
        if size > 0 && size <= self.0.load(Ordering::Relaxed) {
            for pair in datagrams.windows(2).take(RUN - 1) {
                let &[before, next] = pair else { break };
                total += next.len();
                // No cut can be told behind a short one, and nothing is cut off as an empty one.
                if before.len() < size
                    || next.len() > size
                    || next.is_empty()
                    || total > LONGEST_RUN
                {
                    break;
                }
                len += 1;
            }
        }
        datagrams.get(..len).unwrap_or(datagrams)
    }

    /// Draws the conclusion from a run of datagrams of `size` bytes that was not sent.
    fn learn(&self, size: usize, error: &io::Error) {
        match error.raw_os_error() {
            // Longer than the path has room for. Singly it is fragmented.
            Some(libc::EMSGSIZE | libc::EINVAL) => {
                self.0.store(size.saturating_sub(1), Ordering::Relaxed);
            }
            // The device does not do it, or IPsec is in the way.
            Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT) => {
                self.0.store(0, Ordering::Relaxed);
            }
            // About something else, which sending singly will tell.
            _ => {}
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use linux::send;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux {
    use std::io::{self, IoSlice};
    use std::net::IpAddr;
    use std::os::fd::AsFd;

    use libc::c_int;
    use smallvec::SmallVec;
    use socket2::{MsgHdr, SockAddr, SockRef};

    use super::RUN;

    /// Sends a run of datagrams, to the peer of a connected socket or to `to`, with the source address `from` if given.
    pub(crate) fn send(
        socket: &impl AsFd,
        to: Option<&SockAddr>,
        from: Option<IpAddr>,
        run: &[&[u8]],
    ) -> io::Result<()> {
        let size = run.first().map_or(0, |first| first.len());
        let size = u16::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
        let parts: SmallVec<[IoSlice<'_>; RUN]> = run.iter().map(|d| IoSlice::new(d)).collect();
        let mut control = Control::default();
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
        // `struct in_pktinfo` and `struct in6_pktinfo`, ip(7) and ipv6(7); the interface is left to the kernel.
        match from {
            Some(IpAddr::V4(ip)) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&ip.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(IpAddr::V6(ip)) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&ip.octets());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        let mut message = MsgHdr::new().with_buffers(&parts).with_control(&control.0);
        if let Some(to) = to {
            message = message.with_addr(to);
        }
        SockRef::from(socket).sendmsg(&message, 0).map(drop)
    }

    /// Control messages as the kernel reads them, cmsg(3).
    #[derive(Default)]
    struct Control(SmallVec<[u8; 64]>);

    impl Control {
        fn push(&mut self, level: c_int, kind: c_int, data: &[u8]) {
            const WORD: usize = size_of::<usize>();
            let header = (WORD + 2 * size_of::<c_int>()).next_multiple_of(WORD);
            self.0.extend((header + data.len()).to_ne_bytes());
            self.0.extend(level.to_ne_bytes());
            self.0.extend(kind.to_ne_bytes());
            self.0.extend_from_slice(data);
            self.0.resize(self.0.len().next_multiple_of(WORD), 0);
        }
    }
}

/// On other systems there are no runs.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn send(
    _: &impl std::os::fd::AsFd,
    _: Option<&socket2::SockAddr>,
    _: Option<std::net::IpAddr>,
    _: &[&[u8]],
) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::net::UdpSocket;

    use super::*;

    fn lengths(limit: &SegmentLimit, sizes: &[usize]) -> usize {
        let bytes = vec![0; 65_507];
        let datagrams: Vec<&[u8]> = sizes.iter().map(|&size| &bytes[..size]).collect();
        limit.run(&datagrams).len()
    }

    #[test]
    fn a_run_is_of_one_size_but_for_a_shorter_last_one() {
        let limit = SegmentLimit::default();
        for (sizes, run) in [
            (&[][..], 0),
            (&[5], 1),
            (&[5, 5, 5], 3),
            (&[5, 5, 4, 4], 3),
            (&[5, 6], 1),
            (&[5, 0, 5], 1),
            (&[0, 0], 1),
            (&[0, 5, 5], 1),
            (&[10; 100], RUN),
            (&[1472; 100], 44),
            (&[65_507, 1], 1),
        ] {
            assert_eq!(lengths(&limit, sizes), run, "{sizes:?}");
        }
        assert_eq!(lengths(&SegmentLimit::none(), &[5, 5]), 1);
    }

    #[test]
    fn what_the_kernel_does_not_send_together_it_is_not_asked_for_again() {
        let limit = SegmentLimit::default();
        let together = Cell::new(0);
        let send = |size: usize, error: i32| {
            let bytes = vec![0; size];
            let refuse = |_: &[&[u8]]| {
                together.set(together.get() + 1);
                Err(io::Error::from_raw_os_error(error))
            };
            limit.send(&[&bytes, &bytes], refuse, |_| Ok(()))
        };
        // Longer than the path has room for: that and longer ones go alone, shorter ones together.
        assert_eq!(send(1400, libc::EMSGSIZE).unwrap(), 1);
        assert_eq!(send(1400, libc::EMSGSIZE).unwrap(), 1);
        assert_eq!(together.get(), 1);
        // No room is no reason, and nothing was sent.
        let full = send(1300, libc::EAGAIN).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(send(1300, libc::EIO).unwrap(), 1);
        assert_eq!(together.get(), 3);
        // The device does not do it.
        assert_eq!(send(100, libc::EIO).unwrap(), 1);
        assert_eq!(together.get(), 3);
    }

    #[test]
    fn a_full_list_of_datagrams_is_handed_out_and_nothing_is_lost() {
        let bytes: Vec<u8> = (0..200).collect();
        let mut got = Vec::new();
        let mut calls = 0;
        let mut each = |datagrams: &[&[u8]]| {
            calls += 1;
            got.extend(datagrams.iter().map(|d| d.to_vec()));
        };
        let mut runs = Runs::new();
        for datagram in bytes.chunks(1) {
            runs.push(datagram, &mut each);
        }
        runs.flush(&mut each);
        runs.flush(&mut each);
        assert_eq!(got.concat(), bytes);
        assert_eq!((got.len(), calls), (200, 4));
    }

    fn connected() -> (UdpReader, UdpSocket) {
        let bind = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (ours, server) = (bind(), bind());
        ours.connect(server.local_addr().unwrap()).unwrap();
        server.connect(ours.local_addr().unwrap()).unwrap();
        ours.set_nonblocking(true).unwrap();
        (UdpReader::new(ours).unwrap(), server)
    }

    #[tokio::test]
    async fn what_is_left_after_a_read_is_read_without_another_event() {
        let (ours, server) = connected();
        let read = |socket: &UdpSocket| socket.recv(&mut [0; 10]);
        for _ in 0..3 {
            for len in [1, 2, 3] {
                server.send(&[b'd'; 3][..len]).unwrap();
            }
            for len in [1, 2, 3] {
                assert_eq!(poll_fn(|cx| ours.poll_read(cx, read)).await.unwrap(), len);
            }
            let nothing = poll_fn(|cx| Poll::Ready(ours.poll_read(cx, read).is_pending()));
            assert!(nothing.await);
            assert!(
                ours.try_read(|_| Ok((true, ()))).is_err(),
                "known to be empty"
            );
        }
        // Whoever says that nothing is left is not asked before something comes.
        server.send(b"1").unwrap();
        let once = |socket: &UdpSocket| Ok((false, socket.recv(&mut [0; 10])?));
        assert_eq!(
            poll_fn(|cx| ours.poll_read_many(cx, once)).await.unwrap(),
            1
        );
        assert!(ours.try_read(once).is_err());
        server.send(b"12").unwrap();
        ours.readable().await.unwrap();
        assert_eq!(ours.try_read(once).unwrap(), 2);
    }

    #[tokio::test]
    async fn a_socket_of_which_only_arrivals_are_told_tells_of_room_where_it_is_asked() {
        let (ours, server) = connected();
        for _ in 0..3 {
            ours.get().send(b"datagram").unwrap();
            let (room, same) = (ours.room().unwrap(), ours.room().unwrap());
            assert!(Arc::ptr_eq(&room, &same), "a descriptor for each who waits");
            poll_fn(|cx| room.poll(cx)).await.unwrap();
            tokio::try_join!(room.wait(), same.wait()).unwrap();
        }
        // The second descriptor has gone, and the first is still known.
        server.send(b"answer").unwrap();
        ours.readable().await.unwrap();
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn a_run_arrives_as_single_datagrams_from_the_address_it_was_to_come_from() {
        for (any, server, from) in [
            ("0.0.0.0:0", "127.0.0.1:0", "127.0.0.7"),
            ("[::]:0", "[::1]:0", "::1"),
        ] {
            let (Ok(ours), Ok(server)) = (UdpSocket::bind(any), UdpSocket::bind(server)) else {
                assert!(any.starts_with('['), "there is IPv4");
                continue;
            };
            let to = server.local_addr().unwrap().into();
            let run: [&[u8]; 3] = [&[1; 300], &[2; 300], &[3; 7]];
            send(&ours, Some(&to), from.parse().ok(), &run).unwrap();
            let mut buf = [0; 2000];
            for datagram in run {
                let (len, source) = server.recv_from(&mut buf).unwrap();
                assert_eq!(&buf[..len], datagram);
                assert_eq!(source.ip().to_string(), from);
            }
        }
    }
}
