//! What is written about a connection: one record for every way of ending, with exact counts, and no noise. And what
//! a panic or a shutdown does to the others.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use l4_core::EndReason;
use l4_core::engine::Server;
use l4_testkit::{Client, Router, connection, session, settle};
use support::Do::{self, EndStream, Send, Vanish};
use support::{HTTP, SSH, play, router, says};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tracing::field::{Field, Visit};
use tracing::{Level, Metadata, Subscriber, span};

/// One log event.
#[derive(Clone, Debug)]
struct Event {
    level: Level,
    target: String,
    fields: BTreeMap<&'static str, String>,
}

impl Event {
    fn field(&self, name: &str) -> &str {
        self.fields
            .get(name)
            .unwrap_or_else(|| panic!("no field {name} in {:?}", self.fields))
    }

    fn message(&self) -> &str {
        self.field("message")
    }
}

impl Visit for Event {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

/// Keeps every event of this thread.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<Event>>>, Arc<AtomicU64>);

impl Subscriber for Events {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(self.1.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut seen = Event {
            level: *event.metadata().level(),
            target: event.metadata().target().to_owned(),
            fields: BTreeMap::new(),
        };
        event.record(&mut seen);
        self.0.lock().unwrap().push(seen);
    }
}

impl Events {
    /// Keeps the events of this thread until the guard is dropped.
    fn listen() -> (Self, tracing::subscriber::DefaultGuard) {
        let events = Self::default();
        let guard = tracing::subscriber::set_default(events.clone());
        (events, guard)
    }

    fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    /// The access record of connection `id`; there must be exactly one.
    fn access(&self, id: u64) -> Event {
        let all = self.all().into_iter();
        let mut found =
            all.filter(|e| e.target == "conncept::access" && e.field("conn") == id.to_string());
        let record = found.next().expect("an access record");
        assert!(found.next().is_none(), "two access records");
        record
    }

    /// What operators see without asking for more: everything above DEBUG but access records.
    fn noise(&self) -> Vec<Event> {
        let all = self.all().into_iter();
        all.filter(|e| e.level < Level::DEBUG && e.target != "conncept::access")
            .collect()
    }
}

fn handlers(matchers: &str, handle: &str) -> String {
    format!(r#"{{"match": {matchers}, "handle": {handle}}}"#)
}

fn one(handler: &str) -> Vec<String> {
    vec![handlers("[]", &format!("[{handler}]"))]
}

/// Lets a connection end in some way and gives its access record.
async fn ending(routes: &[String], script: &[Do<'_>]) -> (Event, Events) {
    let (events, _guard) = Events::listen();
    let outcome = play(routes, script).await;
    (events.access(outcome.record.id()), events)
}

#[tokio::test(start_paused = true)]
async fn every_way_of_ending_leaves_exactly_one_record_with_its_reason() {
    let ssh = vec![says(r#"[{"ssh": {}}]"#, "A")];
    let flood = vec![b'A'; 40 * 1024];
    for (routes, script, reason, route) in [
        (
            one(r#"{"handler": "respond", "body": "x"}"#),
            vec![],
            "completed",
            "0",
        ),
        (
            one(r#"{"handler": "echo"}"#),
            vec![Send(b"x"), EndStream],
            "completed",
            "0",
        ),
        (
            one(r#"{"handler": "vars", "x": 1}"#),
            vec![],
            "completed",
            "0",
        ),
        (
            one(r#"{"handler": "close"}"#),
            vec![Send(b"x")],
            "closed",
            "0",
        ),
        (ssh.clone(), vec![Send(HTTP)], "no_route", "-"),
        (vec![], vec![], "no_route", "-"),
        (ssh.clone(), vec![], "match_timeout", "-"),
        (ssh.clone(), vec![EndStream], "match_eof", "-"),
        (ssh.clone(), vec![Vanish], "match_eof", "-"),
        (
            vec![says(r#"[{"http": {}}]"#, "A")],
            vec![Send(&flood)],
            "match_buffer_full",
            "-",
        ),
        (
            one(r#"{"handler": "fail", "client": true}"#),
            vec![],
            "client_error",
            "0",
        ),
        (
            one(r#"{"handler": "fail", "client": false}"#),
            vec![],
            "dial_failed",
            "0",
        ),
    ] {
        let (record, _) = ending(&routes, &script).await;
        assert_eq!(
            (record.field("reason"), record.field("route")),
            (reason, route),
            "{routes:?}"
        );
        assert_eq!(record.level, Level::INFO);
        assert_eq!(record.message(), "connection");
        assert_eq!(record.field("server"), "test");
        assert_eq!(record.field("network"), "tcp");
        assert_eq!(record.field("remote"), "192.0.2.7:40000");
        assert_eq!(record.field("upstream"), "-");
        assert!(record.field("duration_ms").parse::<f64>().unwrap() >= 0.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_inside_a_subroute_is_named_by_its_path() {
    let inner = says(r#"[{"ssh": {}}]"#, "A");
    let routes = [
        says(r#"[{"http": {}}]"#, "B"),
        handlers(
            "[]",
            &format!(r#"[{{"handler": "subroute", "routes": [{inner}]}}]"#),
        ),
    ];
    let (record, _) = ending(&routes, &[Send(SSH)]).await;
    assert_eq!(record.field("route"), "1.0");
}

/// Row D-15 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn bytes_are_counted_once_also_those_read_ahead_and_under_a_layer() {
    let echo = one(r#"{"handler": "echo"}"#);
    let (record, _) = ending(&echo, &[Send(b"12345"), Send(b"678"), EndStream]).await;
    assert_eq!((record.field("read"), record.field("written")), ("8", "8"));

    let matched = [handlers(r#"[{"ssh": {}}]"#, r#"[{"handler": "echo"}]"#)];
    let (record, _) = ending(&matched, &[Send(&SSH[..2]), Send(&SSH[2..]), EndStream]).await;
    assert_eq!(
        (record.field("read"), record.field("written")),
        ("21", "21")
    );

    let layered = one(r#"{"handler": "end_tls"}, {"handler": "echo"}"#);
    let (record, _) = ending(&layered, &[Send(b"TLS!"), Send(b"hello"), EndStream]).await;
    assert_eq!((record.field("read"), record.field("written")), ("9", "5"));

    let refused = [says(r#"[{"ssh": {}}]"#, "A")];
    let (record, _) = ending(&refused, &[Send(HTTP)]).await;
    assert_eq!(record.field("read"), HTTP.len().to_string());
    assert_eq!(record.field("written"), "0");
}

/// Row D-16 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn what_clients_do_is_not_noise_and_our_side_is_one_error() {
    let quiet = vec![says(r#"[{"ssh": {}}]"#, "A")];
    for script in [
        vec![],
        vec![EndStream],
        vec![Vanish],
        vec![Send(HTTP)],
        vec![Send(b"SS")],
    ] {
        let (_, events) = ending(&quiet, &script).await;
        assert!(events.noise().is_empty(), "{:?}", events.noise());
    }
    let (_, events) = ending(&one(r#"{"handler": "fail", "client": true}"#), &[]).await;
    assert!(events.noise().is_empty(), "{:?}", events.noise());

    let (_, events) = ending(&one(r#"{"handler": "fail", "client": false}"#), &[]).await;
    let [error] = &events.noise()[..] else {
        panic!("one error, got {:?}", events.noise())
    };
    assert_eq!((error.level, &*error.target), (Level::ERROR, "layer4"));
    assert_eq!(error.message(), "handling connection");
    assert_eq!(error.field("error"), "nobody there");
    assert_eq!(
        (error.field("side"), error.field("phase")),
        ("Upstream", "Dial")
    );
}

#[tokio::test(start_paused = true)]
async fn the_last_pass_is_logged_with_its_reason_and_the_undecided_routes() {
    let routes = [
        says(r#"[{"ssh": {}}]"#, "A"),
        says(r#"[{"http": {}}]"#, "B"),
        says(r#"[{"xmpp": {}}]"#, "C"),
        says("[]", "D"),
    ];
    let flood = [b"GET /".as_slice(), &[b'x'; 20 * 1024]].concat();
    for (script, level, error, undecided) in [
        (
            vec![],
            Level::DEBUG,
            "aborted matching according to timeout",
            r#"["0", "1", "2"]"#,
        ),
        (vec![Send(b"G"), EndStream], Level::DEBUG, "EOF", r#"["1"]"#),
        (
            vec![Send(&flood)],
            Level::WARN,
            "matching buffer is full",
            r#"["1"]"#,
        ),
    ] {
        let (_, events) = ending(&routes, &script).await;
        let all = events.all();
        let last: Vec<&Event> = all
            .iter()
            .filter(|e| e.message() == "matching connection")
            .collect();
        let [last] = last[..] else {
            panic!("one event, got {last:?}")
        };
        assert_eq!((last.level, last.field("error")), (level, error));
        assert_eq!(last.field("undecided"), undecided);
    }
}

/// A server over `routes` with a connection that waits in it.
async fn held(
    routes: &[String],
) -> (
    Router,
    Arc<l4_core::Record>,
    tokio::task::JoinHandle<()>,
    Client,
) {
    let router = router(routes);
    let (conn, client) = connection(1024);
    let (record, task) = router.serve(conn);
    settle().await;
    (router, record, task, client)
}

fn active(server: &Server) -> usize {
    server.generation().active()
}

#[tokio::test(start_paused = true)]
async fn ending_a_generation_ends_its_connections_and_says_why() {
    for reason in [EndReason::Shutdown, EndReason::Drained] {
        for routes in [
            one(r#"{"handler": "echo"}"#),
            vec![says(r#"[{"ssh": {}}]"#, "A")],
        ] {
            let (events, _guard) = Events::listen();
            let (router, record, task, mut client) = held(&routes).await;
            assert_eq!(active(router.server()), 1);
            router.server().generation().end(reason);
            assert_eq!(
                router
                    .server()
                    .generation()
                    .drained(Duration::from_secs(1))
                    .await,
                0
            );
            // Whoever waited for the drain finds the record written.
            assert_eq!(events.access(record.id()).field("reason"), reason.as_str());
            assert_eq!(client.read_to_end(&mut Vec::new()).await.unwrap(), 0);
            task.await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_comes_after_the_end_is_ended_too() {
    let (events, _guard) = Events::listen();
    let router = router(&one(r#"{"handler": "echo"}"#));
    router.server().generation().end(EndReason::Shutdown);
    let (conn, _client) = connection(64);
    let (record, task) = router.serve(conn);
    task.await.unwrap();
    assert_eq!(events.access(record.id()).field("reason"), "shutdown");
}

#[tokio::test(start_paused = true)]
async fn a_connection_counts_before_its_task_first_runs_and_leaves_a_record_without_running() {
    let (events, _guard) = Events::listen();
    let router = router(&one(r#"{"handler": "echo"}"#));
    let (conn, _client) = connection(64);
    let id = conn.record().id();
    let serving = router.server().clone().serve(conn);
    assert_eq!(active(router.server()), 1);
    drop(serving);
    assert_eq!(active(router.server()), 0);
    assert_eq!(events.access(id).field("reason"), "shutdown");
}

#[tokio::test(start_paused = true)]
async fn an_aborted_task_leaves_its_record() {
    let (events, _guard) = Events::listen();
    let (router, record, task, mut client) = held(&one(r#"{"handler": "echo"}"#)).await;
    client.write_all(b"123").await.unwrap();
    settle().await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    let access = events.access(record.id());
    assert_eq!(access.field("reason"), "shutdown");
    assert_eq!((access.field("read"), access.field("written")), ("3", "3"));
    assert_eq!(active(router.server()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_reason_given_before_the_shutdown_stays() {
    let (events, _guard) = Events::listen();
    // The answer is out; the server only lingers for a client that does not hang up.
    let (router, record, task, _client) = held(&[says("[]", "x")]).await;
    router.server().generation().end(EndReason::Shutdown);
    task.await.unwrap();
    assert_eq!(events.access(record.id()).field("reason"), "completed");
}

/// Row G1 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn a_panic_costs_only_its_own_connection() {
    for (bug, script) in [
        (
            handlers(r#"[{"ssh": {}}]"#, r#"[{"handler": "panic"}]"#),
            SSH,
        ),
        (handlers(r#"[{"bug": {}}]"#, "[]"), b"x".as_slice()),
    ] {
        let (events, _guard) = Events::listen();
        let routes = [
            handlers(r#"[{"http": {}}]"#, r#"[{"handler": "echo"}]"#),
            bug,
        ];
        let router = router(&routes);
        let (other, mut other_client) = connection(1024);
        let (other_record, other_task) = router.serve(other);
        other_client.write_all(HTTP).await.unwrap();

        let (conn, mut client) = connection(1024);
        let (record, task) = router.serve(conn);
        client.write_all(script).await.unwrap();
        assert!(task.await.unwrap_err().is_panic());
        let access = events.access(record.id());
        assert_eq!(access.field("reason"), "panic");
        assert_eq!(access.field("read"), script.len().to_string());
        assert_eq!(client.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        assert_eq!(active(router.server()), 1);

        other_client.write_all(b"more").await.unwrap();
        other_client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        other_client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, [HTTP, b"more"].concat());
        other_task.await.unwrap();
        assert_eq!(
            events.access(other_record.id()).field("reason"),
            "completed"
        );
        assert_eq!(active(router.server()), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_datagram_session_has_a_record_like_any_other() {
    let (events, _guard) = Events::listen();
    let router = router(&one(r#"{"handler": "echo"}"#));
    let (conn, mut peer) = session();
    let (record, task) = router.serve(conn);
    peer.send(b"");
    peer.send(b"12345");
    assert_eq!(peer.receive().await.unwrap(), "");
    assert_eq!(peer.receive().await.unwrap(), "12345");
    peer.end().await;
    task.await.unwrap();
    let access = events.access(record.id());
    assert_eq!(
        (access.field("network"), access.field("reason")),
        ("udp", "completed")
    );
    assert_eq!((access.field("read"), access.field("written")), ("5", "5"));
}
