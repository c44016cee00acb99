//! The session's handle over a socket that does as it is told.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use l4_core::conn::Session;
use l4_core::{Addr, Io, Transport};

use super::super::lane::{Lane, RESERVE, cost};
use super::super::manager::{Limits, Table};
use super::super::session::PeerSession;
use super::super::socket::{Arrival, Wire};
use super::super::stats::Stats;
use crate::relay::{is_transient, relay};
use crate::segments::SegmentLimit;

/// Sends fail as scripted, then work.
#[derive(Default)]
struct Script {
    failures: Mutex<VecDeque<io::ErrorKind>>,
    sent: Mutex<Vec<Vec<u8>>>,
    waited: Mutex<usize>,
}

impl Wire for Script {
    type Peer = u32;
    const TELLS_ROOM: bool = true;

    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        std::future::pending()
    }

    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send + Sync {
        *self.waited.lock().unwrap() += 1;
        std::future::ready(Ok(()))
    }

    fn receive(&self, _: &mut [u8], _: &mut dyn FnMut(Arrival<'_, u32>)) -> io::Result<bool> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn send(&self, _: &u32, datagrams: &[&[u8]], _: &SegmentLimit) -> io::Result<usize> {
        if let Some(failure) = self.failures.lock().unwrap().pop_front() {
            return Err(failure.into());
        }
        let first = datagrams.first().copied().unwrap_or_default();
        self.sent.lock().unwrap().push(first.into());
        Ok(1)
    }

    fn remote(&self, _: &u32) -> Addr {
        Addr::UNNAMED
    }

    fn local(&self, _: &u32) -> Addr {
        Addr::UNNAMED
    }
}

struct Scene {
    table: Table<u32>,
    stats: Arc<Stats>,
    wire: Arc<Script>,
    session: PeerSession<Script>,
}

fn scene(failures: &[io::ErrorKind]) -> Scene {
    limited_scene(failures, Limits::default())
}

fn limited_scene(failures: &[io::ErrorKind], limits: Limits) -> Scene {
    let stats = Arc::new(Stats::default());
    let mut table = Table::new(limits, stats.clone());
    let lane = deliver(&mut table, b"first").expect("a session");
    let failures = Mutex::new(failures.iter().copied().collect());
    let wire = Arc::new(Script {
        failures,
        ..Script::default()
    });
    let session = PeerSession::new(lane, wire.clone());
    Scene {
        table,
        stats,
        wire,
        session,
    }
}

fn deliver(table: &mut Table<u32>, datagram: &[u8]) -> Option<Arc<Lane<u32>>> {
    let mut lane = None;
    table.deliver(
        Instant::now(),
        &1,
        &[datagram],
        &mut Vec::new(),
        |mut vacancy| {
            lane = Some(vacancy.accept(Duration::from_secs(30)));
        },
    );
    lane
}

const FULL: io::ErrorKind = io::ErrorKind::WouldBlock;

#[tokio::test(start_paused = true)]
async fn a_send_waits_for_room_and_does_not_trust_it_twice() {
    let Scene {
        table: _table,
        stats,
        wire,
        mut session,
    } = scene(&[FULL, FULL, FULL]);
    for datagram in [&b"blocked"[..], b"", b"free"] {
        poll_fn(|cx| session.poll_send(cx, datagram)).await.unwrap();
    }
    assert_eq!(*wire.sent.lock().unwrap(), [&b"blocked"[..], b"", b"free"]);
    // Readiness was asked for once; it said "ready" and was wrong, so what followed was a pause.
    assert_eq!(*wire.waited.lock().unwrap(), 1);
    assert_eq!(stats.sent(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_room_is_counted_and_too_much_of_it_is_lost() {
    let limits = Limits {
        total_bytes: 100_000,
        ..Limits::default()
    };
    let Scene {
        table,
        stats,
        wire,
        mut session,
    } = limited_scene(&[FULL, FULL], limits);
    let (large, first) = (vec![7; 60_000], cost(b"first".len()));
    let waiting = cost(large.len()) + first - RESERVE;
    let run: [&[u8]; 2] = [&large, &large];
    let Poll::Ready(Err(error)) = at_once(|cx| session.poll_send_many(cx, &run)).await else {
        panic!("both were held")
    };
    assert!(is_transient(&error), "{error}");
    assert_eq!((stats.unsent(), table.pool().taken()), (1, 0));
    let run = &run[1..];
    assert!(
        at_once(|cx| session.poll_send_many(cx, run))
            .await
            .is_pending()
    );
    assert_eq!(table.pool().taken(), waiting);
    poll_fn(|cx| session.poll_send_many(cx, run)).await.unwrap();
    assert_eq!((stats.sent(), table.pool().taken()), (1, 0));
    *wire.failures.lock().unwrap() = [FULL, FULL].into();
    assert!(
        at_once(|cx| session.poll_send_many(cx, run))
            .await
            .is_pending()
    );
    assert_eq!(table.pool().taken(), waiting);
    drop(session);
    assert_eq!(table.pool().taken(), 0);
}

/// Has no room, ever, and receives nothing, or `answer` once.
struct Deaf {
    answer: Option<Bytes>,
}

impl Session for Deaf {
    fn poll_recv(&mut self, _: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.answer
            .take()
            .map_or(Poll::Pending, |answer| Poll::Ready(Some(answer)))
    }

    fn poll_send(&mut self, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn local(&self) -> Addr {
        Addr::UNNAMED
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_relay_keeps_for_a_slow_receiver_is_counted_in_both_directions() {
    let Scene {
        mut table, session, ..
    } = scene(&[FULL, FULL]);
    let first = cost(b"first".len());
    for _ in 0..3 {
        assert!(deliver(&mut table, &[7; 50_000]).is_none());
    }
    let up = first + 3 * cost(50_000);
    assert_eq!(table.pool().taken(), up - RESERVE);
    let answer = Some(Bytes::from_static(&[7; 40_000]));
    let client = Transport::new(Io::Datagram(Box::new(session)), None);
    let peer = Transport::new(Io::Datagram(Box::new(Deaf { answer })), None);
    let mut relaying = Box::pin(relay(client, [peer], crate::relay::Limits::default()));
    assert!(at_once(|cx| relaying.as_mut().poll(cx)).await.is_pending());
    assert_eq!(table.pool().taken(), up + cost(40_000) - RESERVE);
    drop(relaying);
    assert_eq!(table.pool().taken(), 0);
}

/// What one poll gives.
async fn at_once<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    poll_fn(|cx| Poll::Ready(poll(cx))).await
}

#[tokio::test]
async fn room_that_was_waited_for_is_not_waited_for_again() {
    let Scene {
        table: _table,
        wire,
        mut session,
        ..
    } = scene(&[io::ErrorKind::WouldBlock]);
    for datagram in [&b"blocked"[..], b"free"] {
        poll_fn(|cx| session.poll_send(cx, datagram)).await.unwrap();
    }
    assert_eq!(*wire.sent.lock().unwrap(), [&b"blocked"[..], b"free"]);
}

#[tokio::test]
async fn an_error_of_sending_is_reported_once_and_ends_nothing() {
    let Scene {
        mut table,
        stats,
        mut session,
        ..
    } = scene(&[io::ErrorKind::HostUnreachable]);
    let error = poll_fn(|cx| session.poll_send(cx, b"lost"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::HostUnreachable);
    poll_fn(|cx| session.poll_send(cx, b"sent")).await.unwrap();
    assert_eq!(stats.sent(), 1);
    assert!(deliver(&mut table, b"second").is_none());
    for expected in [&b"first"[..], b"second"] {
        assert_eq!(poll_fn(|cx| session.poll_recv(cx)).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_full_queue_does_not_keep_its_task_from_yielding() {
    let Scene {
        mut table,
        mut session,
        ..
    } = scene(&[]);
    while table.len() == 1 {
        let dropped = table
            .shared()
            .stats
            .dropped(super::super::DropReason::QueueFull);
        if dropped > 0 {
            break;
        }
        assert!(deliver(&mut table, b"more").is_none());
    }
    let mut at_once = 0;
    poll_fn(|cx| {
        while session.poll_recv(cx).is_ready() {
            at_once += 1;
        }
        Poll::Ready(())
    })
    .await;
    assert!((1..=128).contains(&at_once), "{at_once}");
    // The rest is there when the task comes back.
    for _ in at_once..Limits::default().queue {
        assert!(poll_fn(|cx| session.poll_recv(cx)).await.is_some());
    }
}

#[tokio::test]
async fn dropping_the_session_makes_room_for_the_peers_next_one() {
    let Scene {
        mut table,
        stats,
        session,
        ..
    } = scene(&[]);
    drop(session);
    assert_eq!(stats.active(), 0);
    assert!(deliver(&mut table, b"again").is_some());
}
