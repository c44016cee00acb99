//! What is counted on a datagram socket.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a datagram was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        #[repr(usize)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// All reasons, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The text in logs and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// The session has as many datagrams or bytes waiting as it may have.
    QueueFull = "queue_full",
    /// The sessions of the address together hold as many bytes as they may.
    MemoryLimit = "memory_limit",
    /// The socket, or all sockets of the process together, have as many sessions as they may have.
    SessionLimit = "session_limit",
    /// The server wanted no session for this peer.
    Refused = "refused",
    /// An unknown peer wrote while the address was being given up.
    Draining = "draining",
    /// A `unixgram` peer without a name.
    UnnamedPeer = "unnamed_peer",
    /// A `unixgram` datagram longer than 65 535 bytes.
    TooLong = "too_long",
    /// A broadcast or multicast datagram, of which every socket of the address got a copy, at another than the first.
    Copy = "copy",
    /// The upstream's socket refused it: it is too long for the path, the server is away, a firewall forbids it. Those
    /// that the receive task sends for a session are counted, which is all but what had to queue first; what a session
    /// itself fails to send is the business of its handler.
    Undeliverable = "undeliverable",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Counters of the socket, or sockets, of one address. They only grow.
#[derive(Debug, Default)]
pub struct Stats {
    received: AtomicU64,
    sent: AtomicU64,
    unsent: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
    opened: AtomicU64,
    expired: AtomicU64,
    ended: AtomicU64,
}

impl Stats {
    /// Datagrams received, dropped ones included.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Datagrams sent to peers.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Datagrams to peers that the kernel refused to send, such as those too long for the path.
    pub fn unsent(&self) -> u64 {
        self.unsent.load(Ordering::Relaxed)
    }

    /// Received datagrams dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize].load(Ordering::Relaxed)
    }

    /// Sessions opened.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Sessions that ended because they were idle; they are among the ended ones.
    pub fn expired(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }

    /// Sessions that ended.
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Sessions that are open.
    pub fn active(&self) -> u64 {
        // In this order a session that opens and ends in between is not counted below zero.
        let ended = self.ended();
        self.opened().saturating_sub(ended)
    }

    pub(super) fn add_received(&self, n: u64) {
        self.received.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn add_sent(&self, n: u64) {
        self.sent.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn add_unsent(&self) {
        self.unsent.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_dropped(&self, reason: DropReason, n: u64) {
        self.dropped[reason as usize].fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn add_opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_expired(&self) {
        self.expired.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_ended(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}
