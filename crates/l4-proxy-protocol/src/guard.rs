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
///
/// Bytes are not kept back for ever, but they are compared for as long as it takes: with a pause in its signature a header
/// does not get through either, only the part of it that came before the pause.
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
    /// They may be a header, and are kept back.
    Watching,
    /// They may be one still, but have been kept back for long enough.
    Late,
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
                self.state = State::Late;
                break;
            };
            read?;
            let read = buf.filled().len();
            self.filled += read;
            match self.verdict() {
                Verdict::More(_) if read > 0 => {}
                verdict => self.decide(verdict),
            }
            if self.waiting.is_none() {
                self.waiting = self.timeout.map(|timeout| Box::pin(sleep(timeout)));
            }
        }
        self.waiting = None;
        Poll::Ready(self.admitted())
    }

    /// Compares bytes that are not kept back with what was missing.
    fn look(&mut self, bytes: &[u8]) {
        let room = self.held.get_mut(self.filled..).unwrap_or_default();
        for (held, byte) in room.iter_mut().zip(bytes) {
            *held = *byte;
            self.filled += 1;
        }
        self.given = self.filled;
        match self.verdict() {
            Verdict::More(_) => {}
            verdict => self.decide(verdict),
        }
    }

    fn verdict(&self) -> Verdict {
        beginning(self.held.get(..self.filled).unwrap_or_default())
    }

    fn decide(&mut self, verdict: Verdict) {
        self.state = match verdict {
            Verdict::Match => State::Rejected,
            Verdict::No | Verdict::More(_) => State::Open,
        };
        if self.state == State::Rejected {
            debug!(target: LOG, conn = self.id, "connection rejected in handler by policy");
        }
    }

    fn admitted(&self) -> io::Result<()> {
        match self.state {
            State::Rejected => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "PROXY header: not allowed from this sender",
            )),
            State::Watching | State::Late | State::Open => Ok(()),
        }
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
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.below).poll_read(cx, buf))?;
        if self.state == State::Late {
            self.look(buf.filled().get(before..).unwrap_or_default());
            if self.state == State::Rejected {
                buf.set_filled(before);
            }
        }
        Poll::Ready(self.admitted())
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
