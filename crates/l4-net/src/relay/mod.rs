//! Moves bytes between a client and the upstream it was given, until both are done.
//!
//! One future drives both directions. While nothing moves it holds no buffer and, unless a side has ended, no timer: bytes pass through a scratch
//! buffer of the thread, and only what a slow receiver did not take is kept, in a stash that is freed when empty. A
//! sender is not read while a receiver of its bytes is slow.
//!
//! An upstream may be several peers: each gets every byte of the client, and their answers are merged, a chunk at a
//! time. The slowest peer sets the pace; one that fails is dropped while others live.
//!
//! That engine, copying, works on anything. A direction between two plain sockets that turns out to carry bulk goes over
//! to the second one, splice(2) through a pipe (`pipe.rs`), and back when it does not any more (`gear.rs`). Both put what
//! a slow receiver did not take into the same stash, and a sender is read only while that is empty: the order of bytes,
//! half-closes, resets and limits are decided once, here, for both.
//!
//! What is left of the copying engine for small messages between two sockets, while nothing unusual happens, is in
//! `ready.rs`.
//!
//! Datagrams between a client and one peer have neither, and an engine of their own (`datagrams.rs`).

mod datagrams;
mod gear;
mod pipe;
mod ready;
mod scratch;
mod socket;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use l4_core::conn::Received;
use l4_core::{EndReason, Io, Transport};
use smallvec::SmallVec;
use tokio::io::AsyncWrite as _;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::keepalive::KeepAlive;
use crate::sockopt;
use datagrams::Exchange;
use gear::{Engine, Gear, Policy};
use ready::{Pass, Watches};
use scratch::{Stash, with_scratch};
use socket::Socket;

/// Time limits of a relay. `None` is no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Nothing has moved in either direction for this long.
    pub idle: Option<Duration>,
    /// The upstream has ended its stream, and the client has neither sent nor ended for this long. The end is seen once
    /// the client has taken what was kept for it: one that does not read is not cut off from the rest of its answer, and
    /// only [`idle`](Self::idle) ends it.
    pub half_closed: Option<Duration>,
}

/// How a relay came to its end, and what it moved.
#[derive(Debug)]
pub struct Relayed {
    /// Bytes received from the client; what a peer that broke did not take is among them.
    pub up: u64,
    /// Bytes received from the peers.
    pub down: u64,
    /// How many of both were moved by splicing.
    pub spliced: u64,
    /// Why it ended.
    pub reason: EndReason,
    /// The error behind `reason`, if it was one.
    pub error: Option<io::Error>,
}

/// Relays until both directions are over, an end fails, or a limit is reached. Then everything is closed.
///
/// * The end of one direction is passed on as such (half-close) while the other goes on.
/// * A reset of one side is passed on as a reset, also through layers, after what was received before it has been handed
///   to the kernel or the layer.
/// * A datagram client is over when its session is; datagrams keep their boundaries, the empty ones too. A stream
///   client's bytes become datagrams as they are read, at most 8 KiB each; a datagram client's become a stream.
///
/// Cancel safe in the sense that dropping it closes both sides.
pub fn relay(
    client: Transport,
    peers: impl IntoIterator<Item = Transport>,
    limits: Limits,
) -> impl Future<Output = Relayed> {
    // Not an `async` function: its future would hold the arguments once more beside what is made of them.
    let mut peers = peers.into_iter().peekable();
    let Some(first) = peers.next_if(|peer| client.is_datagram() && peer.is_datagram()) else {
        return AnyRelay::Bytes(Relay::new(client, peers, limits));
    };
    if peers.peek().is_some() {
        return AnyRelay::Bytes(Relay::new(
            client,
            std::iter::once(first).chain(peers),
            limits,
        ));
    }
    AnyRelay::Datagrams(Exchange::new(client, first, limits))
}

enum AnyRelay {
    Bytes(Relay),
    Datagrams(Exchange),
}

impl Future for AnyRelay {
    type Output = Relayed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Relayed> {
        match &mut *self {
            Self::Bytes(relay) => Pin::new(relay).poll(cx),
            Self::Datagrams(exchange) => Pin::new(exchange).poll(cx),
        }
    }
}

struct Relay {
    client: Transport,
    peers: SmallVec<[Peer; 1]>,
    /// What a slow client did not take yet.
    stash: Stash,
    /// The client ended its stream, or it is not waited for any more.
    client_done: bool,
    /// Bytes of the client that nobody was left to take.
    discarded: u32,
    /// The client's write side was shut down.
    client_shut: bool,
    limits: Limits,
    quiet: Option<Box<Quiet>>,
    /// When to look whether a client that has ended its stream is still there. Exists only then, and only for a
    /// connection that has lasted.
    lookout: Option<Pin<Box<Sleep>>>,
    policy: &'static Policy,
    up_gear: Gear,
    down_gear: Gear,
    up: u64,
    down: u64,
    spliced: u64,
    /// The peer that is read first.
    turn: u32,
    /// Made when first needed, and then kept.
    watches: Option<Box<Watches>>,
    /// So many times bytes have yet to move until it is seen whether these are messages between sockets. None: they are.
    until_messages: u8,
}

struct Peer {
    /// Dropped before the socket it is for, which is in `transport`.
    keepalive: Option<KeepAlive>,
    transport: Transport,
    /// What a slow peer did not take yet.
    stash: Stash,
    /// It takes no more bytes: it failed, or the client's end was passed on.
    write_done: bool,
    /// It gives no more bytes.
    read_done: bool,
    /// It was sent nothing yet.
    fresh: bool,
    /// It broke the connection.
    failed: Option<io::Error>,
}

/// A limit on silence. Exists only where one applies.
struct Quiet {
    sleep: Pin<Box<Sleep>>,
    limit: Duration,
    since: Instant,
    reason: EndReason,
}

type End = (EndReason, Option<io::Error>);

/// A direction yields after moving this much, so that one busy connection does not starve the others of its thread.
const BUDGET: usize = 1024 * 1024;

/// After how many times that bytes have moved a connection is taken for one of messages. What it takes to pass those on
/// cheaply is made then: a short connection is over before that would pay.
const UNTIL_MESSAGES: u8 = 8;

/// So many messages of one sender are passed on at a time.
const MESSAGES: usize = 16;

/// How much a client may go on sending after everything is over, so that it gets to read the end of the answer.
const DISCARD_LIMIT: u32 = 256 * 1024;

/// How often it is looked whether a client that has ended its stream is still there. It costs a system call.
const LOOKOUT: Duration = Duration::from_secs(5);

/// The most bytes of a stream that become one datagram.
const STREAM_TO_DATAGRAM: usize = 8 * 1024;

impl Future for Relay {
    type Output = Relayed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Relayed> {
        let (reason, error) = ready!(self.poll_directions(cx));
        Poll::Ready(Relayed {
            up: self.up,
            down: self.down,
            spliced: self.spliced,
            reason,
            error,
        })
    }
}

impl Relay {
    fn new(client: Transport, peers: impl IntoIterator<Item = Transport>, limits: Limits) -> Self {
        let peers = peers.into_iter().map(Peer::new).collect();
        let mut relay = Self {
            client,
            peers,
            stash: Stash::default(),
            client_done: false,
            discarded: 0,
            client_shut: false,
            limits,
            quiet: None,
            lookout: None,
            policy: &Policy::DEFAULT,
            up_gear: Gear::default(),
            down_gear: Gear::default(),
            up: 0,
            down: 0,
            spliced: 0,
            turn: 0,
            watches: None,
            until_messages: UNTIL_MESSAGES,
        };
        if let Some(limit) = limits.idle {
            relay.watch(limit, EndReason::IdleTimeout);
        }
        relay
    }

    fn poll_directions(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let before = self.moved();
        match self.poll_messages(cx) {
            Ok(false) => {}
            Ok(true) => return self.poll_pending(cx, before),
            Err(end) => return Poll::Ready(self.finish(end)),
        }
        let mut yielding = false;
        for direction in [Self::poll_up, Self::poll_down] {
            match direction(self, cx) {
                Ok(Pace::Waiting) => {}
                Ok(Pace::Yielding) => yielding = true,
                Err(end) => return Poll::Ready(self.finish(end)),
            }
        }
        if self.client_done && self.client_shut && self.peers.iter().all(|peer| peer.write_done) {
            return Poll::Ready(self.finish((EndReason::Completed, None)));
        }
        if self.client_done
            && !self.client_shut
            && let Some(end) = self.poll_lookout(cx)
        {
            return Poll::Ready(self.finish(end));
        }
        if yielding {
            cx.waker().wake_by_ref();
        }
        if before != self.moved() {
            self.expect_messages(cx);
        }
        self.poll_pending(cx, before)
    }

    /// The sockets have been seen to. What is left are the limits on silence.
    fn poll_pending(&mut self, cx: &mut Context<'_>, before: (u64, u64, usize)) -> Poll<End> {
        if self.quiet.is_none() {
            return Poll::Pending;
        }
        let moved = before != self.moved();
        ready!(self.poll_quiet(cx, moved))
            .map_or(Poll::Pending, |end| Poll::Ready(self.finish(end)))
    }

    /// Passes messages on, asking only the sockets that may have some. Whether that was all there is to do: if not, what
    /// comes next is for the engines, and so is what follows, until it looks like messages again.
    fn poll_messages(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.until_messages > 0 {
            return Ok(false);
        }
        let (Some(watches), [peer]) = (&mut self.watches, &mut *self.peers) else {
            return Ok(false);
        };
        watches.wake(cx.waker());
        let mut turns = 0..MESSAGES;
        let mut usual = true;
        while usual && watches.client.is_due() {
            let (client, peer_end) = (&mut self.client, &mut peer.transport);
            match ready::pass(&watches.client, client, peer_end, &mut peer.stash, cx) {
                Pass::Nothing => {}
                Pass::Moved(n) => {
                    self.up += n as u64;
                    self.up_gear.note(self.policy, Engine::Copy, n);
                    usual = n < scratch::SIZE && peer.stash.left() == 0;
                }
                Pass::Lost(n, error) => {
                    self.up += n as u64;
                    peer.fail(error);
                    usual = false;
                }
                Pass::End => usual = false,
                Pass::Broken(error) => return Err(client_failed(error)),
            }
            usual &= turns.next().is_some();
        }
        while usual && watches.peer.is_due() {
            let (client, peer_end) = (&mut self.client, &mut peer.transport);
            match ready::pass(&watches.peer, peer_end, client, &mut self.stash, cx) {
                Pass::Nothing => {}
                Pass::Moved(n) => {
                    self.down += n as u64;
                    self.down_gear.note(self.policy, Engine::Copy, n);
                    usual = n < scratch::SIZE && self.stash.left() == 0;
                }
                Pass::Lost(n, error) => {
                    self.down += n as u64;
                    return Err(client_failed(error));
                }
                Pass::End => usual = false,
                Pass::Broken(error) => {
                    peer.read_done = true;
                    peer.fail(error);
                    usual = false;
                }
            }
            usual &= turns.next().is_some();
        }
        if !usual {
            watches.forget();
            self.until_messages = UNTIL_MESSAGES;
        }
        Ok(usual)
    }

    /// Bytes have moved: whether more of the kind are messages between two sockets that both are open in both directions.
    fn expect_messages(&mut self, cx: &Context<'_>) {
        self.until_messages = self.until_messages.saturating_sub(1);
        if self.until_messages > 0 {
            return;
        }
        let open = !self.client_done && !self.client_shut && self.stash.left() == 0;
        let usual = match &*self.peers {
            [peer] => {
                !(peer.write_done || peer.read_done)
                    && peer.stash.left() == 0
                    && ready::joins(&self.client, &peer.transport)
            }
            _ => false,
        };
        if open && usual && !self.up_gear.splicing() && !self.down_gear.splicing() {
            self.watches
                .get_or_insert_with(|| Box::new(Watches::new(cx.waker())))
                .wake(cx.waker());
        } else {
            self.until_messages = UNTIL_MESSAGES;
        }
    }

    /// Differs when bytes have come in, or gone out: a receiver may take long for what is kept for it.
    fn moved(&self) -> (u64, u64, usize) {
        let kept = self.peers.iter().map(|peer| peer.stash.left());
        (self.up, self.down, self.stash.left() + kept.sum::<usize>())
    }

    /// Client to peers.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Result<Pace, End> {
        let chunk = self.up_chunk();
        let mut budget = BUDGET;
        while !self.client_done {
            // Every one, also behind a slow one: what it has room for must not wait for another.
            let mut slow = false;
            for peer in &mut self.peers {
                slow |= !peer.flush_stash(cx);
            }
            if slow {
                return Ok(Pace::Waiting);
            }
            let unwanted = self.peers.iter().all(|peer| peer.write_done);
            if unwanted && !self.client_shut {
                // Nobody takes the client's bytes, but it still gets answers: they stay in its socket.
                return Ok(Pace::Waiting);
            }
            let (client, peers) = (&mut self.client, &mut self.peers);
            // Several peers need the bytes each; what nobody takes is read to be thrown away.
            let spliced = match &mut **peers {
                [peer] if self.up_gear.splicing() && !unwanted => {
                    peer.stash.poll_splice(client, cx)
                }
                _ => None,
            };
            let engine = if spliced.is_some() {
                Engine::Splice
            } else {
                Engine::Copy
            };
            let received = spliced.unwrap_or_else(|| {
                with_scratch(|scratch| {
                    let scratch = &mut scratch[..chunk];
                    let received = client.poll_receive(cx, scratch);
                    if let Poll::Ready(Ok(Received::Data(n))) = received {
                        for peer in peers.iter_mut() {
                            peer.send(cx, &scratch[..n]);
                        }
                    }
                    received
                })
            });
            match received {
                Poll::Pending => {
                    for peer in &mut self.peers {
                        peer.flush(cx);
                    }
                    return Ok(Pace::Waiting);
                }
                Poll::Ready(Ok(Received::Data(n))) if unwanted => {
                    // Closing now would reset the client and could destroy the answer it has not read yet.
                    let n = u32::try_from(n.max(1)).unwrap_or(u32::MAX);
                    self.discarded = self.discarded.saturating_add(n);
                    self.client_done = self.discarded > DISCARD_LIMIT;
                }
                Poll::Ready(Ok(Received::Data(n))) => {
                    self.up += n as u64;
                    self.note(Way::Up, engine, n);
                    if let ([peer], Engine::Splice) = (&mut *self.peers, engine) {
                        peer.flush_stash(cx);
                    }
                    budget = budget.saturating_sub(n.max(1));
                    if budget == 0 {
                        return Ok(Pace::Yielding);
                    }
                }
                Poll::Ready(Ok(Received::End)) => self.client_ended()?,
                // A peer of TLS that just closes its socket: rustls calls it an error, users call it the end.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.client_ended()?;
                }
                Poll::Ready(Err(error)) => return Err(client_failed(error)),
            }
        }
        for peer in &mut self.peers {
            peer.poll_end(cx);
        }
        Ok(Pace::Waiting)
    }

    fn client_ended(&mut self) -> Result<(), End> {
        if self.client.is_datagram() {
            // The session is over: there is nobody to give answers to.
            return Err((EndReason::IdleTimeout, None));
        }
        self.client_done = true;
        Ok(())
    }

    /// Peers to client.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Result<Pace, End> {
        let mut budget = BUDGET;
        let count = self.peers.len();
        let first = (self.turn as usize).min(count);
        // Begins with the peer behind the one that filled the client or used the budget up last, so that none is kept waiting for ever.
        for i in (first..count).chain(0..first) {
            while !self.peers[i].read_done {
                if !self.flush_stash(cx)? {
                    self.turn = ((i + 1) % count) as u32;
                    return Ok(Pace::Waiting);
                }
                let (client, peer, stash) = (&mut self.client, &mut self.peers[i], &mut self.stash);
                let spliced = if self.down_gear.splicing() {
                    stash.poll_splice(&mut peer.transport, cx)
                } else {
                    None
                };
                let engine = if spliced.is_some() {
                    Engine::Splice
                } else {
                    Engine::Copy
                };
                let received = match spliced {
                    Some(received) => received,
                    None => with_scratch(|scratch| {
                        let received = peer.transport.poll_receive(cx, scratch);
                        if let Poll::Ready(Ok(Received::Data(n))) = received {
                            stash
                                .send(client, cx, &scratch[..n])
                                .map_err(client_failed)?;
                        }
                        Ok(received)
                    })?,
                };
                match received {
                    Poll::Pending => break,
                    Poll::Ready(Ok(Received::Data(n))) => {
                        self.down += n as u64;
                        self.note(Way::Down, engine, n);
                        if engine == Engine::Splice {
                            self.flush_stash(cx)?;
                        }
                        budget = budget.saturating_sub(n.max(1));
                        if budget == 0 {
                            self.turn = ((i + 1) % count) as u32;
                            return Ok(Pace::Yielding);
                        }
                    }
                    Poll::Ready(Ok(Received::End)) => peer.read_done = true,
                    Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        peer.read_done = true;
                    }
                    Poll::Ready(Err(error))
                        if peer.transport.is_datagram() && is_transient(&error) =>
                    {
                        budget = budget.saturating_sub(BUDGET / 16);
                        if budget == 0 {
                            self.turn = ((i + 1) % count) as u32;
                            return Ok(Pace::Yielding);
                        }
                    }
                    Poll::Ready(Err(error)) => {
                        peer.read_done = true;
                        peer.fail(error);
                    }
                }
            }
        }
        if !self.flush_stash(cx)? {
            return Ok(Pace::Waiting);
        }
        // Not an error worth ending for: the next read or write tells.
        let _ = Pin::new(&mut self.client).poll_flush(cx);
        if self.peers.iter().all(|peer| peer.read_done) && !self.client_shut {
            return self.peers_ended(cx);
        }
        Ok(Pace::Waiting)
    }

    /// No peer gives any more: pass the end, or the break, on to the client.
    fn peers_ended(&mut self, cx: &mut Context<'_>) -> Result<Pace, End> {
        // With several peers one that breaks is dropped; the client is told only when none has come to a good end.
        let broken = self.peers.iter().all(|peer| peer.failed.is_some());
        if let (true, Some(error)) = (broken, self.peers.iter_mut().find_map(|p| p.failed.take())) {
            let reason = if is_reset(&error) {
                EndReason::UpstreamReset
            } else {
                EndReason::UpstreamError
            };
            return Err((reason, Some(error)));
        }
        if self.client.is_datagram() {
            return Err((EndReason::Completed, None));
        }
        let layered = matches!(self.client.io(), Io::Layer(_));
        if !self.client_done || layered {
            // With the client's direction over, too, closing its socket says the same and costs a call less.
            match Pin::new(&mut self.client).poll_shutdown(cx) {
                Poll::Pending => return Ok(Pace::Waiting),
                // The client was quicker: not an error.
                Poll::Ready(_) => {}
            }
        }
        self.client_shut = true;
        if let (false, Some(limit)) = (self.client_done, self.limits.half_closed)
            && self.limits.idle.is_none_or(|idle| limit < idle)
        {
            self.watch(limit, EndReason::HalfCloseTimeout);
        }
        // A client that was left alone because nobody took its bytes is to be read again, and does not wake the task.
        let left_alone = !self.client_done && self.peers.iter().all(|peer| peer.write_done);
        Ok(if left_alone {
            Pace::Yielding
        } else {
            Pace::Waiting
        })
    }

    fn flush_stash(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        self.stash
            .flush(&mut self.client, cx)
            .map_err(client_failed)
    }

    /// A chunk was moved: what that says about the engine for the next.
    fn note(&mut self, way: Way, engine: Engine, n: usize) {
        let gear = match way {
            Way::Up => &mut self.up_gear,
            Way::Down => &mut self.down_gear,
        };
        gear.note(self.policy, engine, n);
        match engine {
            Engine::Splice => self.spliced += n as u64,
            // It would rather splice the next one.
            Engine::Copy if gear.splicing() => {
                let joined =
                    matches!(&*self.peers, [peer] if pipe::joins(&self.client, &peer.transport));
                if !joined {
                    *gear = Gear::default();
                }
            }
            Engine::Copy => {}
        }
    }

    /// How much is read from the client at once.
    fn up_chunk(&self) -> usize {
        let into_datagrams = self.peers.iter().any(|peer| peer.transport.is_datagram());
        if into_datagrams && !self.client.is_datagram() {
            STREAM_TO_DATAGRAM
        } else {
            scratch::SIZE
        }
    }

    fn watch(&mut self, limit: Duration, reason: EndReason) {
        let since = Instant::now();
        let sleep = Box::pin(sleep_until(since + limit));
        self.quiet = Some(Box::new(Quiet {
            sleep,
            limit,
            since,
            reason,
        }));
    }

    /// Ready with an end when nothing has moved for too long. Pending otherwise, or ready without one where no limit
    /// applies.
    fn poll_quiet(&mut self, cx: &mut Context<'_>, moved: bool) -> Poll<Option<End>> {
        let Some(quiet) = &mut self.quiet else {
            return Poll::Ready(None);
        };
        if moved {
            quiet.since = Instant::now();
        }
        // The timer is not moved at every byte: when it fires it is set anew for what is left.
        while quiet.sleep.as_mut().poll(cx).is_ready() {
            let left = quiet.limit.saturating_sub(quiet.since.elapsed());
            if left.is_zero() {
                return Poll::Ready(Some((quiet.reason, None)));
            }
            quiet.sleep.as_mut().reset(Instant::now() + left);
        }
        Poll::Pending
    }

    /// Whether a client that has ended its stream has broken the connection since. Nobody reads from it any more, and the
    /// runtime does not tell an error from the end that it has told already; while the upstream is silent nothing is
    /// written either. Only a socket can be asked, not a layer on one.
    fn poll_lookout(&mut self, cx: &mut Context<'_>) -> Option<End> {
        let Io::Tcp(client) = self.client.io() else {
            return None;
        };
        if self.lookout.is_none() {
            // Most have their answer long before the first look would be due: they need no timer.
            let mut keepalives = self.peers.iter_mut().filter_map(|p| p.keepalive.as_mut());
            if keepalives.any(|keepalive| keepalive.poll_lasted(cx).is_pending()) {
                return None;
            }
        }
        let lookout = self.lookout.get_or_insert_with(|| Box::pin(sleep(LOOKOUT)));
        while lookout.as_mut().poll(cx).is_ready() {
            lookout.as_mut().reset(Instant::now() + LOOKOUT);
            // What routers report on the way is found here as well, and does not end a connection.
            let broken =
                |error: &io::Error| is_reset(error) || error.kind() == io::ErrorKind::TimedOut;
            if let Some(error) = client.take_error().ok().flatten().filter(broken) {
                return Some(client_failed(error));
            }
        }
        None
    }

    /// Decides how the sockets are closed: a break on one side must not look like a clean end on the other.
    fn finish(&mut self, (reason, error): End) -> End {
        match reason {
            EndReason::ClientReset | EndReason::ClientError => {
                for peer in &self.peers {
                    if !(self.client_done && peer.is_taking_the_last()) {
                        peer.transport.reset_on_close();
                    }
                }
            }
            EndReason::UpstreamReset | EndReason::UpstreamError => {
                self.client.reset_on_close();
            }
            _ => {}
        }
        (reason, error)
    }
}

#[derive(Clone, Copy)]
enum Way {
    Up,
    Down,
}

enum Pace {
    /// The sockets will wake the task.
    Waiting,
    /// There is more to do at once, but others shall have their turn.
    Yielding,
}

impl Peer {
    fn new(transport: Transport) -> Self {
        let keepalive = match transport.io() {
            Io::Tcp(socket) => Some(KeepAlive::note(socket)),
            _ => None,
        };
        Self {
            keepalive,
            transport,
            stash: Stash::default(),
            write_done: false,
            read_done: false,
            fresh: true,
            failed: None,
        }
    }

    /// Sends a chunk of the client; what is not taken at once is stashed. Nothing is stashed when called.
    fn send(&mut self, cx: &mut Context<'_>, data: &[u8]) {
        if self.write_done {
            return;
        }
        let sent = match std::mem::take(&mut self.fresh) {
            true => self.send_at_once(data),
            false => Ok(None),
        };
        let sent = sent.and_then(|sent| match sent.map(|n| &data[n..]) {
            Some([]) => Ok(()),
            Some(rest) => self.stash.send(&mut self.transport, cx, rest),
            None => self.stash.send(&mut self.transport, cx, data),
        });
        if let Err(error) = sent {
            self.fail(error);
        }
    }

    /// Sends before the runtime knows that there is room, which would be waited for. How much went out; `None` where that
    /// cannot be done, or there is no room.
    fn send_at_once(&self, data: &[u8]) -> io::Result<Option<usize>> {
        if !self.transport.is_plain() {
            return Ok(None);
        }
        match Socket::of(&self.transport).map(|socket| socket.send_at_once(data)) {
            Some(Ok(n)) => {
                self.transport.passed_to(n);
                Ok(Some(n))
            }
            Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(None),
        }
    }

    /// Whether nothing is left that this peer has yet to take.
    fn flush_stash(&mut self, cx: &mut Context<'_>) -> bool {
        match self.stash.flush(&mut self.transport, cx) {
            Ok(empty) => empty,
            Err(error) => {
                self.fail(error);
                true
            }
        }
    }

    fn flush(&mut self, cx: &mut Context<'_>) {
        let _ = Pin::new(&mut self.transport).poll_flush(cx);
    }

    /// Passes the client's end on, once everything before it was taken.
    fn poll_end(&mut self, cx: &mut Context<'_>) {
        if self.write_done || !self.flush_stash(cx) {
            return;
        }
        if self.transport.is_datagram() {
            // There is no half-closing a datagram socket: the client is done, so is this.
            self.write_done = true;
            self.read_done = true;
            return;
        }
        if self.read_done && !matches!(self.transport.io(), Io::Layer(_)) {
            // It has ended as well: closing says the same and costs a call less.
            self.write_done = true;
            return;
        }
        if Pin::new(&mut self.transport).poll_shutdown(cx).is_ready() {
            self.write_done = true;
        }
    }

    /// Whether it was given all that the client sent and the end of it, and has yet to take some of that from the kernel,
    /// as far as can be seen. A reset would destroy a complete upload because its sender did not wait for the answer.
    fn is_taking_the_last(&self) -> bool {
        // The end alone, which counts as a byte, may be lost.
        let end = usize::from(!self.read_done);
        self.write_done
            && match self.transport.io() {
                // What was taken stays readable behind a reset.
                Io::Tcp(socket) => sockopt::unacknowledged(socket).is_ok_and(|left| left > end),
                // The socket is out of sight.
                _ => true,
            }
    }

    /// Notes an error of this peer. Its answer may still be waiting in the socket, so reading goes on until that ends.
    fn fail(&mut self, error: io::Error) {
        self.stash.clear();
        self.write_done = true;
        if self.transport.is_datagram() {
            // No end ever comes from such a socket, and its session would be stuck with it.
            self.read_done = true;
        }
        // A broken pipe means that it ended its stream properly first and then refused more: Linux reports a reset
        // that comes before the end as such.
        if error.kind() != io::ErrorKind::BrokenPipe {
            self.failed.get_or_insert(error);
        }
    }
}

fn client_failed(error: io::Error) -> End {
    let reason = if is_reset(&error) {
        EndReason::ClientReset
    } else {
        EndReason::ClientError
    };
    (reason, Some(error))
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// What a connected datagram socket reports about single datagrams, or about a server that is away for a moment. It
/// must not end the session: when the server is back its answers must be read.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::OutOfMemory
    ) || matches!(
        error.raw_os_error(),
        Some(libc::EMSGSIZE | libc::ENOBUFS | libc::EPERM)
    )
}
