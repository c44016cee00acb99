//! What carries datagrams under a connection: a session, ways past its owner, and filters in front of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Addr, Record};

/// One UDP or `unixgram` session: the datagrams of one peer on one listening socket. Dropping it ends the session.
pub trait Session: Send + Sync {
    /// The next datagram; `None` when the session is over (idle time, shutdown).
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>>;

    /// Sends one datagram to the peer, from the address the peer wrote to. Pending while the socket's buffer is full.
    fn poll_send(&mut self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>>;

    /// The address the peer wrote to.
    fn local(&self) -> Addr;

    /// Gives `each` datagrams that are there, in order and in one call or several: what one look at the socket brought.
    /// `None` when the session is over.
    fn poll_recv_many(
        &mut self,
        cx: &mut Context<'_>,
        each: &mut dyn FnMut(&[&[u8]]),
    ) -> Poll<Option<()>> {
        let datagram = ready!(self.poll_recv(cx));
        Poll::Ready(datagram.map(|datagram| each(&[&datagram])))
    }

    /// Sends the first of `datagrams`, which are one at least, and those behind it that the kernel takes along. How many
    /// were sent; an error is about the first.
    fn poll_send_many(
        &mut self,
        cx: &mut Context<'_>,
        datagrams: &[&[u8]],
    ) -> Poll<io::Result<usize>> {
        match datagrams.first() {
            Some(datagram) => self.poll_send(cx, datagram).map_ok(|()| 1),
            None => Poll::Ready(Ok(0)),
        }
    }

    /// A way to send to the peer past the owner of this session. None where somebody has to look at each datagram.
    fn send_now(&self) -> Option<Arc<dyn SendNow>> {
        None
    }

    /// Has datagrams that come while [`poll_recv_many`](Self::poll_recv_many) is pending go through `passage` at once,
    /// without waking the owner. What it does not take at once is received, in order. Whether that can be done.
    fn pass_to(&mut self, passage: Arc<Passage>) -> bool {
        let _ = passage;
        false
    }
}

/// Sends datagrams to the peer of a session, and never waits.
pub trait SendNow: Send + Sync {
    /// Sends the first of `datagrams`, and those behind it that the kernel takes along. How many; an error, which may be
    /// `WouldBlock`, is about the first.
    ///
    /// # Errors
    /// Those of the socket.
    fn send_now(&self, datagrams: &[&[u8]]) -> io::Result<usize>;
}

/// From one session's socket straight to another's: what passes here is counted and not looked at.
///
/// Used by one task at a time: by who reads the socket of the first session, while its owner waits.
pub struct Passage {
    to: Arc<dyn SendNow>,
    /// Where what is taken from the first session is counted, and where what is given to the second.
    read: Option<Arc<Record>>,
    written: Option<Arc<Record>>,
    bytes: AtomicU64,
    began: Instant,
    /// Microseconds from `began` to when the last datagram came.
    last: AtomicU64,
}

impl Passage {
    /// A passage to `to` on which nothing is counted but the bytes that have passed.
    pub fn new(to: Arc<dyn SendNow>) -> Self {
        Self {
            to,
            read: None,
            written: None,
            bytes: AtomicU64::new(0),
            began: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    /// The same, with what is taken from the first session counted in `read`, and what the second is given in `written`.
    pub(super) fn counted(self, read: Option<Arc<Record>>, written: Option<Arc<Record>>) -> Self {
        Self {
            read,
            written,
            ..self
        }
    }

    /// Sends the first of `datagrams`, which came at `now`, and those behind it that the kernel takes along. How many; an
    /// error is about the first.
    ///
    /// # Errors
    /// Those of the socket, `WouldBlock` among them: the datagram is then to be sent by the owner of the session.
    pub fn pass(&self, now: Instant, datagrams: &[&[u8]]) -> io::Result<usize> {
        let sent = self.to.send_now(datagrams)?;
        let bytes = datagrams.iter().take(sent).map(|d| d.len()).sum();
        self.count(now, bytes);
        if let Some(record) = &self.written {
            record.add_written(bytes);
        }
        Ok(sent)
    }

    /// Counts a datagram of `len` bytes that was taken from the first session at `now`, and was lost.
    pub fn lost(&self, now: Instant, len: usize) {
        self.count(now, len);
    }

    /// Bytes that were taken from the first session.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// When the last datagram came; when the passage was opened, if none did.
    pub fn last(&self) -> Instant {
        self.began + Duration::from_micros(self.last.load(Ordering::Relaxed))
    }

    fn count(&self, now: Instant, bytes: usize) {
        // One writer at a time: a load and a store cost no locked instruction.
        self.bytes
            .store(self.bytes() + bytes as u64, Ordering::Relaxed);
        let last = now.saturating_duration_since(self.began).as_micros();
        self.last
            .store(u64::try_from(last).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(record) = &self.read {
            record.add_read(bytes);
        }
    }
}

/// Looks at every datagram of a session before anybody else receives it, such as one that takes a header off.
pub trait DatagramFilter: Send + Sync {
    /// What becomes of `datagram`.
    fn filter(&mut self, datagram: Bytes) -> Filtered;
}

/// What a [`DatagramFilter`] makes of a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filtered {
    /// This is received in its place; it is a part of it, or the whole.
    Pass(Bytes),
    /// Nothing is received in its place.
    Drop,
    /// The session is over.
    End,
}

/// A session behind a filter.
pub(super) struct FilteredSession {
    pub(super) session: Box<dyn Session>,
    pub(super) filter: Box<dyn DatagramFilter>,
    /// Where the bytes are counted that the filter takes away. Those it passes are counted above.
    pub(super) record: Option<Arc<Record>>,
    pub(super) over: bool,
}

impl Session for FilteredSession {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        for _ in 0..DROPPED_AT_ONCE {
            if self.over {
                return Poll::Ready(None);
            }
            let Some(datagram) = ready!(self.session.poll_recv(cx)) else {
                return Poll::Ready(None);
            };
            let length = datagram.len();
            let filtered = self.filter.filter(datagram);
            let passed = match &filtered {
                Filtered::Pass(datagram) => datagram.len(),
                Filtered::Drop | Filtered::End => 0,
            };
            if let Some(record) = &self.record {
                record.add_read(length.saturating_sub(passed));
            }
            match filtered {
                Filtered::Pass(datagram) => return Poll::Ready(Some(datagram)),
                Filtered::Drop => {}
                Filtered::End => self.over = true,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        self.session.poll_send(cx, datagram)
    }

    fn local(&self) -> Addr {
        self.session.local()
    }
}

/// After so many datagrams in a row that a filter dropped, other tasks get their turn.
const DROPPED_AT_ONCE: usize = 32;
