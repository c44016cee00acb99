//! The exchange of datagrams between a client and one upstream, many at a time.
//!
//! What the kernel gives in one read is sent in as few calls as it takes, out of the buffers it was read into. Towards the
//! upstream this task mostly sleeps: the task that reads the listening socket sends there itself, through a passage.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use l4_core::conn::Passage;
use l4_core::{EndReason, Transport};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{End, Limits, Pace, Relayed, client_failed, is_reset, is_transient};

/// Relays between datagram sessions until one is over, an end fails, or nothing has moved for too long.
pub(super) struct Exchange {
    client: Transport,
    peer: Transport,
    up: Held,
    down: Held,
    passage: Option<Arc<Passage>>,
    /// It was tried, and cannot be had.
    no_passage: bool,
    /// How long nothing may move, and the timer for it.
    quiet: Option<(Duration, Pin<Box<Sleep>>)>,
    since: Instant,
}

/// One direction: what it has moved, and what a slow receiver did not take yet.
#[derive(Default)]
struct Held {
    bytes: u64,
    /// Counted beside the bytes, because there are empty ones.
    datagrams: u64,
    kept: VecDeque<Box<[u8]>>,
}

/// What ends a direction.
enum Over {
    /// Nothing more comes.
    Source,
    /// The receiver is broken.
    Receiver(io::Error),
}

/// After so many reads others get their turn.
const READS_AT_ONCE: usize = 16;

impl Exchange {
    pub(super) fn new(client: Transport, peer: Transport, limits: Limits) -> Self {
        let since = Instant::now();
        Self {
            client,
            peer,
            up: Held::default(),
            down: Held::default(),
            passage: None,
            no_passage: false,
            quiet: limits
                .idle
                .map(|limit| (limit, Box::pin(sleep_until(since + limit)))),
            since,
        }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let before = self.moved();
        let mut yielding = false;
        match self.poll_up(cx) {
            Ok(Pace::Waiting) => {}
            Ok(Pace::Yielding) => yielding = true,
            // The session is over: there is nobody to give answers to.
            Err(Over::Source) => return Poll::Ready((EndReason::IdleTimeout, None)),
            Err(Over::Receiver(error)) => return Poll::Ready(upstream_failed(error)),
        }
        match self.down.poll(&mut self.peer, &mut self.client, cx) {
            Ok(Pace::Waiting) => {}
            Ok(Pace::Yielding) => yielding = true,
            Err(Over::Source) => return Poll::Ready((EndReason::Completed, None)),
            Err(Over::Receiver(error)) => return Poll::Ready(client_failed(error)),
        }
        if yielding {
            cx.waker().wake_by_ref();
        }
        let moved = before != self.moved();
        self.poll_quiet(cx, moved)
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Result<Pace, Over> {
        if self.passage.is_none() && !self.no_passage && !self.client.has_unread() {
            self.passage = self.client.pass_to(&self.peer);
            self.no_passage = self.passage.is_none();
        }
        // Opens the passage whenever it finds nothing to receive, which it looks for only when nothing is kept.
        self.up.poll(&mut self.client, &mut self.peer, cx)
    }

    /// Differs when something has moved in this task.
    fn moved(&self) -> (u64, u64, usize) {
        let kept = self.up.kept.len() + self.down.kept.len();
        (self.up.datagrams, self.down.datagrams, kept)
    }

    /// Ready when nothing has moved for too long, the passage included.
    fn poll_quiet(&mut self, cx: &mut Context<'_>, moved: bool) -> Poll<End> {
        let Some((limit, sleep)) = &mut self.quiet else {
            return Poll::Pending;
        };
        if moved {
            self.since = Instant::now();
        }
        loop {
            // The timer is not moved at every datagram: when it fires it is set anew for what is left.
            ready!(sleep.as_mut().poll(cx));
            let mut quiet = self.since.elapsed();
            if let Some(passage) = &self.passage {
                quiet = quiet.min(passage.last().elapsed());
            }
            let left = limit.saturating_sub(quiet);
            if left.is_zero() {
                return Poll::Ready((EndReason::IdleTimeout, None));
            }
            sleep.as_mut().reset(Instant::now() + left);
        }
    }
}

impl Future for Exchange {
    type Output = Relayed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Relayed> {
        let (reason, error) = ready!(self.poll_end(cx));
        let passed = self.passage.as_ref().map_or(0, |passage| passage.bytes());
        Poll::Ready(Relayed {
            up: self.up.bytes + passed,
            down: self.down.bytes,
            spliced: 0,
            reason,
            error,
        })
    }
}

impl Held {
    /// Moves what is there.
    fn poll(
        &mut self,
        from: &mut Transport,
        to: &mut Transport,
        cx: &mut Context<'_>,
    ) -> Result<Pace, Over> {
        for _ in 0..READS_AT_ONCE {
            if !self.flush(to, cx)? {
                return Ok(Pace::Waiting);
            }
            // The context is lent to the receiving, its waker is not.
            let waker = cx.waker();
            let mut sent = Ok(());
            let received = from.poll_receive_many(cx, &mut |datagrams| {
                self.datagrams += datagrams.len() as u64;
                self.bytes += datagrams.iter().map(|d| d.len() as u64).sum::<u64>();
                if sent.is_ok() {
                    sent = self.send(to, &mut Context::from_waker(waker), datagrams);
                }
            });
            sent?;
            match received {
                Poll::Pending => return Ok(Pace::Waiting),
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) => return Err(Over::Source),
            }
        }
        Ok(Pace::Yielding)
    }

    /// Sends `datagrams`, keeping those that are not taken at once.
    fn send(
        &mut self,
        to: &mut Transport,
        cx: &mut Context<'_>,
        datagrams: &[&[u8]],
    ) -> Result<(), Over> {
        let mut rest = datagrams;
        if !self.kept.is_empty() {
            self.keep(rest);
            return Ok(());
        }
        while !rest.is_empty() {
            let sent = match to.poll_send_many(cx, rest) {
                Poll::Ready(Ok(sent)) => sent.max(1),
                // Datagrams may be lost; that this one was is no reason to end the session.
                Poll::Ready(Err(error)) if is_transient(&error) => 1,
                Poll::Ready(Err(error)) => return Err(Over::Receiver(error)),
                Poll::Pending => {
                    self.keep(rest);
                    break;
                }
            };
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    fn keep(&mut self, datagrams: &[&[u8]]) {
        self.kept
            .extend(datagrams.iter().map(|&datagram| datagram.into()));
    }

    /// Sends what is kept; whether nothing is left.
    fn flush(&mut self, to: &mut Transport, cx: &mut Context<'_>) -> Result<bool, Over> {
        if self.kept.is_empty() {
            return Ok(true);
        }
        // All of them, so that a session can count what waits for it.
        let all: Vec<&[u8]> = self.kept.iter().map(AsRef::as_ref).collect();
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            let sent = match to.poll_send_many(cx, rest) {
                Poll::Ready(Err(error)) if !is_transient(&error) => {
                    return Err(Over::Receiver(error));
                }
                Poll::Ready(sent) => sent.map_or(1, |sent| sent.max(1)),
                Poll::Pending => break,
            };
            rest = rest.get(sent..).unwrap_or_default();
        }
        let gone = all.len() - rest.len();
        if gone < all.len() {
            self.kept.drain(..gone);
            return Ok(false);
        }
        self.kept = VecDeque::new();
        Ok(true)
    }
}

fn upstream_failed(error: io::Error) -> End {
    match error.kind() {
        // It does not take any more, which is how its end shows.
        io::ErrorKind::BrokenPipe => (EndReason::Completed, None),
        _ if is_reset(&error) => (EndReason::UpstreamReset, Some(error)),
        _ => (EndReason::UpstreamError, Some(error)),
    }
}
