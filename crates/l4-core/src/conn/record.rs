//! What is remembered of a connection for its summary record.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::Addr;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a connection ended: the closed list that the summary record draws from.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum EndReason { $($(#[$doc])* $name,)* }

        impl EndReason {
            /// All reasons, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The text in logs.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// The handlers finished.
    Completed = "completed",
    /// No route took the connection.
    NoRoute = "no_route",
    /// No route took the connection before `matching_timeout`.
    MatchTimeout = "match_timeout",
    /// No route took the connection before the matching buffer was full.
    MatchBufferFull = "match_buffer_full",
    /// The client ended its stream before a route took the connection.
    MatchEof = "match_eof",
    /// No route took the connection, and the program that the routes are embedded in got it.
    HandedOver = "handed_over",
    /// A `close` handler, or another one that refuses, ended it.
    Closed = "closed",
    /// The client broke the protocol or its side failed.
    ClientError = "client_error",
    /// The client reset the connection.
    ClientReset = "client_reset",
    /// The upstream reset the connection.
    UpstreamReset = "upstream_reset",
    /// The upstream's side failed while relaying.
    UpstreamError = "upstream_error",
    /// A health check found the upstream down, and `close_if_unhealthy` is set.
    UpstreamDown = "upstream_down",
    /// No upstream could be connected to.
    DialFailed = "dial_failed",
    /// Every upstream is down or full.
    NoUpstream = "no_upstream",
    /// A negotiation took too long.
    HandshakeTimeout = "handshake_timeout",
    /// Nothing moved for the idle time.
    IdleTimeout = "idle_timeout",
    /// The upstream had finished and the client neither sent nor closed.
    HalfCloseTimeout = "half_close_timeout",
    /// A handler failed for another reason.
    HandlerError = "handler_error",
    /// The process stopped and the grace period was over.
    Shutdown = "shutdown",
    /// The configuration was replaced and `drain_timeout` was over.
    Drained = "drained",
    /// A bug: the connection's task panicked. Only this connection was lost.
    Panic = "panic",
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the summary record of a connection shows. Shared by the connection, its server and whoever lists connections.
#[derive(Debug)]
pub struct Record {
    id: u64,
    remote: Addr,
    started: Instant,
    wrapped: SystemTime,
    read: AtomicU64,
    written: AtomicU64,
    end: AtomicU8,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default, Clone)]
struct Notes {
    route: Option<Arc<str>>,
    upstream: Option<Arc<str>>,
}

const NOT_ENDED: u8 = u8::MAX;

impl Record {
    /// The record of a connection from `remote` that begins now.
    pub fn new(remote: Addr) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            remote,
            started: Instant::now(),
            wrapped: SystemTime::now(),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            end: AtomicU8::new(NOT_ENDED),
            notes: Mutex::new(Notes::default()),
        }
    }

    /// The record of something that is done with the same connection on the side: its number, address and time, and
    /// nothing else.
    pub(super) fn fork(&self) -> Self {
        Self {
            id: self.id,
            remote: self.remote.clone(),
            started: self.started,
            wrapped: self.wrapped,
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            end: AtomicU8::new(NOT_ENDED),
            notes: Mutex::new(Notes::default()),
        }
    }

    /// Unique in this process, but for what is done with one connection on the side.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The address of the socket's other end; a PROXY header does not change it.
    pub fn remote(&self) -> &Addr {
        &self.remote
    }

    /// When the connection was accepted.
    pub fn accepted_at(&self) -> SystemTime {
        self.wrapped
    }

    /// How long it has existed.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Bytes read from the client's socket.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes written to the client's socket.
    pub fn bytes_written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Counts bytes read from the client's socket. Only its owner calls this.
    pub fn add_read(&self, n: usize) {
        // One writer at a time: a plain load and store are enough and cost no locked instruction.
        self.read
            .store(self.bytes_read() + n as u64, Ordering::Relaxed);
    }

    /// Counts bytes written to the client's socket. Only its owner calls this.
    pub fn add_written(&self, n: usize) {
        self.written
            .store(self.bytes_written() + n as u64, Ordering::Relaxed);
    }

    /// Says why the connection ends. The first reason stays.
    pub fn end(&self, reason: EndReason) {
        let _ = self.end.compare_exchange(
            NOT_ENDED,
            reason as u8,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// Why the connection ended, if it was said.
    pub fn end_reason(&self) -> Option<EndReason> {
        EndReason::ALL
            .get(usize::from(self.end.load(Ordering::Relaxed)))
            .copied()
    }

    /// The route that was taken last.
    pub fn route(&self) -> Option<Arc<str>> {
        self.notes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .route
            .clone()
    }

    pub(crate) fn set_route(&self, route: Arc<str>) {
        self.notes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .route = Some(route);
    }

    /// The upstream that was connected to.
    pub fn upstream(&self) -> Option<Arc<str>> {
        self.notes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .upstream
            .clone()
    }

    /// Names the upstream that was connected to.
    pub fn set_upstream(&self, upstream: Arc<str>) {
        self.notes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .upstream = Some(upstream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays() {
        let record = Record::new(Addr::UNNAMED);
        assert_eq!(record.end_reason(), None);
        record.end(EndReason::ClientReset);
        record.end(EndReason::Completed);
        assert_eq!(record.end_reason(), Some(EndReason::ClientReset));
    }

    #[test]
    fn every_reason_survives_the_byte_it_is_kept_in() {
        for &reason in EndReason::ALL {
            let record = Record::new(Addr::UNNAMED);
            record.end(reason);
            assert_eq!(record.end_reason(), Some(reason));
        }
    }
}
