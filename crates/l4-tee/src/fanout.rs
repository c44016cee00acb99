//! Two ends of one client: the main end reads, and what it read the branch end gets, too; both write.
//!
//! They live in different tasks and meet under a lock, held for one poll at a time. A transport keeps one waker for each
//! direction, so it is given one that wakes both.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use bytes::Bytes;
use l4_core::conn::Session;
use l4_core::{Addr, Io, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// The most that the main end may be ahead of the branch, in bytes. A datagram counts with what it costs to keep.
pub const BUFFER: usize = 64 * 1024;

/// The end that reads from the client. The client's connection ends with it.
pub struct Main(Arc<Fanout>);

/// The end that gets a copy of what the main end read.
pub struct Branch(Arc<Fanout>);

/// Both ends for a client on `below`, and what resolves when the main end is gone.
pub fn split(below: Transport) -> (Io, Io, oneshot::Receiver<()>) {
    let datagram = below.is_datagram();
    let local = if datagram { below.local() } else { None };
    let (alive, over) = oneshot::channel();
    let wakers = Arc::new(Wakers::default());
    let fanout = Arc::new(Fanout {
        both: wakers.clone().into(),
        wakers,
        local: local.unwrap_or(Addr::UNNAMED),
        state: Mutex::new(State {
            below: Some(below),
            alive: Some(alive),
            queue: Queue::new(datagram),
            end: None,
            branch_lives: true,
            shut: false,
            unsent: None,
        }),
    });
    let (main, branch) = (Main(fanout.clone()), Branch(fanout));
    if datagram {
        let (main, branch) = (Box::new(main), Box::new(branch));
        (Io::Datagram(main), Io::Datagram(branch), over)
    } else {
        let (main, branch) = (Box::new(main), Box::new(branch));
        (Io::Layer(main), Io::Layer(branch), over)
    }
}

struct Fanout {
    state: Mutex<State>,
    wakers: Arc<Wakers>,
    both: Waker,
    local: Addr,
}

struct State {
    /// The client, until the main end is gone.
    below: Option<Transport>,
    /// Dropped with it.
    alive: Option<oneshot::Sender<()>>,
    queue: Queue,
    /// How the client's stream ended, once the main end has seen it.
    end: Option<Result<(), io::ErrorKind>>,
    branch_lives: bool,
    /// The main end has ended our direction.
    shut: bool,
    /// The rest of a write that was accepted whole and not taken whole: no other bytes may come between.
    unsent: Option<Unsent>,
}

struct Unsent {
    data: Box<[u8]>,
    sent: usize,
}

/// What the branch has yet to take.
enum Queue {
    Stream(VecDeque<u8>),
    Datagrams(VecDeque<Bytes>),
}

/// Who waits, by end and direction.
#[derive(Default)]
struct Wakers(Mutex<[[Option<Waker>; 2]; 2]>);

#[derive(Clone, Copy)]
enum End {
    Main,
    Branch,
}

#[derive(Clone, Copy)]
enum Way {
    Read,
    Write,
}

impl Wakers {
    fn slots(&self) -> MutexGuard<'_, [[Option<Waker>; 2]; 2]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, end: End, way: Way, cx: &Context<'_>) {
        let slot = &mut self.slots()[end as usize][way as usize];
        match slot {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *slot = Some(cx.waker().clone()),
        }
    }

    fn wake_end(&self, end: End) {
        let wakers = std::mem::take(&mut self.slots()[end as usize]);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_end(End::Main);
        self.wake_end(End::Branch);
    }
}

impl Fanout {
    /// The state, for one poll of one end, which is woken when something changes.
    fn enter(&self, end: End, way: Way, cx: &Context<'_>) -> MutexGuard<'_, State> {
        self.wakers.keep(end, way, cx);
        self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of one side must not end the other.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn context(&self) -> Context<'_> {
        Context::from_waker(&self.both)
    }
}

impl State {
    /// Reads from the client for both ends, into `buf`, as much as the branch has room for.
    fn poll_read(&mut self, fanout: &Fanout, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let cx = &mut fanout.context();
        // Whoever wrote it may be gone, so that nobody else sends the rest.
        let _ = self.poll_unsent(cx);
        let Some(below) = &mut self.below else {
            return Poll::Ready(Ok(()));
        };
        if !self.branch_lives {
            return Pin::new(below).poll_read(cx, buf);
        }
        let room = self.queue.room().min(buf.remaining());
        if room == 0 && buf.remaining() > 0 {
            return Poll::Pending;
        }
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
        let read = ready!(Pin::new(below).poll_read(cx, &mut part));
        let n = part.filled().len();
        if let Queue::Stream(queue) = &mut self.queue {
            queue.extend(part.filled());
        }
        buf.advance(n);
        match &read {
            Ok(()) if n == 0 && room > 0 => self.end = Some(Ok(())),
            Ok(()) => {}
            Err(error) => self.end = Some(Err(error.kind())),
        }
        fanout.wakers.wake_end(End::Branch);
        Poll::Ready(read)
    }

    /// Receives a datagram for both ends.
    fn poll_datagram(&mut self, fanout: &Fanout) -> Poll<Option<Bytes>> {
        let Some(below) = &mut self.below else {
            return Poll::Ready(None);
        };
        if self.branch_lives && self.queue.room() == 0 {
            return Poll::Pending;
        }
        let received = ready!(below.poll_next_datagram(&mut fanout.context()));
        match (&received, &mut self.queue) {
            (None, _) => self.end = Some(Ok(())),
            (Some(datagram), Queue::Datagrams(queue)) if self.branch_lives => {
                queue.push_back(datagram.clone());
            }
            _ => {}
        }
        fanout.wakers.wake_end(End::Branch);
        Poll::Ready(received)
    }

    /// Nothing more comes to the branch but what is queued.
    fn end_for_branch(&self) -> Option<io::Result<()>> {
        match (self.end, &self.below) {
            (Some(Err(kind)), _) => Some(Err(kind.into())),
            (Some(Ok(())), _) | (None, None) => Some(Ok(())),
            (None, Some(_)) => None,
        }
    }

    /// Accepts a write as a whole, or, of a long one, so much that the part is kept together.
    fn poll_write(&mut self, fanout: &Fanout, data: &[u8]) -> Poll<io::Result<usize>> {
        let cx = &mut fanout.context();
        ready!(self.poll_unsent(cx))?;
        let Some(below) = &mut self.below else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let data = data.get(..BUFFER).unwrap_or(data);
        let n = ready!(below.poll_send(cx, data))?;
        match data.get(n..) {
            // Nothing at all was taken of something: said as it is.
            Some(rest) if n > 0 && !rest.is_empty() => {
                self.unsent = Some(Unsent {
                    data: rest.into(),
                    sent: 0,
                });
                // Likely pending; asking is what gets the wake-up. An error shows at the next call.
                let _ = self.poll_unsent(cx);
                Poll::Ready(Ok(data.len()))
            }
            _ => Poll::Ready(Ok(n)),
        }
    }

    /// Sends the rest of an accepted write.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let (Some(unsent), Some(below)) = (&mut self.unsent, &mut self.below) {
            let rest = unsent.data.get(unsent.sent..).unwrap_or_default();
            if rest.is_empty() {
                self.unsent = None;
                break;
            }
            match ready!(below.poll_send(cx, rest)) {
                Ok(n) if n > 0 => unsent.sent += n,
                Ok(_) => {
                    self.unsent = None;
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                Err(error) => {
                    self.unsent = None;
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, fanout: &Fanout) -> Poll<io::Result<()>> {
        let cx = &mut fanout.context();
        ready!(self.poll_unsent(cx))?;
        match &mut self.below {
            Some(below) => Pin::new(below).poll_flush(cx),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_send_datagram(&mut self, fanout: &Fanout, datagram: &[u8]) -> Poll<io::Result<()>> {
        match &mut self.below {
            Some(below) => below
                .poll_send(&mut fanout.context(), datagram)
                .map_ok(|_| ()),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

impl Queue {
    fn new(datagram: bool) -> Self {
        match datagram {
            true => Self::Datagrams(VecDeque::new()),
            false => Self::Stream(VecDeque::new()),
        }
    }

    fn room(&self) -> usize {
        let held = match self {
            Self::Stream(bytes) => bytes.len(),
            Self::Datagrams(datagrams) => {
                datagrams.iter().map(|d| d.len() + size_of::<Bytes>()).sum()
            }
        };
        BUFFER.saturating_sub(held)
    }

    /// Empty it owns no memory.
    fn clear(&mut self) {
        match self {
            Self::Stream(bytes) => *bytes = VecDeque::new(),
            Self::Datagrams(datagrams) => *datagrams = VecDeque::new(),
        }
    }
}

impl AsyncRead for Main {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0
            .enter(End::Main, Way::Read, cx)
            .poll_read(&self.0, buf)
    }
}

impl AsyncWrite for Main {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0
            .enter(End::Main, Way::Write, cx)
            .poll_write(&self.0, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.enter(End::Main, Way::Write, cx).poll_flush(&self.0)
    }

    /// Ends the answer to the client. What the branch has accepted of its own is sent before; it cannot write after.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.enter(End::Main, Way::Write, cx);
        state.shut = true;
        let cx = &mut self.0.context();
        ready!(state.poll_unsent(cx))?;
        match &mut state.below {
            Some(below) => Pin::new(below).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Session for Main {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.0
            .enter(End::Main, Way::Read, cx)
            .poll_datagram(&self.0)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        self.0
            .enter(End::Main, Way::Write, cx)
            .poll_send_datagram(&self.0, datagram)
    }

    fn local(&self) -> Addr {
        self.0.local.clone()
    }
}

impl Drop for Main {
    fn drop(&mut self) {
        // The socket is closed now, not when the branch is done, and outside the lock.
        let mut state = self.0.lock();
        let gone = (state.below.take(), state.alive.take());
        drop(state);
        drop(gone);
        self.0.wakers.wake_end(End::Branch);
    }
}

impl AsyncRead for Branch {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.enter(End::Branch, Way::Read, cx);
        if let Queue::Stream(queue) = &mut state.queue
            && !queue.is_empty()
        {
            while !queue.is_empty() && buf.remaining() > 0 {
                let (first, _) = queue.as_slices();
                let n = first.len().min(buf.remaining());
                buf.put_slice(first.get(..n).unwrap_or_default());
                queue.drain(..n);
            }
            if queue.is_empty() {
                state.queue.clear();
            }
            self.0.wakers.wake_end(End::Main);
            return Poll::Ready(Ok(()));
        }
        state.end_for_branch().map_or(Poll::Pending, Poll::Ready)
    }
}

impl AsyncWrite for Branch {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.enter(End::Branch, Way::Write, cx);
        if state.shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        state.poll_write(&self.0, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0
            .enter(End::Branch, Way::Write, cx)
            .poll_flush(&self.0)
    }

    /// The branch says no more. The client is not told: the main side may have more to say.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.enter(End::Branch, Way::Write, cx);
        match &state.below {
            Some(_) => state.poll_unsent(&mut self.0.context()),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Session for Branch {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.0.enter(End::Branch, Way::Read, cx);
        if let Queue::Datagrams(queue) = &mut state.queue
            && let Some(datagram) = queue.pop_front()
        {
            self.0.wakers.wake_end(End::Main);
            return Poll::Ready(Some(datagram));
        }
        match state.end_for_branch() {
            Some(_) => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        self.0
            .enter(End::Branch, Way::Write, cx)
            .poll_send_datagram(&self.0, datagram)
    }

    fn local(&self) -> Addr {
        self.0.local.clone()
    }
}

impl Drop for Branch {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.branch_lives = false;
        state.queue.clear();
        drop(state);
        self.0.wakers.wake_end(End::Main);
    }
}
