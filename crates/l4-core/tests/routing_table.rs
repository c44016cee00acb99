//! The worked examples of routing, in strict order with a last pass: which route a client gets, and when.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use l4_core::{
    Addr, Connection, EndReason, Io, Matcher, MatcherModule, Provision, Record, Rejected, Verdict,
    View,
};
use l4_testkit::{Router, connection, session};
use support::Do::{EndStream, Send, Wait};
use support::{HTTP, SSH, play, play_on, register, router, says, tls_record};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

const AT_ONCE: Duration = Duration::ZERO;
const MATCHING_TIMEOUT: Duration = Duration::from_secs(3);

/// The address in-memory clients come from.
const ME: &str = r#"{"remote_ip": {"ranges": ["192.0.2.7"]}}"#;

fn when(matcher: &str, name: &str) -> String {
    says(&format!(r#"[{{"{matcher}": {{}}}}]"#), name)
}

fn always(name: &str) -> String {
    says("[]", name)
}

fn handlers(matchers: &str, handle: &str) -> String {
    format!(r#"{{"match": {matchers}, "handle": {handle}}}"#)
}

macro_rules! example {
    ($name:ident: [$($route:expr),*], [$($step:expr),*] => $answer:literal, $after:expr) => {
        #[tokio::test(start_paused = true)]
        async fn $name() {
            let outcome = play(&[$($route),*], &[$($step),*]).await;
            assert_eq!((&*outcome.answer, outcome.after), ($answer, $after));
        }
    };
}

// Rows 1 to 6: a specific route before a catch-all.
example!(the_specific_route_takes_its_protocol:
    [when("ssh", "A"), always("B")], [Send(SSH)] => "A", AT_ONCE);
example!(the_catch_all_takes_another_protocol_on_its_first_bytes:
    [when("ssh", "A"), always("B")], [Send(HTTP)] => "B", AT_ONCE);
example!(the_catch_all_waits_while_an_earlier_route_is_undecided:
    [when("ssh", "A"), always("B")],
    [Send(b"SS"), Wait(500), Send(b"H-2.0-x\r\n")] => "A", Duration::from_millis(500));
example!(the_catch_all_takes_a_client_that_stops_halfway:
    [when("ssh", "A"), always("B")], [Send(b"SS")] => "B", MATCHING_TIMEOUT);
example!(the_catch_all_takes_a_silent_client_after_the_matching_timeout:
    [when("ssh", "A"), always("B")], [] => "B", MATCHING_TIMEOUT);
example!(a_lone_catch_all_needs_no_byte:
    [always("B")], [] => "B", AT_ONCE);

// Rows 7 to 10: the no of a later route does not hide that an earlier one is undecided.
example!(a_split_request_reaches_its_route_past_other_protocols_and_a_catch_all:
    [when("http", "A"), when("ssh", "B"), always("C")],
    [Send(&HTTP[..8]), Send(&HTTP[8..])] => "A", AT_ONCE);
example!(a_split_request_reaches_its_route_without_a_catch_all:
    [when("http", "A"), when("ssh", "B")],
    [Send(&HTTP[..8]), Send(&HTTP[8..])] => "A", AT_ONCE);
example!(a_split_request_reaches_its_route_behind_another_protocol:
    [when("ssh", "A"), when("http", "B"), always("C")],
    [Send(&HTTP[..8]), Send(&HTTP[8..])] => "B", AT_ONCE);
example!(an_early_no_makes_strict_order_free:
    [when("xmpp", "A"), when("ssh", "B")], [Send(SSH)] => "B", AT_ONCE);

// Rows 11 to 13: a later route that needs no bytes does not overtake.
example!(a_whole_hello_goes_to_tls_before_an_address_route:
    [when("tls", "A"), says(&format!("[{ME}]"), "B")], [Send(&tls_record())] => "A", AT_ONCE);
// Row D-01 of docs/defects.md.
example!(a_split_hello_goes_to_tls_before_an_address_route:
    [when("tls", "A"), says(&format!("[{ME}]"), "B")],
    [Send(&tls_record()[..100]), Send(&tls_record()[100..])] => "A", AT_ONCE);
example!(an_empty_set_is_a_catch_all_like_any_other:
    [when("http", "A"), says("[{}]", "B")], [Send(&HTTP[..8])] => "B", MATCHING_TIMEOUT);
example!(a_null_match_is_a_catch_all:
    [when("http", "A"), says("null", "B")], [Send(SSH)] => "B", AT_ONCE);
example!(a_null_set_is_a_catch_all:
    [when("http", "A"), says("[null]", "B")], [Send(SSH)] => "B", AT_ONCE);

// Rows 14 to 18 and 21: gates, layers and handlers that let the connection go on.
example!(a_route_without_handlers_lets_the_next_routes_decide:
    [handlers(r#"[{"tls": {}}]"#, "[]"), always("B")], [Send(&tls_record())] => "B", AT_ONCE);
example!(after_a_layer_routes_wait_for_its_plaintext:
    [handlers("[]", r#"[{"handler": "end_tls"}]"#), when("http", "A"), always("C")],
    [Send(b"TLS!"), Wait(100), Send(HTTP)] => "A", Duration::from_millis(100));
// Row D-05 of docs/defects.md.
example!(after_a_layer_an_address_route_does_not_overtake:
    [handlers("[]", r#"[{"handler": "end_tls"}]"#), when("http", "A"), says(&format!("[{ME}]"), "B")],
    [Send(b"TLS!"), Wait(100), Send(HTTP)] => "A", Duration::from_millis(100));
example!(a_layer_starts_with_what_came_in_the_same_segment:
    [handlers("[]", r#"[{"handler": "end_tls"}]"#), when("http", "A"), always("C")],
    [Send(&[b"TLS!", HTTP].concat())] => "A", AT_ONCE);
example!(after_variables_the_next_route_decides_without_another_read:
    [handlers(r#"[{"ssh": {}}]"#, r#"[{"handler": "vars", "who": "S"}]"#), always("{l4.vars.who}")],
    [Send(SSH)] => "S", AT_ONCE);
example!(a_list_that_ends_in_a_gate_closes:
    [handlers("[]", r#"[{"handler": "vars", "x": 1}]"#)], [] => "", AT_ONCE);
example!(a_gate_in_the_middle_forgets_the_routes_before_it:
    [when("tls", "A"), handlers("[]", "[]"), when("ssh", "B")], [Send(HTTP)] => "", AT_ONCE);

// Rows 19, 20, 22: the end of the stream and early refusals.
example!(the_end_of_the_stream_settles_the_undecided:
    [when("xmpp", "A"), always("C")], [Send(b"<"), EndStream] => "C", AT_ONCE);
example!(a_client_that_only_ends_its_stream_gets_the_catch_all:
    [when("xmpp", "A"), always("C")], [EndStream] => "C", AT_ONCE);
example!(what_cannot_become_a_request_goes_on_at_once:
    [when("http", "A"), always("C")], [Send(b"EHLO a\r\n")] => "C", AT_ONCE);
example!(a_route_behind_a_catch_all_changes_nothing:
    [when("tls", "A"), always("C"), when("ssh", "B")],
    [Send(&tls_record()[..100]), Send(&tls_record()[100..])] => "A", AT_ONCE);

// Rows 23 to 25, 31: subroutes see what was read, sets are OR-ed and AND-ed symmetrically.
// Row D-04 of docs/defects.md.
example!(a_subroute_decides_on_what_was_read_before_it:
    [handlers(r#"[{"ssh": {}}]"#, &format!(r#"[{{"handler": "subroute", "routes": [{}, {}]}}]"#,
        when("xmpp", "A"), when("ssh", "B")))],
    [Send(SSH)] => "B", AT_ONCE);
// Row D-02 of docs/defects.md.
example!(an_undecided_set_does_not_hide_one_that_matches:
    [says(&format!(r#"[{{"http": {{}}}}, {ME}]"#), "A")], [] => "A", AT_ONCE);
// Row D-03 of docs/defects.md.
example!(a_cheap_no_in_a_set_waits_for_no_byte:
    [says(r#"[{"http": {}, "remote_ip": {"ranges": ["203.0.113.9"]}}]"#, "A"), always("C")],
    [] => "C", AT_ONCE);
example!(not_something_is_certain_as_soon_as_that_is_refused:
    [says(r#"[{"not": [{"tls": {}}]}]"#, "A"), when("tls", "B")], [Send(b"G")] => "A", AT_ONCE);

// Rows 27, 28, 36: what time counts.
example!(a_slow_handshake_does_not_eat_the_matching_timeout:
    [handlers("[]", r#"[{"handler": "end_tls", "ms": 3500}]"#), when("http", "A")],
    [Send(b"TLS!"), Wait(5000), Send(HTTP)] => "A", Duration::from_secs(5));
example!(a_subroute_without_a_match_goes_on_behind_it:
    [handlers(r#"[{"ssh": {}}]"#, &format!(
        r#"[{{"handler": "subroute", "routes": [{}]}}, {{"handler": "respond", "body": "after"}}]"#,
        when("http", "A")))],
    [Send(SSH)] => "after", AT_ONCE);

// Row 29.
example!(a_full_buffer_settles_the_undecided:
    [when("http", "A"), always("C")],
    [Send(&[b"GET /".as_slice(), &[b'x'; 16 * 1024]].concat())] => "C", AT_ONCE);

#[tokio::test(start_paused = true)]
async fn an_empty_list_closes_at_once_and_no_route_is_named() {
    let outcome = play(&[], &[]).await;
    assert_eq!((&*outcome.answer, outcome.after), ("", AT_ONCE));
    assert_eq!(
        (outcome.reason(), outcome.route()),
        (EndReason::NoRoute, None)
    );
}

#[tokio::test(start_paused = true)]
async fn a_list_without_a_catch_all_closes_what_no_route_takes() {
    let outcome = play(&[when("ssh", "A")], &[Send(HTTP)]).await;
    assert_eq!((&*outcome.answer, outcome.after), ("", AT_ONCE));
    assert_eq!(outcome.reason(), EndReason::NoRoute);

    let outcome = play(&[when("ssh", "A")], &[Send(b"SS")]).await;
    assert_eq!((&*outcome.answer, outcome.after), ("", MATCHING_TIMEOUT));
    assert_eq!(outcome.reason(), EndReason::MatchTimeout);

    let outcome = play(&[when("ssh", "A")], &[Send(b"SS"), EndStream]).await;
    assert_eq!((&*outcome.answer, outcome.after), ("", AT_ONCE));
    assert_eq!(outcome.reason(), EndReason::MatchEof);
}

#[tokio::test(start_paused = true)]
async fn a_lone_catch_all_reads_nothing_before_it_takes_the_connection() {
    let close = handlers("[]", r#"[{"handler": "close"}]"#);
    let outcome = play(&[close], &[Send(SSH)]).await;
    assert_eq!(outcome.reason(), EndReason::Closed);
    assert_eq!(outcome.record.bytes_read(), 0);
}

/// Row M-05 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn an_address_route_refuses_a_unix_socket_and_the_list_goes_on() {
    let routes = [
        says(r#"[{"remote_ip": {"ranges": ["0.0.0.0/0", "::/0"]}}]"#, "A"),
        says(r#"[{"local_ip": {"ranges": ["0.0.0.0/0", "::/0"]}}]"#, "B"),
        always("C"),
    ];
    let (ours, theirs) = tokio::io::duplex(64);
    let record = Arc::new(Record::new(Addr::UNNAMED));
    let conn = Connection::new(Io::Layer(Box::new(ours)), record, Some(Addr::UNNAMED));
    let outcome = play_on(&router(&routes), conn, theirs, &[]).await;
    assert_eq!(outcome.answer, "C");
}

#[tokio::test(start_paused = true)]
async fn addresses_of_a_proxy_header_count_for_matchers_and_not_for_placeholders() {
    let header = b"PROXY TCP4 10.1.1.1 10.9.9.9 1111 443\r\n";
    let routes = [
        handlers(
            r#"[{"proxy_header": {}}]"#,
            r#"[{"handler": "take_proxy_header"}]"#,
        ),
        says(
            r#"[{"remote_ip": {"ranges": ["10.1.1.1"]}, "local_ip": {"ranges": ["10.9.9.9"]}, "ssh": {}}]"#,
            "{l4.conn.remote_addr} {l4.conn.local_addr}",
        ),
        always("C"),
    ];
    let outcome = play(&routes, &[Send(&[header, SSH].concat())]).await;
    assert_eq!(outcome.answer, "192.0.2.7:40000 198.51.100.1:443");
    let outcome = play(&routes, &[Send(header), Send(SSH)]).await;
    assert_eq!(outcome.answer, "192.0.2.7:40000 198.51.100.1:443");
    let outcome = play(&routes, &[Send(SSH)]).await;
    assert_eq!(outcome.answer, "C");
}

/// Rows D-13 and G2 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn behind_an_empty_subroute_no_deadline_runs() {
    let routes = [handlers(
        "[]",
        r#"[{"handler": "subroute", "routes": []}, {"handler": "echo"}]"#,
    )];
    let outcome = play(&routes, &[Wait(10_000), Send(b"late"), EndStream]).await;
    assert_eq!(outcome.answer, "late");
    assert_eq!(outcome.reason(), EndReason::Completed);
}

/// Row D-23 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn a_subroute_is_compiled_at_load_and_never_again() {
    static COMPILED: AtomicUsize = AtomicUsize::new(0);

    /// Counts how often it is made.
    struct Counted;

    impl MatcherModule for Counted {
        const NAME: &'static str = "counted";
        type Config = l4_core::schema::Anything;

        fn provision(_: Self::Config, _: &mut Provision<'_>) -> Result<Self, Rejected> {
            COMPILED.fetch_add(1, Ordering::Relaxed);
            Ok(Self)
        }
    }

    impl Matcher for Counted {
        fn matches(&self, _: &mut View<'_>) -> Verdict {
            Verdict::Match
        }
    }

    let router = Router::new(
        |reg| {
            register(reg);
            reg.matcher::<Counted>();
        },
        r#"[{"handle": [{"handler": "subroute", "routes": [
            {"match": [{"counted": {}}], "handle": [{"handler": "echo"}]}]}]}]"#,
    );
    for _ in 0..10 {
        assert_eq!(router.exchange(&[b"through"]).await.0, b"through");
    }
    assert_eq!(COMPILED.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_gets_what_was_read_for_matching_and_then_the_rest() {
    let routes = [handlers(r#"[{"http": {}}]"#, r#"[{"handler": "echo"}]"#)];
    let script = [Send(&HTTP[..3]), Send(&HTTP[3..]), Send(b"body"), EndStream];
    let outcome = play(&routes, &script).await;
    assert_eq!(outcome.answer.as_bytes(), [HTTP, b"body"].concat());
    let total = HTTP.len() as u64 + 4;
    assert_eq!(outcome.record.bytes_read(), total);
    assert_eq!(outcome.record.bytes_written(), total);
}

#[tokio::test(start_paused = true)]
async fn a_terminal_route_in_a_subroute_ends_the_outer_list() {
    let inner = format!(
        r#"[{{"handler": "subroute", "routes": [{}]}}, {{"handler": "respond", "body": "after"}}]"#,
        when("ssh", "A")
    );
    let outcome = play(&[handlers("[]", &inner), always("B")], &[Send(SSH)]).await;
    assert_eq!(
        (&*outcome.answer, outcome.route()),
        ("A", Some("0.0".into()))
    );
}

#[tokio::test(start_paused = true)]
async fn a_gate_in_a_subroute_goes_on_behind_it_and_then_in_the_outer_list() {
    let subroute = format!(
        r#"[{{"handler": "subroute", "routes": [{}]}}]"#,
        handlers("[]", r#"[{"handler": "vars", "x": "inner"}]"#)
    );
    let routes = [handlers("[]", &subroute), always("{l4.vars.x}")];
    assert_eq!(play(&routes, &[]).await.answer, "inner");
}

#[tokio::test(start_paused = true)]
async fn an_undecided_subroute_ends_the_connection_and_not_only_itself() {
    let subroute = format!(
        r#"[{{"handler": "subroute", "routes": [{}], "matching_timeout": "700ms"}}]"#,
        when("ssh", "A")
    );
    let outcome = play(&[handlers("[]", &subroute), always("B")], &[]).await;
    assert_eq!(
        (&*outcome.answer, outcome.after, outcome.reason()),
        ("", Duration::from_millis(700), EndReason::MatchTimeout)
    );
}

fn datagram_router(routes: &[String]) -> Router {
    Router::new(register, &format!("[{}]", routes.join(",")))
}

#[tokio::test(start_paused = true)]
async fn a_short_datagram_is_refused_and_not_waited_for() {
    let router = datagram_router(&[when("dns", "A"), always("C")]);
    let (conn, mut peer) = session();
    let started = Instant::now();
    let (_, task) = router.serve(conn);
    peer.send(b"short");
    assert_eq!(peer.receive().await.unwrap(), "C");
    assert_eq!(started.elapsed(), AT_ONCE);
    drop(peer);
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn each_session_of_a_peer_is_routed_afresh() {
    let query = [&[0, 1, 1, 0, 0, 1][..], &[0; 20]].concat();
    let router = datagram_router(&[when("dns", "A")]);
    let (conn, peer) = session();
    peer.send(b"not a query");
    let (record, task) = router.serve(conn);
    task.await.unwrap();
    assert_eq!(record.end_reason(), Some(EndReason::NoRoute));
    assert!(peer.end().await.is_empty());

    let (conn, mut peer) = session();
    peer.send(&query);
    let (_, task) = router.serve(conn);
    assert_eq!(peer.receive().await.unwrap(), "A");
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn closing_a_session_answers_nothing() {
    let router = datagram_router(&[handlers("[]", r#"[{"handler": "close"}]"#)]);
    for _ in 0..10 {
        let (conn, peer) = session();
        peer.send(b"x");
        let (record, task) = router.serve(conn);
        task.await.unwrap();
        assert_eq!(record.end_reason(), Some(EndReason::Closed));
        assert!(peer.end().await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_datagram_is_refused_by_its_matcher_and_delivered_in_one_piece() {
    let router = datagram_router(&[when("dns", "A"), handlers("[]", r#"[{"handler": "echo"}]"#)]);
    let (conn, mut peer) = session();
    let (record, task) = router.serve(conn);
    let large = vec![0xFF; 3000];
    peer.send(&large);
    assert_eq!(peer.receive().await.unwrap(), large);
    assert!(peer.end().await.is_empty());
    task.await.unwrap();
    assert_eq!((record.bytes_read(), record.bytes_written()), (3000, 3000));
}

#[tokio::test(start_paused = true)]
async fn one_byte_at_a_time_is_routed_like_one_segment() {
    let routes = [
        when("tls", "A"),
        when("ssh", "B"),
        when("http", "C"),
        always("D"),
    ];
    for (bytes, route) in [
        (tls_record(), "A"),
        (SSH.to_vec(), "B"),
        (HTTP.to_vec(), "C"),
        (b"\x16\x03SSH-".to_vec(), "D"),
    ] {
        let (conn, mut client) = connection(1);
        let (_, task) = router(&routes).serve(conn);
        for byte in bytes.chunks(1) {
            let _ = client.write_all(byte).await;
        }
        let _ = client.shutdown().await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, route);
        task.await.unwrap();
    }
}
