//! The byte transport under a connection: a socket or a stacked layer, and the unread bytes in front of it.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::prefix::Prefix;
use super::{Addr, Record};

/// Something that must see every byte and sits on a [`Transport`]: TLS, tee, a framing of a third party.
///
/// `poll_shutdown` must reach the socket below: half-close is forwarded through every layer.
pub trait Layer: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Layer for T {}

/// One UDP or `unixgram` session: the datagrams of one peer on one listening socket. Dropping it ends the session.
pub trait Session: Send + Sync {
    /// The next datagram; `None` when the session is over (idle time, shutdown).
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>>;

    /// Sends one datagram to the peer, from the address the peer wrote to. Pending while the socket's buffer is full.
    fn poll_send(&mut self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>>;

    /// The address the peer wrote to.
    fn local(&self) -> Addr;
}

/// What carries the bytes.
pub enum Io {
    /// A TCP socket.
    Tcp(TcpStream),
    /// A Unix stream or `unixpacket` socket.
    Unix(UnixStream),
    /// A datagram session.
    Datagram(Box<dyn Session>),
    /// A stacked layer.
    Layer(Box<dyn Layer>),
}

/// A connection taken apart, for a copy path that works on sockets.
pub enum Raw {
    /// A TCP socket and what was read ahead from it: `splice(2)` is possible.
    Tcp {
        /// The socket.
        socket: TcpStream,
        /// Bytes that were read and belong in front of what the socket still holds.
        unread: Bytes,
    },
    /// A Unix socket and what was read ahead from it.
    Unix {
        /// The socket.
        socket: UnixStream,
        /// Bytes that were read and belong in front of what the socket still holds.
        unread: Bytes,
    },
    /// A datagram session and the datagrams read ahead.
    Datagram {
        /// The session.
        session: Box<dyn Session>,
        /// Datagrams in order of arrival.
        unread: VecDeque<Bytes>,
    },
    /// A stacked layer: bytes can only be copied in user space.
    Stacked(Transport),
}

/// A socket or layer plus the unread bytes in front of it. The only owner of unread bytes.
///
/// Reading drains the unread bytes first, frees their buffer, then reads the socket straight into the caller's buffer.
/// Bytes are counted where they cross the socket.
pub struct Transport {
    io: Io,
    pub(super) prefix: Prefix,
    record: Option<Arc<Record>>,
}

/// What one receive gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// So many bytes of a stream (at least one), or one whole datagram of that size, which may be 0.
    Data(usize),
    /// End of stream, or of the session.
    End,
}

impl Transport {
    /// A transport over `io` whose bytes are counted in `record`.
    pub fn new(io: Io, record: Option<Arc<Record>>) -> Self {
        Self {
            io,
            prefix: Prefix::default(),
            record,
        }
    }

    /// Whether it carries datagrams.
    pub fn is_datagram(&self) -> bool {
        matches!(self.io, Io::Datagram(_))
    }

    /// The local address, asked from the socket: one system call on TCP and Unix sockets. `None` for a layer.
    pub fn local(&self) -> Option<Addr> {
        match &self.io {
            Io::Tcp(socket) => socket.local_addr().ok().map(Addr::Tcp),
            Io::Unix(socket) => {
                let path = socket
                    .local_addr()
                    .ok()
                    .and_then(|a| a.as_pathname().map(Into::into));
                Some(Addr::Unix {
                    path,
                    datagram: false,
                })
            }
            Io::Datagram(session) => Some(session.local()),
            Io::Layer(_) => None,
        }
    }

    /// The socket or layer, for socket options. Reading from it directly would lose the unread bytes.
    pub fn io(&self) -> &Io {
        &self.io
    }

    /// Takes the transport apart.
    pub fn into_raw(self) -> Raw {
        match self.io {
            Io::Tcp(socket) => Raw::Tcp {
                socket,
                unread: self.prefix.into_bytes(),
            },
            Io::Unix(socket) => Raw::Unix {
                socket,
                unread: self.prefix.into_bytes(),
            },
            Io::Datagram(session) => Raw::Datagram {
                session,
                unread: self.prefix.into_datagrams(),
            },
            io @ Io::Layer(_) => Raw::Stacked(Self { io, ..self }),
        }
    }

    /// Receives into `buf`: bytes of a stream, or exactly one datagram. A datagram longer than `buf` is cut, so give
    /// 65 535 bytes. Unlike [`AsyncRead`], an empty datagram is told apart from the end.
    pub fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<Received>> {
        if self.is_datagram() {
            let datagram = match self.prefix.pop() {
                Some(datagram) => datagram,
                None => match ready!(self.poll_datagram(cx)) {
                    Some(datagram) => datagram,
                    None => return Poll::Ready(Ok(Received::End)),
                },
            };
            let n = datagram.len().min(buf.len());
            buf[..n].copy_from_slice(&datagram[..n]);
            return Poll::Ready(Ok(Received::Data(n)));
        }
        let mut buf = ReadBuf::new(buf);
        ready!(Pin::new(self).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(match buf.filled().len() {
            0 => Received::End,
            n => Received::Data(n),
        }))
    }

    /// Sends part of a stream, or exactly one datagram, which may be empty. Returns how much was taken.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(cx, data)
    }

    /// Reads once more from the socket behind the unread bytes, into `scratch`, and keeps what came as unread.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<io::Result<Received>> {
        if self.is_datagram() {
            return Poll::Ready(Ok(match ready!(self.poll_datagram(cx)) {
                Some(datagram) => {
                    let n = datagram.len();
                    self.prefix.push(datagram);
                    Received::Data(n)
                }
                None => Received::End,
            }));
        }
        let mut buf = ReadBuf::new(scratch);
        ready!(self.poll_io(cx, &mut buf))?;
        let more = buf.filled();
        if more.is_empty() {
            return Poll::Ready(Ok(Received::End));
        }
        self.prefix.extend(more);
        Poll::Ready(Ok(Received::Data(more.len())))
    }

    fn poll_datagram(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Io::Datagram(session) = &mut self.io else {
            return Poll::Ready(None);
        };
        let datagram = ready!(session.poll_recv(cx));
        if let (Some(datagram), Some(record)) = (&datagram, &self.record) {
            record.add_read(datagram.len());
        }
        Poll::Ready(datagram)
    }

    /// Reads the socket or layer, past the unread bytes.
    fn poll_io(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match &mut self.io {
            Io::Tcp(socket) => ready!(Pin::new(socket).poll_read(cx, buf))?,
            Io::Unix(socket) => ready!(Pin::new(socket).poll_read(cx, buf))?,
            Io::Layer(layer) => ready!(Pin::new(layer).poll_read(cx, buf))?,
            // A byte reader cannot tell an empty datagram from the end, so it does not see any.
            Io::Datagram(_) => loop {
                match ready!(self.poll_datagram(cx)) {
                    None => break,
                    Some(datagram) if datagram.is_empty() => {}
                    Some(mut datagram) => {
                        let rest = datagram.split_off(datagram.len().min(buf.remaining()));
                        buf.put_slice(&datagram);
                        if !rest.is_empty() {
                            self.prefix.push(rest);
                        }
                        break;
                    }
                }
            },
        }
        if let (Some(record), false) = (&self.record, self.is_datagram()) {
            record.add_read(buf.filled().len() - before);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.is_datagram() && !this.prefix.is_empty() && this.prefix.visible().is_empty() {
            this.prefix.pop();
        }
        if this.prefix.is_empty() {
            return this.poll_io(cx, buf);
        }
        let unread = this.prefix.visible();
        let n = unread.len().min(buf.remaining());
        buf.put_slice(&unread[..n]);
        this.prefix.consume(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = match &mut self.io {
            Io::Tcp(socket) => ready!(Pin::new(socket).poll_write(cx, buf))?,
            Io::Unix(socket) => ready!(Pin::new(socket).poll_write(cx, buf))?,
            Io::Layer(layer) => ready!(Pin::new(layer).poll_write(cx, buf))?,
            Io::Datagram(session) => {
                ready!(session.poll_send(cx, buf))?;
                buf.len()
            }
        };
        if let Some(record) = &self.record {
            record.add_written(n);
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Layer(layer) => Pin::new(layer).poll_flush(cx),
            // Sockets keep nothing back.
            Io::Tcp(_) | Io::Unix(_) | Io::Datagram(_) => Poll::Ready(Ok(())),
        }
    }

    /// Ends our direction; nothing happens on a datagram session, which has no such thing.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Io::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            Io::Layer(layer) => Pin::new(layer).poll_shutdown(cx),
            Io::Datagram(_) => Poll::Ready(Ok(())),
        }
    }
}
