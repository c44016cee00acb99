//! The handlers that belong to no protocol, over real sockets where the kernel has a say.

#![allow(clippy::unwrap_used)]

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use l4_core::prelude::*;
use l4_core::{Addr, EndReason, Io, Record};
use l4_testkit::{Router, connection, load, session, settle};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

fn router(handlers: &str) -> Router {
    Router::new(
        l4_std::register,
        &format!(r#"[{{"handle": [{handlers}]}}]"#),
    )
}

/// Serves one TCP connection over the loopback interface with `handlers`.
async fn over_tcp(handlers: &str) -> (TcpStream, Arc<Record>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (socket, peer) = listener.accept().await.unwrap();
    let record = Arc::new(Record::new(Addr::Tcp(peer)));
    let conn = Connection::new(Io::Tcp(socket), record, None);
    let (record, task) = router(handlers).serve(conn);
    (client, record, task)
}

/// Different bytes, so that losing or repeating some shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes())
        .take(length)
        .collect()
}

#[tokio::test]
async fn echo_returns_everything_also_behind_the_end_of_the_clients_stream() {
    let (client, record, task) = over_tcp(r#"{"handler": "echo"}"#).await;
    let sent = pattern(1_000_000);
    let (mut from, mut to) = client.into_split();
    let writing = async {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut answer = Vec::new();
    let (read, ()) = tokio::join!(from.read_to_end(&mut answer), writing);
    read.unwrap();
    assert!(
        answer == sent,
        "{} of {} bytes, or others",
        answer.len(),
        sent.len()
    );
    task.await.unwrap();
    assert_eq!(
        (record.bytes_read(), record.bytes_written()),
        (1_000_000, 1_000_000)
    );
    assert_eq!(record.end_reason(), Some(EndReason::Completed));
}

#[tokio::test]
async fn echo_answers_each_piece_while_the_stream_is_open() {
    let (mut client, _, task) = over_tcp(r#"{"handler": "echo"}"#).await;
    for piece in [b"one".as_slice(), b"two", &pattern(5000), b"3"] {
        client.write_all(piece).await.unwrap();
        let mut answer = vec![0; piece.len()];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, piece);
    }
    client.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    task.await.unwrap();
}

#[tokio::test]
async fn echo_ends_with_a_client_that_resets() {
    let (client, record, task) = over_tcp(r#"{"handler": "echo"}"#).await;
    client.set_zero_linger().unwrap();
    drop(client);
    task.await.unwrap();
    assert_eq!(record.end_reason(), Some(EndReason::ClientReset));
}

#[tokio::test(start_paused = true)]
async fn echo_sends_every_datagram_back_until_the_session_is_over() {
    let (conn, mut peer) = session();
    let (record, task) = router(r#"{"handler": "echo"}"#).serve(conn);
    let datagrams = [b"one".to_vec(), Vec::new(), pattern(65_507)];
    for datagram in &datagrams {
        peer.send(datagram);
    }
    for datagram in &datagrams {
        assert_eq!(peer.receive().await.unwrap(), *datagram);
    }
    assert!(peer.end().await.is_empty());
    task.await.unwrap();
    assert_eq!(record.end_reason(), Some(EndReason::Completed));
}

#[tokio::test]
async fn a_client_that_has_spoken_is_reset_by_close_whether_or_not_that_was_read() {
    for (matching, read) in [
        ("", 0),
        (r#""match":[{"regexp":{"pattern":"^h","count":1}}],"#, 5),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let mut client = client.await.unwrap();
        let (socket, remote) = listener.accept().await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let record = Arc::new(Record::new(Addr::Tcp(remote)));
        let conn = Connection::new(Io::Tcp(socket), record, None);
        let routes = format!(r#"[{{{matching}"handle":[{{"handler":"close"}}]}}]"#);
        let (record, task) = Router::new(l4_std::register, &routes).serve(conn);
        task.await.unwrap();
        assert_eq!(record.end_reason(), Some(EndReason::Closed));
        assert_eq!(record.bytes_read(), read);
        let end = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_respond_text_arrives_whole_though_the_client_sent_what_nobody_reads() {
    let text = "x".repeat(200_000);
    let handler = format!(r#"{{"handler": "respond", "body": "{text}"}}"#);
    for unread in [0, 1, 60_000] {
        let (mut client, record, task) = over_tcp(&handler).await;
        client.write_all(&pattern(unread)).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer.len(), text.len());
        drop(client);
        task.await.unwrap();
        assert_eq!(record.end_reason(), Some(EndReason::Completed));
    }
}

#[tokio::test(start_paused = true)]
async fn respond_does_not_wait_for_ever_for_a_client_that_stays() {
    let (conn, mut client) = connection(1024);
    let started = Instant::now();
    let (_, task) = router(r#"{"handler": "respond", "body": "bye"}"#).serve(conn);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!((&*answer, started.elapsed()), ("bye", Duration::ZERO));
    task.await.unwrap();
    assert_eq!(started.elapsed(), Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn respond_reads_no_more_than_a_bounded_amount_after_its_text() {
    let (conn, mut client) = connection(64 * 1024);
    let (record, task) = router(r#"{"handler": "respond", "body": "bye"}"#).serve(conn);
    let mut sent = 0;
    while client.write_all(&[0; 1024]).await.is_ok() {
        sent += 1024;
        assert!(sent < 10 * 1024 * 1024, "still being read");
    }
    task.await.unwrap();
    assert!(
        record.bytes_read() <= 300 * 1024,
        "{} bytes",
        record.bytes_read()
    );
}

#[tokio::test(start_paused = true)]
async fn respond_fills_in_placeholders_and_says_nothing_by_default() {
    let (answer, _) = router(r#"{"handler": "respond", "body": "hello {l4.conn.remote_addr} at {l4.conn.local_addr}\r\n"}"#)
        .exchange(&[b"ignored"])
        .await;
    assert_eq!(answer, b"hello 192.0.2.7:40000 at 198.51.100.1:443\r\n");
    let (answer, record) = router(r#"{"handler": "respond"}"#).exchange(&[]).await;
    assert!(answer.is_empty());
    assert_eq!(record.end_reason(), Some(EndReason::Completed));
}

#[tokio::test]
async fn close_ends_a_tcp_connection_at_once() {
    let (mut client, record, task) = over_tcp(r#"{"handler": "close"}"#).await;
    task.await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(
        (record.bytes_read(), record.end_reason()),
        (0, Some(EndReason::Closed))
    );
}

#[tokio::test]
async fn close_resets_a_client_that_sent_something() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    client.write_all(b"unread").await.unwrap();
    let (socket, peer) = listener.accept().await.unwrap();
    socket.readable().await.unwrap();
    let record = Arc::new(Record::new(Addr::Tcp(peer)));
    let (_, task) =
        router(r#"{"handler": "close"}"#).serve(Connection::new(Io::Tcp(socket), record, None));
    task.await.unwrap();
    let error = client.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// A layer that counts how often it is shut down, and may take for ever to do so.
struct Farewell {
    shutdowns: Arc<AtomicUsize>,
    stuck: bool,
}

impl AsyncRead for Farewell {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Farewell {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shutdowns.fetch_add(1, Ordering::Relaxed);
        if self.stuck {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }
}

#[tokio::test(start_paused = true)]
async fn close_takes_leave_of_a_layer_and_waits_for_none() {
    for (stuck, takes) in [(false, 0), (true, 1)] {
        let shutdowns = Arc::new(AtomicUsize::new(0));
        let layer = Farewell {
            shutdowns: shutdowns.clone(),
            stuck,
        };
        let record = Arc::new(Record::new(Addr::UNNAMED));
        let conn = Connection::new(Io::Layer(Box::new(layer)), record, Some(Addr::UNNAMED));
        let started = Instant::now();
        let (record, task) = router(r#"{"handler": "close"}"#).serve(conn);
        task.await.unwrap();
        assert!(shutdowns.load(Ordering::Relaxed) > 0);
        assert_eq!(started.elapsed(), Duration::from_secs(takes));
        assert_eq!(record.end_reason(), Some(EndReason::Closed));
    }
}

/// What a list that first sets variables then answers with `body`.
async fn after_vars(vars: &str, body: &str) -> String {
    let list =
        format!(r#"{{"handler": "vars", {vars}}}, {{"handler": "respond", "body": "{body}"}}"#);
    let (answer, _) = router(&list).exchange(&[]).await;
    String::from_utf8(answer).unwrap()
}

/// Row V1 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn variables_are_set_in_the_order_written() {
    for (vars, body, expected) in [
        (r#""a": "x", "b": "{l4.vars.a}y""#, "{l4.vars.b}", "xy"),
        (r#""b": "{l4.vars.a}y", "a": "x""#, "{l4.vars.b}", "y"),
        // A name may come from a value; the later assignment to one name wins.
        (
            r#""a": "x", "{l4.vars.a}": "by name""#,
            "{l4.vars.x}",
            "by name",
        ),
        (
            r#""x": "1", "a": "x", "{l4.vars.a}": "2""#,
            "{l4.vars.x}",
            "2",
        ),
        (
            r#""a": "x", "{l4.vars.a}": "1", "x": "2""#,
            "{l4.vars.x}",
            "2",
        ),
        (
            r#""who": "{l4.conn.remote_addr}""#,
            "{l4.vars.who}",
            "192.0.2.7:40000",
        ),
        // Values are not filled in twice, and names of internal state are free.
        (
            r#""a": "\\{l4.vars.b\\}", "b": "no""#,
            "{l4.vars.a}",
            "{l4.vars.b}",
        ),
        (
            r#""tls_client_hellos": "mine", "l4.proxy_protocol.conn": "too""#,
            "{l4.vars.tls_client_hellos} {l4.vars.l4.proxy_protocol.conn}",
            "mine too",
        ),
        (r#""x": 1"#, "<{l4.vars.handler}>", "<>"),
    ] {
        assert_eq!(after_vars(vars, body).await, expected, "{vars}");
    }
}

#[tokio::test(start_paused = true)]
async fn values_are_kept_in_their_text_form() {
    for (value, text) in [
        ("\"a b\"", "a b"),
        ("3", "3"),
        ("-0.50", "-0.5"),
        ("1000000", "1000000"),
        ("1e6", "1000000"),
        ("9007199254740993", "9007199254740993"),
        ("true", "true"),
        ("null", ""),
        (
            r#"["a", 1, "{l4.vars.x}", null]"#,
            "[a 1 {l4.vars.x} <nil>]",
        ),
        (r#"{"b": 1, "a": ["x"]}"#, "map[a:[x] b:1]"),
    ] {
        assert_eq!(
            after_vars(&format!(r#""v": {value}"#), "{l4.vars.v}").await,
            text,
            "{value}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn variables_reach_later_routes_and_subroutes_and_come_back_from_them() {
    let routes = r#"[
        {"handle": [{"handler": "vars", "a": "outer"},
                    {"handler": "subroute", "routes": [
                        {"match": [{"vars": {"a": ["outer"]}}],
                         "handle": [{"handler": "vars", "b": "{l4.vars.a} and inner"}]}]},
                    {"handler": "vars", "c": "{l4.vars.b}"}]},
        {"match": [{"vars": {"c": ["outer and inner"]}}],
         "handle": [{"handler": "respond", "body": "{l4.vars.c}"}]}]"#;
    let (answer, _) = Router::new(l4_std::register, routes).exchange(&[]).await;
    assert_eq!(answer, b"outer and inner");
}

#[tokio::test(start_paused = true)]
async fn variables_of_one_connection_are_not_seen_by_another() {
    let list = r#"{"handler": "vars", "seen": "{l4.vars.seen}x"}, {"handler": "respond", "body": "{l4.vars.seen}"}"#;
    let router = router(list);
    for _ in 0..2 {
        assert_eq!(router.exchange(&[]).await.0, b"x");
    }
}

#[tokio::test(start_paused = true)]
async fn handlers_behind_a_subroute_run_unless_it_kept_the_connection() {
    let with = |inner: &str| {
        format!(
            r#"{{"handler": "subroute", "routes": [{inner}]}}, {{"handler": "respond", "body": "behind"}}"#
        )
    };
    let never = r#"{"match": [{"remote_ip": {}}], "handle": [{"handler": "close"}]}"#;
    let gate = r#"{"handle": [{"handler": "vars", "x": 1}]}"#;
    let answers = r#"{"handle": [{"handler": "respond", "body": "inside"}]}"#;
    for (inner, answer) in [
        (String::new(), "behind"),
        (never.to_owned(), "behind"),
        (gate.to_owned(), "behind"),
        (answers.to_owned(), "inside"),
        (format!("{never}, {gate}, {answers}"), "inside"),
    ] {
        assert_eq!(
            router(&with(&inner)).exchange(&[]).await.0,
            answer.as_bytes(),
            "{inner}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_while_a_handler_waits_frees_it() {
    let (conn, peer) = session();
    let router = router(r#"{"handler": "echo"}"#);
    let (_, task) = router.serve(conn);
    settle().await;
    assert_eq!(router.server().generation().active(), 1);
    drop(peer);
    task.await.unwrap();
    assert_eq!(router.server().generation().active(), 0);
}

#[test]
fn fields_that_do_not_exist_are_refused() {
    for handler in [
        r#"{"handler": "echo", "size": 1}"#,
        r#"{"handler": "close", "now": true}"#,
        r#"{"handler": "respond", "text": ""}"#,
        r#"{"handler": "subroute", "idle_timeout": 1}"#,
    ] {
        let json = format!(
            r#"{{"apps": {{"layer4": {{"servers": {{"a": {{"routes": [{{"handle": [{handler}]}}]}}}}}}}}}}"#
        );
        let errors = load(l4_std::register, &json).app.err().unwrap();
        assert!(
            errors[0].message().starts_with("unknown field"),
            "{}",
            errors[0].message()
        );
    }
}
