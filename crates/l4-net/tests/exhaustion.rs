//! Running out of file descriptors. In a process of its own, because the limit is the process's.

#![allow(clippy::unwrap_used)]
#![allow(unsafe_code, reason = "setting the limit")]

mod support;

use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::AsyncReadExt as _;

use support::{listening, port, soon};

fn limit_descriptors(soft: u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live value of the type the calls expect.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = soft;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
}

/// Processor time that this process has used.
fn busy() -> Duration {
    // SAFETY: the pointer is to a live value of the type the call writes; all zeros are a valid one.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), 0);
        usage
    };
    let time =
        |t: libc::timeval| Duration::from_micros(t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// The number that the next descriptor gets.
fn next_descriptor() -> u64 {
    let file = std::fs::File::open("/dev/null").unwrap();
    std::os::fd::AsRawFd::as_raw_fd(&file) as u64
}

/// One test, so that nobody else opens files meanwhile.
/// Row D-12 of docs/defects.md.
#[tokio::test]
async fn without_descriptors_nothing_spins_and_all_are_served_once_there_are_some() {
    let (pool, _) = listening(&["127.0.0.1:0"]).await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port(&pool)));
    // Opened beforehand: connecting takes no descriptor then.
    let clients: Vec<Socket> = (0..20)
        .map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap())
        .collect();
    limit_descriptors(next_descriptor() + 5);
    for client in &clients {
        client.connect(&address.into()).unwrap();
    }
    let mut streams: Vec<tokio::net::TcpStream> = clients
        .into_iter()
        .map(|client| {
            client.set_nonblocking(true).unwrap();
            tokio::net::TcpStream::from_std(client.into()).unwrap()
        })
        .collect();
    let mut first = [0; 4];
    for served in &mut streams[..5] {
        soon(served.read_exact(&mut first)).await.unwrap();
        assert_eq!(&first, b"one ");
    }
    let before = busy();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let spent = busy() - before;
    assert!(
        spent < Duration::from_millis(100),
        "spins: {spent:?} in two seconds"
    );
    let waiting =
        tokio::time::timeout(Duration::from_millis(10), streams[5].read_exact(&mut first)).await;
    assert!(waiting.is_err(), "there was no descriptor for it");

    // One connection ends: another takes its place.
    streams.remove(0);
    soon(streams[4].read_exact(&mut first)).await.unwrap();
    assert_eq!(&first, b"one ");

    limit_descriptors(1000);
    for waiting in &mut streams[5..] {
        soon(waiting.read_exact(&mut first)).await.unwrap();
        assert_eq!(&first, b"one ");
    }
    // It is as quick as ever.
    let before = std::time::Instant::now();
    assert!(support::greeting(address).await.starts_with("one "));
    assert!(
        before.elapsed() < Duration::from_millis(500),
        "{:?}",
        before.elapsed()
    );
}
