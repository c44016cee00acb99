//! Accepting connections.
//!
//! One task for each listening socket. It ends when it is told to and for no other reason: an error concerns the
//! connection that was not accepted, or passes.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use l4_core::conn::MATCH_LIMIT;
use l4_core::engine::Server;
use l4_core::{Addr, Connection, EndReason, Io, Record};
use socket2::{SockAddr, SockRef, Socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::limits::{ConnectionLimit, Permit};
use crate::listener::{Bound, Carries, unix_addr};
use crate::seqpacket::SeqPacket;
use crate::shards::Shards;
use crate::sockopt::register;

/// After accepting this many connections other tasks get their turn.
const BURST: u32 = 32;

/// How long, after an error that is not a single connection's, before the next try; doubled each time.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// The most that it is doubled to.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long a listener that is to be closed goes on serving what was already waiting in its queue.
const LAST_CALL: Duration = Duration::from_secs(1);

/// The most that it accepts in that time: clients go on arriving as long as the socket is open.
const LAST_CALL_CONNECTIONS: u32 = 65_536;

/// A listening stream socket.
pub(crate) struct StreamListener {
    socket: AsyncFd<Socket>,
    carries: Carries,
    actual: Addr,
    local: Option<Addr>,
    /// What takes the connections: exchanged when the configuration changes.
    slot: Arc<ArcSwapOption<Server>>,
    limit: ConnectionLimit,
    /// Where the connections run.
    shards: Shards,
}

impl StreamListener {
    /// Takes over the socket of `bound`. Must be called in the runtime.
    pub(crate) fn new(
        bound: Bound,
        slot: Arc<ArcSwapOption<Server>>,
        limit: ConnectionLimit,
    ) -> io::Result<Self> {
        let Bound {
            socket,
            carries,
            actual,
            local,
        } = bound;
        let socket = register(socket, Interest::READABLE)?;
        Ok(Self {
            socket,
            carries,
            actual,
            local,
            slot,
            limit,
            shards: Shards::default(),
        })
    }

    /// Spreads the connections over `shards`.
    pub(crate) fn spread_over(mut self, shards: Shards) -> Self {
        self.shards = shards;
        self
    }

    /// Accepts until `stop` is cancelled. Then whoever is waiting in the kernel's queue is served still, because
    /// closing the socket would reset them, and the socket is closed.
    pub(crate) async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.accept()).await;
        self.last_call().await;
    }

    /// Never ends. May be dropped at any time.
    async fn accept(&self) {
        let mut trouble = Trouble::default();
        let mut burst = 0;
        loop {
            // A permit is asked for only when there is somebody to give it to: else every idle listener would hold one.
            let Ok(mut ready) = self.socket.readable().await else {
                // The runtime is going down.
                return std::future::pending().await;
            };
            loop {
                let permit = self.limit.acquire().await;
                match accept(self.socket.get_ref()) {
                    Ok((socket, peer)) => {
                        trouble.passed(&self.actual);
                        self.serve(socket, &peer, permit);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                        break;
                    }
                    Err(error) if concerns_one_connection(&error) => {
                        debug!(listener = %self.actual, %error, "a connection was gone before it was accepted");
                    }
                    Err(error) => {
                        drop(permit);
                        sleep(trouble.pause(&error, &self.actual)).await;
                    }
                }
                burst += 1;
                if burst == BURST {
                    burst = 0;
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    async fn last_call(&self) {
        let end = Instant::now() + LAST_CALL;
        for accepted in 1..=LAST_CALL_CONNECTIONS {
            let Ok(permit) = timeout_at(end, self.limit.acquire()).await else {
                return;
            };
            match accept(self.socket.get_ref()) {
                Ok((socket, peer)) => self.serve(socket, &peer, permit),
                Err(error) if concerns_one_connection(&error) => {}
                Err(_) => return,
            }
            if accepted % BURST == 0 {
                tokio::task::yield_now().await;
                // A permit that is there is given after the end, too.
                if Instant::now() >= end {
                    return;
                }
            }
        }
    }

    /// Starts a task for the connection, which has the permit until it ends.
    fn serve(&self, socket: OwnedFd, peer: &SockAddr, permit: Permit) {
        // Without a server the listener was never committed; the connection is closed.
        let Some(server) = self.slot.load_full() else {
            return;
        };
        let _shard = self.shards.enter_next();
        let mut buffer = [const { MaybeUninit::uninit() }; MATCH_LIMIT];
        let early = match self.carries {
            Carries::Tcp => received(&socket, &mut buffer),
            _ => Ok(&[][..]),
        };
        let (io, remote) = match self.wrap(socket, peer) {
            Ok(parts) => parts,
            Err(error) => {
                error!(listener = %self.actual, %error, "a connection was closed: it cannot be waited for");
                return;
            }
        };
        let mut conn = Connection::new(io, Arc::new(Record::new(remote)), self.local.clone());
        match early {
            Ok(early) => conn.keep_unread(early),
            // The error was told once and would not be again: a reset would look like an end.
            Err(error) => {
                conn.end(match error.kind() {
                    io::ErrorKind::ConnectionReset => EndReason::ClientReset,
                    _ => EndReason::ClientError,
                });
                return drop(server.serve(conn));
            }
        }
        tokio::spawn(async move {
            let _permit = permit;
            server.serve(conn).await;
        });
    }

    /// Registers the socket with the runtime. The other options it needs came from the listener.
    fn wrap(&self, socket: OwnedFd, peer: &SockAddr) -> io::Result<(Io, Addr)> {
        Ok(match (self.carries, peer.as_socket()) {
            (Carries::Tcp, Some(peer)) => (
                Io::Tcp(TcpStream::from_std(socket.into())?),
                Addr::Tcp(peer),
            ),
            (Carries::Packets, _) => {
                let packets = SeqPacket::new(socket.into())?;
                (Io::Layer(Box::new(packets)), unix_addr(peer, false))
            }
            _ => (
                Io::Unix(UnixStream::from_std(socket.into())?),
                unix_addr(peer, false),
            ),
        })
    }
}

/// What a client has sent by the time it is accepted, as most have that speak first: it decides the route without waiting,
/// and what is dialled for it may begin with it. None is no end of the stream, which is told again when it is read.
#[allow(unsafe_code)]
fn received<'b>(socket: &OwnedFd, buffer: &'b mut [MaybeUninit<u8>]) -> io::Result<&'b [u8]> {
    match SockRef::from(socket).recv(buffer) {
        // SAFETY: the kernel has written the first `n` bytes of the buffer, which is borrowed as long as they are.
        Ok(n) => Ok(unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast(), n) }),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(&[]),
            _ => Err(error),
        },
    }
}

/// `accept4(2)`: the new socket is non-blocking and closed on exec without further calls.
#[allow(unsafe_code)]
fn accept(listener: &Socket) -> io::Result<(OwnedFd, SockAddr)> {
    let accept = |storage: *mut socket2::SockAddrStorage, length: *mut libc::socklen_t| {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: `try_init` gives pointers to a live address and to its size, which the call respects.
        let fd = unsafe { libc::accept4(listener.as_raw_fd(), storage.cast(), length, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor, and nobody else knows of it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: when `accept4` succeeds it has written an address and its length.
    unsafe { SockAddr::try_init(accept) }
}

/// Whether only the one connection is lost that would have been accepted, so that the next can be tried at once.
/// accept(2) lists the network errors; EPERM and EOPNOTSUPP, which it lists too, can be the listener's own and stay.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EINTR
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::ETIMEDOUT
        )
    )
}

/// Accepting does not work at the moment: descriptors or memory have run out, or something nobody has thought of.
#[derive(Default)]
struct Trouble {
    /// What is wrong, and when it began.
    cause: Option<(Option<i32>, Instant)>,
    pause: Duration,
}

impl Trouble {
    /// Accepting failed. Says how long to wait; tells the operator once, and again if the cause has changed.
    fn pause(&mut self, error: &io::Error, listener: &Addr) -> Duration {
        let since = self.cause.map_or_else(Instant::now, |(_, since)| since);
        if self
            .cause
            .is_none_or(|(cause, _)| cause != error.raw_os_error())
        {
            error!(%listener, %error, "connections cannot be accepted; they wait in the kernel until that has passed");
        }
        self.cause = Some((error.raw_os_error(), since));
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        self.pause
    }

    /// Accepting worked.
    fn passed(&mut self, listener: &Addr) {
        if let Some((_, since)) = self.cause.take() {
            self.pause = Duration::ZERO;
            let after_ms = since.elapsed().as_millis();
            info!(%listener, after_ms, "connections are accepted again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::SystemResolver;
    use crate::listener::{Endpoint, Sharing};

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_a_second_and_start_anew_after_a_success() {
        let mut trouble = Trouble::default();
        let error = io::Error::from_raw_os_error(libc::EMFILE);
        let pauses: Vec<_> = (0..9)
            .map(|_| trouble.pause(&error, &Addr::UNNAMED).as_millis())
            .collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        trouble.passed(&Addr::UNNAMED);
        assert_eq!(trouble.pause(&error, &Addr::UNNAMED).as_millis(), 10);
    }

    #[tokio::test]
    async fn others_have_their_turn_while_a_listener_that_leaves_empties_its_queue() {
        use std::sync::atomic::{AtomicU32, Ordering};

        let limit = ConnectionLimit::new(10_000);
        let address: l4_core::config::Address = "127.0.0.1:0".parse().unwrap();
        let endpoint = Endpoint::of(&address, &SystemResolver).await.unwrap();
        let (_, bound) = endpoint.open(&address, Sharing::Not).unwrap();
        let to = bound.actual.socket().unwrap();
        let listener = StreamListener::new(bound, Arc::default(), limit).unwrap();
        let waiting = 10 * BURST;
        let clients: Vec<_> = (0..waiting)
            .map(|_| std::net::TcpStream::connect(to).unwrap())
            .collect();
        let turns = Arc::new(AtomicU32::new(0));
        let counting = turns.clone();
        let other = tokio::spawn(async move {
            loop {
                counting.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let stop = CancellationToken::new();
        stop.cancel();
        listener.run(stop).await;
        other.abort();
        // Without a server each was accepted and closed.
        for mut client in clients {
            assert_eq!(io::Read::read(&mut client, &mut [0]).unwrap(), 0);
        }
        let turns = turns.load(Ordering::Relaxed);
        assert!(turns >= waiting / BURST, "{turns} turns");
    }

    #[test]
    fn running_out_of_something_is_no_single_connections_error() {
        for code in [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::EPERM,
        ] {
            assert!(
                !concerns_one_connection(&io::Error::from_raw_os_error(code)),
                "{code}"
            );
        }
        assert!(concerns_one_connection(&io::Error::from_raw_os_error(
            libc::ECONNABORTED
        )));
    }
}
