use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use l4_core::conn::{Passage, SendNow};

use super::super::group::Group;
use super::super::lane::{Lane, RESERVE, cost};
use super::super::manager::{Limits, Table};
use super::super::stats::{DropReason, Stats};
use super::{Bell, recv};
use crate::limits::ConnectionLimit;

/// A table with its clock and everything that was opened.
struct Socket {
    table: Table<u32>,
    stats: Arc<Stats>,
    now: Instant,
    idle_timeout: Duration,
    wake: Vec<Waker>,
}

type Opened = Option<Arc<Lane<u32>>>;

const IDLE: Duration = Duration::from_millis(300);

impl Socket {
    fn new(limits: Limits) -> Self {
        let stats = Arc::new(Stats::default());
        Self {
            table: Table::new(limits, stats.clone()),
            stats,
            now: Instant::now(),
            idle_timeout: IDLE,
            wake: Vec::new(),
        }
    }

    /// Delivers one datagram; gives the session if one was opened.
    fn deliver(&mut self, peer: u32, datagram: &[u8]) -> Opened {
        let mut opened = None;
        self.table.deliver(
            self.now,
            &peer,
            &[datagram],
            &mut self.wake,
            |mut vacancy| {
                opened = Some(vacancy.accept(self.idle_timeout));
            },
        );
        self.wake.drain(..).for_each(Waker::wake);
        opened
    }

    fn open(&mut self, peer: u32, datagram: &[u8]) -> Arc<Lane<u32>> {
        self.deliver(peer, datagram).expect("a session")
    }

    /// Moves the clock and lets the timer fire as often as it is due.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        while self.table.deadline().is_some_and(|at| at <= self.now) {
            self.table.expire(self.now, &mut self.wake);
        }
        self.wake.drain(..).for_each(Waker::wake);
    }

    /// The length of what the session receives, `None` if it is over.
    fn recv(&self, lane: &Lane<u32>) -> Poll<Option<usize>> {
        recv(lane, self.now, &Arc::default()).map(|datagram| datagram.map(|bytes| bytes.len()))
    }
}

impl Default for Socket {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

fn data(len: usize) -> Poll<Option<usize>> {
    Poll::Ready(Some(len))
}

const OVER: Poll<Option<usize>> = Poll::Ready(None);

#[test]
fn datagrams_of_any_size_stay_whole() {
    let mut socket = Socket::default();
    let lane = socket.open(1, &[7; 2049]);
    for len in [8192, 8193, 9001, 65_507, 0, 1] {
        assert!(socket.deliver(1, &vec![7; len]).is_none());
    }
    for len in [2049, 8192, 8193, 9001, 65_507, 0, 1] {
        assert_eq!(socket.recv(&lane), data(len));
    }
    assert!(socket.recv(&lane).is_pending());
}

#[test]
fn a_session_that_takes_nothing_loses_its_own_datagrams_only() {
    let mut socket = Socket::new(Limits {
        queue: 3,
        ..Limits::default()
    });
    let slow = socket.open(1, b"1");
    let good = socket.open(2, b"1");
    assert_eq!(socket.recv(&good), data(1));
    for len in 2..=9 {
        assert!(socket.deliver(1, &vec![0; len]).is_none());
        assert!(socket.deliver(2, &vec![0; len]).is_none());
        assert_eq!(socket.recv(&good), data(len));
    }
    assert_eq!(socket.stats.dropped(DropReason::QueueFull), 6);
    // The oldest are kept, in order.
    assert_eq!([1, 2, 3].map(|_| socket.recv(&slow)), [1, 2, 3].map(data));
}

#[test]
fn a_handler_that_has_ended_is_not_queued_to() {
    let mut socket = Socket::default();
    let first = socket.open(1, b"a");
    first.close();
    for _ in 0..100 {
        socket.open(1, b"b").close();
    }
    assert_eq!(socket.stats.active(), 0);
    assert_eq!(socket.stats.opened(), 101);
}

/// Row D-08 of docs/defects.md.
#[test]
fn an_empty_datagram_opens_a_session_and_is_received() {
    let mut socket = Socket::default();
    let lane = socket.open(1, b"");
    assert_eq!(socket.recv(&lane), data(0));
    assert!(socket.recv(&lane).is_pending());
}

/// Rows D-09 and U3 of docs/defects.md.
#[test]
fn a_late_close_leaves_the_new_session_of_the_peer_alone() {
    let mut socket = Socket::default();
    let old = socket.open(1, b"old");
    assert_eq!(socket.recv(&old), data(3));
    assert!(socket.recv(&old).is_pending());
    socket.pass(IDLE);
    assert_eq!(socket.recv(&old), OVER);
    let new = socket.open(1, b"newer");
    assert_ne!(old.id, new.id);
    // The old handler finishes only now, and says so twice.
    old.close();
    old.close();
    socket.table.reap();
    assert!(socket.deliver(1, b"again").is_none());
    assert_eq!([socket.recv(&new), socket.recv(&new)], [data(5), data(5)]);
    assert_eq!((socket.stats.ended(), socket.stats.expired()), (1, 1));

    // The same with a close that the table has not seen when the peer comes back.
    new.close();
    let third = socket.open(1, b"third");
    socket.table.reap();
    assert!(socket.deliver(1, b"").is_none());
    assert_eq!(socket.recv(&third), data(5));
}

/// Row D-09 of docs/defects.md.
#[test]
fn sessions_can_be_closed_when_the_socket_is_gone() {
    let mut socket = Socket::default();
    let lanes: Vec<_> = (0..100).map(|peer| socket.open(peer, b"x")).collect();
    let bell = Arc::new(Bell::default());
    assert_eq!(socket.recv(&lanes[0]), data(1));
    assert!(recv(&lanes[0], socket.now, &bell).is_pending());
    let weak: Vec<_> = lanes.iter().map(Arc::downgrade).collect();
    // Some when the table can still see it, without looking.
    lanes[50..].iter().for_each(Lane::close);
    let stats = socket.stats.clone();
    drop(socket);
    assert_eq!(bell.rung(), 1);
    for lane in lanes {
        lane.close();
    }
    assert_eq!(stats.active(), 0);
    assert!(
        weak.iter().all(|lane| lane.upgrade().is_none()),
        "nothing keeps a closed session"
    );
}

#[test]
fn a_datagram_of_nobody_is_counted() {
    let socket = Socket::default();
    socket.table.useless(DropReason::UnnamedPeer);
    assert_eq!(socket.stats.received(), 1);
    assert_eq!(socket.stats.dropped(DropReason::UnnamedPeer), 1);
    assert!(socket.table.is_empty());
}

/// Row D-11 of docs/defects.md.
#[test]
fn idle_time_has_full_resolution_and_data_comes_first() {
    let mut socket = Socket::default();
    let lane = socket.open(1, b"x");
    assert_eq!(socket.recv(&lane), data(1));
    assert!(socket.recv(&lane).is_pending());
    socket.pass(IDLE - Duration::from_nanos(1));
    assert!(socket.recv(&lane).is_pending());
    assert!(socket.deliver(1, b"yy").is_none());
    // The old deadline passes with data queued, and the session is not idle while it has some.
    socket.pass(10 * IDLE);
    assert_eq!(socket.recv(&lane), data(2));
    assert!(socket.recv(&lane).is_pending());
    socket.pass(IDLE - Duration::from_nanos(1));
    assert!(socket.recv(&lane).is_pending());
    socket.pass(Duration::from_nanos(1));
    assert_eq!(socket.recv(&lane), OVER);
    assert!(socket.table.is_empty());
}

/// Row U5 of docs/defects.md.
#[test]
fn sending_to_the_peer_keeps_the_session() {
    let mut socket = Socket::default();
    let lane = socket.open(1, b"x");
    assert_eq!(socket.recv(&lane), data(1));
    let bell = Arc::new(Bell::default());
    assert!(recv(&lane, socket.now, &bell).is_pending());
    for _ in 0..50 {
        socket.pass(IDLE - Duration::from_nanos(1));
        lane.sent(1, || socket.now);
    }
    assert_eq!((bell.rung(), socket.stats.sent()), (0, 50));
    socket.pass(IDLE);
    assert_eq!(bell.rung(), 1);
    assert_eq!(socket.recv(&lane), OVER);
}

#[test]
fn a_session_whose_handler_is_busy_is_not_idle() {
    let mut socket = Socket::default();
    let lane = socket.open(1, b"x");
    assert_eq!(socket.recv(&lane), data(1));
    // Dialling takes longer than the idle timeout.
    socket.pass(5 * IDLE);
    assert!(socket.recv(&lane).is_pending());
    socket.pass(IDLE - Duration::from_nanos(1));
    assert!(socket.recv(&lane).is_pending());
    socket.pass(Duration::from_nanos(1));
    assert_eq!(socket.recv(&lane), OVER);
}

#[test]
fn an_expired_session_can_still_send() {
    let mut socket = Socket::default();
    let lane = socket.open(1, b"x");
    assert_eq!(socket.recv(&lane), data(1));
    assert!(socket.recv(&lane).is_pending());
    socket.pass(IDLE);
    lane.sent(1, || socket.now);
    assert_eq!(socket.recv(&lane), OVER);
    assert!(socket.deliver(1, b"new").is_some());
}

#[test]
fn idle_timeouts_differ_after_a_reload() {
    let mut socket = Socket::default();
    let long = socket.open(1, b"");
    socket.idle_timeout = IDLE / 10;
    let short = socket.open(2, b"");
    for lane in [&long, &short] {
        assert_eq!(socket.recv(lane), data(0));
        assert!(socket.recv(lane).is_pending());
    }
    assert_eq!(socket.table.deadline(), Some(socket.now + IDLE / 10));
    socket.pass(IDLE / 10);
    assert_eq!(socket.recv(&short), OVER);
    assert!(socket.recv(&long).is_pending());
}

#[test]
fn absurd_idle_timeouts_neither_overflow_nor_spin() {
    let mut socket = Socket {
        idle_timeout: Duration::MAX,
        ..Socket::default()
    };
    let long = socket.open(1, b"");
    socket.idle_timeout = Duration::ZERO;
    let short = socket.open(2, b"");
    socket.pass(Duration::from_secs(3600));
    for lane in [&long, &short] {
        assert_eq!(socket.recv(lane), data(0));
        assert!(socket.recv(lane).is_pending());
    }
    socket.pass(Duration::from_millis(1));
    assert_eq!(socket.recv(&short), OVER);
    assert!(socket.recv(&long).is_pending());
}

#[test]
fn beyond_the_cap_new_peers_are_dropped_and_old_ones_served() {
    let mut socket = Socket::new(Limits {
        sessions: 10,
        ..Limits::default()
    });
    let lanes: Vec<_> = (0..1000)
        .filter_map(|peer| socket.deliver(peer, b"x"))
        .collect();
    assert_eq!((lanes.len(), socket.table.len()), (10, 10));
    assert_eq!(socket.stats.dropped(DropReason::SessionLimit), 990);
    assert!(socket.deliver(3, b"more").is_none());
    assert_eq!(socket.stats.dropped(DropReason::SessionLimit), 990);
    // A place is free as soon as a session closes, without waiting for the table to be told.
    lanes[0].close();
    assert!(socket.deliver(500, b"x").is_some());
    assert!(socket.deliver(501, b"x").is_none());
}

#[test]
fn large_datagrams_are_bounded_by_bytes_per_session() {
    let limits = Limits {
        session_bytes: 200_000,
        ..Limits::default()
    };
    let mut socket = Socket::new(limits);
    let lane = socket.open(1, &[0; 65_507]);
    for _ in 0..9 {
        socket.deliver(1, &[0; 65_507]);
    }
    assert_eq!(socket.stats.dropped(DropReason::QueueFull), 7);
    // What the handler has taken still counts, until it lets go of it.
    let Poll::Ready(Some(taken)) = recv(&lane, socket.now, &Arc::default()) else {
        panic!()
    };
    socket.deliver(1, &[0; 65_507]);
    assert_eq!(socket.stats.dropped(DropReason::QueueFull), 8);
    let slice = taken.slice(..1);
    drop(taken);
    socket.deliver(1, &[0; 65_507]);
    assert_eq!(socket.stats.dropped(DropReason::QueueFull), 9);
    drop(slice);
    socket.deliver(1, &[0; 65_507]);
    assert_eq!(socket.stats.dropped(DropReason::QueueFull), 9);
}

#[test]
fn a_flood_of_large_datagrams_leaves_each_session_its_reserve() {
    let limits = Limits {
        total_bytes: 1_000_000,
        ..Limits::default()
    };
    let mut socket = Socket::new(limits);
    let modest = socket.open(0, b"x");
    assert_eq!(socket.recv(&modest), data(1));
    let flood: Vec<_> = (1..1000)
        .filter_map(|peer| socket.deliver(peer, &[0; 65_507]))
        .collect();
    assert_eq!(flood.len(), 1_000_000 / (cost(65_507) - RESERVE));
    assert_eq!(
        socket.stats.dropped(DropReason::MemoryLimit),
        999 - flood.len() as u64
    );
    assert!(socket.table.pool().taken() <= 1_000_000);
    // An ordinary datagram finds room in an old session and in a new one.
    socket.deliver(0, &[0; 1472]);
    assert_eq!(socket.recv(&modest), data(1472));
    assert!(socket.deliver(5000, &[0; 1472]).is_some());
    for lane in &flood {
        lane.close();
    }
    assert_eq!(socket.table.pool().taken(), 0);
    assert!(socket.deliver(6000, &[0; 65_507]).is_some());
}

#[test]
fn a_refused_peer_costs_nothing_and_is_asked_for_again() {
    let mut socket = Socket::default();
    let mut asked = 0;
    let run: [&[u8]; 3] = [b"1", b"2", b"3"];
    for _ in 0..2 {
        socket
            .table
            .deliver(socket.now, &1, &run, &mut socket.wake, |_| asked += 1);
    }
    assert_eq!(asked, 2);
    assert!(socket.table.is_empty());
    assert_eq!(socket.stats.dropped(DropReason::Refused), 6);
    assert_eq!(socket.stats.received(), 6);
    assert_eq!(socket.stats.opened(), 0);
}

#[test]
fn a_run_of_datagrams_opens_one_session() {
    let mut socket = Socket::default();
    let mut opened = Vec::new();
    let run: [&[u8]; 3] = [b"1", b"22", b"333"];
    socket
        .table
        .deliver(socket.now, &1, &run, &mut socket.wake, |mut vacancy| {
            opened.push(vacancy.accept(IDLE));
        });
    assert_eq!(opened.len(), 1);
    assert_eq!(
        [(); 3].map(|()| socket.recv(&opened[0])),
        [data(1), data(2), data(3)]
    );
}

#[test]
fn draining_serves_old_sessions_both_ways_and_tells_when_the_last_is_gone() {
    let mut socket = Socket::default();
    let lane = socket.open(1, b"x");
    socket.table.drain(true);
    assert!(socket.deliver(2, b"x").is_none());
    assert_eq!(socket.stats.dropped(DropReason::Draining), 1);
    socket.deliver(1, b"yy");
    assert_eq!([socket.recv(&lane), socket.recv(&lane)], [data(1), data(2)]);

    let bell = Arc::new(Bell::default());
    let waker = Waker::from(bell.clone());
    let shared = socket.table.shared().clone();
    assert!(
        shared
            .poll_closed(&mut Context::from_waker(&waker))
            .is_pending()
    );
    lane.close();
    assert_eq!(bell.rung(), 1);
    socket.table.reap();
    assert!(socket.table.is_empty());

    // The address is wanted again.
    socket.table.drain(false);
    assert!(socket.deliver(2, b"x").is_some());
}

#[test]
fn stopping_ends_every_session_after_what_was_queued() {
    let mut socket = Socket::default();
    let bell = Arc::new(Bell::default());
    let (waiting, busy) = (socket.open(1, b"x"), socket.open(2, b"yy"));
    assert_eq!(socket.recv(&waiting), data(1));
    assert!(recv(&waiting, socket.now, &bell).is_pending());
    let (now, stats) = (socket.now, socket.stats.clone());
    drop(socket);
    assert_eq!((bell.rung(), stats.ended(), stats.expired()), (1, 2, 0));
    assert_eq!(recv(&waiting, now, &bell), Poll::Ready(None));
    assert_eq!(recv(&busy, now, &bell), Poll::Ready(Some(b"yy"[..].into())));
    for _ in 0..2 {
        assert_eq!(recv(&busy, now, &bell), Poll::Ready(None));
    }
}

#[test]
fn the_task_that_waited_last_is_woken() {
    let mut socket = Socket::default();
    let lane = socket.open(1, b"");
    assert_eq!(socket.recv(&lane), data(0));
    let [first, last] = [(); 2].map(|()| Arc::new(Bell::default()));
    assert!(recv(&lane, socket.now, &first).is_pending());
    assert!(recv(&lane, socket.now, &last).is_pending());
    socket.deliver(1, b"");
    assert_eq!((first.rung(), last.rung()), (0, 1));
}

#[test]
fn a_waiting_session_is_woken_once_for_a_burst() {
    let mut socket = Socket::default();
    let lane = socket.open(1, b"x");
    assert_eq!(socket.recv(&lane), data(1));
    let bell = Arc::new(Bell::default());
    assert!(recv(&lane, socket.now, &bell).is_pending());
    for _ in 0..10 {
        socket.deliver(1, b"burst");
    }
    assert_eq!(bell.rung(), 1);
}

#[test]
fn sessions_that_close_early_do_not_pile_up_in_the_timer() {
    let mut socket = Socket::default();
    for peer in 0..200_000 {
        socket.open(peer, b"x").close();
        socket.table.reap();
    }
    assert!(socket.table.entries() < 2000, "{}", socket.table.entries());
    assert!(socket.table.is_empty());
}

#[test]
fn the_sockets_of_a_process_share_what_their_sessions_may_take() {
    let process = ConnectionLimit::new(3);
    let limits = Limits {
        process: Some(process.clone()),
        ..Limits::default()
    };
    let (mut one, mut other) = (Socket::new(limits.clone()), Socket::new(limits));
    let first = one.open(1, b"a");
    let _second = one.open(2, b"a");
    let _third = other.open(1, b"a");
    assert!(one.deliver(3, b"a").is_none());
    assert!(other.deliver(3, b"a").is_none());
    for socket in [&one, &other] {
        assert_eq!(socket.stats.dropped(DropReason::SessionLimit), 1);
    }
    // Those that exist go on.
    assert!(one.deliver(1, b"bc").is_none());
    assert_eq!([one.recv(&first), one.recv(&first)], [data(1), data(2)]);
    // One that is over for the socket may still hold a descriptor.
    assert!(one.recv(&first).is_pending());
    one.pass(IDLE);
    assert_eq!(one.recv(&first), OVER);
    assert!(other.deliver(3, b"a").is_none());
    first.close();
    other.open(3, b"a");
    assert_eq!(process.sessions(), 3);
}

#[test]
fn a_refused_peer_takes_nothing_of_what_sessions_share() {
    let process = ConnectionLimit::new(1);
    let mut socket = Socket::new(Limits {
        process: Some(process.clone()),
        ..Limits::default()
    });
    for peer in 0..3 {
        let (now, wake) = (socket.now, &mut socket.wake);
        socket.table.deliver(now, &peer, &[&b"a"[..]], wake, |_| {});
    }
    assert_eq!(socket.stats.dropped(DropReason::Refused), 3);
    assert_eq!(process.sessions(), 0);
}

#[test]
fn what_a_session_took_at_once_stays_counted_until_it_receives_again() {
    let mut socket = Socket::new(Limits {
        session_bytes: 100_000,
        ..Limits::default()
    });
    let bell = Arc::<Bell>::default();
    let large = &[7; 60_000];
    let lane = socket.open(1, large);
    for lost in 1..4 {
        assert!(recv_many(&lane, socket.now, &bell).is_ready());
        let held = cost(large.len()) - RESERVE;
        assert_eq!(socket.table.pool().taken(), held);
        // It may have copied the first.
        socket.deliver(1, large);
        assert_eq!(socket.stats.dropped(DropReason::QueueFull), lost);
        assert!(recv_many(&lane, socket.now, &bell).is_pending());
        assert_eq!(socket.table.pool().taken(), 0);
        socket.deliver(1, large);
    }
    assert!(recv_many(&lane, socket.now, &bell).is_ready());
    lane.close();
    assert_eq!(socket.table.pool().taken(), 0);
}

/// An upstream's socket that fails as scripted, then works.
#[derive(Default)]
struct Upstream {
    failures: Mutex<VecDeque<Option<i32>>>,
    sent: Mutex<Vec<Vec<u8>>>,
}

impl SendNow for Upstream {
    fn send_now(&self, datagrams: &[&[u8]]) -> io::Result<usize> {
        if let Some(Some(error)) = self.failures.lock().unwrap().pop_front() {
            return Err(io::Error::from_raw_os_error(error));
        }
        self.sent.lock().unwrap().push(datagrams[0].to_vec());
        Ok(1)
    }
}

/// What a session that hands everything on receives, `Pending` if it is to wait; `bell` wakes it.
fn recv_many(lane: &Lane<u32>, now: Instant, bell: &Arc<Bell>) -> Poll<Option<Vec<Vec<u8>>>> {
    let waker = Waker::from(bell.clone());
    let mut got = Vec::new();
    let each = &mut |datagrams: &[&[u8]]| got.extend(datagrams.iter().map(|d| d.to_vec()));
    let received = lane.poll_recv_many(&mut Context::from_waker(&waker), || now, each);
    received.map(|some| some.map(|()| got))
}

/// A session with a passage, and what is behind that.
fn passing(socket: &mut Socket) -> (Arc<Lane<u32>>, Arc<Passage>, Arc<Upstream>) {
    let upstream = Arc::new(Upstream::default());
    let passage = Arc::new(Passage::new(upstream.clone()));
    let lane = socket.open(1, b"first");
    lane.pass_to(passage.clone());
    (lane, passage, upstream)
}

#[test]
fn datagrams_pass_a_session_that_has_taken_everything_and_nothing_overtakes() {
    let mut socket = Socket::default();
    let bell = Arc::<Bell>::default();
    let (lane, passage, upstream) = passing(&mut socket);
    // One is waiting, so the next has to wait behind it.
    socket.deliver(1, b"second");
    assert_eq!(upstream.sent.lock().unwrap().len(), 0);
    let queued = recv_many(&lane, socket.now, &bell);
    assert_eq!(
        queued,
        Poll::Ready(Some(vec![b"first".to_vec(), b"second".to_vec()]))
    );
    assert!(recv_many(&lane, socket.now, &bell).is_pending());

    // While it waits they pass, and it sleeps on.
    socket.deliver(1, b"third");
    socket.deliver(1, b"");
    assert_eq!(*upstream.sent.lock().unwrap(), [&b"third"[..], b""]);
    assert_eq!((bell.rung(), passage.bytes()), (0, 5));

    // No room: from there on they queue, and what comes later does, too, although there is room again.
    *upstream.failures.lock().unwrap() = [None, Some(libc::EAGAIN)].into();
    let run: [&[u8]; 3] = [b"4", b"5", b"6"];
    socket
        .table
        .deliver(socket.now, &1, &run, &mut socket.wake, |_| {});
    socket.deliver(1, b"7");
    assert_eq!((upstream.sent.lock().unwrap().len(), bell.rung()), (3, 1));
    let queued = recv_many(&lane, socket.now, &bell);
    let expected: Vec<Vec<u8>> = ["5", "6", "7"].map(Vec::from).into();
    assert_eq!(queued, Poll::Ready(Some(expected)));
    socket.deliver(1, b"8");
    assert_eq!(upstream.sent.lock().unwrap().len(), 3);
    assert_eq!(
        recv_many(&lane, socket.now, &bell),
        Poll::Ready(Some(vec![b"8".to_vec()]))
    );
    assert!(recv_many(&lane, socket.now, &bell).is_pending());
    socket.deliver(1, b"9");
    assert_eq!(upstream.sent.lock().unwrap().last().unwrap(), b"9");
    // Who receives in another way wants to see them.
    assert!(recv(&lane, socket.now, &bell).is_pending());
    socket.deliver(1, b"10");
    assert_eq!(socket.recv(&lane), data(2));
}

#[test]
fn what_cannot_be_sent_is_lost_alone_and_a_broken_upstream_is_left_to_its_session() {
    let mut socket = Socket::default();
    let bell = Arc::<Bell>::default();
    let (lane, passage, upstream) = passing(&mut socket);
    assert!(recv_many(&lane, socket.now, &bell).is_ready());
    assert!(recv_many(&lane, socket.now, &bell).is_pending());
    *upstream.failures.lock().unwrap() = [
        Some(libc::EMSGSIZE),
        Some(libc::ECONNREFUSED),
        None,
        Some(libc::ENOTCONN),
    ]
    .into();
    let run: [&[u8]; 4] = [b"long", b"refused", b"sent", b"left"];
    socket
        .table
        .deliver(socket.now, &1, &run, &mut socket.wake, |_| {});
    socket.wake.drain(..).for_each(Waker::wake);
    assert_eq!(*upstream.sent.lock().unwrap(), [b"sent"]);
    assert_eq!(socket.stats.dropped(DropReason::Undeliverable), 2);
    assert_eq!((bell.rung(), passage.bytes()), (1, 15));
    assert_eq!(socket.recv(&lane), data(4));
}

#[test]
fn what_passes_keeps_the_session_and_silence_ends_it() {
    let mut socket = Socket::default();
    let bell = Arc::<Bell>::default();
    let (lane, _, upstream) = passing(&mut socket);
    assert!(recv_many(&lane, socket.now, &bell).is_ready());
    assert!(recv_many(&lane, socket.now, &bell).is_pending());
    for _ in 0..5 {
        socket.pass(IDLE * 2 / 3);
        socket.deliver(1, b"here I am");
    }
    assert_eq!((upstream.sent.lock().unwrap().len(), bell.rung()), (5, 0));
    socket.pass(IDLE + Duration::from_millis(1));
    assert_eq!(bell.rung(), 1);
    assert_eq!(recv_many(&lane, socket.now, &bell), Poll::Ready(None));
    assert_eq!(socket.stats.expired(), 1);
}

#[test]
fn a_receive_task_that_has_too_much_to_do_leaves_the_sending_to_the_session() {
    let mut socket = Socket::default();
    let bell = Arc::<Bell>::default();
    let (lane, _, upstream) = passing(&mut socket);
    assert!(recv_many(&lane, socket.now, &bell).is_ready());
    assert!(recv_many(&lane, socket.now, &bell).is_pending());
    socket.table.let_pass(false);
    socket.deliver(1, b"yours");
    assert_eq!((upstream.sent.lock().unwrap().len(), bell.rung()), (0, 1));
    assert_eq!(socket.recv(&lane), data(5));
}

#[test]
fn a_session_that_has_ended_lets_nothing_pass_and_frees_the_way() {
    let mut socket = Socket::default();
    let bell = Arc::<Bell>::default();
    let (lane, passage, upstream) = passing(&mut socket);
    assert!(recv_many(&lane, socket.now, &bell).is_ready());
    assert!(recv_many(&lane, socket.now, &bell).is_pending());
    lane.close();
    assert_eq!(
        Arc::strong_count(&passage),
        1,
        "the upstream's socket can close"
    );
    assert!(socket.deliver(1, b"anew").is_some());
    assert_eq!(upstream.sent.lock().unwrap().len(), 0);
}

#[test]
fn the_sockets_of_an_address_have_no_more_together_than_one_has() {
    let whole = Limits::default();
    for sockets in [1, 2, 3, 7, 64] {
        let part = whole.clone().shared_by(sockets);
        let rounding = sockets - 1;
        assert!((whole.sessions..=whole.sessions + rounding).contains(&(sockets * part.sessions)));
        // What one session may have is the same wherever it is, and what all may have is in one pool.
        assert_eq!(
            (part.queue, part.session_bytes, part.total_bytes),
            (whole.queue, whole.session_bytes, whole.total_bytes)
        );
    }
    let limits = Limits {
        total_bytes: 100_000,
        ..whole
    };
    let group = Group::default();
    let [mut one, mut other] = [(); 2].map(|()| Socket {
        table: Table::of(
            group.pool(limits.total_bytes),
            limits.clone(),
            Arc::default(),
        ),
        ..Socket::default()
    });
    let held: Vec<_> = (0..3).map(|peer| one.open(peer, &[0; 30_000])).collect();
    assert!(other.deliver(9, &[0; 30_000]).is_none(), "that is full");
    let small = other.open(9, b"what each session has reserved");
    for session in held.into_iter().chain([small]) {
        session.close();
    }
    assert!(other.deliver(10, &[0; 30_000]).is_some());
}
