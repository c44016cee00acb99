//! Messages between two plain sockets: which of the two has one, and passing it on.
//!
//! A task that waits for two sockets is woken by either and not told by which. To ask the runtime about both, and to
//! register with both again, is more than half of what a small message costs in the process. Here each socket is waited
//! for with a waker of its own, which notes that it was used before it wakes the task: the other socket is left alone.
//!
//! Only what is usual is decided here. The rest is said to the relay ([`Pass`]), which goes on as with anything else.

use std::io::{self, Read as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use l4_core::Transport;
use socket2::SockRef;
use tokio::io::Interest;

use super::scratch::{SIZE, Stash, with_scratch};
use super::socket::Socket;

#[cfg(test)]
mod tests;

/// The watch on each end of a relay.
pub(super) struct Watches {
    pub(super) client: Watch,
    pub(super) peer: Watch,
}

impl Watches {
    /// Of sockets that have to be looked at yet; it is `task` that is woken.
    pub(super) fn new(task: &Waker) -> Self {
        let [client, peer] = [Watch::new(task), Watch::new(task)];
        Self { client, peer }
    }

    /// Has `task` woken from now on. If it was another before, both sockets have to be looked at.
    pub(super) fn wake(&mut self, task: &Waker) {
        if !self.client.signal.task.will_wake(task) {
            *self = Self::new(task);
        }
    }

    /// Somebody else is going to read the sockets, and to wait for them with wakers of theirs.
    pub(super) fn forget(&self) {
        self.client.forget();
        self.peer.forget();
    }
}

/// Whether a socket has to be looked at, or its next byte wakes the task.
///
/// The rule: a socket that is not due is registered with the runtime with this watch's waker, and the runtime has not
/// taken that waker since. It takes it after it has noted an event, and may do so on another thread, long after this
/// task has seen the event, read what there was, and registered again. Whether something was there to read therefore
/// says nothing about the registration. That the waker was used does: it says so itself.
///
/// A watch may be due without reason, which costs a look. It is never not due without a registration.
pub(super) struct Watch {
    signal: Arc<Signal>,
    /// That of `signal`.
    waker: Waker,
}

struct Signal {
    due: AtomicBool,
    task: Waker,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // The other way round the task might look, find nothing due, and not be woken again.
        self.due.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl Watch {
    fn new(task: &Waker) -> Self {
        let signal = Arc::new(Signal {
            due: AtomicBool::new(true),
            task: task.clone(),
        });
        let waker = signal.clone().into();
        Self { signal, waker }
    }

    pub(super) fn is_due(&self) -> bool {
        self.signal.due.load(Ordering::Acquire)
    }

    fn forget(&self) {
        self.signal.due.store(true, Ordering::Relaxed);
    }

    /// Registers for the next event. `register` is pending only if it has kept the waker, or used it already.
    fn register<T>(&self, register: impl FnOnce(&mut Context<'_>) -> Poll<T>) {
        // Before, so that a waker used at once, or one of the last time used late, is not overlooked.
        self.signal.due.store(false, Ordering::Release);
        if register(&mut Context::from_waker(&self.waker)).is_ready() {
            self.forget();
        }
    }
}

/// What came of looking at a socket that was due.
pub(super) enum Pass {
    /// Nothing was there.
    Nothing,
    /// So many bytes were received, and sent as far as there was room. The rest is stashed.
    Moved(usize),
    /// So many bytes were received, and are lost, because the receiver is broken.
    Lost(usize, io::Error),
    /// The end of the stream, which can be read again.
    End,
    /// The sender is broken.
    Broken(io::Error),
}

/// Whether [`pass`] can be used from one to the other and back.
pub(super) fn joins(one: &Transport, other: &Transport) -> bool {
    let plain = |end: &Transport| end.is_plain() && Socket::of(end).is_some();
    plain(one) && plain(other)
}

/// Receives once and sends that. The socket is not due any more when it was emptied and nothing has come since.
/// Call only on an empty stash, between transports that are [joined](joins).
pub(super) fn pass(
    watch: &Watch,
    from: &mut Transport,
    to: &mut Transport,
    stash: &mut Stash,
    cx: &mut Context<'_>,
) -> Pass {
    let (passed, emptied) = with_scratch(|scratch| {
        let Some((received, emptied)) =
            Socket::of(from).map(|socket| try_receive(&socket, scratch))
        else {
            return (Pass::End, false);
        };
        let passed = match received {
            Ok(0) => Pass::End,
            Ok(n) => {
                from.passed_from(n);
                match send(to, stash, cx, &scratch[..n]) {
                    Ok(()) => Pass::Moved(n),
                    Err(error) => Pass::Lost(n, error),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Pass::Nothing,
            Err(error) => Pass::Broken(error),
        };
        (passed, emptied)
    });
    if emptied && let Some(socket) = Socket::of(from) {
        watch.register(|cx| socket.poll_read_ready(cx));
    }
    passed
}

fn send(
    to: &mut Transport,
    stash: &mut Stash,
    cx: &mut Context<'_>,
    data: &[u8],
) -> io::Result<()> {
    let sent = match Socket::of(to).map(|socket| socket.try_send(data)) {
        Some(Ok(n)) => n,
        Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
        _ => 0,
    };
    to.passed_to(sent);
    match data.get(sent..) {
        None | Some([]) => Ok(()),
        // Waits for room as well.
        Some(rest) => stash.send(to, cx, rest),
    }
}

/// Receives if the socket is believed ready, and whether that emptied it.
fn try_receive(socket: &Socket<'_>, buf: &mut [u8; SIZE]) -> (io::Result<usize>, bool) {
    let mut received = Err(io::ErrorKind::WouldBlock.into());
    let done = socket.try_io(Interest::READABLE, || {
        received = (&*SockRef::from(socket)).read(buf);
        match received {
            // Saying so spares the call that would find out. An event that comes meanwhile is not forgotten, and
            // neither is an end or an error that was told with this one.
            Ok(1..SIZE) => Err(io::ErrorKind::WouldBlock.into()),
            Err(ref error) => Err(error.kind().into()),
            Ok(_) => Ok(()),
        }
    });
    let emptied = done.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    (received, emptied)
}
