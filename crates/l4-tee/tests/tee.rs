//! The handler and its two ends, seen from clients and from both chains.

#![allow(clippy::unwrap_used)]

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use l4_core::conn::Received;
use l4_core::prelude::*;
use l4_core::{Addr, EndReason, Io, Record};
use l4_tee::fanout::{BUFFER, split};
use l4_testkit::{Client, Router, connection, load, session, settle};
use proptest::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{sleep, timeout};

fn fork(conn: Connection) -> (Connection, Connection) {
    conn.fork(|below| {
        let (main, branch, _) = split(below);
        (main, branch)
    })
}

fn ends(capacity: usize) -> (Connection, Connection, Client) {
    let (conn, client) = connection(capacity);
    let (main, branch) = fork(conn);
    (main, branch, client)
}

/// Reads to the end, in pieces of the sizes given in turn.
async fn drain(mut conn: Connection, sizes: Vec<usize>) -> (Connection, Vec<u8>) {
    let mut all = Vec::new();
    for size in sizes.iter().cycle() {
        let mut buffer = vec![0; *size];
        match conn.receive(&mut buffer).await.unwrap() {
            Received::Data(n) => all.extend_from_slice(&buffer[..n]),
            Received::End => break,
        }
    }
    (conn, all)
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 % 251) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the bytes are cut, read ahead and taken, each side gets each of them once and in order.
    /// Rows D-18 and E1 of docs/defects.md.
    #[test]
    fn every_byte_reaches_each_side_exactly_once(
        total in 0usize..200_000,
        ahead in 0usize..16_000,
        capacity in 1usize..70_000,
        main_sizes in prop::collection::vec(1usize..70_000, 1..6),
        branch_sizes in prop::collection::vec(1usize..70_000, 1..6),
    ) {
        // Tiny pieces of a long stream only take time.
        let total = total.min(capacity.saturating_mul(2000));
        let total = total.min(main_sizes.iter().chain(&branch_sizes).min().unwrap() * 4000);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (main, branch) = runtime.block_on(async {
            let (mut conn, mut client) = connection(capacity);
            let sent = bytes(total);
            tokio::spawn(async move { client.write_all(&sent).await.unwrap() });
            while conn.unread().len() < ahead.min(total) {
                conn.fill().await.unwrap();
            }
            let (main, branch) = fork(conn);
            let branch = tokio::spawn(drain(branch, branch_sizes));
            let (_main, got) = drain(main, main_sizes).await;
            (got, branch.await.unwrap().1)
        });
        prop_assert!(main == bytes(total), "main: {} of {total}", main.len());
        prop_assert!(branch == bytes(total), "branch: {} of {total}", branch.len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_branch_that_stops_reading_stops_main_after_the_buffer() {
    let (mut main, mut branch, mut client) = ends(256 * 1024);
    client.write_all(&bytes(200_000)).await.unwrap();
    let mut buffer = vec![0; 200_000];
    let mut got = 0;
    while let Ok(received) = timeout(Duration::from_secs(1), main.receive(&mut buffer[got..])).await
    {
        let Received::Data(n) = received.unwrap() else {
            panic!("ended");
        };
        got += n;
    }
    assert_eq!(got, BUFFER);
    branch.read_exact(&mut vec![0; 1000]).await.unwrap();
    assert_eq!(
        main.receive(&mut buffer).await.unwrap(),
        Received::Data(1000)
    );
    // Waiting for room when the branch ends: it goes on alone.
    let waiting = tokio::spawn(async move {
        let mut rest = 0;
        while rest < 200_000 - BUFFER - 1000 {
            match main.receive(&mut buffer).await.unwrap() {
                Received::Data(n) => rest += n,
                Received::End => break,
            }
        }
        rest
    });
    settle().await;
    assert!(!waiting.is_finished());
    drop(branch);
    assert_eq!(waiting.await.unwrap(), 200_000 - BUFFER - 1000);
}

/// Row E3 of docs/defects.md.
#[tokio::test]
async fn when_main_ends_the_branch_gets_what_was_read_and_then_the_end() {
    let (mut main, mut branch, mut client) = ends(1024);
    client.write_all(b"read, unread").await.unwrap();
    main.receive(&mut [0; 4]).await.unwrap();
    drop(main);
    let mut got = Vec::new();
    branch.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"read");
    let failed = branch.send(b"x").await.unwrap_err();
    assert_eq!(failed.kind(), io::ErrorKind::BrokenPipe);
    // The client is not kept waiting by the branch.
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
}

/// Row E3 of docs/defects.md.
#[tokio::test]
async fn a_branch_waiting_for_bytes_sees_the_end_of_main() {
    let (main, branch, _client) = ends(1024);
    let waiting = tokio::spawn(drain(branch, vec![64]));
    settle().await;
    assert!(!waiting.is_finished());
    drop(main);
    assert_eq!(waiting.await.unwrap().1, b"");
}

#[tokio::test]
async fn only_mains_end_ends_the_answer_and_the_client_may_go_on_sending() {
    let (mut main, mut branch, mut client) = ends(1024);
    branch.send(b"branch").await.unwrap();
    branch.shutdown().await.unwrap();
    main.send(b"main").await.unwrap();
    main.shutdown().await.unwrap();
    let failed = branch.send(b"late").await.unwrap_err();
    assert_eq!(failed.kind(), io::ErrorKind::BrokenPipe);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"branchmain");
    client.write_all(b"more").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(drain(main, vec![9]).await.1, b"more");
    assert_eq!(drain(branch, vec![9]).await.1, b"more");
}

#[tokio::test]
async fn writes_of_both_are_kept_whole() {
    // Hardly any write fits at once.
    let (mut main, mut branch, mut client) = ends(7);
    async fn write(conn: &mut Connection, letter: u8) {
        for _ in 0..50 {
            conn.write_all(&[letter; 100]).await.unwrap();
        }
        conn.flush().await.unwrap();
    }
    let mut answer = vec![0; 10_000];
    let (_, _, read) = tokio::join!(
        write(&mut main, b'm'),
        write(&mut branch, b'b'),
        client.read_exact(&mut answer)
    );
    read.unwrap();
    for piece in answer.chunks(100) {
        assert!(piece.iter().all(|byte| *byte == piece[0]), "torn apart");
    }
    assert_eq!(answer.iter().filter(|byte| **byte == b'b').count(), 5000);
}

#[tokio::test]
async fn what_the_branch_wrote_last_is_sent_even_if_it_ends_at_once() {
    let (mut main, mut branch, mut client) = ends(7);
    assert_eq!(branch.write(&[b'b'; 100]).await.unwrap(), 100);
    drop(branch);
    let reading = tokio::spawn(async move {
        let received = main.receive(&mut [0; 1]).await.unwrap();
        (received, main)
    });
    let mut answer = vec![0; 100];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [b'b'; 100]);
    client.shutdown().await.unwrap();
    assert_eq!(reading.await.unwrap().0, Received::End);
}

/// A client that resets.
struct Broken;

impl AsyncRead for Broken {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}

impl AsyncWrite for Broken {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Row E3 of docs/defects.md.
#[tokio::test]
async fn a_reset_of_the_client_is_one_for_both() {
    let record = Arc::new(Record::new(Addr::UNNAMED));
    let (mut main, mut branch) = fork(Connection::new(Io::Layer(Box::new(Broken)), record, None));
    for conn in [&mut main, &mut branch] {
        let error = conn.receive(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test(start_paused = true)]
async fn datagrams_keep_their_cuts_on_both_sides_and_are_bounded() {
    let (mut conn, mut peer) = session();
    for datagram in [&b"one"[..], b"", b"three"] {
        peer.send(datagram);
    }
    conn.fill().await.unwrap();
    let (mut main, mut branch) = fork(conn);
    assert!(main.is_datagram() && branch.is_datagram());
    assert_eq!(main.local(), branch.local());
    // Matching goes on behind it.
    assert_eq!(main.unread(), b"one");
    main.fill().await.unwrap();
    let mut buffer = [0; 65_535];
    for expected in [&b"one"[..], b"", b"three"] {
        for conn in [&mut main, &mut branch] {
            let received = conn.receive(&mut buffer).await.unwrap();
            assert_eq!(received, Received::Data(expected.len()));
            assert_eq!(&buffer[..expected.len()], expected);
        }
    }
    main.send(b"m").await.unwrap();
    branch.send(b"b").await.unwrap();
    assert_eq!(peer.receive().await.unwrap(), "m");
    assert_eq!(peer.receive().await.unwrap(), "b");
    // The branch takes nothing any more: the second of these is one too many.
    for _ in 0..3 {
        peer.send(&[0; 40_000]);
    }
    main.receive(&mut buffer).await.unwrap();
    main.receive(&mut buffer).await.unwrap();
    let third = timeout(Duration::from_secs(1), main.receive(&mut buffer)).await;
    assert!(third.is_err());
    branch.receive(&mut buffer).await.unwrap();
    branch.receive(&mut buffer).await.unwrap();
    main.receive(&mut buffer).await.unwrap();
    drop(peer);
    assert_eq!(main.receive(&mut buffer).await.unwrap(), Received::End);
    branch.receive(&mut buffer).await.unwrap();
    assert_eq!(branch.receive(&mut buffer).await.unwrap(), Received::End);
}

/// Row E6 of docs/defects.md.
#[tokio::test]
async fn variables_are_copied_and_later_changes_are_not_shared() {
    let (mut conn, _client) = connection(64);
    conn.set_var("before", "yes");
    let (mut main, mut branch) = fork(conn);
    main.set_var("main", "1");
    branch.set_var("before", "no");
    assert_eq!(
        (main.var("before"), branch.var("before")),
        (Some("yes"), Some("no"))
    );
    assert_eq!(branch.var("main"), None);
    assert_eq!(main.record().id(), branch.record().id());
    branch.end(EndReason::Closed);
    assert_eq!(main.record().end_reason(), None);
}

/// Collects what it gets where the test finds it, and a dot for the end.
struct Collect(Arc<Mutex<Vec<u8>>>);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CollectConfig {}

thread_local! {
    static COLLECTED: Arc<Mutex<Vec<u8>>> = Arc::default();
}

impl HandlerModule for Collect {
    const NAME: &'static str = "collect";
    type Config = CollectConfig;

    fn provision(_: CollectConfig, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self(COLLECTED.with(Arc::clone)))
    }
}

impl AsyncHandler for Collect {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        let mut buffer = [0; 100];
        while let Received::Data(n) = conn.receive(&mut buffer).await? {
            self.0.lock().unwrap().extend_from_slice(&buffer[..n]);
        }
        self.0.lock().unwrap().push(b'.');
        Ok(Flow::Done)
    }

    fn terminal(&self) -> bool {
        true
    }
}

/// Never ends.
struct Hang;

impl HandlerModule for Hang {
    const NAME: &'static str = "hang";
    type Config = CollectConfig;

    fn provision(_: CollectConfig, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self)
    }
}

impl AsyncHandler for Hang {
    async fn handle(&self, _conn: Connection, _: Rest<'_>) -> Result<Flow> {
        std::future::pending().await
    }
}

/// Panics.
struct Burst;

impl HandlerModule for Burst {
    const NAME: &'static str = "burst";
    type Config = CollectConfig;

    fn provision(_: CollectConfig, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self)
    }
}

impl AsyncHandler for Burst {
    async fn handle(&self, _conn: Connection, _: Rest<'_>) -> Result<Flow> {
        panic!("a bug in the branch")
    }
}

fn modules(reg: &mut Registry) {
    l4_std::register(reg);
    l4_tee::register(reg);
    reg.handler::<Collect>()
        .handler::<Hang>()
        .handler::<Burst>();
}

fn tee(branch: &str) -> Router {
    Router::new(
        modules,
        &format!(
            r#"[{{"handle":[{{"handler":"tee","branch":{branch}}}]}},{{"handle":[{{"handler":"echo"}}]}}]"#
        ),
    )
}

#[tokio::test]
async fn a_mirror_gets_what_the_routes_behind_get() {
    let sent = bytes(100_000);
    let (answer, record) = tee(r#"[{"handler":"collect"}]"#)
        .exchange(&[&sent[..1], &sent[1..5000], &sent[5000..]])
        .await;
    assert_eq!(answer, sent);
    assert_eq!(record.end_reason(), Some(EndReason::Completed));
    assert_eq!(
        (record.bytes_read(), record.bytes_written()),
        (100_000, 100_000)
    );
    settle().await;
    let mut collected = COLLECTED.with(|it| it.lock().unwrap().clone());
    assert_eq!(collected.pop(), Some(b'.'));
    assert_eq!(collected, sent);
}

/// Row E2 of docs/defects.md.
#[tokio::test]
async fn a_branch_that_ends_fails_or_panics_leaves_the_connection_alone() {
    for branch in [
        "[]",
        "null",
        r#"[{"handler":"vars","a":"b"}]"#,
        r#"[{"handler":"close"}]"#,
        r#"[{"handler":"burst"}]"#,
        r#"[{"handler":"tee","branch":[{"handler":"close"}]}]"#,
    ] {
        let sent = bytes(150_000);
        let (answer, record) = tee(branch).exchange(&[b"first ", &sent]).await;
        assert_eq!(&answer[..6], b"first ", "{branch}");
        assert_eq!(&answer[6..], sent, "{branch}");
        assert_eq!(record.end_reason(), Some(EndReason::Completed), "{branch}");
    }
}

#[tokio::test]
async fn the_branch_may_answer_the_client() {
    let router = Router::new(
        modules,
        r#"[{"handle":[{"handler":"tee","branch":[{"handler":"echo"}]},{"handler":"collect"}]}]"#,
    );
    let (answer, _) = router.exchange(&[b"a", b"b"]).await;
    assert_eq!(answer, b"ab");
}

#[tokio::test(start_paused = true)]
async fn a_branch_gets_a_minute_when_the_connection_is_over_and_the_drain_waits_for_it() {
    let router = tee(r#"[{"handler":"hang"}]"#);
    let generation = router.server().generation().clone();
    let (conn, mut client) = connection(1024);
    let (_, task) = router.serve(conn);
    client.write_all(b"x").await.unwrap();
    client.shutdown().await.unwrap();
    task.await.unwrap();
    assert_eq!(generation.active(), 1);
    sleep(Duration::from_secs(59)).await;
    assert_eq!(generation.active(), 1);
    assert_eq!(generation.drained(Duration::from_secs(2)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_branch_ends_at_once_with_its_generation() {
    let router = tee(r#"[{"handler":"hang"}]"#);
    let generation = router.server().generation().clone();
    let (conn, _client) = connection(1024);
    router.serve(conn);
    settle().await;
    assert_eq!(generation.active(), 2);
    generation.end(EndReason::Shutdown);
    settle().await;
    assert_eq!(generation.active(), 0);
}

fn said(tee: &str) -> (Vec<String>, Vec<String>) {
    let json = format!(
        r#"{{"apps":{{"layer4":{{"servers":{{"a":{{"listen":["127.0.0.1:1"],
        "routes":[{{"handle":[{{"handler":"tee"{tee}}},{{"handler":"echo"}}]}}]}}}}}}}}}}"#
    );
    let loaded = load(modules, &json);
    let errors = loaded.app.err().unwrap_or_default();
    let texts = |list: &[l4_core::config::ConfigError]| list.iter().map(|e| e.render()).collect();
    (texts(&errors), texts(&loaded.warnings))
}

#[test]
fn mistakes_in_a_branch_are_reported_where_they_are() {
    for (tee, text) in [
        (
            r#","branch":[{"handler":"nope"}]"#,
            "unknown module: layer4.handlers.nope",
        ),
        (
            r#","branch":[{"x":1}]"#,
            "module name not specified with key 'handler'",
        ),
        (r#","branches":[]"#, "branches"),
    ] {
        let (errors, _) = said(tee);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains(text), "{}", errors[0]);
    }
    for (tee, text) in [
        ("", "does nothing"),
        (
            r#","branch":[{"handler":"close"},{"handler":"echo"}]"#,
            "never be reached",
        ),
    ] {
        let (errors, warnings) = said(tee);
        assert_eq!(errors, [] as [String; 0]);
        assert!(warnings.iter().any(|w| w.contains(text)), "{warnings:?}");
    }
}

#[tokio::test]
async fn breaking_the_main_end_resets_the_client_and_breaking_the_branch_does_not() {
    for main_breaks in [true, false] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let mut client = client.await.unwrap();
        let (accepted, remote) = listener.accept().await.unwrap();
        let record = Arc::new(Record::new(Addr::Tcp(remote)));
        let (main, branch) = fork(Connection::new(Io::Tcp(accepted), record, None));
        let (main, branch) = (main.into_transport(), branch.into_transport());
        if main_breaks {
            main.reset_on_close();
        } else {
            branch.reset_on_close();
        }
        drop((branch, main));
        let ended = client.read(&mut [0]).await.map_err(|error| error.kind());
        let expected = match main_breaks {
            true => Err(io::ErrorKind::ConnectionReset),
            false => Ok(0),
        };
        assert_eq!(ended, expected);
    }
}

/// Lets go of nothing until it is told to, then reads to the end in small pieces.
struct Held(Arc<Holding>);

struct Holding {
    go: tokio::sync::Semaphore,
    streams: Mutex<Vec<Vec<u8>>>,
}

static HOLDING: std::sync::LazyLock<Arc<Holding>> = std::sync::LazyLock::new(|| {
    Arc::new(Holding {
        go: tokio::sync::Semaphore::new(0),
        streams: Mutex::default(),
    })
});

impl HandlerModule for Held {
    const NAME: &'static str = "held";
    type Config = CollectConfig;

    fn provision(_: CollectConfig, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self(HOLDING.clone()))
    }
}

impl AsyncHandler for Held {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        let _go = self.0.go.acquire().await.unwrap();
        let (mut all, mut buffer) = (Vec::new(), [0; 997]);
        while let Received::Data(n) = conn.receive(&mut buffer).await? {
            all.extend_from_slice(&buffer[..n]);
        }
        self.0.streams.lock().unwrap().push(all);
        Ok(Flow::Done)
    }
}

/// What the client of this number sends: its number in four bytes, over and over, each time counted.
fn pattern(client: u32, length: usize) -> Vec<u8> {
    let words = (0_u32..).flat_map(|i| client.to_be_bytes().into_iter().chain(i.to_be_bytes()));
    words.take(length).collect()
}

/// With buffers that are used again, a branch that is slower than its connection would read what others sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn e4_what_a_branch_holds_stays_right_whatever_becomes_of_its_connection_and_of_others() {
    let router = Arc::new(Router::new(
        |reg: &mut Registry| {
            modules(reg);
            reg.handler::<Held>();
        },
        // The matcher reads ahead before the tee, the one behind it after.
        r#"[{"match":[{"regexp":{"count":1500,"pattern":"(?s)^.*$"}}],
             "handle":[{"handler":"tee","branch":[{"handler":"held"}]}]},
            {"match":[{"regexp":{"count":3000,"pattern":"(?s)^.*$"}}],"handle":[{"handler":"echo"}]}]"#,
    ));
    let client = |number: u32| {
        let router = router.clone();
        async move {
            let sent = pattern(number, 3000 + (number as usize * 977) % (BUFFER - 3000));
            let (answer, record) = router.exchange(&[&sent[..1000], &sent[1000..]]).await;
            assert!(answer == sent, "client {number} got other bytes");
            assert_eq!(record.end_reason(), Some(EndReason::Completed));
        }
    };
    const CLIENTS: u32 = 200;
    // Each generation of them ends before the next one takes its memory, and all branches hold what they have.
    for generation in 0..4 {
        let mut together = tokio::task::JoinSet::new();
        for number in 0..CLIENTS / 4 {
            together.spawn(client(generation * CLIENTS / 4 + number));
        }
        together.join_all().await;
    }
    assert_eq!(HOLDING.streams.lock().unwrap().len(), 0);
    HOLDING.go.add_permits(1);
    assert_eq!(
        router
            .server()
            .generation()
            .drained(Duration::from_secs(50))
            .await,
        0
    );
    let mut streams = HOLDING.streams.lock().unwrap().split_off(0);
    assert_eq!(streams.len(), CLIENTS as usize);
    streams.sort_unstable();
    for (stream, number) in streams.iter().zip(0..) {
        let sent = pattern(number, 3000 + (number as usize * 977) % (BUFFER - 3000));
        assert!(
            *stream == sent,
            "the branch of client {number} got other bytes"
        );
    }
}
