//! UDP ASSOCIATE: datagrams between a client and any number of targets, RFC 1928 section 7.
//!
//! Two sockets for an association, however many targets it has: one that the client sends to, and one that the targets
//! see. A target answers only while it is remembered that the client has sent to it.

use std::cell::RefCell;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use l4_core::conn::Received;
use l4_core::{Connection, EndReason, Record};
use l4_net::dial::resolve;
use l4_net::{ConnectionLimit, Extra};
use socket2::{Domain, Socket, Type};
use socks5_proto::Address;
use tokio::net::UdpSocket;
use tokio::task::{JoinSet, consume_budget};
use tokio::time::{Instant, sleep_until, timeout};

use super::datagram::{Datagram, ROOM, Recent, write_header};

/// The relay between one client and its targets.
pub(super) struct Association {
    /// What the client sends to.
    inside: UdpSocket,
    outside: Outside,
    /// Where the client's datagrams come from.
    client: IpAddr,
    /// The port they come from, where the client has said it.
    port: Option<u16>,
    /// Which of the client's sockets each target was last sent to from.
    targets: Recent<SocketAddr, SocketAddr>,
    names: Recent<Name, Found>,
    lookups: JoinSet<(Name, Vec<SocketAddr>)>,
    lookup_limit: Option<Duration>,
    moved: Instant,
    /// Its connection counts as two descriptors; with both sockets there are three.
    _extra: Extra,
}

/// A target that has to be looked up, and its port.
type Name = (Vec<u8>, u16);

/// What a name stands for.
enum Found {
    /// It is being looked up; these wait for that.
    Waiting(Vec<Held>),
    Addresses(Vec<SocketAddr>),
}

/// A datagram that waits for the address of its target.
struct Held {
    client: SocketAddr,
    payload: Box<[u8]>,
}

/// How much waits for addresses, in all.
const HELD_BYTES: usize = 256 * 1024;
const HELD_DATAGRAMS: usize = 64;

/// How many names are looked up at a time: each takes a thread.
const LOOKUPS: usize = 8;

/// So many datagrams of one direction, then it is the other one's turn.
const BATCH: usize = 32;

/// The longest datagram.
const LONGEST: usize = 65_535;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; ROOM + LONGEST].into());
}

impl Association {
    /// Binds the sockets: `at` is where the client sends to. `expected` is what the client said about its own socket.
    pub(super) async fn bind(
        at: SocketAddr,
        client: IpAddr,
        expected: &Address,
        lookup_limit: Option<Duration>,
    ) -> io::Result<Self> {
        let extra = ConnectionLimit::process().extra(1).ok_or_else(|| {
            io::Error::other("the connection limit leaves no room for an association")
        })?;
        let this = Self {
            inside: UdpSocket::bind(at).await?,
            outside: Outside::bind()?,
            client,
            port: expected_port(expected, client),
            targets: Recent::new(),
            names: Recent::new(),
            lookups: JoinSet::new(),
            lookup_limit,
            moved: Instant::now(),
            _extra: extra,
        };
        // A socket is known to have room only once the runtime has been told so.
        this.inside.writable().await?;
        this.outside.socket.writable().await?;
        Ok(this)
    }

    /// Where the client sends to.
    pub(super) fn local(&self) -> io::Result<SocketAddr> {
        self.inside.local_addr()
    }

    /// Relays until the client ends its connection, or nothing moves for `idle`.
    pub(super) async fn run(
        &mut self,
        conn: &mut Connection,
        idle: Option<Duration>,
    ) -> io::Result<EndReason> {
        let record = conn.record().clone();
        let mut ignored = [0; 512];
        loop {
            let silence = async {
                match idle {
                    Some(idle) => sleep_until(self.moved + idle).await,
                    None => pending().await,
                }
            };
            // All of them only wait, but for `receive`, which is cancel safe, and `join_next`, which is, too.
            tokio::select! {
                received = conn.receive(&mut ignored) => {
                    if received? == Received::End {
                        return Ok(EndReason::Completed);
                    }
                }
                ready = readable(&self.inside, &self.outside.socket) => {
                    ready?;
                    self.relay_up(&record);
                }
                ready = readable(&self.outside.socket, &self.inside) => {
                    ready?;
                    self.relay_down(&record);
                }
                Some(found) = self.lookups.join_next() => {
                    if let Ok((name, addresses)) = found {
                        self.found(name, addresses);
                    }
                }
                () = silence => return Ok(EndReason::IdleTimeout),
            }
            consume_budget().await;
        }
    }

    fn relay_up(&mut self, record: &Record) {
        SCRATCH.with_borrow_mut(|scratch| {
            for _ in 0..BATCH {
                let (n, source) = match self.inside.try_recv_from(scratch) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    // Of one datagram, and taken by having been told.
                    Err(_) => continue,
                };
                let expected = source.ip().to_canonical() == self.client
                    && self.port.is_none_or(|port| port == source.port());
                let datagram = scratch.get(..n).and_then(Datagram::parse);
                let Some(datagram) = datagram.filter(|_| expected) else {
                    continue;
                };
                record.add_read(n);
                self.moved = Instant::now();
                match datagram.to {
                    Address::SocketAddress(to) => {
                        self.send(to, source, datagram.payload);
                    }
                    Address::DomainAddress(name, port) => {
                        self.send_by_name((name, port), source, datagram.payload);
                    }
                }
            }
        });
    }

    fn relay_down(&mut self, record: &Record) {
        SCRATCH.with_borrow_mut(|scratch| {
            for _ in 0..BATCH {
                let Some((room, payload)) = scratch.split_first_chunk_mut::<ROOM>() else {
                    return;
                };
                let (n, source) = match self.outside.socket.try_recv_from(payload) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    Err(_) => continue,
                };
                let (source, now) = (canonical(source), Instant::now());
                let Some(client) = self.targets.get(&source, now.into_std()).copied() else {
                    continue;
                };
                self.moved = now;
                let start = write_header(source, room);
                let answer = scratch.get(start..ROOM + n).unwrap_or_default();
                if self.inside.try_send_to(answer, client).is_ok() {
                    record.add_written(answer.len());
                }
            }
        });
    }

    /// Whether it could be sent; if not, this datagram is lost and nothing else.
    fn send(&mut self, to: SocketAddr, client: SocketAddr, payload: &[u8]) -> bool {
        let to = canonical(to);
        let sent = self.outside.send(payload, to).is_ok();
        if sent {
            self.targets.set(to, client, Instant::now().into_std());
        }
        sent
    }

    fn send_by_name(&mut self, name: Name, client: SocketAddr, payload: &[u8]) {
        let now = Instant::now().into_std();
        let held = || Held {
            client,
            payload: payload.into(),
        };
        let room = self.has_room_for(payload);
        match self.names.get(&name, now) {
            Some(Found::Addresses(addresses)) => {
                let addresses = addresses.clone();
                self.send_to_any(&addresses, client, payload);
            }
            Some(Found::Waiting(waiting)) if room => waiting.push(held()),
            None if room && self.lookups.len() < LOOKUPS => {
                self.look_up(name.clone());
                self.names.set(name, Found::Waiting(vec![held()]), now);
            }
            _ => {}
        }
    }

    /// Whether one more datagram may wait for an address.
    fn has_room_for(&self, payload: &[u8]) -> bool {
        let waiting = self.names.values().flat_map(|found| match found {
            Found::Waiting(waiting) => waiting.as_slice(),
            Found::Addresses(_) => &[],
        });
        let (mut count, mut bytes) = (0, payload.len());
        for held in waiting {
            count += 1;
            bytes += held.payload.len();
        }
        count < HELD_DATAGRAMS && bytes <= HELD_BYTES
    }

    fn look_up(&mut self, name: Name) {
        let limit = self.lookup_limit;
        self.lookups.spawn(async move {
            let found = async {
                match std::str::from_utf8(&name.0) {
                    Ok(host) if !host.is_empty() => resolve(host, name.1).await.unwrap_or_default(),
                    _ => Vec::new(),
                }
            };
            let addresses = match limit {
                Some(limit) => timeout(limit, found).await.unwrap_or_default(),
                None => found.await,
            };
            (name, addresses)
        });
    }

    fn found(&mut self, name: Name, addresses: Vec<SocketAddr>) {
        let waiting = match self.names.remove(&name) {
            Some(Found::Waiting(waiting)) => waiting,
            Some(Found::Addresses(_)) | None => Vec::new(),
        };
        for held in waiting {
            self.send_to_any(&addresses, held.client, &held.payload);
        }
        // A name that is not known now may be known with the next datagram.
        if !addresses.is_empty() {
            let now = Instant::now().into_std();
            self.names.set(name, Found::Addresses(addresses), now);
        }
    }

    /// To the first address there is a way to.
    fn send_to_any(&mut self, addresses: &[SocketAddr], client: SocketAddr, payload: &[u8]) {
        for to in addresses {
            if self.send(*to, client, payload) {
                return;
            }
        }
    }
}

/// The socket that the targets see: of both IP versions where there are both.
struct Outside {
    socket: UdpSocket,
    dual: bool,
}

impl Outside {
    fn bind() -> io::Result<Self> {
        let bind = |domain, at: SocketAddr| {
            let socket = Socket::new(domain, Type::DGRAM.nonblocking(), None)?;
            if domain == Domain::IPV6 {
                socket.set_only_v6(false)?;
            }
            socket.bind(&at.into())?;
            UdpSocket::from_std(socket.into())
        };
        let dual = bind(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, 0).into());
        let (dual, socket) = match dual {
            Ok(socket) => (true, socket),
            // A kernel without IPv6.
            Err(_) => (
                false,
                bind(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, 0).into())?,
            ),
        };
        Ok(Self { socket, dual })
    }

    fn send(&self, payload: &[u8], to: SocketAddr) -> io::Result<usize> {
        let to = match to {
            SocketAddr::V4(to) if self.dual => (to.ip().to_ipv6_mapped(), to.port()).into(),
            to => to,
        };
        self.socket.try_send_to(payload, to)
    }
}

/// Waits until something can be read from `from`, and what is read can go on to `to`: a full socket holds back its own
/// direction.
async fn readable(from: &UdpSocket, to: &UdpSocket) -> io::Result<()> {
    to.writable().await?;
    from.readable().await
}

/// An IPv4 address as such.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The port that the client will send from, if it has said one that means anything. A client behind address translation
/// names an address that is not the one we see, and then the port is not, either.
fn expected_port(expected: &Address, client: IpAddr) -> Option<u16> {
    let Address::SocketAddress(expected) = expected else {
        return None;
    };
    let ip = expected.ip().to_canonical();
    let plausible = ip.is_unspecified() || ip == client;
    (plausible && expected.port() != 0).then_some(expected.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_counts_unless_the_address_shows_that_it_was_translated() {
        let client: IpAddr = "192.0.2.7".parse().unwrap();
        let expected =
            |text: &str| expected_port(&Address::SocketAddress(text.parse().unwrap()), client);
        assert_eq!(expected("0.0.0.0:0"), None);
        assert_eq!(expected("0.0.0.0:5000"), Some(5000));
        assert_eq!(expected("[::]:5000"), Some(5000));
        assert_eq!(expected("192.0.2.7:5000"), Some(5000));
        assert_eq!(expected("[::ffff:192.0.2.7]:5000"), Some(5000));
        assert_eq!(expected("192.0.2.7:0"), None);
        assert_eq!(expected("10.0.0.7:5000"), None);
        let name = Address::DomainAddress(b"client.example".to_vec(), 5000);
        assert_eq!(expected_port(&name, client), None);
    }
}
