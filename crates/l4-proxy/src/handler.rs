//! The handler: choose, connect, relay.

use std::time::{Duration, Instant};

use l4_core::prelude::*;
use l4_core::{EndReason, Error, Phase, Side, Transport};
use l4_net::dial::{DialError, DialOptions, connect};
use l4_net::relay::{Limits, relay};
use thiserror::Error as ThisError;
use tracing::debug;

use crate::config::{DialMode, ProxyConfig};
use crate::dial::{AddressRefused, Dial};
use crate::policy::{INLINE_KEY, Random, Select, SelectionPolicies};
use crate::upstream::{Reserved, Upstream};

/// The `proxy` handler.
pub struct Proxy {
    upstreams: Vec<Upstream>,
    policy: Box<dyn Select>,
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
    #[error(transparent)]
    Address(#[from] AddressRefused),
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// An upstream that was connected to.
struct Connected {
    peers: Vec<Transport>,
    upstream: usize,
    reserved: Reserved,
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
        let upstreams = cx.all(upstreams, |cx, node| Upstream::provision(node, cx));
        let try_duration = cx.time_limit(balancing.try_duration, Duration::ZERO);
        let try_interval = cx.time_limit(balancing.try_interval, DEFAULT_TRY_INTERVAL);
        let dial_timeout = cx.time_limit(config.dial_timeout, DEFAULT_DIAL_TIMEOUT);
        let idle = cx.time_limit(config.idle_timeout, Duration::ZERO);
        let half_closed = cx.time_limit(config.half_close_timeout, DEFAULT_HALF_CLOSE_TIMEOUT);
        Ok(Self {
            upstreams: upstreams?,
            policy: policy?,
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
    async fn handle(&self, conn: Connection, _: Rest<'_>) -> Result<Flow> {
        // Boxed, so that nothing of it is left while the connection is being relayed for hours.
        let Connected {
            peers,
            upstream,
            reserved,
        } = Box::pin(self.connect(&conn)).await?;
        let record = conn.record().clone();
        record.set_upstream(self.upstreams[upstream].label().clone());
        let relayed = relay(conn.into_transport(), peers, self.limits).await;
        drop(reserved);
        record.end(relayed.reason);
        if let Some(error) = relayed.error {
            debug!(
                target: "layer4.handlers.proxy",
                conn = record.id(), remote = %record.remote(), reason = %relayed.reason, %error, "upstream connection"
            );
        }
        Ok(Flow::Done)
    }

    fn terminal(&self) -> bool {
        true
    }
}

impl Proxy {
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
        let chosen = self
            .policy
            .select(&self.upstreams, conn)
            .ok_or(AttemptError::NoneAvailable)?;
        let upstream = &self.upstreams[chosen];
        let reserved = upstream.reserve().ok_or(AttemptError::NoneAvailable)?;
        let peers = match upstream.mode {
            DialMode::All => {
                let mut peers = Vec::with_capacity(upstream.peers.len());
                for peer in &upstream.peers {
                    peers.push(self.dial(peer, conn, started).await?);
                }
                peers
            }
            DialMode::First => {
                let mut last = AttemptError::NoneAvailable;
                let mut connected = None;
                for peer in &upstream.peers {
                    match self.dial(peer, conn, started).await {
                        Ok(peer) => {
                            connected = Some(peer);
                            break;
                        }
                        Err(error) => last = error,
                    }
                }
                vec![connected.ok_or(last)?]
            }
        };
        Ok(Connected {
            peers,
            upstream: chosen,
            reserved,
        })
    }

    async fn dial(
        &self,
        peer: &Dial,
        conn: &Connection,
        started: Instant,
    ) -> Result<Transport, AttemptError> {
        let target = peer.target(conn)?;
        let dialled = connect(&target, &self.dial_options(started)).await;
        let error = dialled.as_ref().err();
        debug!(
            target: "layer4.handlers.proxy",
            conn = conn.record().id(), remote = %conn.remote(), upstream = %target, error = error.map(tracing::field::display),
            "dial upstream"
        );
        Ok(Transport::new(dialled?.io, None))
    }

    /// A dial may not take longer than what is left of `try_duration`, if there is one.
    fn dial_options(&self, started: Instant) -> DialOptions {
        let left = (!self.try_duration.is_zero()).then(|| {
            self.try_duration
                .saturating_sub(started.elapsed())
                .max(self.try_interval)
        });
        let limit = match (self.dial_timeout, left) {
            (Some(limit), Some(left)) => Some(limit.min(left)),
            (limit, left) => limit.or(left),
        };
        DialOptions::within(limit)
    }
}

fn give_up(error: AttemptError) -> Error {
    let (side, reason) = match error {
        AttemptError::NoneAvailable => (Side::Upstream, EndReason::NoUpstream),
        AttemptError::Address(_) => (Side::Client, EndReason::DialFailed),
        AttemptError::Dial(_) => (Side::Upstream, EndReason::DialFailed),
    };
    Error::new(side, Phase::Dial, reason, error)
}
