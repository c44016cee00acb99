//! One session's half-way house: filled by the receive task, emptied by the session, ended by either.

use std::collections::VecDeque;
use std::mem::take;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use l4_core::conn::Passage;
use smallvec::SmallVec;

use super::manager::Limits;
use super::stats::{DropReason, Stats};
use crate::limits::SessionPermit;
use crate::relay::is_transient;
use crate::segments::RUN;

/// What the receive task and a session share. Its lock is contended by these two only and held for one queue operation.
pub(super) struct Lane<K> {
    /// Never given out twice by one table.
    pub(super) id: u64,
    pub(super) peer: K,
    idle_timeout: Duration,
    account: Arc<Account>,
    shared: Arc<Shared<K>>,
    state: Mutex<State>,
}

struct State {
    queue: VecDeque<Kept>,
    /// What the datagrams are counted as that [`Lane::poll_recv_many`] gave last: the session may have copied some.
    lent: usize,
    reader: Option<Waker>,
    /// Since when the session has been waiting for a datagram while none was sent. `None` while it is not waiting: a
    /// session that is dialling, or has datagrams to take, is not idle.
    idle_since: Option<Instant>,
    life: Life,
    /// Given back when the session is dropped: until then its handler may hold descriptors.
    permit: Option<SessionPermit>,
    /// Where datagrams go past the queue, while `passing` says that nothing is before them.
    passage: Option<Arc<Passage>>,
    /// The session has taken everything and waits for more, which it would only hand to the passage.
    passing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// Over for the table; the session has not been dropped yet.
    Ended,
    /// The session was dropped.
    Closed,
}

/// The session is over: the peer has none, and its datagrams were not taken.
pub(super) struct Gone;

/// How a lane stands with its idle timeout.
pub(super) enum Idle {
    /// It cannot expire before.
    Until(Instant),
    /// It expired just now.
    Expired(Option<Waker>),
    /// It was over before.
    Gone,
}

impl<K> Lane<K> {
    pub(super) fn new(
        id: u64,
        peer: K,
        idle_timeout: Duration,
        pool: Arc<Pool>,
        shared: Arc<Shared<K>>,
        permit: Option<SessionPermit>,
    ) -> Self {
        let state = State {
            queue: VecDeque::new(),
            lent: 0,
            reader: None,
            idle_since: None,
            life: Life::Open,
            permit,
            passage: None,
            passing: false,
        };
        Self {
            id,
            peer,
            idle_timeout,
            account: Arc::new(Account {
                held: AtomicUsize::new(0),
                pool,
            }),
            shared,
            state: Mutex::new(state),
        }
    }

    /// Takes datagrams that came at `now`: through the passage if the session has one and `pass` allows it, else into the
    /// queue, whose reader is then to be woken.
    pub(super) fn take(
        &self,
        now: Instant,
        datagrams: &[&[u8]],
        limits: &Limits,
        pass: bool,
    ) -> Result<Option<Waker>, Gone> {
        let mut state = self.lock();
        if state.life != Life::Open {
            return Err(Gone);
        }
        let mut rest = datagrams;
        if state.passing
            && pass
            && let Some(passage) = state.passage.clone()
        {
            // Only the receive task fills the queue, so it stays empty meanwhile; the session may send and end.
            drop(state);
            rest = self.pass(&passage, now, datagrams);
            if rest.is_empty() {
                return Ok(None);
            }
            state = self.lock();
            if state.life != Life::Open {
                // It ended just now, and these came before that.
                let lost = rest.len() as u64;
                self.shared
                    .stats
                    .add_dropped(DropReason::Undeliverable, lost);
                return Ok(None);
            }
        }
        // Until the session has taken what is queued, others must not overtake it.
        state.passing = false;
        let mut queued = false;
        for datagram in rest {
            match self.keep(&state, datagram, limits) {
                Ok(kept) => state.queue.push_back(kept),
                Err(reason) => {
                    self.shared.stats.add_dropped(reason, 1);
                    continue;
                }
            }
            queued = true;
        }
        if !queued {
            return Ok(None);
        }
        state.idle_since = None;
        Ok(state.reader.take())
    }

    /// A copy of `datagram` for the queue, or why not. The newest datagram is the one dropped, as the kernel does when a
    /// socket's buffer is full: it costs no copy, and what a handshake began with stays.
    fn keep(&self, state: &State, datagram: &[u8], limits: &Limits) -> Result<Kept, DropReason> {
        if state.queue.len() >= limits.queue {
            return Err(DropReason::QueueFull);
        }
        self.account.keep(datagram, limits.session_bytes)
    }

    /// Sends what can be sent at once; gives back the rest.
    fn pass<'a, 'b>(
        &self,
        passage: &Passage,
        now: Instant,
        datagrams: &'a [&'b [u8]],
    ) -> &'a [&'b [u8]] {
        let mut rest = datagrams;
        while let Some(first) = rest.first() {
            let sent = match passage.pass(now, rest) {
                Ok(sent) => sent.max(1),
                // That it was lost concerns nobody else.
                Err(error) if is_transient(&error) => {
                    passage.lost(now, first.len());
                    self.shared.stats.add_dropped(DropReason::Undeliverable, 1);
                    1
                }
                // It waits, or it finds the error, which it is to end with.
                Err(_) => break,
            };
            rest = rest.get(sent..).unwrap_or_default();
        }
        rest
    }

    /// Has datagrams go through `passage` while the session waits in [`Self::poll_recv_many`].
    pub(super) fn pass_to(&self, passage: Arc<Passage>) {
        self.lock().passage = Some(passage);
    }

    /// The next datagram, `None` once the session is over and everything queued was taken. `now` is asked only if
    /// waiting begins.
    pub(super) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        now: impl FnOnce() -> Instant,
    ) -> Poll<Option<Bytes>> {
        let mut state = self.lock();
        self.give_back(&mut state);
        state.passing = false;
        if let Some(datagram) = state.queue.pop_front() {
            return Poll::Ready(Some(Bytes::from_owner(datagram)));
        }
        state.poll_idle(cx, now).map(|()| None)
    }

    /// As [`Self::poll_recv`], of all that is there. It stays counted until the session receives again: it does so when
    /// it has sent what it copied out of `each`, for want of room where it sends to.
    pub(super) fn poll_recv_many(
        &self,
        cx: &mut Context<'_>,
        now: impl FnOnce() -> Instant,
        each: &mut dyn FnMut(&[&[u8]]),
    ) -> Poll<Option<()>> {
        let mut state = self.lock();
        self.give_back(&mut state);
        if state.queue.is_empty() {
            state.passing = state.passage.is_some();
            return state.poll_idle(cx, now).map(|()| None);
        }
        let some = state.queue.len().min(RUN);
        let mut taken: SmallVec<[Kept; 4]> = state.queue.drain(..some).collect();
        state.lent = taken.iter_mut().map(|kept| take(&mut kept.cost)).sum();
        drop(state);
        let datagrams: SmallVec<[&[u8]; RUN]> = taken.iter().map(AsRef::as_ref).collect();
        each(&datagrams);
        Poll::Ready(Some(()))
    }

    fn give_back(&self, state: &mut State) {
        let lent = take(&mut state.lent);
        if lent > 0 {
            self.account.release(lent);
        }
    }

    /// Counts `bytes` that wait for room to be sent to the peer as held by the session. Whether the sessions of the
    /// address may hold them.
    pub(super) fn hold(&self, bytes: usize) -> bool {
        self.account.hold(bytes)
    }

    /// Those are not held any more.
    pub(super) fn unhold(&self, bytes: usize) {
        self.account.release(bytes);
    }

    /// A datagram was sent to the peer: the session is not idle.
    pub(super) fn sent(&self, datagrams: u64, now: impl FnOnce() -> Instant) {
        self.shared.stats.add_sent(datagrams);
        if let Some(since) = &mut self.lock().idle_since {
            *since = now();
        }
    }

    /// A datagram could not be sent to the peer.
    pub(super) fn unsent(&self) {
        self.shared.stats.add_unsent();
    }

    /// Ends the lane if it is idle for long enough.
    pub(super) fn expire(&self, now: Instant) -> Idle {
        let mut state = self.lock();
        if state.life != Life::Open {
            return Idle::Gone;
        }
        let mut since = state.idle_since.unwrap_or(now);
        if let Some(passage) = &state.passage {
            since = since.max(passage.last());
        }
        let until = since + self.idle_timeout;
        if until > now {
            return Idle::Until(until);
        }
        state.life = Life::Ended;
        self.shared.stats.add_expired();
        self.shared.stats.add_ended();
        Idle::Expired(state.reader.take())
    }

    /// Ends the lane from the table's side; what is queued can still be taken.
    pub(super) fn end(&self) -> Option<Waker> {
        let mut state = self.lock();
        if state.life == Life::Open {
            state.life = Life::Ended;
            self.shared.stats.add_ended();
        }
        state.reader.take()
    }

    /// Ends the lane from the session's side, which drops what is queued. Never waits for the receive task.
    pub(super) fn close(self: &Arc<Self>) {
        let (was, queue, permit) = {
            let mut state = self.lock();
            state.reader = None;
            self.give_back(&mut state);
            (
                std::mem::replace(&mut state.life, Life::Closed),
                take(&mut state.queue),
                (state.permit.take(), state.passage.take()),
            )
        };
        drop((queue, permit));
        if was == Life::Open {
            self.shared.stats.add_ended();
        }
        match was {
            Life::Open => self.shared.closed(Some(self.clone())),
            // The table has ended it, and it is not there any more. But somebody may wait for its socket to be free.
            Life::Ended => self.shared.closed(None),
            Life::Closed => {}
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().life == Life::Open
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock, so a poisoned one is still consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Waits for a datagram, of which none is there. Ready when the session is over.
    fn poll_idle(&mut self, cx: &mut Context<'_>, now: impl FnOnce() -> Instant) -> Poll<()> {
        if self.life != Life::Open {
            return Poll::Ready(());
        }
        // A burst must not cost an otherwise silent session 2 KiB for the rest of its life.
        if self.queue.capacity() > SMALL_QUEUE {
            self.queue = VecDeque::new();
        }
        self.idle_since.get_or_insert_with(now);
        match &mut self.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            reader @ None => *reader = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

/// What all lanes of a table share: the counters, and the list of those in it that were closed since it last looked.
///
/// A lane is entered once, by itself, so the list is never longer than the number of sessions, and a late entry removes
/// nothing but the session it names.
pub(super) struct Shared<K> {
    pub(super) stats: Arc<Stats>,
    closed: Mutex<Closed<K>>,
}

struct Closed<K> {
    /// Whether one was closed that is not in the table any more.
    other: bool,
    /// `None` once the table is gone and nobody looks any more.
    lanes: Option<Vec<Arc<Lane<K>>>>,
    watcher: Option<Waker>,
}

impl<K> Shared<K> {
    pub(super) fn new(stats: Arc<Stats>) -> Self {
        Self {
            stats,
            closed: Mutex::new(Closed {
                other: false,
                lanes: Some(Vec::new()),
                watcher: None,
            }),
        }
    }

    /// Ready when a lane was closed since [`Self::take_closed`].
    pub(super) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut closed = self.lock();
        if closed.other || closed.lanes.as_ref().is_none_or(|lanes| !lanes.is_empty()) {
            return Poll::Ready(());
        }
        closed.watcher = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Exchanges the list of closed lanes for an empty one.
    pub(super) fn take_closed(&self, empty: &mut Vec<Arc<Lane<K>>>) {
        let mut closed = self.lock();
        closed.other = false;
        if let Some(lanes) = &mut closed.lanes {
            std::mem::swap(lanes, empty);
        }
    }

    /// The table is gone.
    pub(super) fn abandon(&self) {
        let lanes = self.lock().lanes.take();
        drop(lanes);
    }

    fn closed(&self, lane: Option<Arc<Lane<K>>>) {
        let watcher = {
            let mut closed = self.lock();
            closed.other |= lane.is_none();
            if let Some(lanes) = &mut closed.lanes {
                lanes.extend(lane);
            }
            closed.watcher.take()
        };
        if let Some(watcher) = watcher {
            watcher.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Closed<K>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that a session holds in datagrams, wherever they are: queued, unread in the connection, with a handler, or
/// waiting for room to be sent.
struct Account {
    held: AtomicUsize,
    pool: Arc<Pool>,
}

/// Bytes that the sessions of an address hold together beyond what each has reserved.
#[derive(Debug)]
pub(super) struct Pool {
    taken: AtomicUsize,
    limit: usize,
}

/// A kept datagram; gives its bytes back when the last reference goes.
struct Kept {
    bytes: Box<[u8]>,
    /// What is to be given back.
    cost: usize,
    account: Arc<Account>,
}

impl Account {
    /// Copies `datagram` if the session and the address may hold it.
    fn keep(self: &Arc<Self>, datagram: &[u8], limit: usize) -> Result<Kept, DropReason> {
        let cost = cost(datagram.len());
        let (held, fits) = self.add(cost);
        // One receive task keeps for a session. Those of several sockets may, when the last bytes of the address are about to
        // go, refuse each other what would have fitted once.
        let reason = if held > limit {
            DropReason::QueueFull
        } else if !fits {
            DropReason::MemoryLimit
        } else {
            return Ok(Kept {
                bytes: datagram.into(),
                cost,
                account: self.clone(),
            });
        };
        self.release(cost);
        Err(reason)
    }

    /// Adds `cost`, unless that is more than the address may hold.
    fn hold(&self, cost: usize) -> bool {
        let (_, fits) = self.add(cost);
        if !fits {
            self.release(cost);
        }
        fits
    }

    /// What is held with `cost`, and whether the address may.
    fn add(&self, cost: usize) -> (usize, bool) {
        let before = self.held.fetch_add(cost, Ordering::Relaxed);
        let from_pool = beyond_reserve(before + cost) - beyond_reserve(before);
        (before + cost, from_pool == 0 || self.pool.take(from_pool))
    }

    fn release(&self, cost: usize) {
        let before = self.held.fetch_sub(cost, Ordering::Relaxed);
        let to_pool = beyond_reserve(before) - beyond_reserve(before - cost);
        // Most often nothing: then the other sockets of the address are not disturbed.
        if to_pool > 0 {
            self.pool.taken.fetch_sub(to_pool, Ordering::Relaxed);
        }
    }
}

impl Pool {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            taken: AtomicUsize::new(0),
            limit,
        }
    }

    /// Takes `bytes`. Whether they were there.
    fn take(&self, bytes: usize) -> bool {
        let before = self.taken.fetch_add(bytes, Ordering::Relaxed);
        self.covers(before, bytes)
    }

    /// Whether a new session's first datagram finds room.
    pub(super) fn has_room(&self, len: usize) -> bool {
        let needed = beyond_reserve(cost(len));
        needed == 0 || self.covers(self.taken.load(Ordering::Relaxed), needed)
    }

    /// Whether there are `bytes` where `taken` are taken. Those may be less than none for a moment: what one thread has just
    /// added to a session, another gives back before the first has taken it from here.
    fn covers(&self, taken: usize, bytes: usize) -> bool {
        let taken = taken.cast_signed().max(0).cast_unsigned();
        taken.saturating_add(bytes) <= self.limit
    }

    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.cost > 0 {
            self.account.release(self.cost);
        }
    }
}

/// What a datagram of `len` bytes is counted as: with its two allocations and its place in the queue.
pub(super) fn cost(len: usize) -> usize {
    len + 128
}

fn beyond_reserve(held: usize) -> usize {
    held.saturating_sub(RESERVE)
}

/// What each session can hold whatever the others do: one datagram that fits an Ethernet frame.
pub(super) const RESERVE: usize = 2048;

/// Room for as many datagrams is kept by a session that waits.
const SMALL_QUEUE: usize = 8;
