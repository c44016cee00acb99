//! What it costs to relay: `cargo bench --package benches --bench relay`.
//!
//! `round-trip` sends a message through a relay and has it sent back; `one-way` is a stream in pieces of 1 MiB, which the
//! relay splices where the kernel can. Client and server are threads of their own with plain sockets, so the figure is
//! what the relay alone takes.

mod processor_time;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use criterion::measurement::Measurement as _;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use l4_core::{Io, Transport};
use l4_net::relay::{Limits, relay};

use processor_time::ProcessorTime;

const MIB: usize = 1024 * 1024;

/// Two ends of a connection through loopback.
fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback");
    let address = listener.local_addr().expect("its address");
    let dialled = TcpStream::connect(address).expect("the listener's backlog takes it");
    let (accepted, _) = listener.accept().expect("the connection just made");
    for end in [&dialled, &accepted] {
        end.set_nodelay(true).expect("an open socket");
    }
    (dialled, accepted)
}

/// The processor time of a relay, from its first byte to its end, between a client and a server that do as they are
/// told, each in a thread of its own.
fn relayed(
    client: impl FnOnce(TcpStream) + Send + 'static,
    server: impl FnOnce(TcpStream) + Send + 'static,
) -> Duration {
    let (client_end, from_client) = connected();
    let (to_server, server_end) = connected();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let [from_client, to_server] = [from_client, to_server].map(|socket| {
        let _entered = runtime.enter();
        socket.set_nonblocking(true).expect("an open socket");
        let socket = tokio::net::TcpStream::from_std(socket).expect("a runtime is entered");
        Transport::new(Io::Tcp(socket), None)
    });
    let ends = [
        thread::spawn(move || client(client_end)),
        thread::spawn(move || server(server_end)),
    ];
    let start = ProcessorTime.start();
    // Within the runtime: a relay knows its timers from the beginning.
    let outcome =
        runtime.block_on(async { relay(from_client, [to_server], Limits::default()).await });
    let took = ProcessorTime.end(start);
    assert!(outcome.error.is_none(), "{outcome:?}");
    for end in ends {
        end.join().expect("both got what they waited for");
    }
    took
}

/// A client that sends `size` bytes `times` times, each time waiting until as many have come back.
fn round_trips(size: usize, times: u64) -> Duration {
    let client = move |mut socket: TcpStream| {
        let mut message = vec![7; size];
        for _ in 0..times {
            socket.write_all(&message).expect("the relay reads");
            socket.read_exact(&mut message).expect("the relay answers");
        }
    };
    let server = move |mut socket: TcpStream| {
        let mut message = vec![0; size];
        for _ in 0..times {
            socket.read_exact(&mut message).expect("the relay sends");
            socket.write_all(&message).expect("the relay reads");
        }
    };
    relayed(client, server)
}

/// A client that sends `pieces` MiB to a server that reads them.
fn one_way(pieces: u64) -> Duration {
    let client = move |mut socket: TcpStream| {
        let piece = vec![7; MIB];
        for _ in 0..pieces {
            socket.write_all(&piece).expect("the relay reads");
        }
    };
    let server = move |mut socket: TcpStream| {
        let mut piece = vec![0; MIB];
        let mut received = 0;
        loop {
            match socket.read(&mut piece).expect("the relay sends") {
                0 => break,
                n => received += n as u64,
            }
        }
        assert_eq!(received, pieces * MIB as u64);
    };
    relayed(client, server)
}

fn relays(c: &mut Criterion<ProcessorTime>) {
    let mut group = c.benchmark_group("relay");
    for (name, size) in [
        ("round-trip/100 B", 100),
        ("round-trip/4 KiB", 4096),
        ("round-trip/64 KiB", 64 * 1024),
        ("round-trip/1 MiB", MIB),
    ] {
        group.throughput(Throughput::Bytes(2 * size as u64));
        group.bench_function(name, |b| b.iter_custom(|times| round_trips(size, times)));
    }
    group.throughput(Throughput::Bytes(MIB as u64));
    group.bench_function("one-way/1 MiB", |b| b.iter_custom(one_way));
    group.finish();
}

fn criterion() -> Criterion<ProcessorTime> {
    Criterion::default()
        .with_measurement(ProcessorTime)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .sample_size(20)
}

criterion_group! {
    name = benches;
    config = criterion();
    targets = relays
}
criterion_main!(benches);
