//! What a connection holds of its datagram session.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use tokio::task::coop;

use l4_core::Addr;
use l4_core::conn::Session;

use super::lane::Lane;
use super::socket::{Wire, room};

/// One peer's end of the socket.
///
/// Receiving gives whole datagrams, then `None` when the session is over: idle, or the socket stopped. Sending still
/// works after that, so a handler can finish. An error of sending concerns that datagram only. Dropping ends the
/// session; the peer's next datagram opens another one.
pub(super) struct PeerSession<W: Wire> {
    lane: Arc<Lane<W::Peer>>,
    wire: Arc<W>,
    /// Set while the kernel has no room for what is to be sent.
    blocked: Option<Blocked>,
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
            lane,
            wire,
            blocked: None,
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

    fn poll_send(&mut self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        let budget = ready!(coop::poll_proceed(cx));
        loop {
            let tries = match &mut self.blocked {
                None => 0,
                Some(blocked) => {
                    ready!(blocked.room.as_mut().poll(cx));
                    blocked.tries
                }
            };
            let sent = match self.wire.send(&self.lane.peer, datagram) {
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
            if sent.is_ok() {
                self.lane.sent(Instant::now);
            }
            budget.made_progress();
            return Poll::Ready(sent);
        }
    }

    fn local(&self) -> Addr {
        self.wire.local(&self.lane.peer)
    }
}

impl<W: Wire> Drop for PeerSession<W> {
    fn drop(&mut self) {
        self.lane.close();
    }
}
