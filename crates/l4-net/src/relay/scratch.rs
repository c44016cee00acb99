//! The scratch buffer of a thread, and the stash for what a receiver did not take.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll};

use l4_core::Transport;
use l4_core::conn::Received;

use super::is_transient;
use super::pipe::{self, Pipe};

/// The largest chunk that moves at once: any datagram fits, and a larger one measured no faster on streams.
pub(super) const SIZE: usize = 64 * 1024;

/// Runs `f` with the scratch buffer of this thread. Not held across an await: it belongs to one poll at a time.
pub(super) fn with_scratch<T>(f: impl FnOnce(&mut [u8; SIZE]) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<Box<[u8; SIZE]>> = RefCell::new(Box::new([0; SIZE]));
    }
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut scratch) => f(&mut scratch),
        // A layer that relays within its own read or write.
        Err(_) => f(&mut Box::new([0; SIZE])),
    })
}

/// Bytes, or one datagram, that a receiver did not take yet. Empty it owns no memory.
#[derive(Default)]
pub(super) enum Stash {
    #[default]
    Empty,
    Bytes {
        held: Box<[u8]>,
        sent: usize,
    },
    /// Bytes of a stream that never left the kernel: at least one.
    Pipe {
        pipe: Pipe,
        held: usize,
    },
}

impl Stash {
    /// Sends `data`, keeping what is not taken at once. Call only on an empty stash.
    pub(super) fn send(
        &mut self,
        to: &mut Transport,
        cx: &mut Context<'_>,
        mut data: &[u8],
    ) -> io::Result<()> {
        loop {
            match to.poll_send(cx, data) {
                Poll::Ready(Ok(n)) if n == data.len() => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => data = &data[n..],
                // Datagrams may be lost; that this one was is no reason to end the session.
                Poll::Ready(Err(error)) if to.is_datagram() && is_transient(&error) => {
                    return Ok(());
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    *self = Self::Bytes {
                        held: data.into(),
                        sent: 0,
                    };
                    return Ok(());
                }
            }
        }
    }

    /// Receives as [`Transport::poll_receive`] does, but into a pipe, which is kept. Call only on an empty stash. `None`
    /// where that cannot be done now.
    pub(super) fn poll_splice(
        &mut self,
        from: &mut Transport,
        cx: &mut Context<'_>,
    ) -> Option<Poll<io::Result<Received>>> {
        Some(pipe::poll_fill(cx, from)?.map_ok(|(pipe, held)| {
            if held == 0 {
                pipe.give_back();
                return Received::End;
            }
            *self = Self::Pipe { pipe, held };
            Received::Data(held)
        }))
    }

    /// Sends what is kept; whether nothing is left.
    pub(super) fn flush(&mut self, to: &mut Transport, cx: &mut Context<'_>) -> io::Result<bool> {
        loop {
            let result = match self {
                Self::Empty => return Ok(true),
                Self::Bytes { held, sent } => to.poll_send(cx, &held[*sent..]),
                Self::Pipe { pipe, held } => pipe::poll_drain(cx, pipe, *held, to),
            };
            match (result, &mut *self) {
                (Poll::Ready(Ok(n)), Self::Bytes { held, sent }) => {
                    if n == 0 && *sent < held.len() {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    *sent += n;
                    if *sent >= held.len() {
                        self.clear();
                    }
                }
                (Poll::Ready(Ok(n)), Self::Pipe { held, .. }) => {
                    *held = held.saturating_sub(n);
                    if *held == 0
                        && let Self::Pipe { pipe, .. } = std::mem::take(self)
                    {
                        pipe.give_back();
                    }
                }
                (Poll::Ready(Ok(_)), Self::Empty) => {}
                (Poll::Ready(Err(error)), _) => {
                    self.clear();
                    if !(to.is_datagram() && is_transient(&error)) {
                        return Err(error);
                    }
                }
                (Poll::Pending, _) => return Ok(false),
            }
        }
    }

    /// How many bytes are kept.
    pub(super) fn left(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Bytes { held, sent } => held.len() - sent,
            Self::Pipe { held, .. } => *held,
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
