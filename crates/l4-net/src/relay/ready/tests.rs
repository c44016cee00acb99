use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use l4_core::{Addr, EndReason, Io, Record};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;

use super::super::{Limits, Relay, Relayed, UNTIL_MESSAGES};
use super::*;

/// Counts how often it was woken, and keeps the waker that was registered last.
#[derive(Default)]
struct Slot {
    woken: AtomicUsize,
    registered: Mutex<Option<Waker>>,
}

impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::Relaxed);
    }
}

impl Slot {
    /// What the runtime does with a socket that has nothing.
    fn keep(&self, cx: &mut Context<'_>) -> Poll<()> {
        *self.registered.lock().unwrap() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn take(&self) -> Waker {
        self.registered.lock().unwrap().take().unwrap()
    }

    fn woken(&self) -> usize {
        self.woken.load(Ordering::Relaxed)
    }
}

fn watched() -> (Arc<Slot>, Watches) {
    let slot = Arc::new(Slot::default());
    let watches = Watches::new(&slot.clone().into());
    (slot, watches)
}

#[test]
fn a_socket_is_due_until_it_is_registered_and_again_when_its_waker_was_used() {
    let (slot, Watches { client, peer }) = watched();
    assert!(client.is_due() && peer.is_due());
    client.register(|cx| slot.keep(cx));
    peer.register(|_| Poll::<()>::Pending);
    assert!(!client.is_due() && !peer.is_due());
    slot.take().wake();
    assert!(client.is_due() && !peer.is_due());
    assert_eq!(slot.woken(), 1);
}

#[test]
fn a_waker_that_is_taken_early_and_used_late_makes_a_socket_due_that_was_registered_meanwhile() {
    let (slot, Watches { client, .. }) = watched();
    client.register(|cx| slot.keep(cx));
    let late = slot.take();
    // Its event was seen by way of the other socket, and all of it read.
    client.register(|cx| slot.keep(cx));
    assert!(!client.is_due());
    late.wake();
    assert!(client.is_due());
}

#[test]
fn a_socket_whose_waker_is_used_while_it_is_registered_is_due() {
    let (slot, Watches { client, .. }) = watched();
    client.register(|cx| {
        cx.waker().wake_by_ref();
        Poll::<()>::Pending
    });
    assert!(client.is_due());
    assert_eq!(slot.woken(), 1);
}

#[test]
fn a_socket_that_turns_out_ready_while_it_is_registered_is_due() {
    let (_, Watches { client, .. }) = watched();
    client.register(|_| Poll::Ready(()));
    assert!(client.is_due());
}

#[test]
fn both_sockets_are_due_when_it_is_another_task_that_is_to_be_woken() {
    let (slot, mut watches) = watched();
    watches.client.register(|cx| slot.keep(cx));
    watches.peer.register(|_| Poll::<()>::Pending);
    watches.wake(&slot.clone().into());
    assert!(!watches.client.is_due() && !watches.peer.is_due());

    let other = Arc::new(Slot::default());
    watches.wake(&other.clone().into());
    assert!(watches.client.is_due() && watches.peer.is_due());
    watches.client.register(|cx| other.keep(cx));
    // What the old task registered is of no more concern.
    slot.take().wake();
    assert!(!watches.client.is_due());
    other.take().wake();
    assert!(watches.client.is_due());
    assert_eq!((slot.woken(), other.woken()), (1, 1));
}

const NO_LIMITS: Limits = Limits {
    idle: None,
    half_closed: None,
};

async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dialled = TcpStream::connect(address).await.unwrap();
    let accepted = listener.accept().await.unwrap().0;
    for end in [&dialled, &accepted] {
        end.set_nodelay(true).unwrap();
    }
    (dialled, accepted)
}

/// A relay, and the ends of client and server.
async fn relayed(limits: Limits) -> (TcpStream, TcpStream, Relay, Arc<Record>) {
    let (client, ours) = tcp().await;
    let (theirs, server) = tcp().await;
    let record = Arc::new(Record::new(Addr::UNNAMED));
    let ours = Transport::new(Io::Tcp(ours), Some(record.clone()));
    let theirs = Transport::new(Io::Tcp(theirs), None);
    let relay = Relay::new(ours, [theirs], limits);
    (client, server, relay, record)
}

/// Sends 100 bytes one way and has them sent back, so many times.
async fn round_trips<S>(client: &mut S, server: &mut S, times: usize)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    for turn in 0..times {
        let (sent, mut got) = ([turn as u8; 100], [0; 100]);
        client.write_all(&sent).await.unwrap();
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(got, sent);
        server.write_all(&got).await.unwrap();
        got = [0; 100];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(got, sent);
    }
}

/// Enough to be taken for a connection of messages.
const LASTING: usize = UNTIL_MESSAGES as usize + 2;

/// `relay` within this task, until `done`.
async fn beside(relay: &mut Relay, done: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        relayed = relay => panic!("{relayed:?}"),
        () = done => {}
    }
}

#[tokio::test]
async fn messages_between_sockets_are_counted_and_come_by_the_short_way() {
    let (mut client, mut server, mut relay, record) = relayed(NO_LIMITS).await;
    beside(&mut relay, round_trips(&mut client, &mut server, 2)).await;
    assert!(relay.until_messages > 0, "too early to know");
    beside(&mut relay, round_trips(&mut client, &mut server, LASTING)).await;
    assert_eq!(relay.until_messages, 0);
    beside(&mut relay, round_trips(&mut client, &mut server, 50)).await;
    let bytes = (52 + LASTING as u64) * 100;
    assert_eq!((relay.up, relay.down), (bytes, bytes));
    assert_eq!(
        (record.bytes_read(), record.bytes_written()),
        (bytes, bytes)
    );
}

#[tokio::test]
async fn messages_between_unix_sockets_come_by_the_short_way() {
    let [(mut client, ours), (theirs, mut server)] =
        [UnixStream::pair().unwrap(), UnixStream::pair().unwrap()];
    let [ours, theirs] = [ours, theirs].map(|socket| Transport::new(Io::Unix(socket), None));
    let mut relay = Relay::new(ours, [theirs], NO_LIMITS);
    beside(&mut relay, round_trips(&mut client, &mut server, 50)).await;
    assert_eq!(relay.until_messages, 0);
}

#[tokio::test]
async fn messages_through_a_layer_go_on_being_polled() {
    let (mut client, ours) = tokio::io::duplex(1000);
    let (theirs, mut server) = tokio::io::duplex(1000);
    let [ours, theirs] = [ours, theirs].map(|end| Transport::new(Io::Layer(Box::new(end)), None));
    let mut relay = Relay::new(ours, [theirs], NO_LIMITS);
    beside(&mut relay, round_trips(&mut client, &mut server, 50)).await;
    assert!(relay.until_messages > 0 && relay.watches.is_none());
}

/// Lets one byte through at a time.
struct One(Arc<AtomicUsize>);

impl l4_core::conn::ReadLimit for One {
    fn poll_allow(&mut self, _: &mut Context<'_>, _: usize) -> Poll<usize> {
        Poll::Ready(1)
    }

    fn taken(&mut self, n: usize) {
        assert!(n <= 1);
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_limit_on_reads_holds_for_messages() {
    let (mut client, ours) = tcp().await;
    let (theirs, mut server) = tcp().await;
    let [mut ours, theirs] = [ours, theirs].map(|socket| Transport::new(Io::Tcp(socket), None));
    let charged = Arc::default();
    ours.limit_reads(Box::new(One(Arc::clone(&charged))));
    let mut relay = Relay::new(ours, [theirs], NO_LIMITS);
    beside(&mut relay, round_trips(&mut client, &mut server, 50)).await;
    assert_eq!(charged.load(Ordering::Relaxed), 5000);
}

#[tokio::test]
async fn a_relay_of_messages_that_moves_to_another_task_goes_on() {
    let (mut client, mut server, mut relay, _) = relayed(NO_LIMITS).await;
    beside(&mut relay, round_trips(&mut client, &mut server, LASTING)).await;
    for _ in 0..3 {
        let (stop, mut stopped) = mpsc::channel::<()>(1);
        let moved = tokio::spawn(async move {
            beside(&mut relay, async {
                assert!(stopped.recv().await.is_none())
            })
            .await;
            (relay, stopped)
        });
        round_trips(&mut client, &mut server, 20).await;
        drop(stop);
        (relay, _) = moved.await.unwrap();
        assert_eq!(relay.until_messages, 0);
    }
}

/// Each direction on its own: a message is sent when the last one has arrived, so one that nobody is woken for is the
/// last.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_message_is_overlooked_while_both_directions_race_on_several_threads() {
    const MESSAGES: usize = 1500;
    async fn one_way(
        mut from: impl AsyncWrite + Unpin,
        mut to: impl AsyncRead + Unpin + Send + 'static,
    ) {
        let (arrived, mut next) = mpsc::channel(1);
        let receiving = tokio::spawn(async move {
            for turn in 0..MESSAGES {
                let mut got = vec![0; 1 + turn % 300];
                to.read_exact(&mut got).await.unwrap();
                assert!(got.iter().all(|&byte| byte == turn as u8));
                arrived.send(()).await.unwrap();
            }
            to
        });
        for turn in 0..MESSAGES {
            from.write_all(&vec![turn as u8; 1 + turn % 300])
                .await
                .unwrap();
            next.recv().await.unwrap();
        }
        drop((from, receiving.await.unwrap()));
    }
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (client, server, relay, _) = relayed(NO_LIMITS).await;
        all.spawn(async move {
            let relaying = tokio::spawn(relay);
            let (client, server) = (client.into_split(), server.into_split());
            tokio::join!(one_way(client.1, server.0), one_way(server.1, client.0));
            let relayed = relaying.await.unwrap();
            assert_eq!(relayed.reason, EndReason::Completed);
            assert_eq!(relayed.up, relayed.down);
        });
    }
    let all = async {
        while let Some(one) = all.join_next().await {
            one.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all)
        .await
        .expect("a message is stuck");
}

/// Messages, and then what the relay came to in its task.
async fn after_messages() -> (TcpStream, TcpStream, tokio::task::JoinHandle<Relayed>) {
    let (mut client, mut server, mut relay, _) = relayed(NO_LIMITS).await;
    beside(&mut relay, round_trips(&mut client, &mut server, LASTING)).await;
    assert_eq!(relay.until_messages, 0);
    (client, server, tokio::spawn(relay))
}

#[tokio::test]
async fn a_half_close_behind_messages_leaves_the_other_direction_open() {
    for server_first in [false, true] {
        let (client, server, relaying) = after_messages().await;
        let (mut first, mut second) = match server_first {
            true => (server, client),
            false => (client, server),
        };
        first.write_all(b"the last").await.unwrap();
        first.shutdown().await.unwrap();
        let mut last = Vec::new();
        second.read_to_end(&mut last).await.unwrap();
        assert_eq!(last, b"the last");
        for _ in 0..20 {
            second.write_all(b"more").await.unwrap();
            first.read_exact(&mut [0; 4]).await.unwrap();
        }
        drop(second);
        assert_eq!(first.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(relaying.await.unwrap().reason, EndReason::Completed);
    }
}

#[tokio::test]
async fn a_reset_behind_messages_is_passed_on_as_a_reset() {
    for (server_first, reason) in [
        (false, EndReason::ClientReset),
        (true, EndReason::UpstreamReset),
    ] {
        let (client, server, relaying) = after_messages().await;
        let (first, mut second) = match server_first {
            true => (server, client),
            false => (client, server),
        };
        first.set_zero_linger().unwrap();
        drop(first);
        let error = second.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(relaying.await.unwrap().reason, reason);
    }
}

#[tokio::test]
async fn a_message_to_a_receiver_that_is_gone_ends_the_connection_as_ever() {
    // Its reset may be noticed by reading from it, or by sending to it.
    for _ in 0..20 {
        let (mut client, server, relaying) = after_messages().await;
        client.write_all(b"question").await.unwrap();
        server.set_zero_linger().unwrap();
        drop(server);
        let error = client.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let relayed = relaying.await.unwrap();
        assert_eq!(relayed.reason, EndReason::UpstreamReset);
    }
}

#[tokio::test]
async fn what_a_slow_receiver_leaves_of_messages_arrives_in_order_and_messages_go_on() {
    let (mut client, mut server, mut relay, _) = relayed(NO_LIMITS).await;
    for _ in 0..3 {
        beside(
            &mut relay,
            round_trips(&mut client, &mut server, 3 * LASTING),
        )
        .await;
        assert_eq!(relay.until_messages, 0);
        let mut sent = Vec::new();
        beside(&mut relay, async {
            // Until neither the sockets nor the stash have had room for a while.
            let mut full = 0;
            while full < 50 {
                match client.try_write(&[(sent.len() / 3000) as u8; 3000]) {
                    Ok(n) => {
                        sent.extend_from_slice(&[(sent.len() / 3000) as u8; 3000][..n]);
                        full = 0;
                    }
                    Err(_) => full += 1,
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(
            relay.until_messages > 0,
            "a stash is nothing for the short way"
        );
        beside(&mut relay, async {
            let mut got = vec![0; sent.len()];
            server.read_exact(&mut got).await.unwrap();
            assert!(got == sent, "bytes are missing or out of order");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn messages_keep_a_connection_with_an_idle_limit_and_silence_ends_it() {
    let limits = Limits {
        idle: Some(Duration::from_secs(10)),
        ..NO_LIMITS
    };
    let (mut client, mut server, mut relay, _) = relayed(limits).await;
    beside(&mut relay, async {
        for _ in 0..20 {
            round_trips(&mut client, &mut server, 1).await;
            tokio::time::sleep(Duration::from_secs(7)).await;
        }
    })
    .await;
    assert_eq!(relay.until_messages, 0);
    assert_eq!(relay.await.reason, EndReason::IdleTimeout);
}
