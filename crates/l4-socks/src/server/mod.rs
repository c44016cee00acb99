//! The handler `socks5`.
//!
//! `dialogue.rs` knows what is said, `credentials.rs` who may, `associate.rs` relays datagrams; here a request becomes
//! a connection.

mod associate;
mod credentials;
mod datagram;
mod dialogue;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use l4_core::config::{Address as DialAddress, Family, Network, PortRange};
use l4_core::conn::{MATCH_LIMIT, Received};
use l4_core::prelude::*;
use l4_core::{EndReason, Error, Io, Phase, Side, Transport};
use l4_net::dial::{DialError, DialOptions, Target, connect, resolve};
use l4_net::relay::{Limits, relay};
use schemars::JsonSchema;
use serde::Deserialize;
use socks5_proto::{Address, Command, Reply, Request};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tracing::{debug, info};

pub use credentials::Credentials;
pub use datagram::Datagram;
pub use dialogue::{Dialogue, Refusal, Rules, Turn, name, reply, text};

use associate::Association;

/// A SOCKS version 5 server: connects clients to what they ask for.
///
/// ```json
/// {"handler": "socks5", "credentials": {"bob": "qHoEtVpGRM"}}
/// ```
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Socks5HandlerConfig {
    /// What clients may ask for, of `"CONNECT"` (a connection to a target), `"ASSOCIATE"` (datagrams to any number of
    /// targets) and `"BIND"` (a connection from a target), in upper or lower case. Global placeholders are filled in at
    /// load. Default: `["CONNECT", "ASSOCIATE"]`.
    #[serde(default)]
    commands: Vec<At<String>>,
    /// The address that ASSOCIATE and BIND listen on and tell the client, where it is of the IP version that is needed.
    /// Global placeholders are filled in at load. Default: the address that the client has connected to. Example:
    /// `"192.0.2.1"`.
    #[serde(default)]
    bind_ip: Option<At<String>>,
    /// Users with their passwords, in the clear; both at most 255 bytes. Global placeholders are filled in at load, and
    /// entries whose user is empty then are dropped; if none is left, nobody may. Default: everybody may, without a password. Example:
    /// `{"bob": "{env.BOBS_PASSWORD}"}`.
    #[serde(default)]
    credentials: BTreeMap<String, Option<At<String>>>,
    /// How long a client may take to say what it wants. 0 is no limit. Default: `"10s"`.
    #[serde(default)]
    timeout: Option<At<GoDuration>>,
    /// How long connecting to a target may take, the look-up of its name included. 0 leaves it to the system. Default:
    /// `"10s"`.
    #[serde(default)]
    dial_timeout: Option<At<GoDuration>>,
    /// How long `BIND` waits for the target to connect. 0 is until the client leaves. Default: `"60s"`.
    #[serde(default)]
    bind_timeout: Option<At<GoDuration>>,
    /// Ends a connection or association on which nothing has moved in either direction for so long. Default: no limit.
    /// Example: `"1h"`.
    #[serde(default)]
    idle_timeout: Option<At<GoDuration>>,
    /// How long a client may stay after the target has ended its stream, without sending or ending. 0 is no limit.
    /// Default: `"60s"`.
    #[serde(default)]
    half_close_timeout: Option<At<GoDuration>>,
}

/// The handler `socks5`.
pub struct Socks5 {
    rules: Rules,
    bind_ip: Option<IpAddr>,
    timeout: Option<Duration>,
    dial_timeout: Option<Duration>,
    bind_timeout: Option<Duration>,
    limits: Limits,
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_BIND_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long and how much is read after a refusal before the connection is closed for good: closing a TCP socket with
/// unread input resets it, and a reset can destroy the reply before the client has read it.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 64 * 1024;

impl HandlerModule for Socks5 {
    const NAME: &'static str = "socks5";
    const STREAMS_ONLY: bool = true;
    type Config = Socks5HandlerConfig;

    fn provision(config: Socks5HandlerConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        // All are tried, so that the errors of all are reported.
        let commands = cx.all(&config.commands, |cx, text| command(text, cx));
        let bind_ip = config.bind_ip.map(|text| bind_ip(&text, cx)).transpose();
        let credentials = credentials(&config.credentials, cx);
        let timeout = cx.time_limit(config.timeout, DEFAULT_TIMEOUT);
        let dial_timeout = cx.time_limit(config.dial_timeout, DEFAULT_DIAL_TIMEOUT);
        let bind_timeout = cx.time_limit(config.bind_timeout, DEFAULT_BIND_TIMEOUT);
        let idle = cx.time_limit(config.idle_timeout, Duration::ZERO);
        let half_closed = cx.time_limit(config.half_close_timeout, DEFAULT_HALF_CLOSE_TIMEOUT);
        let mut commands = commands?;
        if commands.is_empty() {
            commands = vec![Command::Connect, Command::Associate];
        }
        let credentials = credentials?;
        Ok(Self {
            rules: Rules {
                credentials,
                commands,
            },
            bind_ip: bind_ip?.flatten(),
            timeout: timeout?,
            dial_timeout: dial_timeout?,
            bind_timeout: bind_timeout?,
            limits: Limits {
                idle: idle?,
                half_closed: half_closed?,
            },
        })
    }
}

fn command(text: &At<String>, cx: &mut Provision<'_>) -> Result<Command, Rejected> {
    let expanded = cx.expand_load(text)?;
    let known = [Command::Connect, Command::Associate, Command::Bind];
    let found = known
        .into_iter()
        .find(|command| name(*command).eq_ignore_ascii_case(&expanded));
    found.ok_or_else(|| {
        cx.reject_help(
            text.node(),
            format!(
                r#"unknown command "{expanded}" has to be one of ["CONNECT", "ASSOCIATE", "BIND"]"#
            ),
            "leave commands out to allow CONNECT and ASSOCIATE",
        )
    })
}

fn bind_ip(text: &At<String>, cx: &mut Provision<'_>) -> Result<Option<IpAddr>, Rejected> {
    let expanded = cx.expand_load(text)?;
    if expanded.is_empty() {
        return Ok(None);
    }
    let ip = expanded.parse::<IpAddr>().map_err(|_| {
        cx.reject_help(
            text.node(),
            format!("invalid bind_ip {expanded:?}"),
            "write an IP address, such as \"192.0.2.1\" or \"2001:db8::1\"",
        )
    })?;
    // Every address is none that a client could be told.
    Ok(Some(ip.to_canonical()).filter(|ip| !ip.is_unspecified()))
}

fn credentials(
    config: &BTreeMap<String, Option<At<String>>>,
    cx: &mut Provision<'_>,
) -> Result<Option<Credentials>, Rejected> {
    let pairs = cx.all(config, |cx, (user, password)| {
        let node = password.as_ref().map_or(cx.node(), At::node);
        let user = cx.expand_load(&At::new(node, user.clone()));
        let password = match password {
            Some(password) => cx.expand_load(password),
            None => Ok(String::new()),
        };
        let (user, password) = (user?, password?);
        for (what, text) in [("user", &user), ("password", &password)] {
            if text.len() > credentials::MAX {
                cx.warn(
                    node,
                    format!(
                        "never admitted: this {what} has {} bytes, and no client can send more than {}",
                        text.len(),
                        credentials::MAX
                    ),
                );
            }
        }
        Ok((user, password))
    })?;
    let listed = pairs.iter().filter(|(user, _)| !user.is_empty());
    let listed: Vec<_> = listed
        .map(|(user, password)| (&**user, &**password))
        .collect();
    if listed.is_empty() && !config.is_empty() {
        cx.warn(
            cx.node(),
            "nobody can log in: every user in credentials is empty",
        );
    }
    // Whoever has listed somebody does not mean everybody, even if nobody is left.
    Ok((!config.is_empty()).then(|| Credentials::new(listed)))
}

impl AsyncHandler for Socks5 {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        if conn.is_datagram() {
            return Err(Error::new(
                Side::Internal,
                Phase::Handshake,
                EndReason::HandlerError,
                "SOCKS needs a stream: ASSOCIATE relays datagrams, but is asked for over TCP",
            ));
        }
        // Boxed, so that nothing of it is left while the connection is being relayed for hours.
        let Some(target) = Box::pin(self.serve(&mut conn)).await? else {
            return Ok(Flow::Done);
        };
        let record = conn.record().clone();
        let relayed = relay(conn.into_transport(), [target], self.limits).await;
        record.end(relayed.reason);
        if let Some(error) = relayed.error {
            debug!(
                target: LOG,
                conn = record.id(), remote = %record.remote(), reason = %relayed.reason, %error, "connection to the target"
            );
        }
        Ok(Flow::Done)
    }

    fn terminal(&self) -> bool {
        true
    }
}

impl Socks5 {
    /// Does what the client asks for: the connection to relay to, or nothing if that is all.
    async fn serve(&self, conn: &mut Connection) -> Result<Option<Transport>> {
        let negotiated = match self.timeout {
            Some(limit) => timeout(limit, self.negotiate(conn)).await.map_err(|_| {
                Error::new(
                    Side::Client,
                    Phase::Handshake,
                    EndReason::HandshakeTimeout,
                    "the SOCKS negotiation took too long",
                )
            })?,
            None => self.negotiate(conn).await,
        };
        let request = match negotiated? {
            Ok(request) => request,
            Err((answer, why)) => {
                say_goodbye(conn, &answer).await;
                return Err(refused(conn, why));
            }
        };
        debug!(
            target: LOG,
            conn = conn.record().id(), remote = %conn.remote(), command = name(request.command),
            destination = text(&request.address), "SOCKS request"
        );
        match request.command {
            Command::Connect => self.connect(conn, &request.address).await.map(Some),
            Command::Bind => self.bind(conn, &request.address).await,
            Command::Associate => self.associate(conn, &request.address).await.map(|()| None),
        }
    }

    /// What the client wants, or why it does not get it and how it is told.
    async fn negotiate(
        &self,
        conn: &mut Connection,
    ) -> Result<Result<Request, (Vec<u8>, Refusal)>> {
        let mut dialogue = Dialogue::new(&self.rules);
        loop {
            match dialogue.turn(conn.unread()) {
                Some(Turn::Answer { taken, answer }) => {
                    conn.consume(taken);
                    conn.send(&answer).await?;
                }
                Some(Turn::Request { taken, request }) => {
                    conn.consume(taken);
                    return Ok(Ok(request));
                }
                Some(Turn::Refuse { answer, why }) => return Ok(Err((answer, why))),
                None => {
                    if conn.fill().await? == Received::End {
                        return Err(Error::client(
                            Phase::Handshake,
                            "the client left in the middle of the SOCKS negotiation",
                        ));
                    }
                }
            }
        }
    }

    async fn connect(&self, conn: &mut Connection, to: &Address) -> Result<Transport> {
        let dialled = match dial_target(to) {
            Ok(target) => connect(&target, &DialOptions::within(self.dial_timeout))
                .await
                .map_err(|error| (reply_to(&error), error.into())),
            Err(unreachable) => Err(unreachable),
        };
        let io = match dialled {
            Ok(dialled) => dialled.io,
            Err((code, error)) => return Err(failed(conn, code, error).await),
        };
        let local = match &io {
            Io::Tcp(socket) => socket.local_addr()?,
            _ => UNSPECIFIED,
        };
        conn.record().set_upstream(text(to).into());
        conn.send(&success(local)).await?;
        Ok(Transport::new(io, None))
    }

    /// Waits for a connection from the target, RFC 1928 section 4. The client gets two replies: where the target is to
    /// connect to, and where it has connected from.
    async fn bind(&self, conn: &mut Connection, from: &Address) -> Result<Option<Transport>> {
        let expected = match timeout_of(self.dial_timeout, addresses(from)).await {
            Ok(expected) => expected,
            Err(error) => {
                let error = format!("failed to resolve destination: {error}");
                return Err(failed(conn, Reply::HostUnreachable, error.into()).await);
            }
        };
        let listener = match self.bind_address(conn, |ip| {
            expected.is_empty() || expected.iter().any(|other| other.is_ipv4() == ip.is_ipv4())
        }) {
            Some(at) => TcpListener::bind(at).await,
            None => Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                "no address of ours is of the IP version of the target",
            )),
        };
        let listening = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (local, listener) = match listening {
            Ok(listening) => listening,
            Err(error) => return Err(failed(conn, Reply::GeneralFailure, error.into()).await),
        };
        conn.send(&success(local)).await?;
        let accepted = async {
            tokio::select! {
                accepted = accept(&listener, &expected) => Some(accepted),
                () = gone(conn) => None,
            }
        };
        let (socket, peer) = match timeout_of(self.bind_timeout, async { Ok(accepted.await) }).await
        {
            Ok(Some(Ok(accepted))) => accepted,
            Ok(None) => {
                conn.end(EndReason::Completed);
                return Ok(None);
            }
            Ok(Some(Err(error))) => {
                return Err(failed(conn, Reply::GeneralFailure, error.into()).await);
            }
            Err(_) => {
                let error = "the target has not connected in time".into();
                return Err(failed(conn, Reply::HostUnreachable, error).await);
            }
        };
        drop(listener);
        // Small messages in turn, as with connections we make ourselves.
        let _ = socket.set_nodelay(true);
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        conn.record().set_upstream(peer.to_string().into());
        conn.send(&success(peer)).await?;
        Ok(Some(Transport::new(Io::Tcp(socket), None)))
    }

    /// Relays datagrams until the client ends its connection.
    async fn associate(&self, conn: &mut Connection, expected: &Address) -> Result<()> {
        let client = conn.remote().ip();
        let at = client
            .and_then(|client| self.bind_address(conn, |ip| ip.is_ipv4() == client.is_ipv4()));
        let bound = match (client, at) {
            (Some(client), Some(at)) => {
                Association::bind(at, client, expected, self.dial_timeout).await
            }
            _ => Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                "the client has no address that datagrams could come from",
            )),
        };
        let bound = bound.and_then(|association| Ok((association.local()?, association)));
        let (local, mut association) = match bound {
            Ok(bound) => bound,
            Err(error) => return Err(failed(conn, Reply::GeneralFailure, error.into()).await),
        };
        conn.send(&success(local)).await?;
        let reason = association.run(conn, self.limits.idle).await?;
        conn.end(reason);
        Ok(())
    }

    /// Where to bind a socket that somebody else is to reach: `bind_ip`, or the address that the client has reached us
    /// at, whichever is `suitable`. What a PROXY header says about our address is true of another machine.
    fn bind_address(
        &self,
        conn: &Connection,
        suitable: impl Fn(IpAddr) -> bool,
    ) -> Option<SocketAddr> {
        let own = match conn.own_local().socket() {
            // With the zone of a link-local address, which it means nothing without.
            Some(SocketAddr::V6(own)) if own.ip().to_canonical().is_ipv6() => {
                let mut own = SocketAddr::V6(own);
                own.set_port(0);
                Some(own)
            }
            own => own.map(|own| SocketAddr::new(own.ip().to_canonical(), 0)),
        };
        let chosen = self.bind_ip.map(|ip| SocketAddr::new(ip, 0));
        [chosen, own]
            .into_iter()
            .flatten()
            .find(|address| suitable(address.ip()))
    }
}

const LOG: &str = "layer4.handlers.socks5";

const UNSPECIFIED: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

type Cause = Box<dyn std::error::Error + Send + Sync>;

fn success(address: SocketAddr) -> Vec<u8> {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    reply(Reply::Succeeded, Address::SocketAddress(address))
}

/// What to dial for an address of a request, or why there is nothing.
fn dial_target(address: &Address) -> Result<Target, (Reply, Cause)> {
    let (host, port) = match address {
        Address::SocketAddress(address) => (address.ip().to_string(), address.port()),
        Address::DomainAddress(name, port) => match host(name) {
            Ok(host) => (host.to_owned(), *port),
            Err(error) => return Err((Reply::HostUnreachable, error.into())),
        },
    };
    let ports = PortRange {
        first: port,
        last: port,
    };
    let address = DialAddress::new(Network::Tcp(Family::Any), host, Some(ports));
    // All that can be wrong is port 0, on which nothing listens.
    Target::new(&address).map_err(|error| (Reply::ConnectionRefused, error.into()))
}

/// A name that can be looked up. An empty one would stand for this machine.
fn host(name: &[u8]) -> io::Result<&str> {
    match std::str::from_utf8(name) {
        Ok(name) if !name.is_empty() => Ok(name),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("\"{}\" is no host name", name.escape_ascii()),
        )),
    }
}

/// The addresses that a connection may come from; none stands for all.
async fn addresses(from: &Address) -> io::Result<Vec<IpAddr>> {
    match from {
        Address::SocketAddress(from) if from.ip().is_unspecified() => Ok(Vec::new()),
        Address::SocketAddress(from) => Ok(vec![from.ip().to_canonical()]),
        Address::DomainAddress(name, port) => {
            let found = resolve(host(name)?, *port).await?;
            match found.is_empty() {
                true => Err(io::ErrorKind::NotFound.into()),
                false => Ok(found
                    .into_iter()
                    .map(|found| found.ip().to_canonical())
                    .collect()),
            }
        }
    }
}

/// The first connection from one of the addresses; others are closed.
async fn accept(listener: &TcpListener, from: &[IpAddr]) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        let (socket, peer) = listener.accept().await?;
        if from.is_empty() || from.contains(&peer.ip().to_canonical()) {
            return Ok((socket, peer));
        }
    }
}

/// Waits until the client has left. What it sends meanwhile is kept, up to what may be kept.
async fn gone(conn: &mut Connection) {
    while conn.unread().len() < MATCH_LIMIT {
        if !matches!(conn.fill().await, Ok(Received::Data(_))) {
            return;
        }
    }
    std::future::pending().await
}

async fn timeout_of<T>(
    limit: Option<Duration>,
    future: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    match limit {
        Some(limit) => timeout(limit, future).await?,
        None => future.await,
    }
}

/// The code for a connection that was not made. Time-outs are hosts that cannot be reached.
fn reply_to(error: &DialError) -> Reply {
    match error.reason().map(io::Error::kind) {
        Some(io::ErrorKind::NetworkUnreachable) => Reply::NetworkUnreachable,
        Some(io::ErrorKind::ConnectionRefused) => Reply::ConnectionRefused,
        _ => Reply::HostUnreachable,
    }
}

/// Tells the client that it did not work. What a client asks for is not our operator's fault, so it is one of its side.
async fn failed(conn: &mut Connection, code: Reply, error: Cause) -> Error {
    say_goodbye(conn, &reply(code, Address::unspecified())).await;
    Error::new(Side::Client, Phase::Dial, EndReason::DialFailed, error)
}

/// Notes a refusal: who fails to log in or asks for more than is allowed is of interest, noise is not.
fn refused(conn: &Connection, why: Refusal) -> Error {
    let (id, remote) = (conn.record().id(), conn.remote());
    let reason = match why {
        Refusal::NotAllowed { .. } => {
            info!(target: LOG, conn = id, %remote, error = %why, "SOCKS request refused");
            EndReason::Closed
        }
        Refusal::WrongPassword => {
            info!(target: LOG, conn = id, %remote, error = %why, "SOCKS client refused");
            EndReason::ClientError
        }
        _ => EndReason::ClientError,
    };
    Error::new(Side::Client, Phase::Handshake, reason, why)
}

/// Sends the last message and ends the stream, in a way that the client gets to read it.
async fn say_goodbye(conn: &mut Connection, message: &[u8]) {
    if message.is_empty() {
        return;
    }
    let goodbye = async {
        conn.send(message).await?;
        conn.shutdown().await?;
        let mut scratch = [0; 512];
        let mut left = LINGER_BYTES;
        while left > 0 {
            match conn.receive(&mut scratch).await? {
                Received::Data(n) => left = left.saturating_sub(n),
                Received::End => break,
            }
        }
        io::Result::Ok(())
    };
    // Whatever goes wrong from here on, the connection is over.
    let _ = timeout(LINGER, goodbye).await;
}
