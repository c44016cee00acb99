//! Keep-alive for dialled connections, turned on when they have lasted a moment.
//!
//! An accepted socket inherits the option from its listener. A dialled one has to be given it, which costs three system
//! calls, and most connections are over long before the first probe would be due. So relayed connections are noted here,
//! and a task gives the option to those that are still there after a second or two. Measured over a short connection
//! (`cargo xtask bench --scenario syscalls`): three calls of 23 less, and a fourth, because a runtime that has a timer
//! due within the second need not be woken when a later one, such as a dial's limit, is set.
//!
//! A relay can ask to be woken then: what only matters to connections that last, such as a timer of their own, need not
//! be made before.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use foldhash::fast::FixedState;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::sockopt;

/// A connection that will be given keep-alive if it lasts. Drop it before the socket it was made for.
pub(crate) struct KeepAlive {
    socket: RawFd,
    /// Whether a waker may be kept for it.
    awaited: bool,
}

/// How long a connection is left alone, at least; at most twice that.
const AGE: Duration = Duration::from_secs(1);

/// So many sockets are given the option before others get the lock.
const AT_ONCE: usize = 256;

/// Noted connections. Every descriptor in here is open: its [`KeepAlive`] takes it out before it is closed.
static NOTED: Mutex<Noted> = Mutex::new(Noted {
    new: HashSet::with_hasher(FixedState::with_seed(0)),
    old: HashSet::with_hasher(FixedState::with_seed(0)),
    awaited: HashMap::with_hasher(FixedState::with_seed(0)),
    ticking: false,
});

struct Noted {
    /// Since the last tick.
    new: HashSet<RawFd, FixedState>,
    /// Since the tick before.
    old: HashSet<RawFd, FixedState>,
    /// Whom to wake when some of these have lasted.
    awaited: HashMap<RawFd, Waker, FixedState>,
    /// Whether there is a task that ticks.
    ticking: bool,
}

impl KeepAlive {
    /// Notes `socket`.
    ///
    /// # Panics
    /// Outside a tokio runtime with timers.
    pub(crate) fn note(socket: &TcpStream) -> Self {
        let socket = socket.as_raw_fd();
        let begin = {
            let mut noted = lock();
            noted.new.insert(socket);
            !mem::replace(&mut noted.ticking, true)
        };
        if begin {
            // Without the lock: a runtime that is going down drops the task at once, which takes it.
            tokio::spawn(tick(Ticking));
        }
        Self {
            socket,
            awaited: false,
        }
    }

    /// Ready once the connection has been given keep-alive.
    pub(crate) fn poll_lasted(&mut self, cx: &Context<'_>) -> Poll<()> {
        let mut noted = lock();
        if !noted.new.contains(&self.socket) && !noted.old.contains(&self.socket) {
            return Poll::Ready(());
        }
        let kept = noted.awaited.get(&self.socket);
        if !kept.is_some_and(|waker| waker.will_wake(cx.waker())) {
            let before = noted.awaited.insert(self.socket, cx.waker().clone());
            // What dropping the last waker of a task drops may be one of these.
            drop(noted);
            drop(before);
            self.awaited = true;
        }
        Poll::Pending
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        let mut noted = lock();
        if !noted.new.remove(&self.socket) {
            noted.old.remove(&self.socket);
        }
        let waker = match self.awaited {
            true => noted.awaited.remove(&self.socket),
            false => None,
        };
        drop(noted);
        drop(waker);
    }
}

/// Dropped with the ticking task when its runtime ends. Connections of another runtime get the option at once then:
/// nobody else would give it to them.
struct Ticking;

impl Drop for Ticking {
    fn drop(&mut self) {
        let mut noted = lock();
        noted.ticking = false;
        let new = mem::take(&mut noted.new);
        noted.old.extend(new);
        drop(noted);
        while !give_to_old() {}
    }
}

async fn tick(ticking: Ticking) {
    loop {
        sleep(AGE).await;
        while !give_to_old() {
            tokio::task::yield_now().await;
        }
        let mut noted = lock();
        noted.old = mem::take(&mut noted.new);
        if noted.old.is_empty() {
            // Said under the lock: whoever notes a connection from now on begins anew.
            noted.ticking = false;
            mem::forget(ticking);
            return;
        }
    }
}

/// Gives the option to some of the old connections; whether that were all.
#[allow(unsafe_code)]
fn give_to_old() -> bool {
    let mut noted = lock();
    // Looked for once: the first element of a set that is being emptied takes longer to find each time.
    let some: Vec<RawFd> = noted.old.iter().take(AT_ONCE).copied().collect();
    let mut lasted = Vec::new();
    for socket in some {
        noted.old.remove(&socket);
        // SAFETY: the descriptor is open, because whoever owns it cannot have dropped its `KeepAlive`, which needs the
        // lock held here and takes the descriptor out of the sets.
        let socket = unsafe { BorrowedFd::borrow_raw(socket) };
        // A connection that is broken already refuses, and needs no probes.
        let _ = sockopt::set_keepalive(&socket);
        lasted.extend(noted.awaited.remove(&socket.as_raw_fd()));
    }
    let all = noted.old.is_empty();
    drop(noted);
    lasted.into_iter().for_each(Waker::wake);
    all
}

fn lock() -> MutexGuard<'static, Noted> {
    NOTED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_lasts_is_probed_and_one_that_is_gone_is_forgotten() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let lasting = TcpStream::connect(address).await.unwrap();
        let short = TcpStream::connect(address).await.unwrap();
        let kept = KeepAlive::note(&lasting);
        let gone = KeepAlive::note(&short);
        let number = short.as_raw_fd();
        assert!(!SockRef::from(&lasting).keepalive().unwrap());
        drop(gone);
        assert!(!lock().new.contains(&number) && !lock().old.contains(&number));
        while !SockRef::from(&lasting).keepalive().unwrap() {
            sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(
            SockRef::from(&lasting).tcp_keepalive_time().unwrap(),
            sockopt::KEEPALIVE_IDLE
        );
        assert_eq!(
            SockRef::from(&lasting).tcp_keepalive_interval().unwrap(),
            sockopt::KEEPALIVE_INTERVAL
        );
        assert_eq!(
            SockRef::from(&lasting).tcp_keepalive_retries().unwrap(),
            sockopt::KEEPALIVE_PROBES
        );
        assert!(!SockRef::from(&short).keepalive().unwrap());
        drop(kept);
    }

    #[tokio::test]
    async fn who_waits_for_a_connection_to_last_is_woken_and_one_that_is_gone_keeps_no_waker() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let lasting = TcpStream::connect(address).await.unwrap();
        let short = TcpStream::connect(address).await.unwrap();
        let mut kept = KeepAlive::note(&lasting);
        let mut gone = KeepAlive::note(&short);
        let number = short.as_raw_fd();
        std::future::poll_fn(|cx| {
            assert!(gone.poll_lasted(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        assert!(lock().awaited.contains_key(&number));
        drop(gone);
        assert!(!lock().awaited.contains_key(&number));
        // Nothing else wakes this.
        std::future::poll_fn(|cx| kept.poll_lasted(cx)).await;
        assert!(SockRef::from(&lasting).keepalive().unwrap());
        assert!(!lock().awaited.contains_key(&lasting.as_raw_fd()));
    }

    #[test]
    fn noting_a_connection_while_the_runtime_goes_down_does_not_hang() {
        struct NotesWhenDropped(TcpStream);

        impl Drop for NotesWhenDropped {
            fn drop(&mut self) {
                drop(KeepAlive::note(&self.0));
            }
        }

        let (done, finished) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                let last = NotesWhenDropped(TcpStream::connect(address).await.unwrap());
                tokio::spawn(async move {
                    std::future::pending::<()>().await;
                    drop(last);
                });
                tokio::task::yield_now().await;
            });
            drop(runtime);
            done.send(()).unwrap();
        });
        finished.recv_timeout(Duration::from_secs(30)).unwrap();
    }
}
