//! What the tests of module crates share.
//!
//! * [`check`] holds a matcher to its contract over every prefix of some bytes.
//! * [`Client`] and [`connection`] give a connection in memory whose other end the test drives; [`Peer`] and [`session`]
//!   do so with datagrams.
//! * [`Router`] provisions a JSON configuration with chosen modules and runs connections through it;
//!   [`Router::exchange_however_cut`] shows that segmentation makes no difference to them.
//!
//! For tests only: everything here panics when something is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

use std::sync::Arc;

use bytes::Bytes;
use l4_core::config::{ConfigError, Document};
use l4_core::conn::{Received, Session};
use l4_core::engine::{App, Loaded, Server};
use l4_core::{Addr, Connection, Io, Matcher, MatcherModule, Provision, Record, Registry, Verdict};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

/// The address that in-memory clients seem to come from.
pub const CLIENT: &str = "192.0.2.7:40000";

/// The address that in-memory clients seem to have connected to.
pub const SERVER: &str = "198.51.100.1:443";

/// The test's end of an in-memory connection.
pub type Client = DuplexStream;

/// An in-memory TCP-like connection and the test's end of it. `capacity` bytes fit between the two in each direction.
pub fn connection(capacity: usize) -> (Connection, Client) {
    let (ours, theirs) = tokio::io::duplex(capacity);
    let record = Arc::new(Record::new(Addr::Tcp(CLIENT.parse().unwrap())));
    let local = Some(Addr::Tcp(SERVER.parse().unwrap()));
    (
        Connection::new(Io::Layer(Box::new(ours)), record, local),
        theirs,
    )
}

/// A connection on which exactly `bytes` have been received so far, and nothing more will come.
pub fn received(bytes: &[u8]) -> Connection {
    let record = Arc::new(Record::new(Addr::Tcp(CLIENT.parse().unwrap())));
    let local = Some(Addr::Tcp(SERVER.parse().unwrap()));
    let mut conn = Connection::new(
        Io::Layer(Box::new(Canned(bytes.to_vec(), 0))),
        record,
        local,
    );
    while conn.unread().len() < bytes.len() {
        assert!(matches!(now(conn.fill()).unwrap(), Received::Data(_)));
    }
    conn
}

/// A datagram session that has received exactly `datagrams`.
pub fn received_datagrams(datagrams: &[&[u8]]) -> Connection {
    let record = Arc::new(Record::new(Addr::Udp(CLIENT.parse().unwrap())));
    let queue = datagrams
        .iter()
        .rev()
        .map(|d| Bytes::copy_from_slice(d))
        .collect();
    let mut conn = Connection::new(Io::Datagram(Box::new(CannedSession(queue))), record, None);
    for _ in datagrams {
        now(conn.fill()).unwrap();
    }
    conn
}

/// An in-memory datagram session and its peer. The session is over when the peer is dropped.
pub fn session() -> (Connection, Peer) {
    let (to, incoming) = mpsc::channel(QUEUE);
    let (outgoing, from) = mpsc::channel(QUEUE);
    let record = Arc::new(Record::new(Addr::Udp(CLIENT.parse().unwrap())));
    let session = LiveSession { incoming, outgoing };
    let conn = Connection::new(Io::Datagram(Box::new(session)), record, None);
    (conn, Peer { to, from })
}

/// The test's end of a [`session`].
pub struct Peer {
    to: mpsc::Sender<Bytes>,
    from: mpsc::Receiver<Bytes>,
}

impl Peer {
    /// Sends one datagram, which may be empty.
    ///
    /// # Panics
    /// If the session is over, or more are queued than it may have waiting.
    pub fn send(&self, datagram: &[u8]) {
        self.to
            .try_send(Bytes::copy_from_slice(datagram))
            .expect("the session takes datagrams");
    }

    /// The next datagram that was sent back; `None` once the session is over.
    pub async fn receive(&mut self) -> Option<Bytes> {
        self.from.recv().await
    }

    /// Ends the session, as its idle time does, and returns what was sent back and not received yet.
    pub async fn end(mut self) -> Vec<Bytes> {
        drop(self.to);
        let mut rest = Vec::new();
        while let Some(datagram) = self.from.recv().await {
            rest.push(datagram);
        }
        rest
    }
}

/// How many datagrams wait in each direction of a [`session`].
const QUEUE: usize = 64;

/// The answer of `matcher` for a connection on which exactly `bytes` have been received.
pub fn verdict(matcher: &dyn Matcher, bytes: &[u8]) -> Verdict {
    conn_verdict(matcher, &mut received(bytes))
}

/// The answer of `matcher` for what `conn` has received.
pub fn conn_verdict(matcher: &dyn Matcher, conn: &mut Connection) -> Verdict {
    conn.with_view(|view| matcher.matches(view))
}

/// Holds `matcher` to its contract over every prefix of `bytes` and returns its answer for all of them.
///
/// Checked: an answer other than `More` never changes when bytes are appended; `More` never asks for nothing, and its
/// wish is honest: no shorter continuation of these very bytes is decided; each prefix is answered the same twice.
///
/// # Panics
/// If the contract is broken or the answer for all of `bytes` is not `expected` (compare `More` with any count as
/// `Verdict::More(0)`).
pub fn check(matcher: &dyn Matcher, bytes: &[u8], expected: Verdict) {
    let answers: Vec<Verdict> = (0..=bytes.len())
        .map(|n| verdict(matcher, &bytes[..n]))
        .collect();
    for (n, &answer) in answers.iter().enumerate() {
        assert_eq!(
            answer,
            verdict(matcher, &bytes[..n]),
            "asked twice after {n} bytes"
        );
        match answer {
            Verdict::More(more) => {
                assert!(more > 0, "asks for nothing after {n} bytes");
                let too_early = answers.iter().skip(n).take(more).position(|a| !is_more(*a));
                assert_eq!(
                    too_early, None,
                    "after {n} bytes {more} more were asked for, but fewer decided"
                );
            }
            decided => {
                let changed = answers[n..].iter().find(|later| **later != decided);
                assert_eq!(
                    changed, None,
                    "{decided:?} after {n} bytes changed when more arrived"
                );
            }
        }
    }
    let last = answers[bytes.len()];
    let same = last == expected || (is_more(last) && is_more(expected));
    assert!(
        same,
        "expected {expected:?}, got {last:?} for {:?}",
        String::from_utf8_lossy(bytes)
    );
}

/// The number of bytes after which `matcher` was certain; `None` if it never was.
pub fn decided_after(matcher: &dyn Matcher, bytes: &[u8]) -> Option<usize> {
    (0..=bytes.len()).find(|&n| !is_more(verdict(matcher, &bytes[..n])))
}

fn is_more(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::More(_))
}

/// Provisions a matcher from its JSON value, with the modules that `register` enters.
///
/// # Errors
/// The errors that the configuration gives.
pub fn matcher<M: MatcherModule>(
    register: impl FnOnce(&mut Registry),
    json: &str,
) -> Result<M, Vec<ConfigError>> {
    let mut registry = Registry::new();
    register(&mut registry);
    let document = Document::parse("test", json.as_bytes())?;
    let mut cx = Provision::new(&document, &registry);
    let made = cx
        .decode(document.root())
        .and_then(|config| M::provision(config, &mut cx));
    made.map_err(|_| cx.finish().errors)
}

/// A server under test: a route list, provisioned from JSON.
pub struct Router {
    server: Arc<Server>,
}

impl Router {
    /// Provisions the JSON list `routes` with the modules that `register` enters, and starts what they run beside
    /// connections.
    ///
    /// # Panics
    /// With the rendered errors if the configuration is refused.
    pub fn new(register: impl FnOnce(&mut Registry), routes: &str) -> Self {
        Self::with_server(
            register,
            &format!(r#"{{"listen": ["127.0.0.1:1"], "routes": {routes}}}"#),
        )
    }

    /// As [`new`](Self::new), from a whole server object.
    ///
    /// # Panics
    /// With the rendered errors if the configuration is refused.
    pub fn with_server(register: impl FnOnce(&mut Registry), server: &str) -> Self {
        let loaded = load(
            register,
            &format!(r#"{{"apps":{{"layer4":{{"servers":{{"test":{server}}}}}}}}}"#),
        );
        let mut app = loaded.app.unwrap_or_else(|errors| {
            panic!(
                "{}",
                errors.iter().map(ConfigError::render).collect::<String>()
            )
        });
        app.start();
        Self {
            server: app.listens[0].server.clone(),
        }
    }

    /// The server.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Serves `conn` in a task of its own; its record shows how it ended.
    pub fn serve(&self, conn: Connection) -> (Arc<Record>, tokio::task::JoinHandle<()>) {
        let record = conn.record().clone();
        (record, tokio::spawn(self.server.clone().serve(conn)))
    }

    /// Sends `segments` one after the other, each once the one before has been taken, ends the stream, and returns
    /// all that came back, with the record.
    pub async fn exchange(&self, segments: &[&[u8]]) -> (Vec<u8>, Arc<Record>) {
        // A capacity of one segment makes each write wait until the one before was read.
        let longest = segments.iter().map(|s| s.len()).max().unwrap_or(1).max(1);
        let (conn, mut client) = connection(longest.max(64 * 1024));
        let (record, task) = self.serve(conn);
        for segment in segments {
            if client.write_all(segment).await.is_err() {
                break;
            }
            settle().await;
        }
        let _ = client.shutdown().await;
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        task.await.unwrap();
        (answer, record)
    }

    /// Sends `bytes` whole, in two segments cut at every place, and byte by byte, each on a connection of its own, and
    /// returns what came back.
    ///
    /// # Panics
    /// If an answer, the route that was taken or the reason for the end depends on how the bytes were cut.
    pub async fn exchange_however_cut(&self, bytes: &[u8]) -> Vec<u8> {
        let (whole, record) = self.exchange(&[bytes]).await;
        let seen = |record: &Record| (record.route(), record.end_reason());
        let expected = seen(&record);
        let cuts = (1..bytes.len()).map(|at| vec![&bytes[..at], &bytes[at..]]);
        for segments in cuts.chain([bytes.chunks(1).collect()]) {
            let (answer, record) = self.exchange(&segments).await;
            let first = segments.first().map_or(0, |segment| segment.len());
            assert_eq!(
                (answer.escape_ascii().to_string(), seen(&record)),
                (whole.escape_ascii().to_string(), expected.clone()),
                "{} segments, the first of {first} bytes, against one segment",
                segments.len()
            );
        }
        whole
    }
}

/// Loads a whole configuration with the modules that `register` enters.
///
/// # Panics
/// If it is not JSON.
pub fn load(register: impl FnOnce(&mut Registry), json: &str) -> Loaded {
    let mut registry = Registry::new();
    register(&mut registry);
    assert_eq!(registry.conflicts(), &[] as &[String]);
    let document = Document::parse("test", json.as_bytes()).unwrap_or_else(|errors| {
        panic!(
            "{}",
            errors.iter().map(ConfigError::render).collect::<String>()
        )
    });
    App::load(&document, &registry)
}

/// Lets every other task that can run do so.
pub async fn settle() {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
}

fn now<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut cx) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("waits for something"),
    }
}

/// Gives its bytes and then the end of the stream; swallows what is written.
struct Canned(Vec<u8>, usize);

impl AsyncRead for Canned {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let n = buf.remaining().min(self.0.len() - self.1);
        let from = self.1;
        buf.put_slice(&self.0[from..from + n]);
        self.1 += n;
        std::task::Poll::Ready(Ok(()))
    }
}

impl tokio::io::AsyncWrite for Canned {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::task::Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

struct LiveSession {
    incoming: mpsc::Receiver<Bytes>,
    outgoing: mpsc::Sender<Bytes>,
}

impl Session for LiveSession {
    fn poll_recv(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Bytes>> {
        self.incoming.poll_recv(cx)
    }

    fn poll_send(
        &mut self,
        _: &mut std::task::Context<'_>,
        datagram: &[u8],
    ) -> std::task::Poll<std::io::Result<()>> {
        let sent = self.outgoing.try_send(Bytes::copy_from_slice(datagram));
        assert!(
            !matches!(sent, Err(mpsc::error::TrySendError::Full(_))),
            "nobody receives what is sent back"
        );
        std::task::Poll::Ready(Ok(()))
    }

    fn local(&self) -> Addr {
        Addr::Udp(SERVER.parse().unwrap())
    }
}

struct CannedSession(Vec<Bytes>);

impl Session for CannedSession {
    fn poll_recv(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<Bytes>> {
        std::task::Poll::Ready(self.0.pop())
    }

    fn poll_send(
        &mut self,
        _: &mut std::task::Context<'_>,
        _: &[u8],
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn local(&self) -> Addr {
        Addr::Udp(SERVER.parse().unwrap())
    }
}
