//! What the matching clock counts, where the matching buffer ends, and what a client that goes away leaves behind.

#![allow(clippy::unwrap_used)]

mod support;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use l4_core::conn::MATCH_LIMIT;
use l4_core::{Addr, Connection, EndReason, Io, Record};
use l4_testkit::{Router, connection};
use support::Do::{EndStream, Send, Vanish, Wait};
use support::{play, play_on, register, router, says};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const SECOND: Duration = Duration::from_secs(1);

fn when(matcher: &str, name: &str) -> String {
    says(&format!(r#"[{{"{matcher}": {{}}}}]"#), name)
}

fn always(name: &str) -> String {
    says("[]", name)
}

fn handlers(handle: &str) -> String {
    format!(r#"{{"handle": {handle}}}"#)
}

#[tokio::test(start_paused = true)]
async fn a_trickle_of_bytes_does_not_extend_the_matching_timeout() {
    let routes = [when("http", "A"), always("B")];
    let script = [Send(b"G"), Wait(2000), Send(b"E"), Wait(2000), Send(b"T")];
    let (conn, client) = connection(64);
    let outcome = play_on(&router(&routes), conn, client, &script).await;
    assert_eq!(outcome.answer, "B");
    // The third byte came when all was over.
    assert_eq!(outcome.record.bytes_read(), 2);
    assert_eq!(outcome.after, 4 * SECOND, "the script's own length");

    let outcome = play(&routes, &[Send(b"G"), Wait(2000), Send(b"E")]).await;
    assert_eq!((&*outcome.answer, outcome.after), ("B", 3 * SECOND));
}

/// Rows D-24 and G3 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn time_in_a_handler_that_goes_on_is_not_waiting() {
    let routes = [
        handlers(r#"[{"handler": "sleep", "ms": 10000}]"#),
        when("ssh", "A"),
        always("C"),
    ];
    let outcome = play(&routes, &[]).await;
    assert_eq!((&*outcome.answer, outcome.after), ("C", 13 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn the_clock_goes_on_from_where_it_stood_before_a_handler() {
    let gate = r#"{"match": [{"proxy_header": {}}],
        "handle": [{"handler": "take", "bytes": 6}, {"handler": "sleep", "ms": 5000}]}"#;
    let routes = [gate.to_owned(), when("ssh", "A"), always("C")];
    // Two seconds of waiting, five in the handler, then one second is left of three.
    let outcome = play(&routes, &[Wait(2000), Send(b"PROXY ")]).await;
    assert_eq!((&*outcome.answer, outcome.after), ("C", 8 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_subroute_has_a_clock_of_its_own_and_the_outer_one_stands_still() {
    let subroute = |routes: &str, timeout: &str| {
        handlers(&format!(
            r#"[{{"handler": "subroute", "routes": [{routes}], "matching_timeout": "{timeout}"}}]"#
        ))
    };
    let outcome = play(&[subroute(&when("ssh", "A"), "5s")], &[]).await;
    assert_eq!((&*outcome.answer, outcome.after), ("", 5 * SECOND));

    // Four seconds until the subroute refuses, and the outer list still waits its whole three.
    let routes = [
        subroute(&when("proxy_header", "A"), "5s"),
        when("http", "B"),
        always("C"),
    ];
    let outcome = play(&routes, &[Wait(4000), Send(b"GET")]).await;
    assert_eq!((&*outcome.answer, outcome.after), ("C", 7 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_matching_timeout_of_zero_or_less_is_the_default() {
    for (timeout, seconds) in [("\"1s\"", 1), ("0", 3), ("\"-5s\"", 3), ("null", 3)] {
        let router = Router::with_server(
            register,
            &format!(
                r#"{{"listen": ["127.0.0.1:1"], "matching_timeout": {timeout}, "routes": [{}]}}"#,
                when("ssh", "A")
            ),
        );
        let (conn, client) = connection(64);
        let outcome = play_on(&router, conn, client, &[]).await;
        assert_eq!(outcome.after, seconds * SECOND, "{timeout}");
        assert_eq!(outcome.reason(), EndReason::MatchTimeout);
    }
}

/// A request head of exactly so many bytes.
fn head(length: usize) -> Vec<u8> {
    let mut head = b"GET / HTTP/1.1\r\nX: ".to_vec();
    head.resize(length - 4, b'x');
    head.extend_from_slice(b"\r\n\r\n");
    head
}

#[tokio::test(start_paused = true)]
async fn what_a_matcher_can_see_ends_at_the_limit_however_it_arrives() {
    let routes = [when("http", "A"), always("C")];
    for (length, answer) in [(MATCH_LIMIT, "A"), (MATCH_LIMIT + 1, "C")] {
        let head = head(length);
        for cut in [0, 1, 2048, MATCH_LIMIT - 1, MATCH_LIMIT] {
            let script = [Send(&head[..cut]), Send(&head[cut..])];
            let outcome = play(&routes, &script).await;
            assert_eq!(outcome.answer, answer, "{length} bytes cut at {cut}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_taken_by_a_handler_do_not_count_for_the_limit() {
    let routes = [
        handlers(r#"[{"handler": "take", "bytes": 1000}]"#),
        when("http", "A"),
        always("C"),
    ];
    let stream = [vec![b'-'; 1000], head(MATCH_LIMIT)].concat();
    for cut in [0, 500, 1000, 1500, MATCH_LIMIT] {
        let outcome = play(&routes, &[Send(&stream[..cut]), Send(&stream[cut..])]).await;
        assert_eq!(outcome.answer, "A", "cut at {cut}");
    }
}

#[tokio::test(start_paused = true)]
async fn behind_a_full_buffer_later_routes_still_get_their_last_pass() {
    let routes = [
        when("http", "A"),
        r#"{"match": [{"not": [{"ssh": {}}]}], "handle": [{"handler": "vars", "x": "gate"}]}"#
            .to_owned(),
        when("http", "B"),
        always("{l4.vars.x}"),
    ];
    let endless = [b"GET /".as_slice(), &[b'x'; 2 * MATCH_LIMIT]].concat();
    let outcome = play(&routes, &[Send(&endless)]).await;
    assert_eq!((&*outcome.answer, outcome.after), ("gate", Duration::ZERO));

    let outcome = play(&routes[..1], &[Send(&endless)]).await;
    assert_eq!(outcome.reason(), EndReason::MatchBufferFull);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_before_a_byte_ends_the_matching() {
    let outcome = play(&[when("ssh", "A")], &[Vanish]).await;
    assert_eq!(outcome.reason(), EndReason::MatchEof);
    assert_eq!(outcome.route(), None);
}

/// Row D-16 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn a_client_that_ends_its_stream_still_gets_its_answer() {
    let routes = [when("ssh", "A"), handlers(r#"[{"handler": "echo"}]"#)];
    let outcome = play(&routes, &[Send(b"SS"), EndStream]).await;
    assert_eq!(outcome.answer, "SS");
}

/// Gives its bytes and then fails.
struct Failing(Vec<u8>, io::ErrorKind);

impl AsyncRead for Failing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Ready(Err(self.1.into()));
        }
        buf.put_slice(&std::mem::take(&mut self.0));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Failing {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(self.1.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn no_catch_all_runs_for_a_client_that_reset_the_connection() {
    let routes = [when("ssh", "A"), handlers(r#"[{"handler": "echo"}]"#)];
    for (kind, reason) in [
        (io::ErrorKind::ConnectionReset, EndReason::ClientReset),
        (io::ErrorKind::TimedOut, EndReason::ClientError),
    ] {
        let record = Arc::new(Record::new(Addr::UNNAMED));
        let io = Io::Layer(Box::new(Failing(b"SS".to_vec(), kind)));
        let conn = Connection::new(io, record.clone(), Some(Addr::UNNAMED));
        router(&routes).server().clone().serve(conn).await;
        assert_eq!((record.end_reason(), record.route()), (Some(reason), None));
    }
}
