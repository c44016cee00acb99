//! `unixpacket` connections.

use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use socket2::Socket;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::sockopt::register;

/// A connected `SOCK_SEQPACKET` Unix socket as a stream of bytes.
///
/// tokio's `UnixStream` is not enough: it takes a read that does not fill the buffer as proof that nothing is left, and
/// then waits for the next arrival. That holds for streams; here one read gives one message, however many are waiting,
/// so that the second of two messages that came together would be read only after a third.
///
/// One write is one message. A message that the reader's buffer is too small for is read in pieces; none of it is lost.
/// An empty message reads as the end of the stream, as the system call leaves no way to tell them apart.
#[derive(Debug)]
pub(crate) struct SeqPacket {
    socket: AsyncFd<Socket>,
    /// What the reader's buffer had no room for.
    rest: Bytes,
}

impl SeqPacket {
    /// Over a connected, non-blocking socket.
    pub(crate) fn new(socket: Socket) -> io::Result<Self> {
        let socket = register(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self {
            socket,
            rest: Bytes::new(),
        })
    }
}

impl AsyncRead for SeqPacket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.rest.is_empty() && buf.remaining() > 0 {
            this.rest = loop {
                let mut ready = ready!(this.socket.poll_read_ready(cx))?;
                if let Ok(received) = ready.try_io(|socket| receive(socket.get_ref(), buf)) {
                    break received?;
                }
            };
            return Poll::Ready(Ok(()));
        }
        let n = this.rest.len().min(buf.remaining());
        buf.put_slice(&this.rest[..n]);
        this.rest.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SeqPacket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        message: &[u8],
    ) -> Poll<io::Result<usize>> {
        if message.is_empty() {
            // It would look like the end.
            return Poll::Ready(Ok(0));
        }
        loop {
            let mut ready = ready!(self.socket.poll_write_ready(cx))?;
            let sent = ready.try_io(|socket| {
                socket
                    .get_ref()
                    .send_with_flags(message, libc::MSG_NOSIGNAL)
            });
            if let Ok(sent) = sent {
                return Poll::Ready(sent);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.get_ref().shutdown(Shutdown::Write))
    }
}

/// Receives one message into `buf`, and returns the part that did not fit.
fn receive(socket: &Socket, buf: &mut ReadBuf<'_>) -> io::Result<Bytes> {
    // A plain read would discard what does not fit.
    let mut probe = [MaybeUninit::uninit()];
    let length = socket.recv_with_flags(&mut probe, libc::MSG_PEEK | libc::MSG_TRUNC)?;
    if length <= buf.remaining() {
        let n = (&mut &*socket).read(buf.initialize_unfilled_to(length.max(1)))?;
        buf.advance(n);
        return Ok(Bytes::new());
    }
    // The message lies in the kernel's memory in full, so this length is real, and bounded by the sender's buffer.
    let mut message = vec![0; length];
    let n = (&mut &*socket).read(&mut message)?;
    message.truncate(n);
    let mut message = Bytes::from(message);
    let fits = message.split_to(n.min(buf.remaining()));
    buf.put_slice(&fits);
    Ok(message)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use socket2::{Domain, Type};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn pair() -> (SeqPacket, SeqPacket) {
        let (a, b) = Socket::pair(Domain::UNIX, Type::SEQPACKET.nonblocking(), None).unwrap();
        (SeqPacket::new(a).unwrap(), SeqPacket::new(b).unwrap())
    }

    #[tokio::test]
    async fn messages_that_came_together_are_all_read() {
        let (mut ours, mut theirs) = pair();
        for message in [b"one".as_slice(), b"three", b"eleven"] {
            assert_eq!(theirs.write(message).await.unwrap(), message.len());
        }
        let mut buf = [0; 64];
        for message in [b"one".as_slice(), b"three", b"eleven"] {
            let read = tokio::time::timeout(Duration::from_secs(5), ours.read(&mut buf));
            let n = read
                .await
                .expect("waits although a message is there")
                .unwrap();
            assert_eq!(&buf[..n], message);
        }
    }

    #[tokio::test]
    async fn a_message_longer_than_the_buffer_is_read_in_pieces() {
        let (mut ours, mut theirs) = pair();
        let message: Vec<u8> = (0..100_000_u32).map(|i| i as u8).collect();
        theirs.write_all(&message).await.unwrap();
        theirs.write_all(b"next").await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut read = Vec::new();
        let mut buf = [0; 999];
        loop {
            match ours.read(&mut buf).await.unwrap() {
                0 => break,
                n => read.extend_from_slice(&buf[..n]),
            }
        }
        assert_eq!(read.len(), message.len() + 4);
        assert!(read.starts_with(&message));
        assert!(read.ends_with(b"next"));
    }

    #[tokio::test]
    async fn writing_waits_while_the_reader_is_slow() {
        let (mut ours, mut theirs) = pair();
        let writer = tokio::spawn(async move {
            for i in 0..500_u32 {
                theirs.write_all(&[i as u8; 10_000]).await.unwrap();
            }
        });
        let mut total = 0;
        let mut buf = vec![0; 16 * 1024];
        loop {
            match ours.read(&mut buf).await.unwrap() {
                0 => break,
                n => total += n,
            }
        }
        writer.await.unwrap();
        assert_eq!(total, 5_000_000);
    }
}
