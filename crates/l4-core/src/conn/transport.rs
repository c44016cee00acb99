//! The byte transport under a connection: a socket or a stacked layer, and the unread bytes in front of it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::limit::{Both, ReadLimit};
use super::prefix::Prefix;
use super::session::{DatagramFilter, Filtered, FilteredSession, Passage, Session};
use super::{Addr, Record};

/// Something that must see every byte and sits on a [`Transport`]: TLS, tee, a framing of a third party.
///
/// `poll_shutdown` must reach the socket below: half-close is forwarded through every layer.
pub trait Layer: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Layer for T {}

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
    /// A stacked layer, or a transport whose reads are limited or that has yet to send its beginning: bytes can only be copied in user space.
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
    limited: Option<Box<Limited>>,
    lead: Option<Box<Lead>>,
    /// Whether closing the socket is to reset the connection. Shared by all that is stacked on it; none if nothing is.
    reset: Option<Arc<AtomicBool>>,
}

/// A limit on reads, and what of the unread bytes has not been charged to it.
struct Limited {
    limit: Box<dyn ReadLimit>,
    /// So many unread bytes were there before the limit.
    uncharged: usize,
}

/// What goes out before everything else.
struct Lead {
    bytes: Vec<u8>,
    sent: usize,
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
            limited: None,
            lead: None,
            reset: None,
        }
    }

    /// Has `bytes` go out in front of what is sent first, in one call with it where that is possible. Flushing, and
    /// ending our direction, sends them alone. They are not counted. A session of datagrams has no such beginning: nothing
    /// happens.
    ///
    /// Who writes to [`io`](Self::io) past this type has to send something through it first.
    pub fn lead_with(&mut self, bytes: Vec<u8>) {
        if !self.is_datagram() && !bytes.is_empty() {
            self.lead = Some(Box::new(Lead { bytes, sent: 0 }));
        }
    }

    /// Stacks a protocol on top. The unread bytes travel with what is below, where bytes go on being counted.
    ///
    /// # Errors
    /// Those of `wrap`; the transport is gone then.
    pub async fn layer<L, F, Fut>(mut self, wrap: F) -> io::Result<Self>
    where
        L: Layer + 'static,
        F: FnOnce(Self) -> Fut,
        Fut: Future<Output = io::Result<L>>,
    {
        let reset = self.shared_reset();
        let layer = wrap(self).await?;
        Ok(Self::above(layer, reset))
    }

    /// As [`layer`](Self::layer), of what needs no exchange with the peer to begin.
    #[must_use]
    pub fn stack<L: Layer + 'static>(mut self, wrap: impl FnOnce(Self) -> L) -> Self {
        let reset = self.shared_reset();
        Self::above(wrap(self), reset)
    }

    /// What is above `layer`; who owns the socket below it shares `reset`.
    fn above(layer: impl Layer + 'static, reset: Arc<AtomicBool>) -> Self {
        // Bytes are counted at the socket below.
        let mut above = Self::new(Io::Layer(Box::new(layer)), None);
        above.reset = Some(reset);
        above
    }

    /// Makes closing the transport reset the TCP connection below, through everything that is stacked on it, so that
    /// the peer learns that what it got is not complete. A layer is then to be dropped, not shut down, and what the
    /// kernel has not sent yet is discarded. Nothing happens on Unix sockets and datagram sessions, which have no reset.
    pub fn reset_on_close(&self) {
        match (&self.io, &self.reset) {
            // Best effort: the socket may be gone already.
            (Io::Tcp(socket), _) => drop(socket.set_zero_linger()),
            // Who owns the socket, somewhere below, sees to it.
            (Io::Layer(_), Some(reset)) => reset.store(true, Ordering::Relaxed),
            _ => {}
        }
    }

    fn shared_reset(&mut self) -> Arc<AtomicBool> {
        self.reset.get_or_insert_default().clone()
    }

    /// Puts a limit on what is read from now on, the unread bytes included. Limits add up.
    pub fn limit_reads(&mut self, limit: Box<dyn ReadLimit>) {
        let unread = match self.is_datagram() {
            true => self.prefix.datagrams().map(<[u8]>::len).sum(),
            false => self.prefix.visible().len(),
        };
        self.limited = Some(Box::new(match self.limited.take() {
            None => Limited {
                limit,
                uncharged: unread,
            },
            Some(first) => {
                // What the first limit has let in already is charged to the second as a debt.
                let mut limit = limit;
                limit.taken(unread.saturating_sub(first.uncharged));
                Limited {
                    limit: Box::new(Both(first.limit, limit)),
                    uncharged: first.uncharged,
                }
            }
        }));
    }

    /// The limit on reads. Who reads from [`io`](Self::io) past this type asks it before and tells it after each read.
    pub fn read_limit(&mut self) -> Option<&mut dyn ReadLimit> {
        match &mut self.limited {
            Some(limited) => Some(&mut *limited.limit),
            None => None,
        }
    }

    /// Whether bytes that were read ahead are still to be taken before those of the socket.
    pub fn has_unread(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// Whether what passes here is what passes the socket: nothing is unread, nothing leads, reads are not limited. It
    /// stays so until one of that is added.
    pub fn is_plain(&self) -> bool {
        !self.has_unread() && self.lead.is_none() && self.limited.is_none()
    }

    /// How many of the `wanted` bytes the limit on reads lets through now, at least one: for who moves bytes from
    /// [`io`](Self::io) past this type, in the kernel. They are reserved until [`passed_from`](Self::passed_from) is
    /// called, within the same poll.
    ///
    /// # Errors
    /// The socket is broken, which nobody would notice while the limit keeps it from being read.
    pub fn poll_pass(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        self.poll_allowed(cx, wanted)
    }

    /// Counts bytes that were taken from [`io`](Self::io) past this type, or none, and charges the limit on reads.
    pub fn passed_from(&mut self, n: usize) {
        if let Some(limited) = &mut self.limited {
            limited.limit.taken(n);
        }
        if let Some(record) = &self.record {
            record.add_read(n);
        }
    }

    /// Counts bytes that were given to [`io`](Self::io) past this type.
    pub fn passed_to(&self, n: usize) {
        if let Some(record) = &self.record {
            record.add_written(n);
        }
    }

    /// Splits off what is below: the socket or layer goes to `split`, which makes two of it, and the unread bytes are
    /// given to both. The limit stays with the first, whose reads fetch the bytes.
    pub(super) fn fork(mut self, split: impl FnOnce(Self) -> (Io, Io)) -> (Self, Self) {
        let reset = self.shared_reset();
        let prefix = mem::take(&mut self.prefix);
        let limited = self.limited.take();
        let (first, second) = split(self);
        // Bytes are counted at the socket below.
        let (mut first, mut second) = (Self::new(first, None), Self::new(second, None));
        second.prefix = prefix.clone();
        first.prefix = prefix;
        first.limited = limited;
        // What becomes of the second is of no concern to the client.
        first.reset = Some(reset);
        (first, second)
    }

    /// Puts something around the session that carries datagrams. The unread ones stay as they are, and so does a stream.
    #[must_use]
    pub fn map_session(mut self, wrap: impl FnOnce(Box<dyn Session>) -> Box<dyn Session>) -> Self {
        self.io = match self.take_io() {
            Io::Datagram(session) => Io::Datagram(wrap(session)),
            io => io,
        };
        self
    }

    /// What carries the bytes; nothing does until it is put back.
    fn take_io(&mut self) -> Io {
        // Takes no memory: it has no size.
        mem::replace(&mut self.io, Io::Layer(Box::new(tokio::io::empty())))
    }

    /// Has every datagram pass through `filter`: the unread ones now, others when they are received. A stream is left as
    /// it is.
    pub(super) fn filter_datagrams(mut self, mut filter: Box<dyn DatagramFilter>) -> Self {
        if !self.is_datagram() {
            return self;
        }
        let mut over = false;
        let mut passed = Prefix::Empty;
        while let Some(datagram) = self.prefix.pop() {
            let length = datagram.len();
            match filter.filter(datagram) {
                Filtered::Pass(datagram) => {
                    self.charge(length.saturating_sub(datagram.len()));
                    passed.push(datagram);
                }
                Filtered::Drop => self.charge(length),
                Filtered::End => {
                    over = true;
                    break;
                }
            }
        }
        self.prefix = passed;
        let record = self.record.clone();
        self.map_session(|session| {
            Box::new(FilteredSession {
                session,
                filter,
                record,
                over,
            })
        })
    }

    /// Keeps bytes that were read from the socket of a stream past this type, behind those that are unread.
    pub(super) fn keep_unread(&mut self, bytes: &[u8]) {
        self.prefix.extend(bytes);
        self.passed_from(bytes.len());
    }

    /// Takes `n` unread bytes.
    pub(super) fn consume(&mut self, n: usize) {
        let n = n.min(self.prefix.visible().len());
        self.charge(n);
        self.prefix.consume(n);
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
    pub fn into_raw(mut self) -> Raw {
        if self.limited.is_some() || self.lead.is_some() || matches!(self.io, Io::Layer(_)) {
            return Raw::Stacked(self);
        }
        let prefix = mem::take(&mut self.prefix);
        match self.take_io() {
            Io::Tcp(socket) => Raw::Tcp {
                socket,
                unread: prefix.into_bytes(),
            },
            Io::Unix(socket) => Raw::Unix {
                socket,
                unread: prefix.into_bytes(),
            },
            Io::Datagram(session) => Raw::Datagram {
                session,
                unread: prefix.into_datagrams(),
            },
            Io::Layer(_) => Raw::Stacked(self),
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
            let Some(datagram) = ready!(self.poll_next_datagram(cx)) else {
                return Poll::Ready(Ok(Received::End));
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

    /// The next datagram, an unread one first; `None` when the session is over, and on a stream.
    pub fn poll_next_datagram(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.prefix.is_empty() {
            return self.poll_datagram(cx);
        }
        if self.owes() {
            ready!(self.poll_allowed(cx, 1)).ok();
            self.charge(self.prefix.visible().len());
        }
        Poll::Ready(self.prefix.pop())
    }

    /// Gives `each` datagrams that are there, in order and in one call or several; `None` when the session is over, and
    /// on a stream.
    pub fn poll_receive_many(
        &mut self,
        cx: &mut Context<'_>,
        each: &mut dyn FnMut(&[&[u8]]),
    ) -> Poll<Option<()>> {
        if self.limited.is_some() || !self.prefix.is_empty() {
            // Each is charged before the next is received.
            let datagram = ready!(self.poll_next_datagram(cx));
            return Poll::Ready(datagram.map(|datagram| each(&[&datagram])));
        }
        let Io::Datagram(session) = &mut self.io else {
            return Poll::Ready(None);
        };
        let Some(record) = &self.record else {
            return session.poll_recv_many(cx, each);
        };
        session.poll_recv_many(cx, &mut |datagrams| {
            record.add_read(datagrams.iter().map(|datagram| datagram.len()).sum());
            each(datagrams);
        })
    }

    /// Sends the first of `datagrams`, which are one at least, and those behind it that the kernel takes along. How many
    /// were sent; an error is about the first. A stream takes part of the first.
    pub fn poll_send_many(
        &mut self,
        cx: &mut Context<'_>,
        datagrams: &[&[u8]],
    ) -> Poll<io::Result<usize>> {
        let Io::Datagram(session) = &mut self.io else {
            let first = datagrams.first().copied().unwrap_or_default();
            return self.poll_send(cx, first).map_ok(|_| 1);
        };
        let sent = ready!(session.poll_send_many(cx, datagrams))?;
        if let Some(record) = &self.record {
            record.add_written(datagrams.iter().take(sent).map(|d| d.len()).sum());
        }
        Poll::Ready(Ok(sent))
    }

    /// Has datagrams go to `to` as they arrive, while this end waits in
    /// [`poll_receive_many`](Self::poll_receive_many): the task that reads the socket sends them, and nobody is woken.
    /// What cannot be sent at once is received here. `None` where somebody must look at each datagram, where reads are
    /// limited, or unread ones come first.
    pub fn pass_to(&mut self, to: &Self) -> Option<Arc<Passage>> {
        let (Io::Datagram(from), Io::Datagram(session)) = (&mut self.io, &to.io) else {
            return None;
        };
        if self.limited.is_some() || !self.prefix.is_empty() {
            return None;
        }
        let (read, written) = (self.record.clone(), to.record.clone());
        let passage = Arc::new(Passage::new(session.send_now()?).counted(read, written));
        from.pass_to(passage.clone()).then_some(passage)
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
        ready!(self.poll_limited(cx, &mut buf))?;
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
        if let Some(limited) = &mut self.limited {
            ready!(limited.limit.poll_allow(cx, 1));
        }
        let received = session.poll_recv(cx);
        if let Some(limited) = &mut self.limited {
            limited.limit.taken(match &received {
                Poll::Ready(Some(datagram)) => datagram.len(),
                _ => 0,
            });
        }
        let datagram = ready!(received);
        if let (Some(datagram), Some(record)) = (&datagram, &self.record) {
            record.add_read(datagram.len());
        }
        Poll::Ready(datagram)
    }

    /// Whether the first unread byte has yet to be charged.
    fn owes(&self) -> bool {
        self.limited.as_ref().is_some_and(|l| l.uncharged > 0) && !self.prefix.visible().is_empty()
    }

    /// Charges `n` unread bytes that are being taken, as far as they were not.
    fn charge(&mut self, n: usize) {
        if let Some(limited) = &mut self.limited {
            let n = n.min(limited.uncharged);
            if n > 0 {
                limited.uncharged -= n;
                limited.limit.taken(n);
            }
        }
    }

    /// Reads the socket or layer, past the unread bytes, as much as the limit allows.
    fn poll_limited(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Datagrams are charged where they are received; nothing can be charged for no room.
        if self.limited.is_none() || self.is_datagram() || buf.remaining() == 0 {
            return self.poll_io(cx, buf);
        }
        let allowed = ready!(self.poll_allowed(cx, buf.remaining()))?;
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(allowed));
        let read = self.poll_io(cx, &mut part);
        let n = part.filled().len();
        buf.advance(n);
        if let Some(limited) = &mut self.limited {
            limited.limit.taken(n);
        }
        read
    }

    /// How much of a stream the limit allows: 1 to `wanted` bytes.
    fn poll_allowed(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let Some(limited) = &mut self.limited else {
            return Poll::Ready(Ok(wanted));
        };
        if let Poll::Ready(allowed) = limited.limit.poll_allow(cx, wanted) {
            return Poll::Ready(Ok(allowed.clamp(1, wanted)));
        }
        // A socket that is not read does not tell that its peer has reset the connection.
        match &self.io {
            Io::Tcp(socket) => socket.take_error(),
            Io::Unix(socket) => socket.take_error(),
            Io::Datagram(_) | Io::Layer(_) => Ok(None),
        }
        .and_then(|broken| broken.map_or(Ok(()), Err))?;
        Poll::Pending
    }

    /// Writes what leads, if anything does, and `data` behind it in the same call. How much of `data` was taken: none where
    /// nothing leads.
    #[inline]
    fn poll_lead(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.lead {
            None => Poll::Ready(Ok(0)),
            Some(_) => self.poll_send_lead(cx, data),
        }
    }

    #[cold]
    fn poll_send_lead(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        while let Some(lead) = &mut self.lead {
            let left = lead.bytes.get(lead.sent..).unwrap_or_default();
            let both = [IoSlice::new(left), IoSlice::new(data)];
            let n = ready!(self.io.poll_write_vectored(cx, &both))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            match n.checked_sub(left.len()) {
                None => lead.sent += n,
                Some(behind) => {
                    self.lead = None;
                    return Poll::Ready(Ok(behind));
                }
            }
        }
        Poll::Ready(Ok(0))
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

impl Io {
    fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Layer(layer) => Pin::new(layer).poll_write_vectored(cx, bufs),
            // Several buffers would be several datagrams, one at a time.
            Self::Datagram(session) => {
                let first = bufs.iter().find(|buf| !buf.is_empty());
                let datagram = first.map(|buf| &**buf).unwrap_or_default();
                ready!(session.poll_send(cx, datagram))?;
                Poll::Ready(Ok(datagram.len()))
            }
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        let reset = |reset: &Arc<AtomicBool>| reset.load(Ordering::Relaxed);
        if let Io::Tcp(socket) = &self.io
            && self.reset.as_ref().is_some_and(reset)
        {
            let _ = socket.set_zero_linger();
        }
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
            return this.poll_limited(cx, buf);
        }
        let mut n = this.prefix.visible().len().min(buf.remaining());
        if n > 0 && this.owes() {
            let wanted = this.limited.as_ref().map_or(n, |l| l.uncharged.min(n));
            let allowed = ready!(this.poll_allowed(cx, wanted))?;
            // A datagram is passed whole.
            if !this.is_datagram() {
                n = allowed;
            }
            this.charge(n);
        }
        let unread = this.prefix.visible();
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
        let mut n = ready!(self.poll_lead(cx, buf))?;
        if n == 0 {
            n = match &mut self.io {
                Io::Tcp(socket) => ready!(Pin::new(socket).poll_write(cx, buf))?,
                Io::Unix(socket) => ready!(Pin::new(socket).poll_write(cx, buf))?,
                Io::Layer(layer) => ready!(Pin::new(layer).poll_write(cx, buf))?,
                Io::Datagram(session) => {
                    ready!(session.poll_send(cx, buf))?;
                    buf.len()
                }
            };
        }
        self.passed_to(n);
        Poll::Ready(Ok(n))
    }

    /// Several buffers in one call, such as the records of a layer of TLS.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_lead(cx, &[]))?;
        let n = ready!(self.io.poll_write_vectored(cx, bufs))?;
        self.passed_to(n);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tcp(socket) => socket.is_write_vectored(),
            Io::Unix(socket) => socket.is_write_vectored(),
            Io::Layer(layer) => layer.is_write_vectored(),
            Io::Datagram(_) => false,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_lead(cx, &[]))?;
        match &mut self.io {
            Io::Layer(layer) => Pin::new(layer).poll_flush(cx),
            // Sockets keep nothing back.
            Io::Tcp(_) | Io::Unix(_) | Io::Datagram(_) => Poll::Ready(Ok(())),
        }
    }

    /// Ends our direction; nothing happens on a datagram session, which has no such thing.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_lead(cx, &[]))?;
        match &mut self.io {
            Io::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Io::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            Io::Layer(layer) => Pin::new(layer).poll_shutdown(cx),
            Io::Datagram(_) => Poll::Ready(Ok(())),
        }
    }
}
