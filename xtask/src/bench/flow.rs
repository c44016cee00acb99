//! Long-lived flows: bulk, and messages to and fro. Threads that block, on loopback and nowhere else.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::load::{PATIENCE, connect, listen, loopback};
use super::proxy::pause;

/// Which way the bytes of a bulk scenario go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From client to server.
    Up,
    /// From server to client.
    Down,
}

/// What is read and written at once: large, so that the load is not what limits.
const CHUNK: usize = 256 * 1024;

/// A server for bulk. The client's first 9 bytes say which way and how much.
pub(super) fn bulk_server() -> Result<SocketAddr> {
    let listener = listen()?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            thread::spawn(move || serve_bulk(connection));
        }
    });
    Ok(address)
}

fn serve_bulk(mut connection: TcpStream) -> std::io::Result<()> {
    let mut order = [0; 9];
    connection.read_exact(&mut order)?;
    let [way, len @ ..] = order;
    let len = u64::from_be_bytes(len);
    if way == 0 {
        drain(&mut connection, len)?;
        // The client waits for this: what is measured is what arrived.
        connection.write_all(&[1])
    } else {
        pour(&mut connection, len)
    }
}

fn pour(to: &mut TcpStream, mut len: u64) -> std::io::Result<()> {
    let chunk = vec![b'x'; CHUNK];
    while len > 0 {
        let n = chunk.len().min(usize::try_from(len).unwrap_or(CHUNK));
        to.write_all(&chunk[..n])?;
        len -= n as u64;
    }
    Ok(())
}

fn drain(from: &mut TcpStream, mut len: u64) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while len > 0 {
        let most = chunk.len().min(usize::try_from(len).unwrap_or(CHUNK));
        match from.read(&mut chunk[..most])? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => len -= n as u64,
        }
    }
    Ok(())
}

/// Moves `len` bytes on each of `streams` connections at once.
pub(super) fn bulk(target: SocketAddr, way: Way, streams: usize, len: u64) -> Result<()> {
    thread::scope(|scope| {
        let workers: Vec<_> = (0..streams)
            .map(|_| {
                scope.spawn(move || -> Result<()> {
                    let mut connection = connect(target)?;
                    let mut order = [0; 9];
                    order[0] = u8::from(way == Way::Down);
                    order[1..].copy_from_slice(&len.to_be_bytes());
                    connection.write_all(&order)?;
                    match way {
                        Way::Up => {
                            pour(&mut connection, len)?;
                            connection.read_exact(&mut [0])?;
                        }
                        Way::Down => drain(&mut connection, len)?,
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| anyhow::bail!("a load thread panicked"))
        })
    })
    .context("bulk")
}

/// The size of a message.
pub(super) const MESSAGE: usize = 100;

/// A server that sends back what it gets, a thread for each connection.
pub(super) fn echo_server() -> Result<SocketAddr> {
    let listener = listen()?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let _ = connection.set_nodelay(true);
            let echo = move || {
                let mut buffer = [0; 4096];
                while let Ok(n) = connection.read(&mut buffer)
                    && n > 0
                    && connection.write_all(&buffer[..n]).is_ok()
                {}
            };
            // Hundreds of them: small stacks will do.
            let _ = thread::Builder::new().stack_size(64 * 1024).spawn(echo);
        }
    });
    Ok(address)
}

/// Connections that send messages and get them back.
pub(super) struct PingPong(Vec<TcpStream>);

impl PingPong {
    pub(super) fn open(target: SocketAddr, connections: usize) -> Result<Self> {
        let mut open = Vec::with_capacity(connections);
        for _ in 0..connections {
            open.push(connect(target)?);
        }
        Ok(Self(open))
    }

    /// Sends a message on every connection, then waits for all of them to come back, `turns` times.
    pub(super) fn play(&mut self, turns: usize) -> Result<()> {
        let mut back = [0; MESSAGE];
        for turn in 0..turns {
            let message = [turn.to_le_bytes()[0]; MESSAGE];
            for connection in &mut self.0 {
                connection.write_all(&message)?;
            }
            for connection in &mut self.0 {
                connection.read_exact(&mut back)?;
                ensure!(back == message, "the proxy changed a message");
            }
        }
        Ok(())
    }
}

/// A UDP server. What it got is counted; sent back if it shall echo.
pub(super) struct Datagrams {
    pub(super) address: SocketAddr,
    received: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Datagrams {
    pub(super) fn server(echo: bool) -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let server = Self {
            address: socket.local_addr()?,
            received: Arc::default(),
            over: Arc::default(),
        };
        let (received, over) = (server.received.clone(), server.over.clone());
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !over.load(Ordering::Relaxed) {
                if let Ok((n, from)) = socket.recv_from(&mut buffer) {
                    received.fetch_add(1, Ordering::Relaxed);
                    if echo {
                        let _ = socket.send_to(&buffer[..n], from);
                    }
                }
            }
        });
        Ok(server)
    }

    /// What has come to its socket: what it got, and what the kernel dropped because it did not take it in time.
    pub(super) fn arrived(&self) -> Result<u64> {
        let sockets = std::fs::read_to_string("/proc/net/udp").context("the sockets of UDP")?;
        let local = format!(":{:04X}", self.address.port());
        let dropped = sockets.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            words.nth(1).filter(|address| address.ends_with(&local))?;
            words.last()?.parse::<u64>().ok()
        });
        Ok(self.received.load(Ordering::Relaxed) + dropped.sum::<u64>())
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn client(target: SocketAddr) -> Result<UdpSocket> {
    loopback(target)?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok(socket)
}

/// Sends a datagram on each of `clients` sockets and waits for all to come back, `turns` times. How many did.
pub(super) fn datagrams_to_and_fro(
    target: SocketAddr,
    clients: usize,
    turns: usize,
) -> Result<u64> {
    let clients = (0..clients)
        .map(|_| client(target))
        .collect::<Result<Vec<_>>>()?;
    let (message, mut back, mut returned) = ([b'd'; MESSAGE], [0; 2 * MESSAGE], 0);
    for _ in 0..turns {
        for client in &clients {
            client.send(&message)?;
        }
        for client in &clients {
            if client.recv(&mut back).is_ok_and(|n| n == MESSAGE) {
                returned += 1;
            }
        }
    }
    Ok(returned)
}

/// Sends `count` datagrams one way, as fast as it can. How many.
pub(super) fn datagrams_unpaced(target: SocketAddr, count: u64) -> Result<u64> {
    let (socket, message) = (client(target)?, [b'd'; MESSAGE]);
    for _ in 0..count {
        socket.send(&message)?;
    }
    Ok(count)
}

/// Sends datagrams at `rate` a second for `time`, one way. How many.
pub(super) fn datagrams_one_way(target: SocketAddr, rate: u32, time: Duration) -> Result<u64> {
    let socket = client(target)?;
    let (message, started, mut sent) = ([b'd'; MESSAGE], Instant::now(), 0);
    while started.elapsed() < time {
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        while sent < due {
            socket.send(&message)?;
            sent += 1;
        }
        pause(Duration::from_millis(1));
    }
    ensure!(
        started.elapsed() < PATIENCE,
        "the load cannot keep its pace"
    );
    Ok(sent)
}
