//! The sessions of one datagram socket: finding, opening, bounding and ending them.
//!
//! A state machine. Datagrams, the time and the server's answers come in as arguments; what comes out are wakers to
//! call and one deadline to wait for. It is owned by the receive task alone; sessions reach it through their [`Lane`].

use std::cmp::Ordering;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::lane::{Idle, Lane, Pool, Shared, cost};
use super::stats::{DropReason, Stats};
use crate::limits::{ConnectionLimit, SessionPermit};

/// How much one datagram socket may hold.
///
/// An address that has several, one for each shard, may hold as much as one: each socket gets its part of `sessions`, rounded
/// up, and `total_bytes` is for all of them together.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sessions. Datagrams of further peers are dropped until one ends. Source addresses can be forged, so this is what
    /// bounds the memory that a flood of them costs: about 1.6 KiB for a session that waits. Default 65 536.
    pub sessions: usize,
    /// Datagrams waiting in one session. One receive buffer can bring 64 merged ones of one peer, and one batch several
    /// such buffers. Default 256.
    pub queue: usize,
    /// Bytes in datagrams that one session may hold, waiting or taken. Default 1 MiB.
    pub session_bytes: usize,
    /// Bytes in datagrams that all sessions together may hold beyond the first 2 KiB of each, answers that wait for room
    /// to be sent included. Default 64 MiB.
    pub total_bytes: usize,
    /// What the sessions of all sockets of the process are counted in, beside its connections. Default: nothing.
    pub process: Option<ConnectionLimit>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 65_536,
            queue: 256,
            session_bytes: 1024 * 1024,
            total_bytes: 64 * 1024 * 1024,
            process: None,
        }
    }
}

impl Limits {
    /// What is left for one of so many `sockets` of an address.
    pub(crate) fn shared_by(self, sockets: usize) -> Self {
        let sockets = sockets.max(1);
        Self {
            sessions: self.sessions.div_ceil(sockets),
            ..self
        }
    }
}

/// The sessions of one socket, by peer. Hashed with a secret key, because peers choose their addresses. Dropping it
/// ends them all.
pub(super) struct Table<K> {
    limits: Limits,
    lanes: HashMap<K, Arc<Lane<K>>>,
    /// One entry for each open session, at a time before which it cannot expire, and a bounded number of entries of
    /// sessions that have ended. Activity moves no entry: one that comes up too early is put back with the right time.
    due: BinaryHeap<Due<K>>,
    next_id: u64,
    draining: bool,
    /// Whether sessions that pass everything on may do so from here; see [`Self::let_pass`].
    pass: bool,
    pool: Arc<Pool>,
    shared: Arc<Shared<K>>,
    /// Kept for its allocation.
    closed: Vec<Arc<Lane<K>>>,
}

/// A peer without a session: [`Self::accept`] opens one with its first datagram, dropping this refuses it, for the reason
/// that [`Self::refuse`] gives.
pub(super) struct Vacancy<'a, K> {
    table: &'a mut Table<K>,
    peer: &'a K,
    datagram: &'a [u8],
    now: Instant,
    permit: Option<SessionPermit>,
    opened: &'a mut Option<Arc<Lane<K>>>,
    reason: &'a mut DropReason,
}

impl<K: Clone + Eq + Hash> Table<K> {
    #[cfg(test)]
    pub(super) fn new(limits: Limits, stats: Arc<Stats>) -> Self {
        Self::of(Arc::new(Pool::new(limits.total_bytes)), limits, stats)
    }

    /// One whose sessions share `pool` with those of others.
    pub(super) fn of(pool: Arc<Pool>, limits: Limits, stats: Arc<Stats>) -> Self {
        Self {
            lanes: HashMap::new(),
            due: BinaryHeap::new(),
            next_id: 0,
            draining: false,
            pass: true,
            pool,
            shared: Arc::new(Shared::new(stats)),
            closed: Vec::new(),
            limits,
        }
    }

    /// Takes datagrams of one peer, in order. For a peer without a session `open` is asked.
    pub(super) fn deliver(
        &mut self,
        now: Instant,
        peer: &K,
        datagrams: &[&[u8]],
        wake: &mut Vec<Waker>,
        mut open: impl FnMut(Vacancy<'_, K>),
    ) {
        self.shared.stats.add_received(datagrams.len() as u64);
        let mut rest = datagrams;
        if let Some(lane) = self.lanes.get(peer) {
            let taken = lane.take(now, datagrams, &self.limits, self.pass);
            if let Ok(waker) = taken {
                wake.extend(waker);
                return;
            }
        }
        while let [datagram, behind @ ..] = rest {
            let mut lane = None;
            let mut reason = DropReason::Refused;
            match self.vet(datagram.len()) {
                Ok(permit) => open(Vacancy {
                    table: self,
                    peer,
                    datagram,
                    now,
                    permit,
                    opened: &mut lane,
                    reason: &mut reason,
                }),
                Err(why) => reason = why,
            }
            let Some(lane) = lane else {
                self.shared.stats.add_dropped(reason, rest.len() as u64);
                return;
            };
            rest = behind;
            // If it has ended at once, the next datagram opens another one.
            if let Ok(waker) = lane.take(now, rest, &self.limits, false) {
                wake.extend(waker);
                return;
            }
        }
    }

    /// Counts a datagram that belongs to no peer.
    pub(super) fn useless(&self, reason: DropReason) {
        self.shared.stats.add_received(1);
        self.shared.stats.add_dropped(reason, 1);
    }

    /// Ends the sessions whose idle time is over.
    pub(super) fn expire(&mut self, now: Instant, wake: &mut Vec<Waker>) {
        self.reap();
        while let Some(mut due) = self.due.peek_mut() {
            if due.at > now {
                break;
            }
            match due.lane.expire(now) {
                Idle::Until(at) => due.at = at,
                Idle::Gone => drop(PeekMut::pop(due)),
                Idle::Expired(waker) => {
                    forget(&mut self.lanes, &PeekMut::pop(due).lane);
                    wake.extend(waker);
                }
            }
        }
    }

    /// When to call [`Self::expire`] next. It may find nothing to do then.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due.peek().map(|due| due.at)
    }

    /// Forgets the sessions that were dropped by their owners. Called before each batch of datagrams.
    pub(super) fn reap(&mut self) {
        let mut closed = std::mem::take(&mut self.closed);
        self.shared.take_closed(&mut closed);
        for lane in closed.drain(..) {
            forget(&mut self.lanes, &lane);
        }
        self.closed = closed;
        // Sessions that end before their idle time leave their entry behind. Sweeping when most are such is linear
        // in what ended since the last sweep.
        if self.due.len() > 2 * self.lanes.len() + STALE {
            self.due.retain(|due| due.lane.is_open());
        }
        if self.lanes.capacity() > 4 * self.lanes.len() + STALE {
            self.lanes.shrink_to(2 * self.lanes.len());
            self.due.shrink_to(2 * self.due.len());
        }
    }

    /// Whether new sessions are refused.
    pub(super) fn drain(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// Whether datagrams of sessions with a passage are sent by the receive task. Otherwise their own tasks do, on other
    /// threads.
    pub(super) fn let_pass(&mut self, pass: bool) {
        self.pass = pass;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Where sessions report that they were dropped.
    pub(super) fn shared(&self) -> &Arc<Shared<K>> {
        &self.shared
    }

    /// Whether a session may be opened for a datagram of `len` bytes, and the right to it where those of the process are
    /// counted.
    fn vet(&mut self, len: usize) -> Result<Option<SessionPermit>, DropReason> {
        if self.draining {
            return Err(DropReason::Draining);
        }
        if self.lanes.len() >= self.limits.sessions {
            self.reap();
        }
        if self.lanes.len() >= self.limits.sessions {
            return Err(DropReason::SessionLimit);
        }
        if cost(len) > self.limits.session_bytes {
            return Err(DropReason::QueueFull);
        }
        if !self.pool.has_room(len) {
            return Err(DropReason::MemoryLimit);
        }
        match &self.limits.process {
            Some(process) => process.session().map(Some).ok_or(DropReason::SessionLimit),
            None => Ok(None),
        }
    }

    fn open(
        &mut self,
        now: Instant,
        peer: &K,
        idle_timeout: Duration,
        datagram: &[u8],
        permit: Option<SessionPermit>,
    ) -> Arc<Lane<K>> {
        let id = self.next_id;
        self.next_id += 1;
        let idle_timeout = idle_timeout.clamp(SHORTEST, LONGEST);
        let lane = Lane::new(
            id,
            peer.clone(),
            idle_timeout,
            self.pool.clone(),
            self.shared.clone(),
            permit,
        );
        let lane = Arc::new(lane);
        // It was just made, so nobody waits for it and it is not over.
        let _ = lane.take(now, &[datagram], &self.limits, false);
        self.lanes.insert(peer.clone(), lane.clone());
        self.due.push(Due {
            at: now + idle_timeout,
            lane: lane.clone(),
        });
        self.shared.stats.add_opened();
        lane
    }

    #[cfg(test)]
    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.due.len()
    }
}

/// Ends every session. What is queued can still be taken.
impl<K> Drop for Table<K> {
    fn drop(&mut self) {
        for lane in self.lanes.values() {
            if let Some(waker) = lane.end() {
                waker.wake();
            }
        }
        self.shared.abandon();
    }
}

impl<K: Clone + Eq + Hash> Vacancy<'_, K> {
    pub(super) fn accept(&mut self, idle_timeout: Duration) -> Arc<Lane<K>> {
        let (peer, datagram, permit) = (self.peer, self.datagram, self.permit.take());
        let lane = (self.table).open(self.now, peer, idle_timeout, datagram, permit);
        *self.opened = Some(lane.clone());
        lane
    }

    /// Opens none.
    pub(super) fn refuse(self, reason: DropReason) {
        *self.reason = reason;
    }
}

/// Removes `lane`, and no other session of its peer.
fn forget<K: Eq + Hash>(lanes: &mut HashMap<K, Arc<Lane<K>>>, lane: &Lane<K>) {
    if lanes
        .get(&lane.peer)
        .is_some_and(|current| current.id == lane.id)
    {
        lanes.remove(&lane.peer);
    }
}

struct Due<K> {
    at: Instant,
    lane: Arc<Lane<K>>,
}

/// The greatest is the one that is due first.
impl<K> Ord for Due<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        other
            .at
            .cmp(&self.at)
            .then_with(|| other.lane.id.cmp(&self.lane.id))
    }
}

impl<K> PartialOrd for Due<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> PartialEq for Due<K> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<K> Eq for Due<K> {}

/// So many entries are not worth a sweep.
const STALE: usize = 1024;

/// Timers have milliseconds, and an entry must not come up again at once.
const SHORTEST: Duration = Duration::from_millis(1);

/// Far enough, and no overflow when added to a time.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
