//! What a peer is told before the payload.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use l4_core::conn::Session;
use l4_core::{Addr, Io, Transport};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

/// Puts `header` in front of every datagram that `io` will carry; a stream is left as it is.
pub(crate) fn before_each_datagram(io: Io, header: &[u8]) -> Io {
    match io {
        Io::Datagram(session) => Io::Datagram(Box::new(Introduced {
            session,
            datagram: header.to_vec(),
            length: header.len(),
        })),
        io => io,
    }
}

/// Begins the stream `transport` with `header`, which may take as long as `limit` says. A connection that was just made has
/// room for it, so that nearly always nothing is waited for.
///
/// # Errors
/// The peer does not take it.
pub(crate) async fn begin(
    transport: &mut Transport,
    header: &[u8],
    limit: Option<Duration>,
) -> io::Result<()> {
    let writing = async {
        transport.write_all(header).await?;
        transport.flush().await
    };
    match limit {
        None => writing.await,
        Some(limit) => timeout(limit, writing).await.map_err(|_| late(limit))?,
    }
}

fn late(limit: Duration) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("not taken within {limit:?}"),
    )
}

/// A session each datagram of which is introduced.
struct Introduced {
    session: Box<dyn Session>,
    /// What is sent in front, and room for a datagram behind it.
    datagram: Vec<u8>,
    length: usize,
}

impl Session for Introduced {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.session.poll_recv(cx)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        self.datagram.truncate(self.length);
        self.datagram.extend_from_slice(datagram);
        self.session.poll_send(cx, &self.datagram)
    }

    fn local(&self) -> Addr {
        self.session.local()
    }
}
