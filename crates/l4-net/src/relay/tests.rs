use std::sync::Arc;

use l4_core::Addr;
use l4_core::conn::{Record, Session};
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Mutex, MutexGuard};

use super::pipe::Pipe;
use super::scratch::Stash;
use super::*;

const NO_LIMITS: Limits = Limits {
    idle: None,
    half_closed: None,
};

/// What one end does, in order; reading goes on beside it.
#[derive(Debug, Clone)]
enum Op {
    Write(usize),
    Yield,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(
        prop_oneof![(1usize..3000).prop_map(Op::Write), Just(Op::Yield)],
        0..12,
    )
}

/// Only copies.
const COPYING: Policy = Policy {
    large: usize::MAX,
    ..Policy::DEFAULT
};

/// Splices from the second chunk on.
const SPLICING: Policy = Policy {
    large: 1,
    promote_after: 1,
    small: 0,
    demote_after: 1,
};

/// Changes the engine after every chunk.
const CHANGING: Policy = Policy {
    large: 1,
    promote_after: 1,
    small: usize::MAX,
    demote_after: 1,
};

/// Changes the engine now and then, as chunks come large or small.
const ADAPTING: Policy = Policy {
    large: 1000,
    promote_after: 1,
    small: 1000,
    demote_after: 2,
};

fn policies() -> impl Strategy<Value = &'static Policy> {
    prop::sample::select(vec![&COPYING, &SPLICING, &CHANGING, &ADAPTING])
}

/// Held by a test for which it matters that there are pipes to be had.
async fn pipes() -> MutexGuard<'static, ()> {
    static PIPES: Mutex<()> = Mutex::const_new(());
    PIPES.lock().await
}

fn relay_by(policy: &'static Policy, client: Transport, peer: Transport, limits: Limits) -> Relay {
    let mut relay = Relay::new(client, [peer], limits);
    relay.policy = policy;
    relay
}

/// Bytes whose order and completeness show in their values.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed)
        .collect()
}

fn total(ops: &[Op]) -> usize {
    ops.iter()
        .map(|op| if let Op::Write(n) = op { *n } else { 0 })
        .sum()
}

/// Plays `ops`, ends its stream, and returns all it received, `read_size` bytes at a time, and whether the end stayed
/// the end.
async fn play<S>(socket: S, seed: u8, ops: Vec<Op>, read_size: usize) -> (Vec<u8>, bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(socket);
    let data = pattern(seed, total(&ops));
    let writing = tokio::spawn(async move {
        let mut at = 0;
        for op in ops {
            match op {
                Op::Write(n) => {
                    writer.write_all(&data[at..at + n]).await.unwrap();
                    at += n;
                }
                Op::Yield => tokio::task::yield_now().await,
            }
        }
        writer.shutdown().await.unwrap();
        writer
    });
    let mut received = Vec::new();
    let mut buf = vec![0; read_size];
    loop {
        match reader.read(&mut buf).await.unwrap() {
            0 => break,
            n => received.extend_from_slice(&buf[..n]),
        }
        tokio::task::yield_now().await;
    }
    // After the end there is only the end.
    let still_ended = reader.read(&mut buf).await.unwrap() == 0;
    writing.await.unwrap();
    (received, still_ended)
}

fn layer(stream: DuplexStream) -> (Transport, Arc<Record>) {
    let record = Arc::new(Record::new(Addr::UNNAMED));
    (
        Transport::new(Io::Layer(Box::new(stream)), Some(record.clone())),
        record,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_in_comes_out_in_order_with_exact_counts(
        up in ops(), down in ops(),
        capacities in (1usize..600, 1usize..600),
        reads in (1usize..500, 1usize..500),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (ours, client) = tokio::io::duplex(capacities.0);
            let (theirs, server) = tokio::io::duplex(capacities.1);
            let (client_side, record) = layer(ours);
            let (server_side, _) = layer(theirs);
            let relaying = tokio::spawn(relay(client_side, [server_side], NO_LIMITS));
            let client = tokio::spawn(play(client, 1, up.clone(), reads.0));
            let server = tokio::spawn(play(server, 2, down.clone(), reads.1));
            assert_eq!(client.await.unwrap(), (pattern(2, total(&down)), true));
            assert_eq!(server.await.unwrap(), (pattern(1, total(&up)), true));
            let relayed = relaying.await.unwrap();
            assert_eq!(relayed.reason, EndReason::Completed);
            assert_eq!((relayed.up, relayed.down), (total(&up) as u64, total(&down) as u64));
            assert_eq!((record.bytes_read(), record.bytes_written()), (relayed.up, relayed.down));
        });
    }

    /// Row P26 of docs/defects.md.
    #[test]
    fn every_peer_gets_everything_and_answers_are_merged_whole(
        up in ops(), downs in prop::collection::vec(1usize..2000, 2..4), capacity in 1usize..400,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (ours, client) = tokio::io::duplex(capacity);
            let mut peers = Vec::new();
            let mut servers = Vec::new();
            for (i, down) in downs.iter().enumerate() {
                let (theirs, server) = tokio::io::duplex(capacity);
                peers.push(layer(theirs).0);
                let ops = vec![Op::Write(*down)];
                servers.push(tokio::spawn(play(server, i as u8, ops, 64)));
            }
            let relaying = tokio::spawn(relay(layer(ours).0, peers, NO_LIMITS));
            let (answer, _) = play(client, 9, up.clone(), 64).await;
            assert_eq!(answer.len(), downs.iter().sum::<usize>());
            for server in servers {
                assert_eq!(server.await.unwrap().0, pattern(9, total(&up)));
            }
            assert_eq!(relaying.await.unwrap().reason, EndReason::Completed);
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_in_comes_out_whichever_engine_moves_it(
        up in large_ops(), down in large_ops(), reads in (1usize..9000, 1usize..9000),
        policy in policies(), unix in (any::<bool>(), any::<bool>()),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let record = Arc::new(Record::new(Addr::UNNAMED));
            let (ours, client) = sockets(unix.0, Some(record.clone())).await;
            let (theirs, server) = sockets(unix.1, None).await;
            let relaying = tokio::spawn(relay_by(policy, ours, theirs, NO_LIMITS));
            let client = tokio::spawn(play(client, 1, up.clone(), reads.0));
            let server = tokio::spawn(play(server, 2, down.clone(), reads.1));
            assert!(client.await.unwrap() == (pattern(2, total(&down)), true));
            assert!(server.await.unwrap() == (pattern(1, total(&up)), true));
            let relayed = relaying.await.unwrap();
            assert_eq!(relayed.reason, EndReason::Completed);
            assert_eq!((relayed.up, relayed.down), (total(&up) as u64, total(&down) as u64));
            assert_eq!((record.bytes_read(), record.bytes_written()), (relayed.up, relayed.down));
            assert!(relayed.spliced <= relayed.up + relayed.down);
        });
    }
}

fn large_ops() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(
        prop_oneof![
            (1usize..3000).prop_map(Op::Write),
            (1usize..200_000).prop_map(Op::Write),
            Just(Op::Yield)
        ],
        0..8,
    )
}

/// A real connection: the relay's end, and the other one. Small buffers make partial writes the rule.
async fn sockets(unix: bool, record: Option<Arc<Record>>) -> (Transport, Box<dyn l4_core::Layer>) {
    let small = |socket: socket2::SockRef<'_>| socket.set_send_buffer_size(4096).unwrap();
    if unix {
        let (ours, other) = UnixStream::pair().unwrap();
        small((&ours).into());
        small((&other).into());
        return (Transport::new(Io::Unix(ours), record), Box::new(other));
    }
    let (other, ours) = connected_tcp().await;
    small((&ours).into());
    small((&other).into());
    (Transport::new(Io::Tcp(ours), record), Box::new(other))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_reset_at_any_moment_is_passed_on_behind_what_came_before_it(
        ops in ops(), from_client in any::<bool>(), read_size in 1usize..3000, read_late in any::<bool>(),
        policy in policies(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (client, server, relaying, record) = tcp_pair_with(NO_LIMITS, policy).await;
            let (mut breaking, mut other) = if from_client { (client, server) } else { (server, client) };
            let data = pattern(5, total(&ops));
            let breaker = tokio::spawn({
                let data = data.clone();
                async move {
                    let mut at = 0;
                    for op in ops {
                        match op {
                            Op::Write(n) => {
                                breaking.write_all(&data[at..at + n]).await.unwrap();
                                at += n;
                            }
                            Op::Yield => tokio::task::yield_now().await,
                        }
                    }
                    breaking.set_zero_linger().unwrap();
                }
            });
            if read_late {
                breaker.await.unwrap();
            }
            let mut received = Vec::new();
            let mut buf = vec![0; read_size];
            let end = loop {
                match other.read(&mut buf).await {
                    Ok(0) => break Ok(()),
                    Ok(n) => received.extend_from_slice(&buf[..n]),
                    Err(error) => break Err(error.kind()),
                }
            };
            assert_eq!(end, Err(io::ErrorKind::ConnectionReset), "a break must not look like an end");
            assert!(data.starts_with(&received), "{} of {} bytes", received.len(), data.len());
            let relayed = relaying.await.unwrap();
            let reset = if from_client { EndReason::ClientReset } else { EndReason::UpstreamReset };
            assert_eq!(relayed.reason, reset);
            let passed_on = if from_client { relayed.up } else { relayed.down };
            assert!(passed_on >= received.len() as u64);
            let counted = if from_client { record.bytes_read() } else { record.bytes_written() };
            assert!(counted >= received.len() as u64);
        });
    }
}

/// Two real TCP connections with the relay between them; small buffers make partial writes the rule.
async fn connected() -> (TcpStream, TcpStream) {
    let (dialled, accepted) = connected_tcp().await;
    for socket in [&dialled, &accepted] {
        socket2::SockRef::from(socket)
            .set_send_buffer_size(4096)
            .unwrap();
    }
    (dialled, accepted)
}

async fn tcp_pair() -> (
    TcpStream,
    TcpStream,
    tokio::task::JoinHandle<Relayed>,
    Arc<Record>,
) {
    tcp_pair_with(NO_LIMITS, &Policy::DEFAULT).await
}

async fn tcp_pair_with(
    limits: Limits,
    policy: &'static Policy,
) -> (
    TcpStream,
    TcpStream,
    tokio::task::JoinHandle<Relayed>,
    Arc<Record>,
) {
    let (client, ours) = connected().await;
    let (theirs, server) = connected().await;
    let record = Arc::new(Record::new(Addr::Tcp(client.local_addr().unwrap())));
    let client_side = Transport::new(Io::Tcp(ours), Some(record.clone()));
    let relaying = tokio::spawn(relay_by(
        policy,
        client_side,
        Transport::new(Io::Tcp(theirs), None),
        limits,
    ));
    (client, server, relaying, record)
}

async fn connected_tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    (dialled, listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn bulk_both_ways_over_small_socket_buffers_is_complete() {
    for policy in [&COPYING, &SPLICING, &CHANGING, &ADAPTING] {
        let (client, server, relaying, record) = tcp_pair_with(NO_LIMITS, policy).await;
        let writes = |n| vec![Op::Write(n); 20];
        let client = tokio::spawn(play(client, 1, writes(50_000), 7000));
        let server = tokio::spawn(play(server, 2, writes(30_000), 9000));
        assert_eq!(client.await.unwrap().0, pattern(2, 600_000));
        assert_eq!(server.await.unwrap().0, pattern(1, 1_000_000));
        let relayed = relaying.await.unwrap();
        assert_eq!((relayed.up, relayed.down), (1_000_000, 600_000));
        assert_eq!(
            (record.bytes_read(), record.bytes_written()),
            (1_000_000, 600_000)
        );
    }
}

#[tokio::test]
async fn a_half_close_leaves_the_other_direction_open() {
    let (mut client, mut server, relaying, _) = tcp_pair().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = Vec::new();
    server.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    assert_eq!(relaying.await.unwrap().reason, EndReason::Completed);
}

#[tokio::test]
async fn a_server_that_ends_first_still_gets_what_the_client_sends() {
    let (mut client, mut server, relaying, _) = tcp_pair().await;
    server.write_all(b"banner").await.unwrap();
    server.shutdown().await.unwrap();
    let mut banner = Vec::new();
    client.read_to_end(&mut banner).await.unwrap();
    let upload = pattern(3, 100_000);
    let sending = tokio::spawn(async move {
        client.write_all(&pattern(3, 100_000)).await.unwrap();
        client.shutdown().await.unwrap();
        client
    });
    let mut received = Vec::new();
    server.read_to_end(&mut received).await.unwrap();
    assert!(received == upload);
    sending.await.unwrap();
    assert_eq!(relaying.await.unwrap().reason, EndReason::Completed);
}

#[tokio::test]
async fn an_upstream_connection_that_lasts_is_probed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let same = socket2::SockRef::from(&dialled).try_clone().unwrap();
    let (ours, client) = tokio::io::duplex(64);
    let upstream = Transport::new(Io::Tcp(dialled), None);
    let relaying = tokio::spawn(relay(layer(ours).0, [upstream], NO_LIMITS));
    while !same.keepalive().unwrap() {
        sleep(Duration::from_millis(50)).await;
    }
    drop((listener, client));
    relaying.abort();
}

/// Row P10 of docs/defects.md.
#[tokio::test]
async fn a_client_reset_resets_the_upstream() {
    let (client, mut server, relaying, _) = tcp_pair().await;
    client.set_zero_linger().unwrap();
    drop(client);
    let error = server.read(&mut [0; 16]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(relaying.await.unwrap().reason, EndReason::ClientReset);
}

/// A socket, and one connected to it that the runtime has had no time to learn anything about.
fn just_connected() -> (std::net::TcpStream, TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dialled = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    dialled.set_nonblocking(true).unwrap();
    let accepted = listener.accept().unwrap().0;
    (accepted, TcpStream::from_std(dialled).unwrap())
}

fn poll_once(relay: &mut Relay) -> Poll<Relayed> {
    Pin::new(relay).poll(&mut Context::from_waker(std::task::Waker::noop()))
}

#[tokio::test]
async fn the_first_bytes_for_an_upstream_do_not_wait_until_the_runtime_knows_it() {
    let (mut client, ours) = tokio::io::duplex(100);
    client.write_all(b"question").await.unwrap();
    let (mut server, theirs) = just_connected();
    let mut relay = Relay::new(
        Transport::new(Io::Layer(Box::new(ours)), None),
        [Transport::new(Io::Tcp(theirs), None)],
        NO_LIMITS,
    );
    assert!(poll_once(&mut relay).is_pending());
    // Nobody polls again.
    server
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut question = [0; 100];
    assert_eq!(io::Read::read(&mut server, &mut question).unwrap(), 8);
    assert_eq!(&question[..8], b"question");
}

#[tokio::test]
async fn first_bytes_that_an_upstream_has_no_room_for_follow_in_order() {
    let (mut client, ours) = tokio::io::duplex(1 << 20);
    let question = pattern(5, 1 << 20);
    client.write_all(&question).await.unwrap();
    let (server, theirs) = just_connected();
    let small = socket2::SockRef::from(&theirs).set_send_buffer_size(4096);
    small.unwrap();
    let mut relay = Relay::new(
        Transport::new(Io::Layer(Box::new(ours)), None),
        [Transport::new(Io::Tcp(theirs), None)],
        NO_LIMITS,
    );
    assert!(poll_once(&mut relay).is_pending());
    assert!(relay.peers[0].stash.left() > 0);
    let relaying = tokio::spawn(relay);
    server.set_nonblocking(true).unwrap();
    let mut server = TcpStream::from_std(server).unwrap();
    let mut received = vec![0; question.len()];
    server.read_exact(&mut received).await.unwrap();
    assert!(received == question);
    drop((client, server));
    relaying.await.unwrap();
}

#[tokio::test]
async fn an_upstream_that_is_gone_before_its_first_bytes_counts_as_such() {
    let (mut client, ours) = tokio::io::duplex(100);
    client.write_all(b"question").await.unwrap();
    let (server, theirs) = just_connected();
    let abrupt = socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO));
    abrupt.unwrap();
    drop(server);
    let relayed = relay(
        Transport::new(Io::Layer(Box::new(ours)), None),
        [Transport::new(Io::Tcp(theirs), None)],
        NO_LIMITS,
    );
    assert_eq!(relayed.await.reason, EndReason::UpstreamReset);
}

#[tokio::test]
async fn an_upstream_reset_resets_the_client_after_what_came_before() {
    let (mut client, mut server, relaying, _) = tcp_pair().await;
    server.write_all(b"half an ans").await.unwrap();
    let mut half = [0; 11];
    client.read_exact(&mut half).await.unwrap();
    server.set_zero_linger().unwrap();
    drop(server);
    let error = client.read(&mut half).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(relaying.await.unwrap().reason, EndReason::UpstreamReset);
}

#[tokio::test]
async fn a_reset_is_passed_on_through_layers_both_ways() {
    for from_client in [true, false] {
        let (mut client, ours) = connected().await;
        let (theirs, mut server) = connected().await;
        let stack = async |socket| {
            let bare = Transport::new(Io::Tcp(socket), None);
            let once = bare.layer(async |below| Ok(below)).await.unwrap();
            once.layer(async |below| Ok(below)).await.unwrap()
        };
        let (ours, theirs) = (stack(ours).await, stack(theirs).await);
        let relaying = tokio::spawn(relay(ours, [theirs], NO_LIMITS));
        client.write_all(b"half a que").await.unwrap();
        server.write_all(b"half an ans").await.unwrap();
        client.read_exact(&mut [0; 11]).await.unwrap();
        server.read_exact(&mut [0; 10]).await.unwrap();
        let (breaking, mut other, reason) = match from_client {
            true => (client, server, EndReason::ClientReset),
            false => (server, client, EndReason::UpstreamReset),
        };
        breaking.set_zero_linger().unwrap();
        drop(breaking);
        let error = other.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(relaying.await.unwrap().reason, reason);
    }
}

#[tokio::test(start_paused = true)]
async fn a_complete_upload_arrives_although_its_sender_did_not_wait_for_the_answer() {
    for layered in [false, true] {
        let (mut client, ours) = connected().await;
        let (theirs, mut server) = connected_tcp().await;
        let upstream = socket2::SockRef::from(&theirs).try_clone().unwrap();
        // More than the upstream's kernel takes, less than ours.
        let upload = pattern(3, 150_000);
        upstream.set_send_buffer_size(4 << 20).unwrap();
        socket2::SockRef::from(&server)
            .set_recv_buffer_size(4096)
            .unwrap();
        let peer = Transport::new(Io::Tcp(theirs), None);
        let peer = match layered {
            true => peer.stack(|below| below),
            false => peer,
        };
        let relaying = tokio::spawn(relay(
            Transport::new(Io::Tcp(ours), None),
            [peer],
            NO_LIMITS,
        ));
        client.write_all(&upload).await.unwrap();
        drop(client);
        // Until the end was passed on, and nothing more can be sent.
        while upstream.send(&[]).is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
        drop(upstream);
        // Nobody is there to take it.
        server.write_all(b"!").await.unwrap();
        assert_eq!(relaying.await.unwrap().reason, EndReason::ClientReset);
        socket2::SockRef::from(&server)
            .set_recv_buffer_size(1 << 20)
            .unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert!(got == upload, "{} of {}", got.len(), upload.len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_keeps_the_rest_of_its_answer_until_the_idle_limit() {
    for (idle, reason) in [
        (None, EndReason::Completed),
        (Some(Duration::from_secs(600)), EndReason::IdleTimeout),
    ] {
        let limits = Limits {
            idle,
            half_closed: Some(Duration::from_secs(60)),
        };
        let (ours, mut client) = tokio::io::duplex(64);
        let (theirs, mut server) = tokio::io::duplex(1024);
        server.write_all(&[7; 500]).await.unwrap();
        drop(server);
        let relaying = tokio::spawn(relay(layer(ours).0, [layer(theirs).0], limits));
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(relaying.is_finished(), idle.is_some());
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer.len(), if idle.is_some() { 64 } else { 500 });
        drop(client);
        assert_eq!(relaying.await.unwrap().reason, reason);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_breaks_after_its_end_is_noticed_while_the_upstream_is_silent() {
    for lasted in [false, true] {
        let (mut client, ours) = connected_tcp().await;
        let (theirs, mut server) = connected_tcp().await;
        let [ours, theirs] = [ours, theirs].map(|socket| Transport::new(Io::Tcp(socket), None));
        let mut relay = Relay::new(ours, [theirs], NO_LIMITS);
        if lasted {
            let keepalive = relay.peers[0].keepalive.as_mut().unwrap();
            std::future::poll_fn(|cx| keepalive.poll_lasted(cx)).await;
        }
        let relaying = tokio::spawn(relay);
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        // Longer than it takes to look: a client that just waits is left alone.
        sleep(3 * LOOKOUT).await;
        assert!(!relaying.is_finished());
        client.set_zero_linger().unwrap();
        drop(client);
        assert_eq!(relaying.await.unwrap().reason, EndReason::ClientReset);
        let error = server
            .write_all(b"answer")
            .await
            .and(server.read(&mut [0; 9]).await);
        assert!(is_reset(&error.unwrap_err()));
    }
}

#[tokio::test]
async fn a_connection_that_is_over_soon_never_has_the_timer_of_the_lookout() {
    let (mut client, ours) = connected_tcp().await;
    let (theirs, mut server) = connected_tcp().await;
    let [ours, theirs] = [ours, theirs].map(|socket| Transport::new(Io::Tcp(socket), None));
    let mut relay = Relay::new(ours, [theirs], NO_LIMITS);
    let begun = Instant::now();
    client.shutdown().await.unwrap();
    std::future::poll_fn(|cx| {
        let over = Pin::new(&mut relay).poll(cx).is_ready();
        assert!(!over);
        match relay.client_done {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    // Unless the machine is so slow that it has lasted.
    let soon = |begun: Instant| begun.elapsed() < Duration::from_secs(1);
    assert!(relay.lookout.is_none() || !soon(begun));
    server.write_all(b"answer").await.unwrap();
    drop(server);
    assert_eq!((&mut relay).await.reason, EndReason::Completed);
    assert!(relay.lookout.is_none() || !soon(begun));
}

#[tokio::test]
async fn an_answer_survives_a_server_that_refuses_the_rest_of_the_upload() {
    let (mut client, mut server, relaying, _) = tcp_pair().await;
    client.write_all(&[0; 2000]).await.unwrap();
    let mut some = [0; 1000];
    server.read_exact(&mut some).await.unwrap();
    // An early refusal, as a web server gives to a body that is too large: answer, end, close with input unread.
    server.write_all(b"413").await.unwrap();
    server.shutdown().await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"413");
    drop(server);
    let _ = client.write_all(&[0; 2000]).await;
    drop(client);
    let reason = relaying.await.unwrap().reason;
    assert!(
        matches!(
            reason,
            EndReason::Completed | EndReason::ClientReset | EndReason::UpstreamReset
        ),
        "{reason}"
    );
}

#[tokio::test]
async fn a_slow_reader_holds_back_a_fast_sender() {
    for policy in [&COPYING, &SPLICING, &ADAPTING] {
        let (mut client, server, relaying, record) = tcp_pair_with(NO_LIMITS, policy).await;
        let sending = tokio::spawn(async move {
            let _ = client.write_all(&vec![0; 64 * 1024 * 1024]).await;
        });
        // The server does not read. What the relay takes in is bounded by the kernel's buffers, not by the sender.
        let mut last = u64::MAX;
        while record.bytes_read() != last {
            last = record.bytes_read();
            sleep(Duration::from_millis(100)).await;
        }
        assert!(last < 32 * 1024 * 1024, "{last}");
        drop(server);
        let _ = relaying.await.unwrap();
        let _ = sending.await;
    }
}

/// Rows D-17 and P11 of docs/defects.md.
#[tokio::test]
async fn a_client_that_lingers_after_the_end_is_let_go() {
    let limits = Limits {
        half_closed: Some(Duration::from_millis(50)),
        ..NO_LIMITS
    };
    let (mut client, server, relaying, _) = tcp_pair_with(limits, &Policy::DEFAULT).await;
    drop(server);
    assert_eq!(relaying.await.unwrap().reason, EndReason::HalfCloseTimeout);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

/// Row P11 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn silence_ends_a_connection_with_an_idle_limit_and_traffic_keeps_it() {
    let limits = Limits {
        idle: Some(Duration::from_secs(10)),
        ..NO_LIMITS
    };
    let (ours, mut client) = tokio::io::duplex(64);
    let (theirs, mut server) = tokio::io::duplex(64);
    let relaying = tokio::spawn(relay(layer(ours).0, [layer(theirs).0], limits));
    for _ in 0..5 {
        sleep(Duration::from_secs(9)).await;
        assert!(!relaying.is_finished());
        client.write_all(b"x").await.unwrap();
        server.read_exact(&mut [0]).await.unwrap();
    }
    assert_eq!(relaying.await.unwrap().reason, EndReason::IdleTimeout);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_of_what_is_kept_for_it_is_not_idle() {
    let limits = Limits {
        idle: Some(Duration::from_secs(10)),
        ..NO_LIMITS
    };
    let (ours, mut client) = tokio::io::duplex(1024);
    let (theirs, mut server) = tokio::io::duplex(64);
    let relaying = tokio::spawn(relay(layer(ours).0, [layer(theirs).0], limits));
    client.write_all(&[7; 512]).await.unwrap();
    for _ in 0..8 {
        sleep(Duration::from_secs(9)).await;
        let mut some = [0; 64];
        server.read_exact(&mut some).await.unwrap();
        assert_eq!(some, [7; 64]);
    }
    assert_eq!(relaying.await.unwrap().reason, EndReason::IdleTimeout);
}

#[tokio::test]
async fn a_peer_that_never_pauses_does_not_silence_the_others() {
    let (ours, mut client) = tokio::io::duplex(1024 * 1024);
    let quiet_answer = b"heard";
    let (theirs, mut quiet) = tokio::io::duplex(64);
    let peers = [
        Transport::new(Io::Layer(Box::new(Endless)), None),
        layer(theirs).0,
    ];
    let relaying = tokio::spawn(relay(layer(ours).0, peers, NO_LIMITS));
    quiet.write_all(quiet_answer).await.unwrap();
    let mut buf = vec![0; 64 * 1024];
    let heard = async {
        loop {
            let n = client.read(&mut buf).await.unwrap();
            if buf[..n]
                .windows(quiet_answer.len())
                .any(|w| w == quiet_answer)
            {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), heard)
        .await
        .unwrap();
    relaying.abort();
}

/// A peer that sends without pause and takes everything.
struct Endless;

impl AsyncRead for Endless {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n = buf.remaining();
        buf.put_slice(&vec![0; n]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Endless {
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
        Poll::Ready(Ok(()))
    }
}

/// Datagrams in, datagrams out, through shared queues.
struct Queues {
    incoming: tokio::sync::mpsc::Receiver<bytes::Bytes>,
    outgoing: tokio::sync::mpsc::Sender<Vec<u8>>,
}

impl Session for Queues {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<bytes::Bytes>> {
        self.incoming.poll_recv(cx)
    }

    fn poll_send(&mut self, _: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        if datagram == b"too long" {
            return Poll::Ready(Err(io::Error::from_raw_os_error(libc::EMSGSIZE)));
        }
        if datagram == b"to nobody" {
            return Poll::Ready(Err(io::Error::from_raw_os_error(libc::ENOTCONN)));
        }
        self.outgoing.try_send(datagram.to_vec()).unwrap();
        Poll::Ready(Ok(()))
    }

    fn local(&self) -> Addr {
        Addr::UNNAMED
    }
}

fn queues() -> (
    Transport,
    tokio::sync::mpsc::Sender<bytes::Bytes>,
    tokio::sync::mpsc::Receiver<Vec<u8>>,
) {
    let (to, incoming) = tokio::sync::mpsc::channel(16);
    let (outgoing, from) = tokio::sync::mpsc::channel(16);
    (
        Transport::new(Io::Datagram(Box::new(Queues { incoming, outgoing })), None),
        to,
        from,
    )
}

#[tokio::test]
async fn datagrams_keep_their_boundaries_and_a_lost_one_ends_nothing() {
    let (client, client_in, mut client_out) = queues();
    let (server, server_in, mut server_out) = queues();
    let relaying = tokio::spawn(relay(client, [server], NO_LIMITS));
    let large = vec![7; 65_507];
    for datagram in [&b"one"[..], b"", b"too long", &large] {
        client_in
            .send(bytes::Bytes::copy_from_slice(datagram))
            .await
            .unwrap();
        server_in
            .send(bytes::Bytes::copy_from_slice(datagram))
            .await
            .unwrap();
    }
    for out in [&mut server_out, &mut client_out] {
        assert_eq!(out.recv().await.unwrap(), b"one");
        assert_eq!(out.recv().await.unwrap(), b"");
        assert!(out.recv().await.unwrap() == large);
    }
    drop(client_in);
    assert_eq!(relaying.await.unwrap().reason, EndReason::IdleTimeout);
}

#[tokio::test(start_paused = true)]
async fn empty_datagrams_keep_a_session_with_an_idle_limit() {
    let limits = Limits {
        idle: Some(Duration::from_secs(10)),
        ..NO_LIMITS
    };
    let (client, client_in, mut client_out) = queues();
    let (server, server_in, mut server_out) = queues();
    let relaying = tokio::spawn(relay(client, [server], limits));
    for (give, out) in [(&client_in, &mut server_out), (&server_in, &mut client_out)] {
        for _ in 0..5 {
            sleep(Duration::from_secs(9)).await;
            give.send(bytes::Bytes::new()).await.unwrap();
            assert_eq!(out.recv().await.unwrap(), b"");
        }
    }
    assert_eq!(relaying.await.unwrap().reason, EndReason::IdleTimeout);
}

/// A Unix datagram server that goes away leaves such a socket behind: it sends nothing any more and receives nothing.
#[tokio::test(start_paused = true)]
async fn a_datagram_socket_that_cannot_send_any_more_ends_its_session() {
    let (client, client_in, _client_out) = queues();
    let (server, _server_in, _server_out) = queues();
    let relaying = tokio::spawn(relay(client, [server], NO_LIMITS));
    client_in
        .send(bytes::Bytes::from_static(b"to nobody"))
        .await
        .unwrap();
    let relayed = tokio::time::timeout(Duration::from_secs(60), relaying).await;
    assert_eq!(relayed.unwrap().unwrap().reason, EndReason::UpstreamError);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_client_is_seen_when_its_upload_was_refused_before_the_answer_was_read() {
    let (ours, mut client) = tokio::io::duplex(64);
    let (theirs, mut server) = tokio::io::duplex(1024);
    server.write_all(&[7; 200]).await.unwrap();
    drop(server);
    let relaying = tokio::spawn(relay(layer(ours).0, [layer(theirs).0], NO_LIMITS));
    // The client is slow to read, so the upstream's end is not seen yet when the upload runs into it.
    tokio::task::yield_now().await;
    client.write_all(b"upload").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, [7; 200]);
    sleep(Duration::from_secs(1)).await;
    drop(client);
    let relayed = tokio::time::timeout(Duration::from_secs(60), relaying).await;
    assert_eq!(relayed.unwrap().unwrap().reason, EndReason::Completed);
}

#[tokio::test(start_paused = true)]
async fn an_idle_limit_still_holds_when_the_upstream_has_ended() {
    let limits = Limits {
        idle: Some(Duration::from_secs(10)),
        half_closed: Some(Duration::from_secs(60)),
    };
    let (ours, _client) = tokio::io::duplex(64);
    let (theirs, server) = tokio::io::duplex(64);
    drop(server);
    let began = Instant::now();
    let relayed = relay(layer(ours).0, [layer(theirs).0], limits).await;
    assert_eq!(relayed.reason, EndReason::IdleTimeout);
    assert_eq!(began.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_peer_gets_what_it_has_room_for_while_another_does_not_read() {
    let (ours, mut client) = tokio::io::duplex(1024);
    let (first, _stalled) = tokio::io::duplex(16);
    let (second, mut reading) = tokio::io::duplex(16);
    let peers = [layer(first).0, layer(second).0];
    let relaying = tokio::spawn(relay(layer(ours).0, peers, NO_LIMITS));
    client.write_all(&[7; 100]).await.unwrap();
    let mut all = [0; 100];
    let read = tokio::time::timeout(Duration::from_secs(60), reading.read_exact(&mut all)).await;
    read.unwrap().unwrap();
    relaying.abort();
}

/// Sends as much as is written, and ends; the other end reads it, and ends.
async fn upload(client: TcpStream, server: TcpStream, len: usize) {
    let (received, _) = tokio::join!(
        play(server, 1, Vec::new(), 100_000),
        play(client, 2, vec![Op::Write(len)], 100),
    );
    assert!(received.0 == pattern(2, len));
}

#[tokio::test]
async fn bulk_between_sockets_is_spliced_and_messages_are_copied() {
    let _pipes = pipes().await;
    let (mut client, ours) = connected_tcp().await;
    let (theirs, mut server) = connected_tcp().await;
    let [ours, theirs] = [ours, theirs].map(|socket| Transport::new(Io::Tcp(socket), None));
    let relaying = tokio::spawn(relay(ours, [theirs], NO_LIMITS));
    for _ in 0..20 {
        client.write_all(&[1; 10_000]).await.unwrap();
        server.read_exact(&mut [0; 10_000]).await.unwrap();
    }
    upload(client, server, 64 * 1024 * 1024).await;
    let relayed = relaying.await.unwrap();
    assert_eq!(relayed.up, 200_000 + 64 * 1024 * 1024);
    // The messages and the first chunks of the bulk were copied.
    assert!(relayed.spliced < 64 * 1024 * 1024, "{}", relayed.spliced);
    assert!(relayed.spliced > 32 * 1024 * 1024, "{}", relayed.spliced);
}

#[tokio::test]
async fn bulk_is_copied_when_no_pipe_is_left() {
    let _pipes = pipes().await;
    let (client, ours) = connected_tcp().await;
    let (theirs, server) = connected_tcp().await;
    let [ours, theirs] = [ours, theirs].map(|socket| Transport::new(Io::Tcp(socket), None));
    let all: Vec<_> = std::iter::from_fn(Pipe::take).collect();
    let relaying = tokio::spawn(relay_by(&SPLICING, ours, theirs, NO_LIMITS));
    upload(client, server, 1024 * 1024).await;
    all.into_iter().for_each(Pipe::give_back);
    assert_eq!(relaying.await.unwrap().up, 1024 * 1024);
}

#[tokio::test]
async fn a_direction_that_splices_holds_no_pipe_while_nothing_moves() {
    let _pipes = pipes().await;
    let (mut client, ours) = connected_tcp().await;
    let (theirs, mut server) = connected_tcp().await;
    let [ours, theirs] = [ours, theirs].map(|socket| Transport::new(Io::Tcp(socket), None));
    let mut relay = relay_by(&SPLICING, ours, theirs, NO_LIMITS);
    for _ in 0..3 {
        for n in [1, 100_000] {
            let sent = vec![7; n];
            let mut received = vec![0; n];
            let moving = async {
                client.write_all(&sent).await.unwrap();
                server.read_exact(&mut received).await.unwrap();
            };
            tokio::select! {
                biased;
                _ = &mut relay => panic!("the relay ended"),
                () = moving => {}
            }
            assert_eq!(received, sent);
        }
        assert!(relay.up_gear.splicing());
        assert!(matches!(relay.peers[0].stash, Stash::Empty));
    }
    assert!(relay.spliced > 0);
}

/// Lets through 1000 bytes at a time.
struct Thousand(Arc<std::sync::atomic::AtomicUsize>);

impl l4_core::conn::ReadLimit for Thousand {
    fn poll_allow(&mut self, _: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        Poll::Ready(wanted.min(1000))
    }

    fn taken(&mut self, n: usize) {
        assert!(n <= 1000, "{n}");
        self.0.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_limit_on_reads_holds_and_is_charged_exactly_while_splicing() {
    let _pipes = pipes().await;
    let (client, ours) = connected_tcp().await;
    let (theirs, server) = connected_tcp().await;
    let [mut ours, theirs] = [ours, theirs].map(|socket| Transport::new(Io::Tcp(socket), None));
    let charged = Arc::default();
    ours.limit_reads(Box::new(Thousand(Arc::clone(&charged))));
    let relaying = tokio::spawn(relay_by(&SPLICING, ours, theirs, NO_LIMITS));
    upload(client, server, 300_000).await;
    let relayed = relaying.await.unwrap();
    assert_eq!(charged.load(std::sync::atomic::Ordering::Relaxed), 300_000);
    assert!(relayed.spliced > 200_000, "{}", relayed.spliced);
}

/// Keeps what each call gave it.
#[derive(Clone, Default)]
struct Calls(Arc<std::sync::Mutex<Vec<Vec<u8>>>>);

impl AsyncRead for Calls {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Calls {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().unwrap().push(buf.to_vec());
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let given: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
        self.poll_write(cx, &given)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_header_and_the_unread_bytes_of_the_client_reach_the_peer_in_one_call() {
    for (unread, calls) in [
        (&b"question"[..], &[&b"header question"[..]][..]),
        (b"", &[b"header "]),
    ] {
        let client = l4_testkit::received(unread).into_transport();
        let seen = Calls::default();
        let mut peer = Transport::new(Io::Layer(Box::new(seen.clone())), None);
        peer.lead_with(b"header ".to_vec());
        let relayed = relay(client, [peer], NO_LIMITS).await;
        assert_eq!(relayed.up, unread.len() as u64);
        assert_eq!(*seen.0.lock().unwrap(), calls);
    }
}
