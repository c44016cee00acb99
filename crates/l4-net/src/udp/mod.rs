//! Datagram sockets: one receive task per socket, one session per peer.
//!
//! Four parts. `manager` and `lane` decide: which session a datagram belongs to, what is kept, what is dropped, when a
//! session is idle. They know neither sockets nor clocks and are tested as a simulation. `session` is what a connection
//! holds of its session. `socket` talks to the kernel. `group` is what the sockets of one address have in common, of which
//! there is one for each shard.
//!
//! *Invariant:* nothing a session does or leaves undone makes the receive task wait. What a session does not take is
//! dropped and counted, closing is an entry in a list, sending to the peer is the session's own affair. A session that
//! would only hand its datagrams on to another socket has the receive task do so, which tries once: what does not go out
//! at once is queued for the session.
//!
//! *Invariant:* memory held in datagrams is bounded per session and per address, counted until the last reference to
//! the datagram is gone, wherever it went ([`Limits`]).
//!
//! *Invariant:* sockets of one address live and die together: which of them gets a peer's datagrams is the kernel's choice,
//! and would be another if one of them went.
//!
//! What a session is: everything one remote address sent to one local address of the socket. A client that talks to two
//! addresses of a wildcard socket has two sessions, because each must be answered from the address it was sent to.

mod group;
mod lane;
mod manager;
mod session;
mod socket;
mod stats;
#[cfg(test)]
mod tests;

use std::io;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use quinn_udp::UdpSocketState;
use tokio::sync::watch;

use l4_core::conn::Session;
use l4_core::{Addr, Io};

pub use manager::Limits;
pub use stats::{DropReason, Stats};

pub(crate) use group::Group;
pub(crate) use socket::sockopt;
use socket::{Receiver, Udp, Unix};

/// A bound UDP or `unixgram` socket, ready to serve sessions.
pub struct DatagramListener {
    socket: Socket,
    local: Addr,
    limits: Limits,
    group: Arc<Group>,
    /// Whether it is another than the first of its group.
    further: bool,
}

enum Socket {
    Udp(UdpSocket, UdpSocketState),
    Unix(UnixDatagram),
}

/// What a listener is to do. [`DatagramListener::run`] follows it; going back from `Drain` to `Serve` is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Datagrams of unknown peers open sessions.
    Serve,
    /// Sessions go on, both ways, and no new ones are opened; `run` returns when the last one has been dropped by its
    /// handler, of all sockets of the address. For an address that a reload has removed, and for the grace period of a stop.
    Drain,
    /// Nothing is read any more. Every session ends once it has taken what was queued for it; what its handler still
    /// sends is sent.
    Stop,
}

/// A peer that has no session yet, before anything is allocated for it. Dropping this drops its datagram.
pub struct Opening<'a> {
    remote: Addr,
    local: Addr,
    accept: &'a mut dyn FnMut(Duration) -> Box<dyn Session>,
}

/// A session that was just opened; its first datagram is waiting in it.
pub struct NewSession {
    /// The session, for [`l4_core::Connection::new`].
    pub io: Io,
    /// The peer.
    pub remote: Addr,
    /// The address the peer wrote to.
    pub local: Addr,
}

impl DatagramListener {
    /// A listener on a bound UDP socket. Needs no runtime.
    ///
    /// # Errors
    /// The socket options for packet information cannot be set.
    pub fn udp(socket: UdpSocket) -> io::Result<Self> {
        let state = socket::prepare(&socket)?;
        Ok(Self::new(
            Addr::Udp(socket.local_addr()?),
            Socket::Udp(socket, state),
        ))
    }

    /// A listener on a bound Unix datagram socket. Datagrams longer than 65 535 bytes are dropped, not cut, and so are
    /// those of peers without a name, which cannot be told apart or answered.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking or has no address.
    pub fn unix(socket: UnixDatagram) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self::new(socket::bound(&socket)?, Socket::Unix(socket)))
    }

    fn new(local: Addr, socket: Socket) -> Self {
        Self {
            socket,
            local,
            limits: Limits::default(),
            group: Arc::default(),
            further: false,
        }
    }

    /// With other limits than the default ones.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// As the first of the sockets of `group`, which are bound to the same address, or as a `further` one: that leaves to
    /// the first what the kernel gives to all of them, broadcasts and multicasts.
    #[must_use]
    pub(crate) fn among(self, group: Arc<Group>, further: bool) -> Self {
        Self {
            group,
            further,
            ..self
        }
    }

    /// The address the socket is bound to, with the port the kernel chose if it was to choose one.
    pub fn local(&self) -> &Addr {
        &self.local
    }

    /// The counters of its address, which stay readable when the listener has ended.
    pub fn stats(&self) -> &Arc<Stats> {
        self.group.stats()
    }

    /// Receives until `phase` says [`Phase::Stop`] or its sender is gone, or until the last session has been dropped
    /// during [`Phase::Drain`]. Dropping the future stops too.
    ///
    /// `on_session` is called from the receive task for every peer without a session: it must not block, but start a
    /// task, or drop the [`Opening`] to refuse. It names the idle timeout for each session because the server behind
    /// the socket changes at a reload. The socket is closed when the last session is dropped.
    ///
    /// # Errors
    /// The socket cannot be registered with the runtime. Errors of receiving are logged and survived.
    pub async fn run<F>(self, phase: watch::Receiver<Phase>, on_session: F) -> io::Result<()>
    where
        F: FnMut(Opening<'_>) + Send,
    {
        let Self {
            socket,
            local,
            limits,
            group,
            further,
        } = self;
        match socket {
            Socket::Udp(socket, state) => {
                let wire = Udp::new(socket, state, further)?;
                Receiver::new(wire, local, limits, group, on_session)
                    .run(phase)
                    .await;
            }
            Socket::Unix(socket) => {
                let wire = Unix::new(socket, local.clone())?;
                Receiver::new(wire, local, limits, group, on_session)
                    .run(phase)
                    .await;
            }
        }
        Ok(())
    }
}

impl Opening<'_> {
    /// The peer.
    pub fn remote(&self) -> &Addr {
        &self.remote
    }

    /// The address the peer wrote to.
    pub fn local(&self) -> &Addr {
        &self.local
    }

    /// Opens the session. It ends when its handler has waited `idle_timeout` for a datagram while none was sent
    /// either, or when it is dropped.
    pub fn accept(self, idle_timeout: Duration) -> NewSession {
        let io = Io::Datagram((self.accept)(idle_timeout));
        NewSession {
            io,
            remote: self.remote,
            local: self.local,
        }
    }
}
