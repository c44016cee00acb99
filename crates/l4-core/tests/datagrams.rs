//! Datagram sessions through the engine: cuts are kept, and nothing that a datagram does not hold is waited for.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use l4_core::conn::{DatagramFilter, Filtered, Received};
use l4_core::prelude::*;
use l4_core::route::{Routed, Sets};
use l4_core::{EndReason, Handler, Program};
use l4_testkit::{conn_verdict, received_datagrams, session, settle};
use support::{Dns, router, says};
use tokio::time::Instant;

/// A DNS query's header and some more.
const QUERY: &[u8] = &[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, b'w'];

fn when(matcher: &str, name: &str) -> String {
    says(&format!(r#"[{{"{matcher}": {{}}}}]"#), name)
}

fn echo() -> String {
    r#"{"handle": [{"handler": "echo"}]}"#.to_owned()
}

/// Row D-08 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn an_empty_datagram_is_received_and_not_waited_on() {
    let started = Instant::now();
    let (conn, mut peer) = session();
    peer.send(b"");
    let (_, task) = router(&[when("dns", "A"), says("[]", "C")]).serve(conn);
    assert_eq!(peer.receive().await.unwrap(), "C");
    assert_eq!(started.elapsed(), Duration::ZERO);
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_without_a_datagram_waits_for_the_matching_timeout() {
    let started = Instant::now();
    let (conn, mut peer) = session();
    let (_, task) = router(&[when("dns", "A"), says("[]", "C")]).serve(conn);
    assert_eq!(peer.receive().await.unwrap(), "C");
    assert_eq!(started.elapsed(), Duration::from_secs(3));
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_before_a_route_takes_it_is_an_end_of_stream() {
    let (conn, peer) = session();
    let (record, task) = router(&[when("dns", "A")]).serve(conn);
    assert!(peer.end().await.is_empty());
    task.await.unwrap();
    assert_eq!(record.end_reason(), Some(EndReason::MatchEof));
}

#[test]
fn a_matcher_sees_the_first_datagram_only() {
    let mut conn = received_datagrams(&[&QUERY[..5], &QUERY[5..]]);
    assert_eq!(conn_verdict(&Dns, &mut conn), Verdict::More(7));
    assert_eq!(conn.unread(), &QUERY[..5]);
    let mut conn = received_datagrams(&[QUERY, b"junk"]);
    assert_eq!(conn_verdict(&Dns, &mut conn), Verdict::Match);
}

/// Row M-11 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn two_halves_of_a_message_are_not_joined() {
    let (conn, mut peer) = session();
    peer.send(&QUERY[..5]);
    peer.send(&QUERY[5..]);
    let (_, task) = router(&[when("dns", "A"), echo()]).serve(conn);
    assert_eq!(peer.receive().await.unwrap(), &QUERY[..5]);
    assert_eq!(peer.receive().await.unwrap(), &QUERY[5..]);
    peer.end().await;
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn not_a_message_is_certain_for_a_short_datagram() {
    let (conn, mut peer) = session();
    peer.send(&QUERY[..5]);
    let started = Instant::now();
    let (_, task) = router(&[says(r#"[{"not": [{"dns": {}}]}]"#, "A")]).serve(conn);
    assert_eq!(peer.receive().await.unwrap(), "A");
    assert_eq!(started.elapsed(), Duration::ZERO);
    task.await.unwrap();
}

/// Row D-06 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn boundaries_survive_matching_and_echo_for_every_size() {
    let (conn, mut peer) = session();
    let (record, task) = router(&[when("dns", "A"), echo()]).serve(conn);
    let sizes = [0, 1, 0, 1200, 9001, 65_507, 3];
    for size in sizes {
        peer.send(&vec![0xFF; size]);
    }
    for size in sizes {
        assert_eq!(peer.receive().await.unwrap().len(), size);
    }
    assert!(peer.end().await.is_empty());
    task.await.unwrap();
    let total: usize = sizes.iter().sum();
    assert_eq!(record.bytes_read(), total as u64);
    assert_eq!(record.bytes_written(), total as u64);
    assert_eq!(record.end_reason(), Some(EndReason::Completed));
}

/// Wants two datagrams, as QUIC may for its first flight.
struct TwoDatagrams;

impl Matcher for TwoDatagrams {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        match view.datagrams().count() {
            0 | 1 => Verdict::More(1),
            _ => Verdict::from_bool(view.datagrams().nth(1) == Some(b"second")),
        }
    }

    fn spans_datagrams(&self) -> bool {
        true
    }
}

fn spanning(chain: Vec<Box<dyn Handler>>) -> Program {
    let sets = Sets::from_matchers(vec![vec![Box::new(TwoDatagrams)]]);
    Program::from_routes(vec![(sets, chain)], Duration::from_secs(3))
}

#[test]
fn a_matcher_that_spans_datagrams_is_waited_for() {
    let program = spanning(Vec::new());
    for (datagrams, routed) in [
        (
            &[b"first".as_slice()] as &[&[u8]],
            Routed::Undecided { route: 0, more: 1 },
        ),
        (&[b"first", b"second"], Routed::Take(0)),
        (&[b"first", b""], Routed::Exhausted),
    ] {
        let mut conn = received_datagrams(datagrams);
        let step = conn.with_view(|view| program.step(view, 0, false, &mut Vec::new()));
        assert_eq!(step, routed);
    }
}

/// Asks for ever.
struct Insatiable;

impl Matcher for Insatiable {
    fn matches(&self, _: &mut View<'_>) -> Verdict {
        Verdict::More(1)
    }

    fn spans_datagrams(&self) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn empty_datagrams_cannot_be_piled_up_without_end() {
    let sets = Sets::from_matchers(vec![vec![Box::new(Insatiable)]]);
    let program = Arc::new(Program::from_routes(
        vec![(sets, Vec::new())],
        Duration::from_secs(3600),
    ));
    let (conn, peer) = session();
    let record = conn.record().clone();
    let task = tokio::spawn({
        let program = program.clone();
        async move { program.run(conn).await.map(|_| ()) }
    });
    let mut sent = 0;
    while record.end_reason().is_none() {
        assert!(sent < 5000, "still taking empty datagrams");
        peer.send(b"");
        settle().await;
        sent += 1;
    }
    assert_eq!(record.end_reason(), Some(EndReason::MatchBufferFull));
    task.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_one_datagram_and_an_empty_one_counts() {
    let (conn, mut peer) = session();
    peer.send(b"x");
    let (_, task) = router(&[says("[]", "")]).serve(conn);
    assert_eq!(peer.receive().await.unwrap(), "");
    assert_eq!(peer.receive().await, None);
    task.await.unwrap();
}

/// Takes one byte off each datagram, drops those that begin with `d`, and ends the session at one with `e`.
struct Behead;

impl DatagramFilter for Behead {
    fn filter(&mut self, datagram: Bytes) -> Filtered {
        match datagram.first() {
            Some(b'd') => Filtered::Drop,
            Some(b'e') => Filtered::End,
            _ => Filtered::Pass(datagram.slice(datagram.len().min(1)..)),
        }
    }
}

#[tokio::test]
async fn a_filter_sees_unread_datagrams_and_those_that_come_later() {
    let (mut conn, peer) = session();
    for datagram in [&b"dropped"[..], b"1one", b""] {
        peer.send(datagram);
        conn.fill().await.unwrap();
    }
    let record = conn.record().clone();
    let mut conn = conn.filter_datagrams(Behead);
    for datagram in [&b"dropped"[..], b"2two", b"end", b"3three"] {
        peer.send(datagram);
    }
    let mut received = Vec::new();
    let mut buf = [0; 16];
    while let Received::Data(n) = conn.receive(&mut buf).await.unwrap() {
        received.push(buf[..n].to_vec());
    }
    assert_eq!(received, [&b"one"[..], b"", b"two"]);
    assert_eq!(
        record.bytes_read(),
        7 + 4 + 7 + 4 + 3,
        "what a filter takes away was received all the same"
    );
}

#[tokio::test]
async fn a_session_that_a_filter_ended_among_unread_datagrams_is_over() {
    let mut conn = received_datagrams(&[b"1one", b"end", b"2two"]);
    let first: Vec<_> = conn.datagrams().map(<[u8]>::to_vec).collect();
    assert_eq!(first, [&b"1one"[..], b"end", b"2two"]);
    conn = conn.filter_datagrams(Behead);
    let mut buf = [0; 16];
    assert_eq!(conn.receive(&mut buf).await.unwrap(), Received::Data(3));
    assert_eq!(conn.receive(&mut buf).await.unwrap(), Received::End);
}
