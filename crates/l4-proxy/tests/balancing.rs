//! Choosing among upstreams, limits and health checks over real sockets.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use l4_core::{EndReason, Registry};
use l4_testkit::{Client, Router, connection, load, settle};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

fn modules(reg: &mut Registry) {
    l4_std::register(reg);
    l4_proxy::register(reg);
}

fn proxy(fields: &str) -> Router {
    Router::new(
        modules,
        &format!(r#"[{{"handle":[{{"handler":"proxy",{fields}}}]}}]"#),
    )
}

/// A server that greets each connection with its name and keeps it until the client ends it.
struct Backend {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Backend {
    async fn new(name: &'static str) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), name).await
    }

    /// Listens on `address`, which may have been in use a moment ago.
    async fn at(address: SocketAddr, name: &'static str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(128).unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::<AtomicUsize>::default();
        let count = accepted.clone();
        let task = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let _ = socket.write_all(name.as_bytes()).await;
                    let _ = socket.read_to_end(&mut Vec::new()).await;
                });
            }
        });
        Self {
            address,
            accepted,
            task,
        }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Stops listening; connections go on.
    async fn stop(self) -> SocketAddr {
        self.task.abort();
        let _ = self.task.await;
        self.address
    }
}

/// An address on which nothing listens.
async fn closed_port() -> SocketAddr {
    Backend::new("").await.stop().await
}

/// A connection that is held open, and the name of the upstream it got.
async fn hold(router: &Router) -> (String, Client) {
    let (conn, mut client) = connection(64);
    let _ = router.serve(conn);
    let mut name = [0; 1];
    let got = client.read_exact(&mut name).await;
    (
        got.map_or_else(
            |_| String::new(),
            |_| String::from_utf8(name.into()).unwrap(),
        ),
        client,
    )
}

async fn ask(router: &Router) -> String {
    String::from_utf8(router.exchange(&[]).await.0).unwrap()
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Row P1 of docs/defects.md.
#[tokio::test]
async fn least_conn_counts_open_connections_and_forgets_closed_ones() {
    let (a, b) = (Backend::new("a").await, Backend::new("b").await);
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{}"]}},{{"dial":["{}"]}}],
           "load_balancing":{{"selection":{{"policy":"least_conn"}}}}"#,
        a.address, b.address
    ));
    let mut held: BTreeMap<String, Vec<Client>> = BTreeMap::new();
    for _ in 0..10 {
        let (name, client) = hold(&router).await;
        held.entry(name).or_default().push(client);
    }
    assert_eq!((held["a"].len(), held["b"].len()), (5, 5));
    held.remove("a");
    eventually("the closed connections are forgotten", async || {
        // With as many on both sides each of these would be a matter of luck.
        let (first, second) = (ask(&router).await, ask(&router).await);
        first == "a" && second == "a"
    })
    .await;
    let mut names = String::new();
    let mut more = Vec::new();
    for _ in 0..5 {
        let (name, client) = hold(&router).await;
        names.push_str(&name);
        more.push(client);
    }
    assert_eq!(names, "aaaaa");
}

/// Row P2 of docs/defects.md.
#[tokio::test]
async fn random_choose_never_takes_the_fullest_and_goes_on_when_all_have_connections() {
    let (a, b) = (Backend::new("a").await, Backend::new("b").await);
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{}"]}},{{"dial":["{}"]}}],
           "load_balancing":{{"selection":{{"policy":"random_choose","choose":2}}}}"#,
        a.address, b.address
    ));
    let mut held = Vec::new();
    for n in 1..=10 {
        held.push(hold(&router).await);
        let of_a = held.iter().filter(|(name, _)| name == "a").count();
        let of_b = held.iter().filter(|(name, _)| name == "b").count();
        assert_eq!(of_a + of_b, n);
        assert!(of_a.abs_diff(of_b) <= 1, "{of_a} and {of_b}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p18_connections_that_come_together_take_turns_too() {
    let upstreams = [
        Backend::new("a").await,
        Backend::new("b").await,
        Backend::new("c").await,
    ];
    let dials = upstreams
        .each_ref()
        .map(|at| format!(r#"{{"dial":["{}"]}}"#, at.address));
    let router = Arc::new(proxy(&format!(
        r#""upstreams":[{}],"load_balancing":{{"selection":{{"policy":"round_robin"}}}}"#,
        dials.join(",")
    )));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let router = router.clone();
        asking.spawn(async move { ask(&router).await });
    }
    let answers = asking.join_all().await;
    assert!(answers.iter().all(|name| name.len() == 1), "{answers:?}");
    assert_eq!(upstreams.each_ref().map(Backend::accepted), [100; 3]);
}

#[tokio::test]
async fn weights_share_out_connections_and_what_is_full_is_left_out() {
    let (a, b) = (Backend::new("a").await, Backend::new("b").await);
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{}"],"weight":1}},{{"dial":["{}"],"weight":3,"max_connections":1}}],
           "load_balancing":{{"selection":{{"policy":"weighted_round_robin"}}}}"#,
        a.address, b.address
    ));
    let mut names = String::new();
    for _ in 0..4 {
        names.push_str(&ask(&router).await);
    }
    assert_eq!(names, "babb");
    let (name, _held) = hold(&router).await;
    assert_eq!(name, "b");
    assert_eq!(ask(&router).await + &ask(&router).await, "aa");
}

#[tokio::test]
async fn ip_hash_keeps_a_client_with_its_upstream() {
    let (a, b) = (Backend::new("a").await, Backend::new("b").await);
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{}"]}},{{"dial":["{}"]}}],
           "load_balancing":{{"selection":{{"policy":"ip_hash"}}}}"#,
        a.address, b.address
    ));
    let first = ask(&router).await;
    for _ in 0..10 {
        assert_eq!(ask(&router).await, first);
    }
}

/// Row P27 of docs/defects.md.
#[tokio::test]
async fn many_at_once_do_not_exceed_the_limit_and_find_the_free_upstream() {
    let (a, b) = (Backend::new("a").await, Backend::new("b").await);
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{}"],"max_connections":5}},{{"dial":["{}"],"max_connections":5}}]"#,
        a.address, b.address
    ));
    let router = Arc::new(router);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let router = router.clone();
        asking.spawn(async move { hold(&router).await });
    }
    let held = asking.join_all().await;
    let of = |name| held.iter().filter(|(got, _)| got == name).count();
    assert_eq!((of("a"), of("b"), of("")), (5, 5, 2));
}

/// Row P17 of docs/defects.md.
#[tokio::test]
async fn a_configuration_that_is_refused_takes_nothing_from_the_one_that_runs() {
    let (gone, b) = (closed_port().await, Backend::new("b").await);
    let fields = format!(
        r#""upstreams":[{{"dial":["{gone}"]}},{{"dial":["{}"]}}],
           "load_balancing":{{"selection":{{"policy":"first"}}}},
           "health_checks":{{"passive":{{"fail_duration":"1h"}}}}"#,
        b.address
    );
    let old = proxy(&fields);
    assert_eq!(ask(&old).await, "");
    // The same addresses, and behind them one that is none.
    let refused = fields.replacen(
        r#""upstreams":["#,
        r#""upstreams":[{"dial":["127.0.0.1:0"]},"#,
        1,
    );
    for _ in 0..3 {
        let loaded = load(
            modules,
            &format!(
                r#"{{"apps":{{"layer4":{{"servers":{{"a":{{"routes":[{{"handle":[{{"handler":"proxy",{refused}}}]}}]}}}}}}}}}}"#
            ),
        );
        assert!(loaded.app.is_err());
    }
    let new = proxy(&fields);
    drop(old);
    assert_eq!(ask(&new).await, "b", "the failure is still known");
}

#[tokio::test]
async fn a_limit_counts_the_connections_of_the_configuration_before() {
    let a = Backend::new("a").await;
    let fields = format!(
        r#""upstreams":[{{"dial":["{}"]}}],"health_checks":{{"passive":{{"unhealthy_connection_count":1}}}}"#,
        a.address
    );
    let (old, new) = (proxy(&fields), proxy(&fields));
    let (name, held) = hold(&old).await;
    assert_eq!(name, "a");
    drop(old);
    assert_eq!(ask(&new).await, "", "its only place is taken");
    drop(held);
    eventually("the place is given back", async || ask(&new).await == "a").await;
}

#[tokio::test]
async fn a_peer_that_failed_is_avoided_until_the_failure_is_forgotten() {
    let (gone, b) = (closed_port().await, Backend::new("b").await);
    let fields = format!(
        r#""upstreams":[{{"dial":["{gone}"]}},{{"dial":["{}"]}}],
           "load_balancing":{{"selection":{{"policy":"first"}}}},
           "health_checks":{{"passive":{{"fail_duration":"2s","max_fails":2}}}}"#,
        b.address
    );
    let router = proxy(&fields);
    assert_eq!(ask(&router).await, "");
    assert_eq!(ask(&router).await, "", "one failure is not enough");
    assert_eq!(ask(&router).await, "b");
    assert_eq!(
        ask(&proxy(&fields)).await,
        "b",
        "a new configuration knows what the old one met"
    );
    let _a = Backend::at(gone, "a").await;
    eventually("it is tried again", async || ask(&router).await == "a").await;
}

#[tokio::test]
async fn a_retry_goes_to_an_upstream_that_works() {
    let (gone, b) = (closed_port().await, Backend::new("b").await);
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{gone}"]}},{{"dial":["{}"]}}],
           "load_balancing":{{"selection":{{"policy":"first"}},"try_duration":"5s","try_interval":"1ms"}},
           "health_checks":{{"passive":{{"fail_duration":"1m"}}}}"#,
        b.address
    ));
    assert_eq!(ask(&router).await, "b");
}

/// Row P13 of docs/defects.md.
#[tokio::test]
async fn a_name_that_fails_for_one_client_is_not_held_against_the_others() {
    let (gone, b) = (closed_port().await, Backend::new("b").await);
    let router = |port: u16| {
        Router::new(
            modules,
            &format!(
                r#"[{{"handle":[{{"handler":"vars","port":{port}}},{{"handler":"proxy",
                     "upstreams":[{{"dial":["127.0.0.1:{{l4.vars.port}}"]}}],
                     "health_checks":{{"passive":{{"fail_duration":"1m"}}}}}}]}}]"#
            ),
        )
    };
    let reason = async |router: &Router| router.exchange(&[]).await.1.end_reason();
    let failing = router(gone.port());
    assert_eq!(reason(&failing).await, Some(EndReason::DialFailed));
    assert_eq!(
        reason(&failing).await,
        Some(EndReason::NoUpstream),
        "that one address is remembered"
    );
    assert_eq!(ask(&router(b.address.port())).await, "b");
}

#[tokio::test]
async fn dial_mode_first_skips_a_peer_that_failed_before() {
    let (gone, b) = (closed_port().await, Backend::new("b").await);
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{gone}","{}"],"dial_mode":"first"}}],
           "health_checks":{{"passive":{{"fail_duration":"1m"}}}}"#,
        b.address
    ));
    assert_eq!(ask(&router).await, "b");
    let a = Backend::at(gone, "a").await;
    assert_eq!(ask(&router).await, "b");
    assert_eq!(a.accepted(), 0);
}

#[tokio::test]
async fn checks_take_a_peer_out_and_back_in() {
    let (a, b) = (Backend::new("a").await, Backend::new("b").await);
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{}"]}},{{"dial":["{}"]}}],
           "load_balancing":{{"selection":{{"policy":"first"}}}},
           "health_checks":{{"active":{{"interval":"10ms","fall":2,"rise":2}}}}"#,
        a.address, b.address
    ));
    assert_eq!(ask(&router).await, "a");
    let address = a.stop().await;
    eventually("a is down", async || ask(&router).await == "b").await;
    let _a = Backend::at(address, "a").await;
    eventually("a is up", async || ask(&router).await == "a").await;
}

/// Row P3 of docs/defects.md.
#[tokio::test]
async fn checks_of_another_port_leave_connections_on_theirs() {
    let (a, health) = (Backend::new("a").await, Backend::new("h").await);
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{}"]}}],"health_checks":{{"active":{{"port":{},"interval":"10ms"}}}}"#,
        a.address,
        health.address.port()
    ));
    eventually("the other port is checked", async || health.accepted() > 2).await;
    assert_eq!(ask(&router).await, "a");
    assert_eq!(a.accepted(), 1);
    health.stop().await;
    eventually("it is down", async || ask(&router).await.is_empty()).await;
}

#[tokio::test]
async fn checks_stop_with_their_configuration_and_never_begin_for_one_that_is_only_loaded() {
    let a = Backend::new("a").await;
    let fields = format!(
        r#""upstreams":[{{"dial":["{}"]}}],"health_checks":{{"active":{{"interval":"10ms"}}}}"#,
        a.address
    );
    let config = format!(
        r#"{{"apps":{{"layer4":{{"servers":{{"s":{{"listen":["127.0.0.1:1"],"routes":[{{"handle":[
            {{"handler":"proxy",{fields}}}]}}]}}}}}}}}}}"#
    );
    let loaded = load(modules, &config);
    assert!(loaded.app.is_ok());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(a.accepted(), 0);
    let router = proxy(&fields);
    eventually("it is checked", async || a.accepted() > 1).await;
    router.server().generation().retire();
    // One may have been under way.
    tokio::time::sleep(Duration::from_millis(30)).await;
    let checks = a.accepted();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(a.accepted(), checks);
    assert_eq!(ask(&router).await, "a");
}

/// Row P19 of docs/defects.md.
#[tokio::test]
async fn close_if_unhealthy_closes_both_sides_of_what_runs() {
    for (close, expected) in [(true, Some(EndReason::UpstreamDown)), (false, None)] {
        let a = Backend::new("a").await;
        let health = Backend::new("h").await;
        let router = proxy(&format!(
            r#""upstreams":[{{"dial":["{}"]}}],"health_checks":{{"active":{{"port":{},"interval":"10ms",
               "close_if_unhealthy":{close}}}}}"#,
            a.address,
            health.address.port()
        ));
        let (conn, mut client) = connection(64);
        let (record, _serving) = router.serve(conn);
        let mut name = [0; 1];
        client.read_exact(&mut name).await.unwrap();
        health.stop().await;
        eventually("it is down", async || ask(&router).await.is_empty()).await;
        if close {
            assert_eq!(client.read(&mut name).await.unwrap(), 0);
        }
        settle().await;
        assert_eq!(record.end_reason(), expected);
    }
}

/// Row P21 of docs/defects.md.
#[test]
fn bad_settings_are_refused_where_they_are_wrong() {
    for (fields, pointer, word) in [
        (r#""active":{"port":65536}"#, "/active/port", "not a port"),
        (r#""active":{"port":-1}"#, "/active/port", "not a port"),
        (
            r#""active":{"interval":"-1s"}"#,
            "/active/interval",
            "negative",
        ),
        (
            r#""active":{"timeout":"-1s"}"#,
            "/active/timeout",
            "negative",
        ),
        (r#""active":{"path":"/"}"#, "/active/path", "unknown field"),
        (
            r#""passive":{"fail_duration":"-1s"}"#,
            "/passive/fail_duration",
            "negative",
        ),
        (
            r#""passive":{"max_fails":-1}"#,
            "/passive/max_fails",
            "-1 failures",
        ),
        (
            r#""passive":{"unhealthy_connection_count":-1}"#,
            "/passive/unhealthy_connection_count",
            "never available",
        ),
    ] {
        refused(
            &format!(r#""health_checks":{{{fields}}}"#),
            &format!("/health_checks{pointer}"),
            word,
        );
    }
    refused(
        r#""load_balancing":{"selection":{"policy":"random_choose","choose":1}}"#,
        "/load_balancing/selection/choose",
        "choose must be at least 2",
    );
}

fn config(fields: &str) -> String {
    format!(
        r#"{{"apps":{{"layer4":{{"servers":{{"s":{{"routes":[{{"handle":[
            {{"handler":"proxy","upstreams":[{{"dial":["a:1"]}}],{fields}}}]}}]}}}}}}}}}}"#
    )
}

fn refused(fields: &str, pointer: &str, word: &str) {
    let errors = load(modules, &config(fields))
        .app
        .err()
        .unwrap_or_else(|| panic!("{fields} was accepted"));
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(
        errors[0].pointer(),
        format!("/apps/layer4/servers/s/routes/0/handle/0{pointer}")
    );
    assert!(
        errors[0].message().contains(word),
        "{fields}: {}",
        errors[0]
    );
}

#[test]
fn counting_failures_that_are_not_remembered_is_worth_a_warning() {
    let loaded = load(
        modules,
        &config(r#""health_checks":{"active":{},"passive":{"max_fails":3}}"#),
    );
    assert!(loaded.app.is_ok());
    assert!(loaded.warnings[0].message().contains("fail_duration"));
}

#[tokio::test]
async fn the_example_of_every_field_loads() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let loaded = load(
        modules,
        &config(&format!(
            r#""health_checks":{{"active":{{"port":{},"interval":"30s","timeout":"5s","fall":1,"rise":0,
                "close_if_unhealthy":false}},
               "passive":{{"fail_duration":"30s","max_fails":1,"unhealthy_connection_count":0}}}}"#,
            listener.local_addr().unwrap().port()
        )),
    );
    assert!(loaded.app.is_ok() && loaded.warnings.is_empty());
}
