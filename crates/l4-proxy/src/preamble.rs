//! What a peer is told before the payload.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use l4_core::conn::Session;
use l4_core::{Addr, Transport};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

/// Has `header` in front of what `transport` will carry: written now on a stream, which may take as long as `limit` says,
/// and put before every datagram otherwise. A connection that was just made has room for it, so that nearly always nothing
/// is waited for. Where payload is there to be sent right behind it, an ordinary one goes out together with that.
///
/// # Errors
/// The peer does not take it.
pub(crate) async fn introduce(
    mut transport: Transport,
    header: Vec<u8>,
    payload_follows: bool,
    limit: Option<Duration>,
) -> io::Result<Transport> {
    if transport.is_datagram() {
        return Ok(transport.map_session(|session| Box::new(Introduced::new(session, header))));
    }
    if payload_follows && header.len() <= ORDINARY {
        transport.lead_with(header);
        return Ok(transport);
    }
    let writing = async {
        transport.write_all(&header).await?;
        transport.flush().await
    };
    match limit {
        None => writing.await?,
        Some(limit) => timeout(limit, writing).await.map_err(|_| late(limit))??,
    }
    Ok(transport)
}

fn late(limit: Duration) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("not taken within {limit:?}"),
    )
}

/// No connection lacks room for so many bytes when it was just made, so there is nothing to find out by writing them. Both
/// PROXY headers fit, without a certificate in the second.
const ORDINARY: usize = 1024;

/// What is kept of the room for a datagram: enough for all that fit into a packet.
const ROOM: usize = 4096;

/// A session each datagram of which is introduced.
struct Introduced {
    session: Box<dyn Session>,
    /// What is sent in front, and room for a datagram behind it. A large one leaves no room behind: a session lives for
    /// minutes, and there may be many.
    datagram: Vec<u8>,
    length: usize,
}

impl Introduced {
    fn new(session: Box<dyn Session>, header: Vec<u8>) -> Self {
        Self {
            session,
            length: header.len(),
            datagram: header,
        }
    }
}

impl Session for Introduced {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.session.poll_recv(cx)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        self.datagram.truncate(self.length);
        self.datagram.extend_from_slice(datagram);
        let sent = self.session.poll_send(cx, &self.datagram);
        if self.datagram.capacity() > ROOM {
            self.datagram.truncate(self.length);
            self.datagram.shrink_to(ROOM);
        }
        sent
    }

    fn local(&self) -> Addr {
        self.session.local()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Keeps what was sent last.
    struct Last(Vec<u8>);

    impl Session for Last {
        fn poll_recv(&mut self, _: &mut Context<'_>) -> Poll<Option<Bytes>> {
            Poll::Ready(None)
        }

        fn poll_send(&mut self, _: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
            assert!(datagram.starts_with(b"header"));
            self.0 = datagram.to_vec();
            Poll::Ready(Ok(()))
        }

        fn local(&self) -> Addr {
            Addr::UNNAMED
        }
    }

    #[test]
    fn a_session_keeps_no_room_for_a_large_datagram_that_was_sent() {
        let mut session = Introduced::new(Box::new(Last(Vec::new())), b"header".to_vec());
        let mut cx = Context::from_waker(Waker::noop());
        for size in [65_000, 100, 4096, 0] {
            let sent = session.poll_send(&mut cx, &vec![7; size]);
            assert!(matches!(sent, Poll::Ready(Ok(()))));
            assert!(
                session.datagram.capacity() <= ROOM,
                "{} after {size}",
                session.datagram.capacity()
            );
        }
    }
}
