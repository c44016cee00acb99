//! Associations when there is no room for them. A process of its own: the limit is that of the process.

#![allow(clippy::unwrap_used)]
#![cfg(feature = "server")]

use std::sync::Arc;
use std::time::Duration;

use l4_core::{Addr, Connection, Io, Record, Registry};
use l4_net::ConnectionLimit;
use l4_testkit::Router;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

fn modules(registry: &mut Registry) {
    l4_socks::register(registry);
}

/// The code that ASSOCIATE is answered with.
async fn associate(router: &Router) -> u8 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (socket, peer) = listener.accept().await.unwrap();
    let record = Arc::new(Record::new(Addr::Tcp(peer)));
    let (_, serving) = router.serve(Connection::new(Io::Tcp(socket), record, None));
    client
        .write_all(b"\x05\x01\x00\x05\x03\x00\x01\0\0\0\0\0\0")
        .await
        .unwrap();
    let mut answer = [0; 4];
    let read = timeout(Duration::from_secs(20), client.read_exact(&mut answer));
    read.await.unwrap().unwrap();
    drop(client);
    serving.await.unwrap();
    answer[3]
}

#[tokio::test]
async fn an_association_beyond_the_connection_limit_is_refused_as_a_failure_of_ours() {
    let router = Router::new(modules, r#"[{"handle":[{"handler":"socks5"}]}]"#);
    assert_eq!(associate(&router).await, 0);
    // Whatever is left, in pieces of halving size.
    let mut taken = Vec::new();
    for size in (0..=30).rev().map(|bit| 1 << bit) {
        while let Some(extra) = ConnectionLimit::process().extra(size) {
            taken.push(extra);
        }
    }
    assert_eq!(associate(&router).await, 1);
    taken.pop();
    assert_eq!(associate(&router).await, 0);
    assert!(ConnectionLimit::process().extra(1).is_some(), "given back");
}
