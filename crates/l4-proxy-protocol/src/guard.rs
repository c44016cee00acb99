//! A stream that must not begin with a header.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use l4_core::{Transport, Verdict};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tracing::debug;

use crate::accept::LOG;
use crate::header::{V2, beginning};

/// Keeps back the first bytes until it is certain that they are no header, and fails the read if they are one. Everything
/// else passes, so a server may speak first.
pub(crate) struct Guard {
    below: Transport,
    held: [u8; V2.len()],
    /// How many of `held` there are, and how many of them were given out.
    filled: usize,
    given: usize,
    state: State,
    id: u64,
    /// How long bytes are kept back for, from the first on.
    timeout: Option<Duration>,
    waiting: Option<Pin<Box<Sleep>>>,
}

#[derive(PartialEq, Eq)]
enum State {
    Watching,
    Open,
    Rejected,
}

impl Guard {
    pub(crate) fn new(below: Transport, id: u64, timeout: Option<Duration>) -> Self {
        Self {
            below,
            held: [0; V2.len()],
            filled: 0,
            given: 0,
            state: State::Watching,
            id,
            timeout,
            waiting: None,
        }
    }

    fn poll_decide(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.state == State::Watching {
            let mut buf = ReadBuf::new(self.held.get_mut(self.filled..).unwrap_or_default());
            let Poll::Ready(read) = Pin::new(&mut self.below).poll_read(cx, &mut buf) else {
                let Some(waiting) = &mut self.waiting else {
                    return Poll::Pending;
                };
                ready!(waiting.as_mut().poll(cx));
                self.state = State::Open;
                break;
            };
            read?;
            let read = buf.filled().len();
            self.filled += read;
            self.state = match beginning(self.held.get(..self.filled).unwrap_or_default()) {
                Verdict::Match => State::Rejected,
                Verdict::No => State::Open,
                Verdict::More(_) if read == 0 => State::Open,
                Verdict::More(_) => State::Watching,
            };
            if self.waiting.is_none() {
                self.waiting = self.timeout.map(|timeout| Box::pin(sleep(timeout)));
            }
            if self.state == State::Rejected {
                debug!(target: LOG, conn = self.id, "connection rejected in handler by policy");
            }
        }
        self.waiting = None;
        Poll::Ready(match self.state {
            State::Rejected => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "PROXY header: not allowed from this sender",
            )),
            State::Watching | State::Open => Ok(()),
        })
    }
}

impl AsyncRead for Guard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_decide(cx))?;
        if self.given < self.filled {
            let n = buf.remaining().min(self.filled - self.given);
            buf.put_slice(
                self.held
                    .get(self.given..self.given + n)
                    .unwrap_or_default(),
            );
            self.given += n;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.below).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.below).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.below).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.below).poll_shutdown(cx)
    }
}
