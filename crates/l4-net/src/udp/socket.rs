//! The kernel's side: reading batches of datagrams, sending runs of them, and the task that does the reading.

use std::ffi::OsStr;
use std::fs;
use std::future::{Future, pending, poll_fn};
use std::hash::{Hash, Hasher};
use std::io::ErrorKind::WouldBlock;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{SockAddr, SockRef};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{coop, yield_now};
use tracing::{debug, warn};

use l4_core::Addr;
use l4_core::conn::Session;

use super::group::{Copies, Group, Member, is_over};
use super::manager::{Limits, Table};
use super::session::{PeerSession, Wait};
use super::stats::DropReason;
use super::{Opening, Phase};
use crate::segments::{self, BATCH, Runs, STRIDE, SegmentLimit, UdpReader};

/// A kind of datagram socket, registered with a runtime. `receive` and `send` return at once.
pub(super) trait Wire: Sized + Send + Sync + 'static {
    /// What tells sessions apart.
    type Peer: Clone + Eq + Hash + Send + Sync + 'static;

    /// Whether the kernel tells when a blocked send can go on. If not, it is tried again for about a second.
    const TELLS_ROOM: bool;

    /// Waits for something to read.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Waits for room to send.
    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send + Sync;

    /// Reads what is waiting, up to one batch, and says whether there may be more. `WouldBlock` when there was nothing.
    fn receive(
        &self,
        scratch: &mut [u8],
        each: &mut dyn FnMut(Arrival<'_, Self::Peer>),
    ) -> io::Result<bool>;

    /// Sends the first of `datagrams`, and those behind it that the kernel takes along. How many; an error is about the
    /// first.
    fn send(
        &self,
        peer: &Self::Peer,
        datagrams: &[&[u8]],
        limit: &SegmentLimit,
    ) -> io::Result<usize>;

    /// What may be sent to a peer in runs, before it is known better.
    fn limit(&self) -> SegmentLimit {
        SegmentLimit::default()
    }

    /// The peer's address.
    fn remote(&self, peer: &Self::Peer) -> Addr;

    /// The address the peer wrote to.
    fn local(&self, peer: &Self::Peer) -> Addr;

    /// Whether what `peer` sent came to another socket of the address as well, which is to take it. Asked before a session
    /// is opened: where there is one, it does not.
    fn is_copy(&self, _peer: &Self::Peer) -> bool {
        false
    }
}

/// Waits until a send that was blocked `tries` times before is worth another try; `None` when it is not any more.
pub(super) fn room<W: Wire>(wire: &Arc<W>, tries: u32) -> Option<Wait> {
    if W::TELLS_ROOM && tries == 0 {
        let wire = wire.clone();
        return Some(Box::pin(async move {
            // An error means that the runtime is going down, which ends this task too, or that there is no descriptor left
            // to be told by: then the next try is now, and those after it wait by time.
            let _ = wire.writable().await;
        }));
    }
    // Readiness that proved wrong is not asked again at once: an error state of the socket counts as writable.
    let wait = Duration::from_millis(1 << tries.min(6));
    (W::TELLS_ROOM || tries < 20).then(|| -> Wait { Box::pin(tokio::time::sleep(wait)) })
}

/// What was read.
pub(super) enum Arrival<'a, P> {
    /// Datagrams of one peer, in order.
    Datagrams { peer: P, datagrams: &'a [&'a [u8]] },
    /// A datagram that belongs to nobody.
    Useless(DropReason),
}

/// The receive task of one socket.
pub(super) struct Receiver<W: Wire, F> {
    wire: Arc<W>,
    table: Table<W::Peer>,
    member: Member,
    on_session: F,
    /// Sessions to wake after the batch. Kept for its allocation.
    wake: Vec<Waker>,
    /// Receives that gave nothing since the last one that gave something.
    failures: u32,
    /// No receiving before: the socket only gives errors.
    pause: Option<Instant>,
    notices: Notices,
    /// Whether other threads could send what this task would send for the sessions.
    threads: bool,
    /// Whether the last batch was as large as one can be.
    busy: bool,
}

impl<W: Wire, F: FnMut(Opening<'_>) + Send> Receiver<W, F> {
    pub(super) fn new(
        wire: W,
        local: Addr,
        limits: Limits,
        group: Arc<Group>,
        on_session: F,
    ) -> Self {
        Self {
            wire: Arc::new(wire),
            table: Table::of(
                group.pool(limits.total_bytes),
                limits,
                group.stats().clone(),
            ),
            member: Member::of(group),
            on_session,
            wake: Vec::new(),
            failures: 0,
            pause: None,
            notices: Notices {
                local,
                seen: 0,
                error: None,
            },
            threads: Handle::try_current().is_ok_and(|handle| handle.metrics().num_workers() > 1),
            busy: false,
        }
    }

    pub(super) async fn run(mut self, mut phase: watch::Receiver<Phase>) {
        let wire = self.wire.clone();
        let shared = self.table.shared().clone();
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        let mut armed = None;
        loop {
            let now = *phase.borrow_and_update();
            self.table.drain(now != Phase::Serve);
            self.table.reap();
            // A session that has expired has the socket until its handler ends.
            let held = Arc::strong_count(&wire) > OWN;
            let needed = now == Phase::Serve || held || !self.table.is_empty();
            if !self.member.needs(needed) || now == Phase::Stop {
                break;
            }
            let deadline = self.table.deadline();
            if deadline != armed {
                if let Some(at) = deadline {
                    timer.as_mut().reset(at.into());
                }
                armed = deadline;
            }
            // Every arm only waits: dropping one loses nothing.
            tokio::select! {
                biased;
                changed = phase.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                () = poll_fn(|cx| shared.poll_closed(cx)), if now == Phase::Drain => {}
                () = self.member.changed(), if now == Phase::Drain => {}
                () = &mut timer, if armed.is_some() => {
                    armed = None;
                    self.table.expire(Instant::now(), &mut self.wake);
                    self.wake.drain(..).for_each(Waker::wake);
                }
                () = until(self.pause), if self.pause.is_some() => self.pause = None,
                ready = wire.readable(), if self.pause.is_none() => {
                    if ready.is_err() {
                        // The runtime is going down.
                        break;
                    }
                    // Sending for the sessions costs less than waking them, unless that is all this task gets to.
                    self.table.let_pass(!(self.threads && self.busy));
                    let received = self.receive();
                    self.busy = self.look_at(received);
                    if self.busy {
                        // Sessions on this thread take what they got before the next batch is read.
                        yield_now().await;
                    } else {
                        // Waiting for a socket that is readable again already does not yield, however often, and what
                        // was just woken may be waiting for this thread.
                        coop::consume_budget().await;
                    }
                }
            }
        }
        // Dropping the table ends the sessions.
    }

    /// Reads one batch and hands it out. Says whether there may be more.
    fn receive(&mut self) -> io::Result<bool> {
        let Self {
            wire,
            table,
            on_session,
            wake,
            ..
        } = self;
        let now = Instant::now();
        let mut each = |arrival: Arrival<'_, W::Peer>| match arrival {
            Arrival::Useless(reason) => table.useless(reason),
            Arrival::Datagrams { peer, datagrams } => {
                table.deliver(now, &peer, datagrams, wake, |mut vacancy| {
                    if wire.is_copy(&peer) {
                        return vacancy.refuse(DropReason::Copy);
                    }
                    let mut accept = |idle_timeout| -> Box<dyn Session> {
                        Box::new(PeerSession::new(vacancy.accept(idle_timeout), wire.clone()))
                    };
                    on_session(Opening {
                        remote: wire.remote(&peer),
                        local: wire.local(&peer),
                        accept: &mut accept,
                    });
                });
            }
        };
        let received = segments::with_scratch(|scratch| wire.receive(scratch, &mut each));
        // After the whole batch, so that a session woken by its first datagram finds the others too.
        wake.drain(..).for_each(Waker::wake);
        received
    }

    /// Draws the conclusions from a receive. Says whether there may be more.
    fn look_at(&mut self, received: io::Result<bool>) -> bool {
        let error = match received {
            Ok(more) => {
                self.failures = 0;
                self.notices.drops(self.member.group());
                return more;
            }
            Err(error) => error,
        };
        // An ICMP error of an earlier datagram is reported once and concerns nobody here. Readiness without a datagram
        // is a bad checksum. Neither is worth a pause unless it goes on and on, as on a socket that was shut down.
        self.failures = self.failures.saturating_add(1);
        let excess = self.failures.saturating_sub(PATIENCE);
        let longest = if error.kind() == WouldBlock { 0 } else { 7 };
        if excess > 0 {
            let pause = Duration::from_millis(1 << excess.min(longest));
            self.pause = Some(Instant::now() + pause);
        }
        if error.kind() != WouldBlock {
            self.notices.error(&error, excess > 0);
        }
        false
    }
}

/// How often a receive task has its socket, beside those that its sessions have.
const OWN: usize = 2;

/// Receives that may fail in a row before there is a pause.
const PATIENCE: u32 = 8;

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}

/// Log lines that repeat under load: each kind at most once a minute.
struct Notices {
    local: Addr,
    /// How many drops there were when there was nothing to say any more.
    seen: u64,
    error: Option<Instant>,
}

impl Notices {
    fn drops(&mut self, group: &Group) {
        let dropped = group.loud_drops();
        if dropped == self.seen {
            return;
        }
        let said = group.tell_drops(|reason, dropped| {
            let (network, address) = (self.local.network(), &self.local);
            let sessions = group.stats().active();
            warn!(network, %address, %reason, dropped, sessions, "datagrams dropped");
        });
        if said {
            self.seen = dropped;
        }
    }

    fn error(&mut self, error: &io::Error, persistent: bool) {
        let (network, address) = (self.local.network(), &self.local);
        if persistent && is_over(self.error) {
            self.error = Some(Instant::now());
            warn!(network, %address, %error, "receiving datagrams keeps going wrong");
        } else {
            debug!(network, %address, %error, "receiving datagrams");
        }
    }
}

/// A UDP socket, through quinn-udp: batches, receive offload, packet information.
pub(super) struct Udp {
    socket: UdpReader,
    state: UdpSocketState,
    bound: SocketAddr,
    /// Whether an ICMP error can end a batch, which then has a rest that the kernel does not announce again.
    has_errors: bool,
    /// What it may get are copies of what is for the first socket of its address; `None` for the first.
    copies: Option<Copies>,
    /// Whether every datagram is sent alone, as on a system without segmentation offload.
    #[cfg(test)]
    pub(super) singly: bool,
}

/// A UDP peer together with the address it wrote to. Replies leave from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UdpPeer {
    remote: SocketAddr,
    local: SocketAddr,
}

/// Prepares a UDP socket for batches, receive offload and packet information, and leaves it otherwise as it is.
pub(super) fn prepare(socket: &UdpSocket) -> io::Result<UdpSocketState> {
    let before: Vec<_> = QUIC_OPTIONS
        .iter()
        .map(|&(level, name)| sockopt::get(socket, level, name))
        .collect();
    let state = UdpSocketState::new(socket.into())?;
    let bound = socket.local_addr()?;
    if !bound.ip().is_unspecified() {
        // Every datagram is for this address, and need not say so.
        for &(level, name) in ADDRESS_OPTIONS {
            if sockopt::get(socket, level, name).is_ok() {
                sockopt::set(socket, level, name, 0)?;
            }
        }
    }
    widen(socket);
    for (&(level, name), value) in QUIC_OPTIONS.iter().zip(before) {
        // An option that cannot be read belongs to the other address family.
        if let Ok(value) = value {
            sockopt::set(socket, level, name, value)?;
        }
    }
    Ok(state)
}

/// Makes room for bursts in a socket that all clients share: as much as the system lets one have (`net.core.rmem_max`),
/// which is twice what it gives unasked, or more. Where somebody gave it more it stays.
fn widen(socket: &UdpSocket) {
    let socket = SockRef::from(socket);
    let most = fs::read_to_string("/proc/sys/net/core/rmem_max");
    let most = most.ok().and_then(|text| text.trim().parse().ok());
    if let (Ok(size), Some(most)) = (socket.recv_buffer_size(), most)
        && asking_widens(size, most)
    {
        // Less room loses datagrams sooner and is no reason not to serve.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    }
}

/// Whether a socket that has `size` gets more by asking where `most` is the system's limit. Asking for more than that sets
/// it to the limit, and so takes away from one that got more with `SO_RCVBUFFORCE`, as systemd gives it. The kernel
/// doubles what it is asked for, and tells the double (socket(7)).
pub(super) fn asking_widens(size: usize, most: usize) -> bool {
    size < 2 * RECEIVE_BUFFER.min(most)
}

impl Udp {
    pub(super) fn new(socket: UdpSocket, state: UdpSocketState, further: bool) -> io::Result<Self> {
        let bound = socket.local_addr()?;
        let is_set =
            |&(level, name): &_| sockopt::get(&socket, level, name).is_ok_and(|on| on != 0);
        let has_errors = socket.peer_addr().is_ok() || ERROR_OPTIONS.iter().any(is_set);
        Ok(Self {
            socket: UdpReader::new(socket)?,
            state,
            bound,
            has_errors,
            copies: further.then(Copies::default),
            #[cfg(test)]
            singly: false,
        })
    }

    #[cfg(test)]
    pub(super) fn has_errors(&self) -> bool {
        self.has_errors
    }

    fn send_from(&self, from: Option<IpAddr>, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        if from.is_none() {
            return self.socket.get().send_to(datagram, to).map(drop);
        }
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: datagram,
            segment_size: None,
            src_ip: from,
        };
        self.state.try_send(self.socket.get().into(), &transmit)
    }
}

impl Wire for Udp {
    type Peer = UdpPeer;

    const TELLS_ROOM: bool = true;

    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        self.socket.readable()
    }

    async fn writable(&self) -> io::Result<()> {
        self.socket.room()?.wait().await
    }

    fn receive(
        &self,
        scratch: &mut [u8],
        each: &mut dyn FnMut(Arrival<'_, UdpPeer>),
    ) -> io::Result<bool> {
        let mut metas = [RecvMeta::default(); BATCH];
        let mut chunks = scratch.chunks_mut(STRIDE);
        let mut buffers: [_; BATCH] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let count = self.socket.try_read(|socket| {
            let count = self.state.recv(socket.into(), &mut buffers, &mut metas)?;
            // A batch that is not full means that nothing is left. Saying so here saves the system call that would
            // only find that out: every second one, unless the load is high.
            Ok((count == BATCH || self.has_errors, count))
        })?;
        let mut runs = Runs::new();
        let mut of: Option<UdpPeer> = None;
        for (meta, buffer) in metas.iter().zip(&buffers).take(count) {
            let peer = UdpPeer {
                remote: meta.addr,
                local: written_to(self.bound, meta),
            };
            if let Some(before) = of.replace(peer)
                && before != peer
            {
                runs.flush(&mut |datagrams| {
                    each(Arrival::Datagrams {
                        peer: before,
                        datagrams,
                    });
                });
            }
            let bytes = buffer.get(..meta.len).unwrap_or(buffer);
            for datagram in segments::datagrams(bytes, meta.stride) {
                runs.push(datagram, &mut |datagrams| {
                    each(Arrival::Datagrams { peer, datagrams });
                });
            }
        }
        if let Some(peer) = of {
            runs.flush(&mut |datagrams| each(Arrival::Datagrams { peer, datagrams }));
        }
        Ok(count == BATCH)
    }

    fn send(&self, peer: &UdpPeer, datagrams: &[&[u8]], limit: &SegmentLimit) -> io::Result<usize> {
        let from = self.from(peer);
        limit.send(
            datagrams,
            |run| {
                let to = SockAddr::from(peer.remote);
                segments::send(self.socket.get(), Some(&to), from, run)
            },
            |datagram| self.send_one(peer, from, datagram),
        )
    }

    fn limit(&self) -> SegmentLimit {
        #[cfg(test)]
        if self.singly {
            return SegmentLimit::none();
        }
        SegmentLimit::default()
    }

    fn remote(&self, peer: &UdpPeer) -> Addr {
        Addr::Udp(peer.remote)
    }

    fn local(&self, peer: &UdpPeer) -> Addr {
        Addr::Udp(peer.local)
    }

    fn is_copy(&self, peer: &UdpPeer) -> bool {
        let copies = self.copies.as_ref();
        copies.is_some_and(|copies| copies.are_sent_to(peer.local.ip(), Instant::now()))
    }
}

impl Udp {
    /// The address that replies to `peer` have to be given; `None` if they have it anyway.
    fn from(&self, peer: &UdpPeer) -> Option<IpAddr> {
        (peer.local != self.bound && is_unicast(peer.local.ip())).then(|| peer.local.ip())
    }

    fn send_one(&self, peer: &UdpPeer, from: Option<IpAddr>, datagram: &[u8]) -> io::Result<()> {
        let mut sent = self.send_from(from, peer.remote, datagram);
        if sent.as_ref().is_err_and(is_hearsay) {
            // What became of an earlier datagram, perhaps to another peer. This one was not tried yet.
            sent = self.send_from(from, peer.remote, datagram);
        }
        if from.is_some() && sent.as_ref().is_err_and(is_not_ours) {
            // The peer wrote to a subnet's broadcast address, or the address has left this host since.
            sent = self.send_from(None, peer.remote, datagram);
        }
        sent
    }
}

/// The address that a datagram was sent to, on a socket bound to `bound`.
pub(super) fn written_to(bound: SocketAddr, meta: &RecvMeta) -> SocketAddr {
    match meta.dst_ip {
        Some(IpAddr::V6(ip)) if bound.ip().is_unspecified() && ip.is_unicast_link_local() => {
            // Without its interface it is nobody's address.
            let scope = meta.interface_index.unwrap_or_default();
            SocketAddrV6::new(ip, bound.port(), 0, scope).into()
        }
        Some(ip) if bound.ip().is_unspecified() => SocketAddr::new(ip, bound.port()),
        _ => bound,
    }
}

/// In few words, because it is done for every datagram; the derived one feeds lengths and tags as well.
impl Hash for UdpPeer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for addr in [self.remote, self.local] {
            match addr.ip() {
                IpAddr::V4(ip) => {
                    state.write_u64(u64::from(ip.to_bits()) << 16 | u64::from(addr.port()));
                }
                IpAddr::V6(ip) => {
                    state.write_u128(ip.to_bits());
                    state.write_u16(addr.port());
                }
            }
        }
    }
}

/// Whether replies can come from `ip`. Multicast and broadcast addresses are written to, never from.
fn is_unicast(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_multicast(),
    }
}

/// What the kernel says, by version and family, when the source address is not one of this host.
fn is_not_ours(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::NetworkUnreachable
    )
}

/// What an ICMP message leaves behind for the next system call.
fn is_hearsay(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

/// Options that quinn-udp sets and this socket is to have as they were: datagrams larger than the path are fragmented,
/// as a plain socket does, and the kernel takes no timestamps and tells nothing of congestion marks.
#[cfg(any(target_os = "linux", target_os = "android"))]
const QUIC_OPTIONS: &[(libc::c_int, libc::c_int)] = &[
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (libc::IPPROTO_IP, libc::IP_RECVTOS),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
];

/// Options that have the kernel tell with each datagram to which address it was sent.
#[cfg(any(target_os = "linux", target_os = "android"))]
const ADDRESS_OPTIONS: &[(libc::c_int, libc::c_int)] = &[
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
];
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const ADDRESS_OPTIONS: &[(libc::c_int, libc::c_int)] = &[];

/// Options that make an unconnected socket report ICMP errors.
#[cfg(any(target_os = "linux", target_os = "android"))]
const ERROR_OPTIONS: &[(libc::c_int, libc::c_int)] = &[
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
];
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const ERROR_OPTIONS: &[(libc::c_int, libc::c_int)] = &[];

#[cfg(not(any(target_os = "linux", target_os = "android")))]
const QUIC_OPTIONS: &[(libc::c_int, libc::c_int)] = &[
    #[cfg(any(target_os = "freebsd", target_vendor = "apple"))]
    (libc::IPPROTO_IP, libc::IP_DONTFRAG),
    (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG),
];

/// A Unix datagram socket.
pub(super) struct Unix {
    socket: tokio::net::UnixDatagram,
    bound: Addr,
}

impl Unix {
    pub(super) fn new(socket: UnixDatagram, bound: Addr) -> io::Result<Self> {
        Ok(Self {
            socket: tokio::net::UnixDatagram::from_std(socket)?,
            bound,
        })
    }
}

impl Wire for Unix {
    /// A path or an abstract name.
    type Peer = SockAddr;

    /// Readiness is that of our own buffer, but it is the peer's queue that is full; and to wait for the socket would
    /// make all sessions wait for one peer.
    const TELLS_ROOM: bool = false;

    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        self.socket.readable()
    }

    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send + Sync {
        self.socket.writable()
    }

    fn receive(
        &self,
        scratch: &mut [u8],
        each: &mut dyn FnMut(Arrival<'_, SockAddr>),
    ) -> io::Result<bool> {
        // One byte more than allowed, because what is cut is not told.
        let scratch = scratch.get_mut(..LONGEST + 1).unwrap_or_default();
        for turn in 0..BATCH {
            let (len, from) = match self.socket.try_recv_from(scratch) {
                Err(error) if turn > 0 && error.kind() == WouldBlock => return Ok(false),
                received => received?,
            };
            let datagrams = &[scratch.get(..len).unwrap_or_default()];
            each(match named(&from.into()) {
                None => Arrival::Useless(DropReason::UnnamedPeer),
                Some(peer) if len <= LONGEST => Arrival::Datagrams { peer, datagrams },
                Some(_) => Arrival::Useless(DropReason::TooLong),
            });
        }
        Ok(true)
    }

    fn send(&self, peer: &SockAddr, datagrams: &[&[u8]], _: &SegmentLimit) -> io::Result<usize> {
        let datagram = datagrams.first().copied().unwrap_or_default();
        SockRef::from(&self.socket).send_to(datagram, peer)?;
        Ok(1)
    }

    fn remote(&self, peer: &SockAddr) -> Addr {
        unix_addr(peer.as_pathname(), peer.as_abstract_namespace())
    }

    fn local(&self, _: &SockAddr) -> Addr {
        self.bound.clone()
    }
}

/// The address to answer to; `None` for a peer without a name.
fn named(from: &UnixAddr) -> Option<SockAddr> {
    match abstract_name(from) {
        Some(name) => SockAddr::unix(OsStr::from_bytes(&[b"\0", name].concat())),
        None => SockAddr::unix(from.as_pathname()?),
    }
    .ok()
}

/// The address a Unix datagram socket is bound to.
pub(super) fn bound(socket: &UnixDatagram) -> io::Result<Addr> {
    let addr = socket.local_addr()?;
    Ok(unix_addr(addr.as_pathname(), abstract_name(&addr)))
}

fn unix_addr(path: Option<&Path>, abstract_name: Option<&[u8]>) -> Addr {
    let path = match abstract_name {
        Some(name) => Some(Arc::from(Path::new(OsStr::from_bytes(
            &[b"@", name].concat(),
        )))),
        None => path.map(Arc::from),
    };
    Addr::Unix {
        path,
        datagram: true,
    }
}

#[cfg(target_os = "linux")]
fn abstract_name(addr: &UnixAddr) -> Option<&[u8]> {
    std::os::linux::net::SocketAddrExt::as_abstract_name(addr)
}

#[cfg(not(target_os = "linux"))]
fn abstract_name(_: &UnixAddr) -> Option<&[u8]> {
    None
}

/// The receive buffer that a socket asks for.
pub(super) const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// The longest datagram passed on. UDP has no longer ones (65 507 over IPv4); handlers read with buffers of this size.
const LONGEST: usize = 65_535;

/// Integer socket options that neither std nor socket2 has.
#[allow(unsafe_code)]
pub(crate) mod sockopt {
    use std::io;
    use std::os::fd::AsRawFd;

    use libc::c_int;

    pub(crate) fn get(socket: &impl AsRawFd, level: c_int, name: c_int) -> io::Result<c_int> {
        let mut value: c_int = 0;
        let mut len = size_of::<c_int>() as libc::socklen_t;
        // SAFETY: `value` and `len` live through the call, and `len` says how much may be written to `value`. Any
        // bit pattern is a `c_int`, so a shorter answer leaves it valid.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                level,
                name,
                (&raw mut value).cast(),
                &raw mut len,
            )
        };
        if result == 0 {
            Ok(value)
        } else {
            Err(io::Error::last_os_error())
        }
    }

    pub(crate) fn set(
        socket: &impl AsRawFd,
        level: c_int,
        name: c_int,
        value: c_int,
    ) -> io::Result<()> {
        let len = size_of::<c_int>() as libc::socklen_t;
        // SAFETY: `value` lives through the call and is as long as `len` says.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                len,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
