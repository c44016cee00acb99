//! The scratch buffer of a thread, and the stash for what a receiver did not take.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll};

use l4_core::Transport;

use super::is_transient;

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
pub(super) struct Stash {
    held: Option<Box<[u8]>>,
    sent: usize,
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
                    self.held = Some(data.into());
                    self.sent = 0;
                    return Ok(());
                }
            }
        }
    }

    /// Sends what is kept; whether nothing is left.
    pub(super) fn flush(&mut self, to: &mut Transport, cx: &mut Context<'_>) -> io::Result<bool> {
        while let Some(held) = &self.held {
            match to.poll_send(cx, &held[self.sent..]) {
                Poll::Ready(Ok(0)) if self.sent < held.len() => {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                Poll::Ready(Ok(n)) => {
                    self.sent += n;
                    if self.sent >= held.len() {
                        self.clear();
                    }
                }
                Poll::Ready(Err(error)) => {
                    self.clear();
                    if !(to.is_datagram() && is_transient(&error)) {
                        return Err(error);
                    }
                }
                Poll::Pending => return Ok(false),
            }
        }
        Ok(true)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
