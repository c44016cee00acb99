//! What a connection holds of its datagram session.

use std::future::Future;
use std::io;
use std::mem::take;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use tokio::task::coop;

use l4_core::Addr;
use l4_core::conn::{Passage, Session};

use super::lane::{Lane, cost};
use super::socket::{Wire, room};
use crate::segments::SegmentLimit;

/// One peer's end of the socket.
///
/// Receiving gives whole datagrams, then `None` when the session is over: idle, or the socket stopped. Sending still
/// works after that, so a handler can finish. An error of sending concerns that datagram only. Dropping ends the
/// session; the peer's next datagram opens another one.
pub(super) struct PeerSession<W: Wire> {
    wire: Arc<W>,
    /// What is sent to this peer in runs.
    limit: SegmentLimit,
    /// Set while the kernel has no room for what is to be sent.
    blocked: Option<Blocked>,
    /// What those that wait for room are counted as.
    held: usize,
    /// Behind all that has the socket: that is free once the session is closed.
    lane: Open<W::Peer>,
}

/// A lane that is closed when dropped.
struct Open<K>(Arc<Lane<K>>);

impl<K> Deref for Open<K> {
    type Target = Lane<K>;

    fn deref(&self) -> &Lane<K> {
        &self.0
    }
}

impl<K> Drop for Open<K> {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Blocked {
    /// Boxed because it is rare and large.
    room: Wait,
    tries: u32,
}

/// Resolves when sending may be tried again.
pub(super) type Wait = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl<W: Wire> PeerSession<W> {
    pub(super) fn new(lane: Arc<Lane<W::Peer>>, wire: Arc<W>) -> Self {
        Self {
            limit: wire.limit(),
            wire,
            blocked: None,
            held: 0,
            lane: Open(lane),
        }
    }

    /// Sends without counting what waits.
    fn poll_send_some(
        &mut self,
        cx: &mut Context<'_>,
        datagrams: &[&[u8]],
    ) -> Poll<io::Result<usize>> {
        let budget = ready!(coop::poll_proceed(cx));
        loop {
            let tries = match &mut self.blocked {
                None => 0,
                Some(blocked) => {
                    ready!(blocked.room.as_mut().poll(cx));
                    blocked.tries
                }
            };
            let sent = self.wire.send(&self.lane.peer, datagrams, &self.limit);
            let sent = match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(room) = room(&self.wire, tries) {
                        self.blocked = Some(Blocked {
                            room,
                            tries: tries + 1,
                        });
                        continue;
                    }
                    Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the peer does not read",
                    ))
                }
                sent => sent,
            };
            self.blocked = None;
            match sent {
                Ok(count) => self.lane.sent(count as u64, Instant::now),
                Err(_) => self.lane.unsent(),
            }
            budget.made_progress();
            return Poll::Ready(sent);
        }
    }
}

impl<W: Wire> Session for PeerSession<W> {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        // Without this a peer that sends faster than its handler works would keep the handler's task from yielding.
        let budget = ready!(coop::poll_proceed(cx));
        let datagram = ready!(self.lane.poll_recv(cx, Instant::now));
        budget.made_progress();
        Poll::Ready(datagram)
    }

    fn poll_recv_many(
        &mut self,
        cx: &mut Context<'_>,
        each: &mut dyn FnMut(&[&[u8]]),
    ) -> Poll<Option<()>> {
        let budget = ready!(coop::poll_proceed(cx));
        let received = ready!(self.lane.poll_recv_many(cx, Instant::now, each));
        budget.made_progress();
        Poll::Ready(received)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        self.poll_send_many(cx, &[datagram]).map_ok(drop)
    }

    fn poll_send_many(
        &mut self,
        cx: &mut Context<'_>,
        datagrams: &[&[u8]],
    ) -> Poll<io::Result<usize>> {
        let sent = self.poll_send_some(cx, datagrams);
        if self.held > 0 {
            self.lane.unhold(take(&mut self.held));
        }
        if sent.is_pending() {
            // One alone is in the caller's hands anyway. Of more, those that are too many are lost, the oldest first.
            let waiting = datagrams.iter().map(|datagram| cost(datagram.len())).sum();
            if self.lane.hold(waiting) {
                self.held = waiting;
            } else if datagrams.len() > 1 {
                self.lane.unsent();
                return Poll::Ready(Err(io::Error::from_raw_os_error(libc::ENOBUFS)));
            }
        }
        sent
    }

    fn pass_to(&mut self, passage: Arc<Passage>) -> bool {
        self.lane.pass_to(passage);
        true
    }

    fn local(&self) -> Addr {
        self.wire.local(&self.lane.peer)
    }
}

impl<W: Wire> Drop for PeerSession<W> {
    fn drop(&mut self) {
        if self.held > 0 {
            self.lane.unhold(self.held);
        }
    }
}
