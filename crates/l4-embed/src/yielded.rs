//! A connection that no route took.

use std::any::Any;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use l4_core::conn::TlsInfo;
use l4_core::engine::Leftover;
use l4_core::{Addr, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection that no route took: a stream whose first bytes are those that the routes have looked at.
///
/// Once these are read, every read goes straight to the socket. What handlers put on the connection stays in force: TLS
/// that was terminated, a limit on reads. The summary record is written when this is dropped and counts its bytes, too.
pub struct Yielded(pub(crate) Leftover);

impl Yielded {
    /// Who the client is: the socket's other end, or whom a PROXY header named that a handler has accepted.
    pub fn remote(&self) -> &Addr {
        self.connection().remote()
    }

    /// What the client connected to, by the socket or by a PROXY header.
    pub fn local(&self) -> &Addr {
        self.connection().local()
    }

    /// What TLS agreed on, if a handler has terminated it: the server name, the protocol of ALPN, the client's
    /// certificate.
    pub fn tls(&self) -> Option<&TlsInfo> {
        self.connection().extension()
    }

    /// The value of a variable that the handler `vars` has set.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.connection().var(name)
    }

    /// What a module left on the connection.
    pub fn extension<T: Any>(&self) -> Option<&T> {
        self.connection().extension()
    }

    /// All that is known about the connection.
    pub fn connection(&self) -> &Connection {
        self.0.connection()
    }

    fn io(&mut self) -> Pin<&mut Connection> {
        Pin::new(self.0.connection_mut())
    }
}

impl AsyncRead for Yielded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buf)
    }
}

impl AsyncWrite for Yielded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}
