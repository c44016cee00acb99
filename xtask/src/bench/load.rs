//! The load and the backend: plain blocking sockets on threads, on loopback and nowhere else.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// A server that answers what it is sent with [`ANSWER`].
pub(super) struct Backend {
    pub(super) address: SocketAddr,
    /// Connections that are kept open until this value is dropped.
    kept: Arc<Mutex<Vec<TcpStream>>>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

/// What the backend answers with.
pub(super) const ANSWER: [u8; 64] = [b'a'; 64];

/// What a client of a protocol-blind scenario sends.
pub(super) const QUESTION: [u8; 64] = [b'q'; 64];

/// Nothing here may hang a run for ever.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

impl Backend {
    /// Serves connections one after the other, each to its end, on each of `threads` threads, until the process ends.
    pub(super) fn answering(threads: usize) -> Result<Self> {
        let listener = listen()?;
        let address = listener.local_addr()?;
        for _ in 0..threads {
            let listener = listener.try_clone()?;
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                for mut connection in listener.incoming().flatten() {
                    while connection.read(&mut buffer).is_ok_and(|n| n > 0)
                        && connection.write_all(&ANSWER).is_ok()
                    {}
                }
            });
        }
        Ok(Self {
            address,
            kept: Arc::default(),
        })
    }

    /// Answers the first bytes of connections and keeps those open.
    pub(super) fn keeping() -> Result<Self> {
        let listener = listen()?;
        let address = listener.local_addr()?;
        let kept = Arc::<Mutex<Vec<TcpStream>>>::default();
        let keeping = kept.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            for mut connection in listener.incoming().flatten() {
                if connection.read(&mut buffer).is_ok_and(|n| n > 0)
                    && connection.write_all(&ANSWER).is_ok()
                {
                    keeping
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(connection);
                }
            }
        });
        Ok(Self { address, kept })
    }
}

/// Listens on a port below those the kernel gives to clients, as servers do.
pub(super) fn listen() -> Result<TcpListener> {
    (20_000..30_000)
        .find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
        .context("no port between 20000 and 30000 is free")
}

/// Refuses an address that is not of this machine: this is a load generator.
pub(super) fn loopback(target: SocketAddr) -> Result<()> {
    ensure!(
        target.ip().is_loopback(),
        "{target} is not a loopback address"
    );
    Ok(())
}

/// Opens a connection.
pub(super) fn connect(target: SocketAddr) -> Result<TcpStream> {
    loopback(target)?;
    let connection =
        TcpStream::connect_timeout(&target, PATIENCE).context("connecting to the proxy")?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    Ok(connection)
}

/// Opens a connection, sends `question`, waits for the answer.
pub(super) fn ask(target: SocketAddr, question: &[u8]) -> Result<TcpStream> {
    let mut connection = connect(target)?;
    ask_again(&mut connection, question)?;
    Ok(connection)
}

/// Sends `question` and waits for the answer.
pub(super) fn ask_again(connection: &mut TcpStream, question: &[u8]) -> Result<()> {
    connection.write_all(question)?;
    let mut answer = [0; ANSWER.len()];
    connection
        .read_exact(&mut answer)
        .context("waiting for the answer")?;
    ensure!(answer == ANSWER, "the proxy changed the answer");
    Ok(())
}

/// Makes `count` connections on `threads` threads: ask, then close. Any failure ends the run.
pub(super) fn short_connections(
    target: SocketAddr,
    count: usize,
    threads: usize,
    question: &[u8],
) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let next = next.clone();
                scope.spawn(move || -> Result<()> {
                    while next.fetch_add(1, Ordering::Relaxed) < count {
                        drop(ask(target, question)?);
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
}

/// A TLS 1.2/1.3 ClientHello for `name`, as small as servers accept it.
pub(super) fn client_hello(name: &str) -> Vec<u8> {
    let server_name = [&[0][..], &length16(name.len()), name.as_bytes()].concat();
    let server_name = [&length16(server_name.len())[..], &server_name].concat();
    let extensions = [
        extension(0, &server_name),
        extension(43, &[2, 3, 4]),
        extension(10, &[0, 2, 0, 29]),
        extension(13, &[0, 2, 4, 3]),
    ]
    .concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &[0, 4, 0x13, 1, 0x13, 2],
        &[1, 0],
        &length16(extensions.len()),
        &extensions,
    ]
    .concat();
    let handshake = [&[1, 0][..], &length16(body.len()), &body].concat();
    [&[0x16, 3, 1][..], &length16(handshake.len()), &handshake].concat()
}

fn extension(kind: u8, data: &[u8]) -> Vec<u8> {
    [&[0, kind][..], &length16(data.len()), data].concat()
}

fn length16(n: usize) -> [u8; 2] {
    u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_outside_this_machine_is_refused() {
        for outside in ["192.0.2.1:80", "0.0.0.0:80", "[2001:db8::1]:443"] {
            assert!(connect(outside.parse().unwrap()).is_err(), "{outside}");
            assert!(loopback(outside.parse().unwrap()).is_err(), "{outside}");
        }
        loopback("127.0.0.1:80".parse().unwrap()).unwrap();
        loopback("[::1]:80".parse().unwrap()).unwrap();
    }
}
