//! What holds back reads.

use std::task::{Context, Poll, ready};

/// Says how much may be read, and when: what a limiter puts under a connection.
///
/// A transport asks before each read and settles right after it, within one poll.
pub trait ReadLimit: Send + Sync {
    /// How many of the `wanted` bytes may be read now: at least one, reserved until [`taken`](Self::taken) is called.
    /// For a datagram one byte is wanted, whatever its size: it is passed whole.
    fn poll_allow(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize>;

    /// So many bytes were read: fewer than reserved, or none, or, with a datagram, more.
    fn taken(&mut self, n: usize);
}

/// Two limits: the stricter one counts.
pub(super) struct Both(pub(super) Box<dyn ReadLimit>, pub(super) Box<dyn ReadLimit>);

impl ReadLimit for Both {
    fn poll_allow(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        let first = ready!(self.0.poll_allow(cx, wanted));
        match self.1.poll_allow(cx, first) {
            Poll::Ready(second) => Poll::Ready(second.min(first)),
            Poll::Pending => {
                self.0.taken(0);
                Poll::Pending
            }
        }
    }

    fn taken(&mut self, n: usize) {
        self.0.taken(n);
        self.1.taken(n);
    }
}
