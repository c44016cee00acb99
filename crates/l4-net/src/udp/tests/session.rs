//! The session's handle over a socket that does as it is told.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use l4_core::Addr;
use l4_core::conn::Session;

use super::super::lane::Lane;
use super::super::manager::{Limits, Table};
use super::super::session::PeerSession;
use super::super::socket::{Arrival, Wire};
use super::super::stats::Stats;
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
    let stats = Arc::new(Stats::default());
    let mut table = Table::new(Limits::default(), stats.clone());
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

#[tokio::test(start_paused = true)]
async fn a_send_waits_for_room_and_does_not_trust_it_twice() {
    const FULL: io::ErrorKind = io::ErrorKind::WouldBlock;
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
