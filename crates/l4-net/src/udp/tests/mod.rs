//! The state machine alone, by story and by simulation; then the session, then real sockets.

mod manager;
mod session;
mod simulation;
mod sockets;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use bytes::Bytes;

use super::lane::Lane;

/// A waker that counts.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Bell {
    fn rung(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Receives as a session would, at the time `now`, to be woken with `bell`.
fn recv<K>(lane: &Lane<K>, now: Instant, bell: &Arc<Bell>) -> Poll<Option<Bytes>> {
    let waker = Waker::from(bell.clone());
    lane.poll_recv(&mut Context::from_waker(&waker), || now)
}
