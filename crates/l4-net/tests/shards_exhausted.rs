//! Running out of file descriptors while the sockets of an address are opened. In a process of its own, because the limit is
//! the process's.

#![allow(clippy::unwrap_used)]
#![allow(unsafe_code, reason = "setting the limit")]

mod support;

use std::net::SocketAddr;

use l4_net::{ConnectionLimit, ListenError, ListenerPool, Shards};
use tokio::net::UdpSocket;
use tokio::runtime::Handle;

use support::{free_port, load, refusal, soon};

fn limit_descriptors(soft: u64) -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live value of the type the calls expect.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        let before = std::mem::replace(&mut limit.rlim_cur, soft);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
        before
    }
}

/// How many descriptors are open.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The number that the next descriptor gets.
fn next_descriptor() -> u64 {
    let file = std::fs::File::open("/dev/null").unwrap();
    std::os::fd::AsRawFd::as_raw_fd(&file) as u64
}

/// One test, so that nobody else opens files meanwhile.
#[tokio::test]
async fn an_address_of_which_one_socket_cannot_be_had_is_refused_and_nothing_stays_behind() {
    // To the pool, this runtime four times is as good as four.
    let shards = Shards::new(std::iter::repeat_n(Handle::current(), 4));
    let pool = ListenerPool::spread_over(shards, ConnectionLimit::new(100));
    load(&pool, &[("one", &["udp/127.0.0.1:0"])]).await;
    let kept = pool.addresses()[0].actual.socket().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let wanted = format!("udp/{address}");
    let listen = ["udp/127.0.0.1:0", &*wanted];
    let before = descriptors();
    // Enough for two of the four, and then for all of them but not for what they need beside.
    for room in [2, 6] {
        let normal = limit_descriptors(next_descriptor() + room);
        let errors = refusal(&pool, &[("two", &listen)]).await;
        limit_descriptors(normal);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].pointer(), "/apps/layer4/servers/two/listen/1");
        let ListenError::System { source, .. } = errors[0].reason() else {
            panic!("{errors:?}");
        };
        assert_eq!(source.raw_os_error(), Some(libc::EMFILE));
        assert_eq!(descriptors(), before);
        std::net::UdpSocket::bind(address).expect("nobody has the port");
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"!", kept).await.unwrap();
        let mut answer = [0; 10];
        let n = soon(client.recv(&mut answer)).await.unwrap();
        assert_eq!(&answer[..n], b"one: !");
    }
    load(&pool, &[("two", &listen)]).await;
    assert_eq!(pool.addresses().len(), 2);
}
