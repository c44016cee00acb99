//! A connection: its transport with the unread bytes, its metadata, and the facts parsed from the unread bytes.

mod addr;
mod facts;
mod limit;
mod meta;
mod prefix;
mod record;
mod session;
mod tls;
mod transport;

use std::any::Any;
use std::borrow::Cow;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use addr::Addr;
pub use limit::ReadLimit;
pub use meta::Capture;
pub use record::{EndReason, Record};
pub use session::{DatagramFilter, Filtered, Passage, SendNow, Session};
pub use tls::TlsInfo;
pub use transport::{Io, Layer, Raw, Received, Transport};

use crate::placeholder::{Scope, Template};
use crate::{Fact, Generation, Parsed, View};
use facts::Facts;
use meta::Meta;

/// So many unread bytes decide a route, or nothing does.
pub const MATCH_LIMIT: usize = 16 * 1024;

/// The most one read for matching takes from a stream.
pub(crate) const FILL_SIZE: usize = 16 * 1024;

/// One accepted connection or datagram session. A handle of one word: moving it across an await costs nothing.
///
/// Reading gives the unread bytes first. Dropping it closes the socket; a TCP socket that still holds input the client
/// sent is then reset by the kernel.
///
/// Unread bytes are looked at, waited for and taken like this:
///
/// ```
/// use l4_core::prelude::*;
///
/// /// Takes the first line off a connection.
/// async fn line(conn: &mut Connection) -> Result<String> {
///     loop {
///         if let Some(end) = conn.unread().iter().take(80).position(|byte| *byte == b'\n') {
///             let line = String::from_utf8_lossy(&conn.unread()[..end]).into();
///             conn.consume(end + 1);
///             return Ok(line);
///         }
///         if conn.unread().len() >= 80 || conn.fill().await? == Received::End {
///             return Err(Error::client(Phase::Handshake, "there is no line"));
///         }
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let mut conn = l4_testkit::received(b"alice\nand more");
/// assert_eq!(line(&mut conn).await.unwrap(), "alice");
/// assert_eq!(conn.unread(), b"and more");
/// # });
/// ```
///
/// What a module finds out it leaves on the connection, as a variable for texts with placeholders (`{l4.vars.user}`) or as
/// a value of a type of its own for other modules:
///
/// ```
/// struct User(&'static str);
///
/// let mut conn = l4_testkit::received(b"");
/// conn.set_var("user", "alice");
/// conn.set_extension(User("alice"));
/// assert_eq!(conn.var("user"), Some("alice"));
/// assert_eq!(conn.extension::<User>().unwrap().0, "alice");
/// ```
pub struct Connection(Box<Inner>);

pub(crate) struct Inner {
    transport: Transport,
    meta: Meta,
    facts: Facts,
}

impl Connection {
    /// A connection over `io`. `local` is the address the peer connected to, where it is known without asking.
    pub fn new(io: Io, record: Arc<Record>, local: Option<Addr>) -> Self {
        let transport = Transport::new(io, Some(record.clone()));
        Self(Box::new(Inner {
            transport,
            meta: Meta::new(record, local),
            facts: Facts::default(),
        }))
    }

    /// The record that the summary is made from.
    pub fn record(&self) -> &Arc<Record> {
        &self.0.meta.record
    }

    /// The effective remote address: the socket's, or the one an accepted PROXY header named.
    pub fn remote(&self) -> &Addr {
        &self.0.meta.remote
    }

    /// The effective local address.
    pub fn local(&self) -> &Addr {
        self.0.local()
    }

    /// The local address of the socket itself, which a PROXY header does not change: where something can be bound that
    /// the peer is to reach.
    pub fn own_local(&self) -> &Addr {
        self.0.own_local()
    }

    /// Sets the effective addresses, as an accepted PROXY header does.
    pub fn set_addresses(&mut self, remote: Addr, local: Addr) {
        self.0.meta.remote = remote;
        self.0.meta.local = Some(local);
    }

    /// Whether it carries datagrams.
    pub fn is_datagram(&self) -> bool {
        self.0.transport.is_datagram()
    }

    /// The unread bytes: of a stream all, of a session the first datagram.
    pub fn unread(&self) -> &[u8] {
        self.0.transport.prefix.visible()
    }

    /// Keeps `bytes`, which were read from the socket of a stream before there was a connection, as unread. A session of
    /// datagrams has no such bytes: nothing happens.
    pub fn keep_unread(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() && !self.is_datagram() {
            self.0.transport.keep_unread(bytes);
            self.0.facts.clear();
        }
    }

    /// Takes `n` unread bytes (a consumed preamble) and forgets the facts parsed from them.
    pub fn consume(&mut self, n: usize) {
        self.0.transport.consume(n);
        self.0.facts.clear();
    }

    /// The unread datagrams of a session, in order of arrival. None on a stream.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.0.datagrams()
    }

    /// Has every datagram of a session pass through `filter`: the unread ones now, others when they are received. Facts
    /// are forgotten. A stream is left as it is.
    #[must_use]
    pub fn filter_datagrams(self, filter: impl DatagramFilter + 'static) -> Self {
        let Inner {
            transport, meta, ..
        } = *self.0;
        Self(Box::new(Inner {
            transport: transport.filter_datagrams(Box::new(filter)),
            meta,
            facts: Facts::default(),
        }))
    }

    /// Waits for more bytes and keeps them as unread. Cancel safe: what was read stays.
    ///
    /// # Errors
    /// Those of the socket. The matching limit is the caller's to keep.
    pub async fn fill(&mut self) -> io::Result<Received> {
        self.fill_at_most(FILL_SIZE).await
    }

    /// [`fill`](Self::fill) that takes no more than `limit` bytes of a stream; a datagram is taken whole.
    pub(crate) async fn fill_at_most(&mut self, limit: usize) -> io::Result<Received> {
        thread_local! {
            static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; FILL_SIZE]);
        }
        let transport = &mut self.0.transport;
        let limit = limit.min(FILL_SIZE);
        poll_fn(|cx| {
            SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
                Ok(mut scratch) => transport.poll_fill(cx, &mut scratch[..limit]),
                // A layer that fills another connection from within its own read.
                Err(_) => transport.poll_fill(cx, &mut vec![0; limit]),
            })
        })
        .await
    }

    /// Receives into `buf` as [`Transport::poll_receive`] does. Cancel safe.
    ///
    /// # Errors
    /// Those of the socket or layer.
    pub async fn receive(&mut self, buf: &mut [u8]) -> io::Result<Received> {
        self.0.facts.clear();
        poll_fn(|cx| self.0.transport.poll_receive(cx, buf)).await
    }

    /// Sends all of `data`: as part of the stream, or as one datagram. Not cancel safe on a stream.
    ///
    /// # Errors
    /// Those of the socket or layer.
    pub async fn send(&mut self, mut data: &[u8]) -> io::Result<()> {
        loop {
            let n = poll_fn(|cx| self.0.transport.poll_send(cx, data)).await?;
            data = &data[n..];
            if data.is_empty() {
                return Ok(());
            }
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
    }

    /// Stacks a protocol on top. The unread bytes travel with the transport below; what is above starts empty, and
    /// facts are forgotten, because there is new plaintext.
    ///
    /// # Errors
    /// Those of `wrap`; the connection is gone then.
    pub async fn layer<L, F, Fut>(self, wrap: F) -> io::Result<Self>
    where
        L: Layer + 'static,
        F: FnOnce(Transport) -> Fut,
        Fut: Future<Output = io::Result<L>>,
    {
        self.0.own_local();
        let Inner {
            transport, meta, ..
        } = *self.0;
        let transport = transport.layer(wrap).await?;
        Ok(Self(Box::new(Inner {
            transport,
            meta,
            facts: Facts::default(),
        })))
    }

    /// Makes two connections of one. `split` gets the transport below and says what carries the bytes of each; the
    /// unread bytes and what was parsed from them are given to both.
    ///
    /// The second has a copy of addresses, variables and captures, and a record of its own under the same number, so
    /// that nothing done with it shows in the first one's summary. Limits on reads stay with the first.
    pub fn fork(self, split: impl FnOnce(Transport) -> (Io, Io)) -> (Self, Self) {
        self.0.own_local();
        let Inner {
            transport,
            meta,
            facts,
        } = *self.0;
        let (first, second) = transport.fork(split);
        let second = Inner {
            transport: second,
            meta: meta.fork(),
            facts: facts.clone(),
        };
        let first = Inner {
            transport: first,
            meta,
            facts,
        };
        (Self(Box::new(first)), Self(Box::new(second)))
    }

    /// Runs `task` beside this connection and independently of its end. The connection's generation waits for it when
    /// it drains, and ends it when it ends its connections.
    pub fn spawn_beside(&self, task: impl Future<Output = ()> + Send + 'static) {
        match self.0.meta.generation.clone() {
            Some(generation) => {
                let active = generation.enter();
                tokio::spawn(async move {
                    generation.cancelled().run_until_cancelled(task).await;
                    drop(active);
                });
            }
            None => {
                tokio::spawn(task);
            }
        }
    }

    /// Says which generation the connection runs under.
    pub(crate) fn set_generation(&mut self, generation: Arc<Generation>) {
        self.0.meta.generation = Some(generation);
    }

    /// Puts a limit on what is read from now on, the unread bytes included. Limits add up, and every copy path
    /// honours them.
    pub fn limit_reads(&mut self, limit: impl ReadLimit + 'static) {
        self.0.transport.limit_reads(Box::new(limit));
    }

    /// The socket or layer, for socket options. Reading from it directly would lose the unread bytes.
    pub fn io(&self) -> &Io {
        self.0.transport.io()
    }

    /// The socket with the unread bytes. Metadata is dropped, so take from it first what is needed.
    pub fn into_raw(self) -> Raw {
        self.0.transport.into_raw()
    }

    /// The transport with the unread bytes; everything else that was known is freed. What is read and written goes on
    /// being counted in the record.
    pub fn into_transport(self) -> Transport {
        self.0.transport
    }

    /// The transport, for a copy path that polls both directions.
    pub fn transport(&mut self) -> &mut Transport {
        self.0.facts.clear();
        &mut self.0.transport
    }

    /// Says why the connection ends; the first reason stays.
    pub fn end(&self, reason: EndReason) {
        self.0.meta.record.end(reason);
    }

    /// The value of a variable.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.0.meta.var(name)
    }

    /// Sets a variable.
    pub fn set_var(&mut self, name: &str, value: &str) {
        self.0.meta.set_var(name, value);
    }

    /// What a module left on the connection for others.
    pub fn extension<T: Any>(&self) -> Option<&T> {
        self.0.meta.extension()
    }

    /// Leaves `value` on the connection, in place of another of its type.
    pub fn set_extension<T: Any + Send + Sync>(&mut self, value: T) {
        self.0.meta.set_extension(value);
    }

    /// Forgets what a module left on the connection. A [fork](Self::fork) that was made before keeps it.
    pub fn drop_extension<T: Any>(&mut self) {
        self.0.meta.drop_extension::<T>();
    }

    /// A fact that a matcher has parsed from the unread bytes.
    pub fn known_fact<T: Fact>(&self) -> Option<&T> {
        self.0.facts.known()
    }

    /// Lets `look` see what a matcher sees. What it captures stays.
    pub fn with_view<T>(&mut self, look: impl FnOnce(&mut View<'_>) -> T) -> T {
        look(&mut View::new(&mut self.0))
    }

    /// A template filled in for this connection.
    pub fn expand<'t>(&self, template: &'t Template) -> Cow<'t, str> {
        template.expand(Scope::new(&self.0))
    }

    /// The parts of a template in order: `Ok` a literal, `Err` what a placeholder gives for this connection.
    pub fn expand_parts<'t>(
        &self,
        template: &'t Template,
    ) -> impl Iterator<Item = Result<&'t str, String>> {
        template.parts(Scope::new(&self.0))
    }

    pub(crate) fn inner(&mut self) -> &mut Inner {
        &mut self.0
    }

    /// What the matching limit counts.
    pub(crate) fn held(&self) -> usize {
        self.0.transport.prefix.held()
    }
}

impl Inner {
    pub(crate) fn local(&self) -> &Addr {
        self.meta.local.as_ref().unwrap_or_else(|| self.own_local())
    }

    /// The socket's own local address, which a PROXY header does not change.
    pub(crate) fn own_local(&self) -> &Addr {
        // Only a layer has no address of its own, and stacking one asks the socket first.
        self.meta
            .own_local
            .get_or_init(|| self.transport.local().unwrap_or(Addr::UNNAMED))
    }

    pub(crate) fn remote(&self) -> &Addr {
        &self.meta.remote
    }

    pub(crate) fn record(&self) -> &Arc<Record> {
        &self.meta.record
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.transport.prefix.visible()
    }

    pub(crate) fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.transport.prefix.datagrams()
    }

    /// Nothing has been received that is not yet taken.
    pub(crate) fn is_dry(&self) -> bool {
        self.transport.prefix.is_empty()
    }

    pub(crate) fn is_datagram(&self) -> bool {
        self.transport.is_datagram()
    }

    pub(crate) fn fact<T: Fact>(&self) -> Parsed<&T> {
        self.facts.get(self.bytes())
    }

    pub(crate) fn known_fact<T: Fact>(&self) -> Option<&T> {
        self.facts.known()
    }

    pub(crate) fn var(&self, name: &str) -> Option<&str> {
        self.meta.var(name)
    }

    pub(crate) fn capture(&self, prefix: &str, key: &str) -> Option<&str> {
        self.meta.capture(prefix, key)
    }

    pub(crate) fn captures(&mut self) -> &mut Vec<Capture> {
        &mut self.meta.captures
    }

    pub(crate) fn extension<T: Any>(&self) -> Option<&T> {
        self.meta.extension()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(self.transport()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.transport).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.transport).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.transport).poll_shutdown(cx)
    }
}
