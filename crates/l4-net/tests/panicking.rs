//! A bug in a handler: what it may cost.

#![allow(clippy::unwrap_used)]

mod support;

use support::{BUG, line, listening, soon};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UdpSocket};

/// Row G1 of docs/defects.md.
#[tokio::test]
async fn a_panic_costs_one_connection_or_session_and_no_listener() {
    let (_pool, addresses) = listening(&["127.0.0.1:0", "udp/127.0.0.1:0"]).await;
    let (tcp, udp) = (
        addresses[0].socket().unwrap(),
        addresses[1].socket().unwrap(),
    );
    let datagrams = async || {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(udp).await.unwrap();
        socket
    };
    let exchange = async |socket: &UdpSocket, text: &str| {
        socket.send(text.as_bytes()).await.unwrap();
        let mut answer = [0; 32];
        let n = soon(socket.recv(&mut answer)).await.unwrap();
        assert_eq!(&answer[..n], format!("one: {text}").as_bytes());
    };
    let mut other = BufReader::new(TcpStream::connect(tcp).await.unwrap());
    line(&mut other).await;
    let (neighbour, hit) = (datagrams().await, datagrams().await);
    exchange(&neighbour, "before").await;
    for _ in 0..3 {
        let mut stream = BufReader::new(TcpStream::connect(tcp).await.unwrap());
        line(&mut stream).await;
        stream.write_all(BUG).await.unwrap();
        assert_eq!(soon(stream.read(&mut [0])).await.unwrap(), 0);
        exchange(&hit, "before").await;
        hit.send(BUG).await.unwrap();
        // Its session is gone once this one, which came later, is answered: the next datagram begins another.
        exchange(&neighbour, "meanwhile").await;
    }
    other.write_all(b"after").await.unwrap();
    let mut back = [0; 5];
    soon(other.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"after");
}
