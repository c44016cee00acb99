//! Random schedules against a model that keeps no timers, no locks and no running totals.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::lane::{Lane, RESERVE, cost};
use super::super::manager::{Limits, Table};
use super::super::stats::{DropReason, Stats};
use super::{Bell, recv};

/// One session as the model sees it.
struct Session {
    lane: Arc<Lane<u32>>,
    peer: u32,
    timeout: Duration,
    queue: VecDeque<Vec<u8>>,
    /// Datagrams that a handler has taken and not let go of.
    taken: Vec<Bytes>,
    idle_since: Option<Instant>,
    open: bool,
    closed: bool,
    bell: Arc<Bell>,
    rings: usize,
}

impl Session {
    fn held(&self) -> usize {
        let queued: usize = self.queue.iter().map(|datagram| cost(datagram.len())).sum();
        let taken: usize = self.taken.iter().map(|datagram| cost(datagram.len())).sum();
        queued + taken
    }
}

struct World {
    random: u64,
    limits: Limits,
    table: Table<u32>,
    stats: Arc<Stats>,
    now: Instant,
    draining: bool,
    sessions: Vec<Session>,
    ids: HashSet<u64>,
    sequence: u64,
    received: u64,
    dropped: HashMap<&'static str, u64>,
    expired: u64,
}

const SIZES: [usize; 8] = [0, 1, 60, 1200, 1472, 9001, 40_000, 65_507];
const PEERS: u64 = 24;

impl World {
    fn new(seed: u64) -> Self {
        let limits = Limits {
            sessions: 12,
            queue: 8,
            session_bytes: 150_000,
            total_bytes: 400_000,
            process: None,
        };
        let stats = Arc::new(Stats::default());
        Self {
            random: seed,
            table: Table::new(limits.clone(), stats.clone()),
            limits,
            stats,
            now: Instant::now(),
            draining: false,
            sessions: Vec::new(),
            ids: HashSet::new(),
            sequence: 0,
            received: 0,
            dropped: HashMap::new(),
            expired: 0,
        }
    }

    /// splitmix64.
    fn below(&mut self, n: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn datagram(&mut self) -> Vec<u8> {
        let len = SIZES[self.below(SIZES.len() as u64) as usize];
        self.sequence += 1;
        let mut datagram = vec![self.sequence as u8; len];
        let mark = len.min(8);
        datagram[..mark].copy_from_slice(&self.sequence.to_le_bytes()[..mark]);
        datagram
    }

    fn pool(&self) -> usize {
        self.sessions
            .iter()
            .map(|session| session.held().saturating_sub(RESERVE))
            .sum()
    }

    fn drop_for(&mut self, reason: DropReason) {
        *self.dropped.entry(reason.as_str()).or_default() += 1;
    }

    /// What the model says about a datagram for an open session.
    fn judge(&self, session: usize, len: usize) -> Result<(), DropReason> {
        let session = &self.sessions[session];
        let (before, after) = (session.held(), session.held() + cost(len));
        let more = after.saturating_sub(RESERVE) - before.saturating_sub(RESERVE);
        if session.queue.len() >= self.limits.queue || after > self.limits.session_bytes {
            Err(DropReason::QueueFull)
        } else if more > 0 && self.pool() + more > self.limits.total_bytes {
            Err(DropReason::MemoryLimit)
        } else {
            Ok(())
        }
    }

    fn deliver(&mut self) {
        let peer = self.below(PEERS) as u32;
        let run: Vec<_> = (0..=self.below(4)).map(|_| self.datagram()).collect();
        let willing = self.below(8) > 0;
        let timeout = Duration::from_micros([1_500, 40_000, 900_000][self.below(3) as usize]);

        let mut wake = Vec::new();
        let mut opened = None;
        let datagrams: Vec<&[u8]> = run.iter().map(Vec::as_slice).collect();
        self.table
            .deliver(self.now, &peer, &datagrams, &mut wake, |mut vacancy| {
                if willing {
                    assert!(opened.is_none(), "one session for one run");
                    opened = Some(vacancy.accept(timeout));
                }
            });
        wake.drain(..).for_each(Waker::wake);

        self.received += run.len() as u64;
        let open = |session: &Session| session.open && session.peer == peer;
        let mut current = self.sessions.iter().position(open);
        let mut refused = None;
        for datagram in run {
            if current.is_none() && refused.is_none() {
                let active = self.sessions.iter().filter(|session| session.open).count();
                let needed = cost(datagram.len()).saturating_sub(RESERVE);
                refused = if self.draining {
                    Some(DropReason::Draining)
                } else if active >= self.limits.sessions {
                    Some(DropReason::SessionLimit)
                } else if needed > 0 && self.pool() + needed > self.limits.total_bytes {
                    Some(DropReason::MemoryLimit)
                } else if !willing {
                    Some(DropReason::Refused)
                } else {
                    None
                };
                if refused.is_none() {
                    let lane = opened.take().expect("the table opens where the model does");
                    assert!(self.ids.insert(lane.id), "ids are given out once");
                    current = Some(self.sessions.len());
                    self.sessions.push(Session {
                        lane,
                        peer,
                        timeout,
                        queue: VecDeque::new(),
                        taken: Vec::new(),
                        idle_since: None,
                        open: true,
                        closed: false,
                        bell: Arc::default(),
                        rings: 0,
                    });
                }
            }
            let Some(current) = current else {
                self.drop_for(refused.expect("no session means a reason"));
                continue;
            };
            match self.judge(current, datagram.len()) {
                Ok(()) => {
                    let session = &mut self.sessions[current];
                    // A waiting session is woken by what ends its waiting, once.
                    session.rings += usize::from(session.idle_since.take().is_some());
                    session.queue.push_back(datagram);
                }
                Err(reason) => self.drop_for(reason),
            }
        }
        assert!(
            opened.is_none(),
            "the table opens only where the model does"
        );
    }

    fn any_session(&mut self) -> Option<usize> {
        let n = self.sessions.len() as u64;
        (n > 0).then(|| self.below(n) as usize)
    }

    fn receive(&mut self) {
        let Some(index) = self.any_session() else {
            return;
        };
        let keep = self.below(3) == 0;
        let now = self.now;
        let session = &mut self.sessions[index];
        if session.closed {
            return;
        }
        match (
            recv(&session.lane, now, &session.bell),
            session.queue.pop_front(),
        ) {
            (Poll::Ready(Some(got)), Some(expected)) => {
                assert_eq!(got, expected, "whole and in order");
                if keep {
                    session.taken.push(got);
                }
            }
            (Poll::Pending, None) if session.open => {
                session.idle_since.get_or_insert(now);
            }
            (Poll::Ready(None), None) => assert!(!session.open, "over before its time"),
            (got, expected) => panic!("got {got:?}, expected {expected:?}"),
        }
    }

    fn send(&mut self) {
        let Some(index) = self.any_session() else {
            return;
        };
        let now = self.now;
        let session = &mut self.sessions[index];
        if !session.closed {
            session.lane.sent(1, || now);
            if let (true, Some(since)) = (session.open, &mut session.idle_since) {
                *since = now;
            }
        }
    }

    fn let_go(&mut self) {
        if let Some(index) = self.any_session() {
            self.sessions[index].taken.clear();
        }
    }

    fn close(&mut self) {
        let Some(index) = self.any_session() else {
            return;
        };
        let session = &mut self.sessions[index];
        session.lane.close();
        session.queue.clear();
        session.open = false;
        session.closed = true;
        if session.taken.is_empty() {
            self.sessions.swap_remove(index);
        }
    }

    /// Lets time pass as the receive task does: the timer fires when it was armed for, never before.
    fn pass(&mut self) {
        let due = self
            .sessions
            .iter()
            .filter(|session| session.open)
            .filter_map(|session| Some(session.idle_since? + session.timeout))
            .min();
        let until = match (self.below(4), due) {
            // The very instant, and the last one before it.
            (0, Some(at)) => at.max(self.now),
            (1, Some(at)) => (at - Duration::from_nanos(1)).max(self.now),
            _ => self.now + Duration::from_micros(self.below(50_000)),
        };
        let mut wake = Vec::new();
        while let Some(at) = self.table.deadline().filter(|&at| at <= until) {
            self.now = self.now.max(at);
            self.table.expire(self.now, &mut wake);
            self.end_idle();
        }
        self.now = until;
        assert!(
            !self.sessions.iter().any(|session| is_idle(session, until)),
            "expiry is not late"
        );
        wake.drain(..).for_each(Waker::wake);
    }

    fn end_idle(&mut self) {
        let now = self.now;
        for session in self
            .sessions
            .iter_mut()
            .filter(|session| is_idle(session, now))
        {
            session.open = false;
            session.rings += 1;
            self.expired += 1;
            assert!(!session.lane.is_open(), "expiry is not late");
        }
    }

    fn check(&mut self) {
        self.table.reap();
        let open = self.sessions.iter().filter(|session| session.open).count();
        assert!(open <= self.limits.sessions);
        assert_eq!(self.table.len(), open);
        assert_eq!(self.stats.active(), open as u64);
        assert_eq!(self.stats.opened(), self.ids.len() as u64);
        assert_eq!(self.stats.expired(), self.expired);
        assert_eq!(self.stats.received(), self.received);
        for &reason in DropReason::ALL {
            let expected = self
                .dropped
                .get(reason.as_str())
                .copied()
                .unwrap_or_default();
            assert_eq!(self.stats.dropped(reason), expected, "{reason}");
        }
        assert_eq!(self.table.pool().taken(), self.pool());
        assert!(self.pool() <= self.limits.total_bytes);
        for session in &self.sessions {
            assert_eq!(
                session.lane.is_open(),
                session.open,
                "neither early nor late"
            );
            assert_eq!(session.bell.rung(), session.rings);
        }
    }

    fn stop(self) {
        let Self {
            table,
            mut sessions,
            stats,
            now,
            ..
        } = self;
        drop(table);
        for session in &mut sessions {
            let woken = session.open && session.idle_since.is_some();
            assert_eq!(session.bell.rung(), session.rings + usize::from(woken));
            assert!(!session.lane.is_open());
        }
        assert_eq!((stats.active(), stats.ended()), (0, stats.opened()));
        for session in sessions.iter_mut().filter(|session| !session.closed) {
            while let Some(expected) = session.queue.pop_front() {
                let got = recv(&session.lane, now, &session.bell);
                assert_eq!(got, Poll::Ready(Some(expected.into())));
            }
            assert_eq!(recv(&session.lane, now, &session.bell), Poll::Ready(None));
            session.lane.close();
        }
        assert_eq!(stats.ended(), stats.opened());
    }
}

fn is_idle(session: &Session, now: Instant) -> bool {
    session.open
        && session
            .idle_since
            .is_some_and(|since| since + session.timeout <= now)
}

#[test]
fn random_schedules_agree_with_the_model() {
    let (mut expired, mut drops) = (0, HashSet::new());
    for seed in 0..40 {
        let mut world = World::new(seed);
        for _ in 0..1500 {
            match world.below(100) {
                0..35 => world.deliver(),
                35..70 => world.receive(),
                70..78 => world.send(),
                78..84 => world.let_go(),
                84..88 => world.close(),
                88..99 => world.pass(),
                _ => {
                    world.draining = world.below(4) == 0;
                    world.table.drain(world.draining);
                }
            }
            world.check();
        }
        expired += world.expired;
        drops.extend(world.dropped.keys().copied());
        world.stop();
    }
    // The schedules reach what they are to reach.
    assert!(expired > 100, "{expired}");
    let reached: HashSet<_> = [
        "queue_full",
        "memory_limit",
        "session_limit",
        "refused",
        "draining",
    ]
    .into();
    assert_eq!(drops, reached);
}
