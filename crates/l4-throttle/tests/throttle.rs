//! The handler, seen from clients: how much passes in which time.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use l4_core::conn::Received;
use l4_core::engine::Raw;
use l4_core::{Addr, Connection, EndReason, Io, Record, Registry};
use l4_testkit::{Client, Router, connection, load, session};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};

fn modules(reg: &mut Registry) {
    l4_std::register(reg);
    l4_throttle::register(reg);
}

fn throttle(fields: &str) -> Router {
    Router::new(
        modules,
        &format!(r#"[{{"handle":[{{"handler":"throttle",{fields}}},{{"handler":"echo"}}]}}]"#),
    )
}

/// Sends without end and counts what comes back until `until`.
async fn flood(client: Client, until: Instant) -> Vec<(Instant, usize)> {
    let (mut read, mut write) = tokio::io::split(client);
    let sender = tokio::spawn(async move { while write.write_all(&[7; 4096]).await.is_ok() {} });
    let mut seen = Vec::new();
    let mut buffer = [0; 8192];
    while let Ok(Ok(n)) = timeout_at(until, read.read(&mut buffer)).await {
        seen.push((Instant::now(), n));
    }
    sender.abort();
    seen
}

fn sum(seen: &[(Instant, usize)]) -> usize {
    seen.iter().map(|(_, n)| n).sum()
}

fn near(measured: usize, expected: f64) {
    let off = (measured as f64 / expected - 1.0).abs();
    assert!(off <= 0.02, "{measured} instead of {expected}");
}

#[tokio::test(start_paused = true)]
async fn a_busy_client_gets_its_burst_and_then_its_rate_and_no_window_more() {
    let router = throttle(r#""read_bytes_per_second":100000,"read_burst_size":20000"#);
    let (conn, client) = connection(64 * 1024);
    router.serve(conn);
    let seen = flood(client, Instant::now() + Duration::from_secs(10)).await;
    near(sum(&seen), 20_000.0 + 10.0 * 100_000.0);
    for (i, (from, _)) in seen.iter().enumerate().step_by(7) {
        let mut passed = 0;
        for (at, n) in &seen[i..] {
            passed += n;
            let bound = 20_000.0 + 100_000.0 * (*at - *from).as_secs_f64();
            assert!(
                passed as f64 <= bound + 1.0,
                "{passed} within {:?}",
                *at - *from
            );
        }
    }
}

/// Row T1 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn messages_of_one_byte_reach_the_full_rate() {
    let router = throttle(r#""read_bytes_per_second":1000,"read_burst_size":100"#);
    // Only one byte fits at a time.
    let (conn, client) = connection(1);
    router.serve(conn);
    let seen = flood(client, Instant::now() + Duration::from_secs(10)).await;
    near(sum(&seen), 100.0 + 10.0 * 1000.0);
}

#[tokio::test(start_paused = true)]
async fn slow_rates_are_exact_too() {
    let router = throttle(r#""read_bytes_per_second":10.5"#);
    let (conn, client) = connection(64);
    router.serve(conn);
    let seen = flood(client, Instant::now() + Duration::from_secs(100)).await;
    near(sum(&seen), 11.0 + 100.0 * 10.5);
}

#[tokio::test(start_paused = true)]
async fn the_total_is_shared_evenly_by_connections() {
    let router = throttle(r#""total_read_bytes_per_second":30000,"total_read_burst_size":3000"#);
    let until = Instant::now() + Duration::from_secs(10);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let (conn, client) = connection(64 * 1024);
        router.serve(conn);
        clients.push(tokio::spawn(flood(client, until)));
    }
    let mut sums = Vec::new();
    for client in clients {
        sums.push(sum(&client.await.unwrap()));
    }
    near(sums.iter().sum(), 3000.0 + 10.0 * 30_000.0);
    for sum in &sums {
        assert!((80_000..125_000).contains(sum), "{sums:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_gives_its_share_to_the_others() {
    let router = throttle(r#""total_read_bytes_per_second":10000,"total_read_burst_size":1000"#);
    let (idle, _idle_client) = connection(64);
    router.serve(idle);
    let (first, client) = connection(64 * 1024);
    router.serve(first);
    flood(client, Instant::now() + Duration::from_secs(1)).await;
    let (second, client) = connection(64 * 1024);
    router.serve(second);
    let seen = flood(client, Instant::now() + Duration::from_secs(10)).await;
    near(sum(&seen), 10.0 * 10_000.0);
}

/// Row T3 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn what_was_read_to_find_the_route_is_charged() {
    let router = throttle(r#""read_bytes_per_second":1000,"read_burst_size":1000"#);
    let (mut conn, mut client) = connection(64 * 1024);
    client.write_all(&[1; 8000]).await.unwrap();
    assert_eq!(conn.fill().await.unwrap(), Received::Data(8000));
    let started = Instant::now();
    router.serve(conn);
    client.shutdown().await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer.len(), 8000);
    let took = started.elapsed().as_secs_f64();
    assert!((6.9..7.2).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn two_limits_in_a_row_give_the_stricter_one() {
    let router = Router::new(
        modules,
        r#"[{"handle":[{"handler":"throttle","read_bytes_per_second":5000,"read_burst_size":500},
            {"handler":"throttle","read_bytes_per_second":1000,"read_burst_size":100},{"handler":"echo"}]}]"#,
    );
    let (conn, client) = connection(64 * 1024);
    router.serve(conn);
    let seen = flood(client, Instant::now() + Duration::from_secs(10)).await;
    near(sum(&seen), 100.0 + 10_000.0);
}

/// Row T2 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn a_burst_without_a_rate_holds_nothing_back() {
    let router = throttle(r#""read_burst_size":10"#);
    let started = Instant::now();
    let (answer, record) = router.exchange(&[&[3; 5000]]).await;
    assert_eq!(answer, [3; 5000]);
    assert_eq!(record.end_reason(), Some(EndReason::Completed));
    assert_eq!(started.elapsed(), Duration::ZERO);
}

/// Row T4 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn a_datagram_is_passed_whole_and_the_next_waits_off_the_debt() {
    let router = throttle(r#""read_bytes_per_second":1000,"read_burst_size":100"#);
    let (conn, mut peer) = session();
    router.serve(conn);
    let started = Instant::now();
    peer.send(&[1; 5000]);
    peer.send(&[2; 10]);
    assert_eq!(peer.receive().await.unwrap().len(), 5000);
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(peer.receive().await.unwrap().len(), 10);
    let took = started.elapsed().as_secs_f64();
    assert!((4.9..5.0).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn latency_holds_a_connection_once() {
    let router = throttle(r#""latency":"2s""#);
    let started = Instant::now();
    let (answer, _) = router.exchange(&[b"a", b"b"]).await;
    assert_eq!(answer, b"ab");
    assert_eq!(started.elapsed(), Duration::from_secs(2));
}

/// Row T5 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn a_wait_ends_when_the_configuration_is_unloaded() {
    let router = throttle(r#""latency":"1h""#);
    let (conn, _client) = connection(64);
    let (record, task) = router.serve(conn);
    sleep(Duration::from_secs(1)).await;
    router.server().generation().end(EndReason::Drained);
    task.await.unwrap();
    assert_eq!(record.end_reason(), Some(EndReason::Drained));
}

/// A connection over a real socket, and the client's end.
async fn tcp() -> (Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (socket, from) = listener.accept().await.unwrap();
    let record = std::sync::Arc::new(Record::new(Addr::Tcp(from)));
    (Connection::new(Io::Tcp(socket), record, None), client)
}

/// Row T5 of docs/defects.md.
#[tokio::test]
async fn waits_end_soon_after_the_client_resets() {
    for fields in [
        r#""latency":"1h""#,
        r#""read_bytes_per_second":0.001,"read_burst_size":1"#,
    ] {
        let router = throttle(fields);
        let (conn, mut client) = tcp().await;
        let (record, task) = router.serve(conn);
        client.write_all(&[1; 100]).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        client.set_zero_linger().unwrap();
        drop(client);
        timeout(Duration::from_secs(5), task)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            record.end_reason(),
            Some(EndReason::ClientReset),
            "{fields}"
        );
    }
}

struct Tight;

impl l4_core::conn::ReadLimit for Tight {
    fn poll_allow(&mut self, _: &mut std::task::Context<'_>, _: usize) -> std::task::Poll<usize> {
        std::task::Poll::Ready(1)
    }

    fn taken(&mut self, _: usize) {}
}

#[tokio::test]
async fn a_limited_socket_is_not_handed_out_to_be_read_around_the_limit() {
    let (mut conn, mut client) = tcp().await;
    client.write_all(b"abc").await.unwrap();
    conn.limit_reads(Tight);
    let Raw::Stacked(mut transport) = conn.into_raw() else {
        panic!("the bare socket was handed out");
    };
    let mut buffer = [0; 8];
    assert_eq!(transport.read(&mut buffer).await.unwrap(), 1);
    assert!(transport.read_limit().is_some());
}

fn said(fields: &str) -> (Vec<String>, Vec<String>) {
    let json = format!(
        r#"{{"apps":{{"layer4":{{"servers":{{"a":{{"listen":["127.0.0.1:1"],
        "routes":[{{"handle":[{{"handler":"throttle"{fields}}},{{"handler":"echo"}}]}}]}}}}}}}}}}"#
    );
    let loaded = load(modules, &json);
    let errors = loaded.app.err().unwrap_or_default();
    let texts = |list: &[l4_core::config::ConfigError]| list.iter().map(|e| e.render()).collect();
    (texts(&errors), texts(&loaded.warnings))
}

#[test]
fn negative_values_are_refused_in_the_words_of_the_reference() {
    for (fields, text) in [
        (
            r#","read_bytes_per_second":-1"#,
            "bytes per second must be at least 0: -1.000000",
        ),
        (
            r#","read_burst_size":-2"#,
            "burst size must be greater than 0: -2",
        ),
        (
            r#","total_read_bytes_per_second":-0.5"#,
            "total bytes per second must be at least 0: -0.500000",
        ),
        (
            r#","total_read_burst_size":-3"#,
            "total burst size must be greater than 0: -3",
        ),
        (r#","rate":1"#, "rate"),
    ] {
        let (errors, _) = said(fields);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains(text), "{}", errors[0]);
    }
}

#[test]
fn what_will_not_do_as_meant_is_warned_about() {
    for (fields, text) in [
        (r#","read_burst_size":5"#, "limits no rate"),
        (
            r#","read_bytes_per_second":100000,"read_burst_size":5"#,
            "will not be reached",
        ),
        ("", "does nothing"),
    ] {
        let (errors, warnings) = said(fields);
        assert_eq!(errors, [] as [String; 0]);
        assert!(warnings.iter().any(|w| w.contains(text)), "{warnings:?}");
    }
    let (errors, warnings) = said(r#","read_bytes_per_second":1e5,"latency":"1ms""#);
    assert_eq!((errors, warnings), (vec![], vec![]));
}
