//! Notices an upstream that answers HTTP/1 to a client with which HTTP/2 was agreed on.
//!
//! Such a client sees nothing but a broken connection, and the upstream logs a strange request: without a hint nobody
//! finds out. Only connections on which HTTP/2 was agreed on are looked at, and these go through user space anyway,
//! because TLS was terminated.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use l4_core::conn::TlsInfo;
use l4_core::{Connection, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::warn;

/// What was said about the first answers of an upstream.
pub(crate) struct FirstAnswer {
    upstream: Arc<str>,
    /// Once is enough.
    warned: AtomicBool,
}

impl FirstAnswer {
    pub(crate) fn new(upstream: Arc<str>) -> Self {
        Self {
            upstream,
            warned: AtomicBool::new(false),
        }
    }

    /// The transport of `client`; if HTTP/2 was agreed on with it, one that looks at what the upstream answers first.
    pub(crate) fn watch(self: &Arc<Self>, client: Connection) -> Transport {
        let info = client.extension::<TlsInfo>();
        let is_h2 = info.is_some_and(|info| &*info.protocol == b"h2");
        let below = client.into_transport();
        if !is_h2 || below.is_datagram() || self.warned.load(Ordering::Relaxed) {
            return below;
        }
        below.stack(|below| Watched {
            below,
            seen: Some((self.clone(), 0)),
        })
    }

    fn warn(&self) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            warn!(
                target: "layer4.handlers.proxy",
                upstream = &*self.upstream,
                remedy = "set alpn in connection_policies of the handler tls, such as [\"http/1.1\"]",
                "upstream answers HTTP/1 to clients that were told it speaks HTTP/2"
            );
        }
    }
}

/// The client's side of a connection: what is written to it comes from the upstream.
struct Watched {
    below: Transport,
    /// Until it is clear what the answer is: how much of [`HTTP_1`] has been seen.
    seen: Option<(Arc<FirstAnswer>, usize)>,
}

/// How an answer in HTTP/1 begins. HTTP/2 begins with a frame, whose first byte is never an `H` (RFC 9113 section 3.4: the
/// first frame is SETTINGS, and it is not four megabytes long).
const HTTP_1: &[u8] = b"HTTP/1.";

impl Watched {
    fn look_at(&mut self, written: &[u8]) {
        let Some((answer, seen)) = &mut self.seen else {
            return;
        };
        let expected = &HTTP_1[(*seen).min(HTTP_1.len())..];
        let n = written.len().min(expected.len());
        if written[..n] != expected[..n] {
            self.seen = None;
        } else if n == expected.len() {
            answer.warn();
            self.seen = None;
        } else {
            *seen += n;
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.below).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.below).poll_write(cx, buf))?;
        self.look_at(&buf[..n.min(buf.len())]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.below).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.below).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use l4_core::Io;
    use l4_testkit::connection;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn client(protocol: Option<&str>) -> (Connection, l4_testkit::Client) {
        let (mut conn, client) = connection(1024);
        if let Some(protocol) = protocol {
            conn.set_extension(TlsInfo {
                protocol: protocol.as_bytes().into(),
                ..TlsInfo::default()
            });
        }
        (conn, client)
    }

    #[tokio::test]
    async fn l13_only_an_answer_in_http_1_to_a_client_of_http_2_is_noticed() {
        for (protocol, answer, noticed) in [
            (
                Some("h2"),
                &[&b"HTTP/1.1 400 Bad Request\r\n"[..]][..],
                true,
            ),
            (Some("h2"), &[b"HT", b"TP/", b"1.0"], true),
            (Some("h2"), &[b"HTTP/2"], false),
            (Some("h2"), &[b"\0\0\x12\x04", b"HTTP/1.1"], false),
            (Some("h2"), &[b"HTTP/1"], false),
            (Some("http/1.1"), &[b"HTTP/1.1 200 OK"], false),
            (None, &[b"HTTP/1.1 200 OK"], false),
        ] {
            let answers = Arc::new(FirstAnswer::new("a:1".into()));
            let (conn, mut client) = client(protocol);
            let mut transport = answers.watch(conn);
            for part in answer {
                transport.write_all(part).await.unwrap();
            }
            transport.shutdown().await.unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, answer.concat());
            assert_eq!(
                answers.warned.load(Ordering::Relaxed),
                noticed,
                "{protocol:?} {answer:?}"
            );
        }
    }

    #[tokio::test]
    async fn an_upstream_reset_reaches_a_client_of_http_2_as_such() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let ours = socket.await.unwrap();
        let (mut client, _) = listener.accept().await.unwrap();
        let record = connection(1).0.record().clone();
        let mut conn = Connection::new(Io::Tcp(ours), record, None);
        conn.set_extension(TlsInfo {
            protocol: b"h2"[..].into(),
            ..TlsInfo::default()
        });
        let watched = Arc::new(FirstAnswer::new("a:1".into())).watch(conn);
        assert!(matches!(watched.io(), Io::Layer(_)));
        watched.reset_on_close();
        drop(watched);
        let error = client.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn connections_without_http_2_keep_their_socket() {
        let answers = Arc::new(FirstAnswer::new("a:1".into()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let record = connection(1).0.record().clone();
        let conn = Connection::new(Io::Tcp(socket.await.unwrap()), record, None);
        assert!(matches!(answers.watch(conn).io(), Io::Tcp(_)));
    }
}
