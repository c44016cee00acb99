//! The handler: choose, connect, relay.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use l4_core::prelude::*;
use l4_core::upstream::{PeerTransport, Preamble, Preambles};
use l4_core::{EndReason, Error, Io, Phase, Record, Side, Transport};
use l4_net::dial::{DialError, DialOptions, Target, connect};
use l4_net::relay::{Limits, Relayed, relay};
use l4_net::sockopt;
use l4_net::{ConnectionLimit, Extra};
use smallvec::SmallVec;
use thiserror::Error as ThisError;
use tokio::io::Interest;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::config::{DialMode, ProxyConfig};
use crate::dial::AddressRefused;
use crate::health::{HealthChecks, active};
use crate::peer::{Place, Reserved};
use crate::policy::{INLINE_KEY, Random, Select, SelectionPolicies};
use crate::preamble::introduce;
use crate::upstream::{Upstream, peer_name};

/// The `proxy` handler.
pub(crate) struct Proxy {
    upstreams: Vec<Upstream>,
    policy: Box<dyn Select>,
    preamble: Option<Box<dyn Preamble>>,
    try_duration: Duration,
    try_interval: Duration,
    dial_timeout: Option<Duration>,
    limits: Limits,
}

const DEFAULT_DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_TRY_INTERVAL: Duration = Duration::from_millis(250);

/// Why an attempt to connect failed.
#[derive(Debug, ThisError)]
enum AttemptError {
    #[error("no upstreams available")]
    NoneAvailable,
    #[error("the connection limit leaves no room for all addresses of the upstream")]
    NoRoom,
    #[error(transparent)]
    Address(#[from] AddressRefused),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("sending the PROXY header to {peer}: {source}")]
    Preamble { peer: String, source: io::Error },
    // What the library said is all in the text: as a source it would be repeated.
    #[error("TLS with {peer}: {error}")]
    Tls {
        peer: String,
        error: io::Error,
        /// What the client has sent may be why.
        clients: bool,
    },
}

/// An upstream that was connected to.
struct Connected {
    upstream: usize,
    peers: Peers,
}

/// The peers of an upstream that were connected to, and their places among each one's connections.
#[derive(Default)]
struct Peers {
    transports: SmallVec<[Transport; 1]>,
    reserved: SmallVec<[Reserved; 1]>,
    /// A connection counts as two descriptors, which is one peer.
    extra: Option<Extra>,
}

/// What is held while a connection is being relayed.
struct Held {
    record: Arc<Record>,
    _reserved: SmallVec<[Reserved; 1]>,
    _extra: Option<Extra>,
}

/// A relay to its end, or until a peer is found to be down; then there is no result.
enum Relaying<E, D> {
    ToTheEnd(E),
    UntilDown(Pin<Box<D>>),
}

impl<E, D> Future for Relaying<E, D>
where
    E: Future<Output = Relayed> + Unpin,
    D: Future<Output = Option<Relayed>>,
{
    type Output = Option<Relayed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Relayed>> {
        match self.get_mut() {
            Self::ToTheEnd(relaying) => Pin::new(relaying).poll(cx).map(Some),
            Self::UntilDown(relaying) => relaying.as_mut().poll(cx),
        }
    }
}

impl HandlerModule for Proxy {
    const NAME: &'static str = "proxy";
    type Config = ProxyConfig;

    fn provision(config: ProxyConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let balancing = config.load_balancing.unwrap_or_default();
        let policy = match balancing.selection {
            Some(selection) => cx.inline::<SelectionPolicies>(selection.node(), INLINE_KEY),
            None => Ok(Box::new(Random) as Box<dyn Select>),
        };
        let upstreams = config.upstreams.unwrap_or_default();
        if upstreams.is_empty() {
            let at = cx
                .document()
                .member(cx.node(), "upstreams")
                .unwrap_or(cx.node());
            return Err(cx.reject_help(
                at,
                "no upstreams defined",
                "name at least one: \"upstreams\": [{\"dial\": [\"127.0.0.1:8080\"]}]",
            ));
        }
        let preamble = match config.proxy_protocol {
            Some(name) => preamble(&name, cx),
            None => Ok(None),
        };
        let checks = HealthChecks::provision(config.health_checks.unwrap_or_default(), cx);
        let sound = checks.as_ref().ok();
        let none = HealthChecks::default();
        let upstreams = cx.all(upstreams, |cx, node| {
            Upstream::provision(node, sound.unwrap_or(&none), cx)
        });
        let try_duration = cx.time_limit(balancing.try_duration, Duration::ZERO);
        let try_interval = cx.time_limit(balancing.try_interval, DEFAULT_TRY_INTERVAL);
        let dial_timeout = cx.time_limit(config.dial_timeout, DEFAULT_DIAL_TIMEOUT);
        let idle = cx.time_limit(config.idle_timeout, Duration::ZERO);
        let half_closed = cx.time_limit(config.half_close_timeout, DEFAULT_HALF_CLOSE_TIMEOUT);
        let (upstreams, _) = (upstreams?, checks?);
        start_checks(&upstreams, cx);
        Ok(Self {
            upstreams,
            policy: policy?,
            preamble: preamble?,
            try_duration: try_duration?.unwrap_or_default(),
            // An interval of zero would spin.
            try_interval: try_interval?.unwrap_or(DEFAULT_TRY_INTERVAL),
            dial_timeout: dial_timeout?,
            limits: Limits {
                idle: idle?,
                half_closed: half_closed?,
            },
        })
    }
}

impl AsyncHandler for Proxy {
    // Not an `async` function: its future, which lives as long as the connection, would hold what it does not need.
    fn handle(&self, conn: Connection, _: Rest<'_>) -> impl Future<Output = Result<Flow>> + Send {
        self.connect_and_relay(conn)
    }

    fn terminal(&self) -> bool {
        true
    }
}

impl Proxy {
    async fn connect_and_relay(&self, mut conn: Connection) -> Result<Flow> {
        // Boxed, so that nothing of it is left while the connection is being relayed for hours.
        let connected = Box::pin(self.connect_or_reset(&mut conn)).await?;
        let (held, relaying) = self.relaying(conn, connected);
        let relayed = relaying.await;
        let record = held.release();
        let Some(relayed) = relayed else {
            record.end(EndReason::UpstreamDown);
            return Ok(Flow::Done);
        };
        record.end(relayed.reason);
        if let Some(error) = relayed.error {
            debug!(
                target: "layer4.handlers.proxy",
                conn = record.id(), remote = %record.remote(), reason = %relayed.reason, %error, "upstream connection"
            );
        }
        Ok(Flow::Done)
    }

    /// What relays between a client and the peers that were connected to, and what is held meanwhile.
    fn relaying(
        &self,
        conn: Connection,
        Connected { upstream, peers }: Connected,
    ) -> (Held, impl Future<Output = Option<Relayed>> + Send + use<>) {
        let Peers {
            transports,
            mut reserved,
            extra,
        } = peers;
        let upstream = &self.upstreams[upstream];
        let record = conn.record().clone();
        record.set_upstream(upstream.label().clone());
        let down: Vec<_> = reserved
            .iter_mut()
            .filter_map(|reserved| reserved.down.take())
            .collect();
        let client = upstream.first_answer.watch(conn);
        let relaying = if down.is_empty() {
            Relaying::ToTheEnd(relay(client, transports, self.limits))
        } else {
            let relaying = relay_until(down, client, transports, self.limits);
            Relaying::UntilDown(Box::pin(relaying))
        };
        let held = Held {
            record,
            _reserved: reserved,
            _extra: extra,
        };
        (held, relaying)
    }

    /// Connects. If that fails, a client that has sent something is reset when it is closed: the kernel would do that by itself,
    /// had nothing been read ahead.
    async fn connect_or_reset(&self, conn: &mut Connection) -> Result<Connected> {
        let connected = self.connect_for(conn).await;
        let read_ahead = matches!(conn.io(), Io::Tcp(_)) && !conn.unread().is_empty();
        if connected.is_err() && read_ahead {
            conn.transport().reset_on_close();
        }
        connected
    }

    /// Connects, unless the client breaks off before: then nobody is there to wait for.
    async fn connect_for(&self, conn: &Connection) -> Result<Connected> {
        // Neither is polled again after the other has won.
        tokio::select! {
            biased;
            connected = self.connect(conn) => connected,
            error = reset_by(conn) => {
                Err(Error::new(Side::Client, Phase::Dial, EndReason::ClientReset, error))
            }
        }
    }

    /// Chooses and connects, again and again until `try_duration` is over. Nothing is read from the client meanwhile,
    /// so nothing of it can be lost.
    async fn connect(&self, conn: &Connection) -> Result<Connected> {
        let started = Instant::now();
        let mut last = None;
        loop {
            match self.attempt(conn, started).await {
                Ok(connected) => return Ok(connected),
                // A choice that finds nothing does not hide why the one before failed.
                Err(AttemptError::NoneAvailable) => {}
                Err(error) => last = Some(error),
            }
            if started.elapsed() >= self.try_duration {
                return Err(give_up(last.unwrap_or(AttemptError::NoneAvailable)));
            }
            tokio::time::sleep(self.try_interval).await;
        }
    }

    async fn attempt(
        &self,
        conn: &Connection,
        started: Instant,
    ) -> Result<Connected, AttemptError> {
        // Others may take the last place between the choice and the reservation; then the choice is made anew.
        for _ in &self.upstreams {
            let chosen = self.policy.select(&self.upstreams, conn);
            let Some((chosen, upstream)) = chosen.and_then(|i| Some((i, self.upstreams.get(i)?)))
            else {
                break;
            };
            let peers = match upstream.mode {
                DialMode::All => self.connect_all(upstream, conn, started).await?,
                DialMode::First => self.connect_first(upstream, conn, started).await?,
            };
            if let Some(peers) = peers {
                return Ok(Connected {
                    upstream: chosen,
                    peers,
                });
            }
        }
        Err(AttemptError::NoneAvailable)
    }

    /// Connects to every peer of `upstream`; `None` if one of them is full.
    async fn connect_all(
        &self,
        upstream: &Upstream,
        conn: &Connection,
        started: Instant,
    ) -> Result<Option<Peers>, AttemptError> {
        let mut places = SmallVec::<[_; 1]>::with_capacity(upstream.peers.len());
        for peer in &upstream.peers {
            let Some(place) = peer.reserve(conn, upstream.limit)? else {
                return Ok(None);
            };
            places.push(place);
        }
        let mut peers = Peers::default();
        if let Ok(more @ 1..) = u32::try_from(places.len().saturating_sub(1)) {
            let extra = ConnectionLimit::process().extra(more);
            peers.extra = Some(extra.ok_or(AttemptError::NoRoom)?);
        }
        for place in places {
            peers.add(self.dial(place, upstream, conn, started).await?);
        }
        Ok(Some(peers))
    }

    /// Connects to the first peer of `upstream` that lets it; `None` if nothing was tried, because all are down or full.
    async fn connect_first(
        &self,
        upstream: &Upstream,
        conn: &Connection,
        started: Instant,
    ) -> Result<Option<Peers>, AttemptError> {
        let mut last = Ok(None);
        for peer in &upstream.peers {
            if !upstream.usable(peer, conn) {
                continue;
            }
            let place = match peer.reserve(conn, upstream.limit) {
                Ok(Some(place)) => place,
                Ok(None) => continue,
                Err(error) => {
                    last = Err(error.into());
                    continue;
                }
            };
            match self.dial(place, upstream, conn, started).await {
                Ok(connected) => {
                    let mut peers = Peers::default();
                    peers.add(connected);
                    return Ok(Some(peers));
                }
                Err(error) => last = Err(error),
            }
        }
        last
    }

    async fn dial(
        &self,
        place: Place<'_>,
        upstream: &Upstream,
        conn: &Connection,
        started: Instant,
    ) -> Result<(Transport, Reserved), AttemptError> {
        let made = self.make(&place.target, upstream, conn, started).await;
        let error = made.as_ref().err();
        debug!(
            target: "layer4.handlers.proxy",
            conn = conn.record().id(), remote = %conn.remote(), upstream = %place.target, error = error.map(tracing::field::display),
            "dial upstream"
        );
        match made {
            Ok(transport) => Ok((transport, place.connected())),
            Err(error) => {
                if error.is_of_the_peer() {
                    place.failed(upstream.passive);
                }
                Err(error)
            }
        }
    }

    /// Connects to a peer and puts on top what the upstream asks for: the socket, then TLS, then the preamble.
    async fn make(
        &self,
        target: &Target,
        upstream: &Upstream,
        conn: &Connection,
        started: Instant,
    ) -> Result<Transport, AttemptError> {
        let mut options = self.dial_options(started);
        upstream.origin.apply(conn, &mut options);
        let speaks = !conn.unread().is_empty() || self.preamble.is_some() || upstream.tls.is_some();
        // With several peers the first waits for the others.
        options.speaks_first = speaks && upstream.peers.len() == 1;
        let dialled = connect(target, &options).await?;
        let transport = Transport::new(dialled.io, None);
        let transport = match &upstream.tls {
            Some(tls) => {
                self.wrap(tls.as_ref(), transport, target, conn, started)
                    .await?
            }
            None => transport,
        };
        match &self.preamble {
            Some(preamble) => {
                let payload_follows = !conn.unread().is_empty();
                introduce(
                    transport,
                    preamble.bytes(conn),
                    payload_follows,
                    options.limit,
                )
                .await
                .map_err(|source| AttemptError::Preamble {
                    peer: target.to_string(),
                    source,
                })
            }
            None => Ok(transport),
        }
    }

    async fn wrap(
        &self,
        tls: &dyn PeerTransport,
        transport: Transport,
        target: &Target,
        conn: &Connection,
        started: Instant,
    ) -> Result<Transport, AttemptError> {
        let wrapped = async {
            if transport.is_datagram() {
                return Err(io::Error::other(
                    "datagrams are no stream; there is no DTLS",
                ));
            }
            if let Io::Tcp(socket) = transport.io() {
                // Below a layer nobody finds it later. One that is broken already refuses, and needs no probes.
                let _ = sockopt::set_keepalive(socket);
            }
            let host = target.host();
            let wrapping = tls.wrap(transport, peer_name(&host, target), conn);
            match self.left(started) {
                Some(left) => tokio::time::timeout(left, wrapping)
                    .await
                    .unwrap_or_else(|_| {
                        Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "not complete when try_duration was over",
                        ))
                    }),
                None => wrapping.await,
            }
        };
        wrapped.await.map_err(|error| {
            let disagree = matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
            );
            AttemptError::Tls {
                peer: target.to_string(),
                clients: disagree && tls.depends_on(conn),
                error,
            }
        })
    }

    /// What is left of `try_duration`, if there is one.
    fn left(&self, started: Instant) -> Option<Duration> {
        (!self.try_duration.is_zero()).then(|| {
            self.try_duration
                .saturating_sub(started.elapsed())
                .max(self.try_interval)
        })
    }

    /// A dial may not take longer than what is left of `try_duration`.
    fn dial_options(&self, started: Instant) -> DialOptions {
        let limit = match (self.dial_timeout, self.left(started)) {
            (Some(limit), Some(left)) => Some(limit.min(left)),
            (limit, left) => limit.or(left),
        };
        DialOptions::within(limit)
    }
}

impl AttemptError {
    /// Whether it says something about the peer. One client must not be able to take a peer away from all the others.
    fn is_of_the_peer(&self) -> bool {
        match self {
            Self::Dial(error) => !error.is_contradiction(),
            Self::Tls { clients, .. } => !clients,
            _ => true,
        }
    }
}

impl Held {
    /// Gives the places back.
    fn release(self) -> Arc<Record> {
        self.record
    }
}

impl Peers {
    fn add(&mut self, (transport, reserved): (Transport, Reserved)) {
        self.transports.push(transport);
        self.reserved.push(reserved);
    }
}

/// Waits until the client resets the connection. The end of its stream alone is none: it may be waiting for an answer.
/// Below a layer nobody sees it, and a datagram session has no such thing.
async fn reset_by(conn: &Connection) -> io::Error {
    let Io::Tcp(socket) = conn.io() else {
        return std::future::pending().await;
    };
    loop {
        let ready = socket.ready(Interest::ERROR).await;
        if let Err(error) | Ok(Some(error)) = ready.and_then(|_| socket.take_error()) {
            return error;
        }
        // Nothing was wrong: forget that something seemed to be.
        let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = socket.try_io(Interest::ERROR, nothing);
    }
}

/// Has every peer that is to be checked looked after while the configuration is the current one.
fn start_checks(upstreams: &[Upstream], cx: &mut Provision<'_>) {
    let checked: Vec<_> = upstreams
        .iter()
        .flat_map(|upstream| &upstream.peers)
        .filter_map(|peer| peer.checked())
        .map(|(target, health)| (target.clone(), health.clone()))
        .collect();
    if checked.is_empty() {
        return;
    }
    cx.on_start(move |generation| {
        for (target, health) in checked {
            generation.background(active::check(target, health));
        }
    });
}

/// The preamble of that name; the empty one is as good as none.
fn preamble(
    name: &At<String>,
    cx: &mut Provision<'_>,
) -> Result<Option<Box<dyn Preamble>>, Rejected> {
    match cx.expand_load(name)?.as_str() {
        "" => Ok(None),
        version @ ("v1" | "v2") => cx.module::<Preambles>(version, name.node()).map(Some),
        other if cx.has::<Preambles>(other) => cx.module::<Preambles>(other, name.node()).map(Some),
        other => Err(cx.reject_help(
            name.node(),
            format!("proxy_protocol: {other:?} should be empty, or one of \"v1\" \"v2\""),
            "write \"v2\", or \"v1\" for a server that knows nothing else",
        )),
    }
}

/// Relays until the end, or until one of `down` says that a peer is; then both sides are closed and there is no result.
async fn relay_until(
    down: Vec<CancellationToken>,
    client: Transport,
    peers: SmallVec<[Transport; 1]>,
    limits: Limits,
) -> Option<Relayed> {
    let mut down: Vec<_> = down
        .into_iter()
        .map(|token| Box::pin(token.cancelled_owned()))
        .collect();
    let any_down = poll_fn(|cx| {
        if down
            .iter_mut()
            .any(|token| token.as_mut().poll(cx).is_ready())
        {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    // Neither is polled again after the other has won.
    tokio::select! {
        biased;
        () = any_down => None,
        relayed = relay(client, peers, limits) => Some(relayed),
    }
}

fn give_up(error: AttemptError) -> Error {
    let (side, reason) = match error {
        AttemptError::NoneAvailable | AttemptError::NoRoom => {
            (Side::Upstream, EndReason::NoUpstream)
        }
        AttemptError::Address(_) => (Side::Client, EndReason::DialFailed),
        AttemptError::Dial(_) | AttemptError::Tls { .. } | AttemptError::Preamble { .. } => {
            (Side::Upstream, EndReason::DialFailed)
        }
    };
    Error::new(side, Phase::Dial, reason, error)
}

#[cfg(test)]
mod tests {
    use l4_core::Registry;
    use l4_core::config::Document;
    use l4_testkit::connection;

    use super::*;

    /// What is needed to choose and to connect, or to watch a health check, is gone or elsewhere while bytes move.
    #[test]
    fn a_relayed_connection_carries_little_more_than_the_relay() {
        let document = Document::parse("test", br#"{"upstreams":[{"dial":["a:1"]}]}"#).unwrap();
        let registry = Registry::new();
        let mut cx = Provision::new(&document, &registry);
        let config = cx.decode(document.root()).unwrap();
        let proxy = Proxy::provision(config, &mut cx).unwrap();
        let of_relay = {
            let client = connection(1).0.into_transport();
            size_of_val(&relay(client, Vec::new(), Limits::default()))
        };
        let of_handler = size_of_val(&proxy.handle(connection(1).0, Rest::new(&[])));
        assert!(
            of_handler <= of_relay + 256,
            "{of_handler}, {of_relay} of it the relay"
        );
    }
}
