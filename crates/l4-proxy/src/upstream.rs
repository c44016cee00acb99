//! An upstream: its addresses, and whether it can take a connection.

use std::sync::Arc;

use l4_core::prelude::*;
use l4_core::upstream::{Peer as PeerName, PeerTransport, PeerTransports};
use l4_net::dial::Target;

use crate::config::{DialMode, UpstreamConfig};
use crate::dial::Dial;
use crate::first_answer::FirstAnswer;
use crate::health::passive::Passive;
use crate::health::{HealthChecks, connection_limit};
use crate::peer::Peer;
use crate::source::Origin;

/// The unit of selection: one or more peers that are connected to together or in turn.
pub struct Upstream {
    pub(crate) peers: Vec<Peer>,
    pub(crate) mode: DialMode,
    /// What is put on top of the connections to its peers.
    pub(crate) tls: Option<Box<dyn PeerTransport>>,
    pub(crate) first_answer: Arc<FirstAnswer>,
    pub(crate) passive: Option<Passive>,
    pub(crate) origin: Origin,
    /// Of each peer.
    pub(crate) limit: Option<usize>,
    /// The addresses as written, joined by commas: the name in logs and metrics.
    label: Arc<str>,
    weight: u32,
    /// Nothing can make it unavailable.
    unconditional: bool,
}

impl Upstream {
    pub(crate) fn provision(
        node: RawNode,
        checks: &HealthChecks,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let config: UpstreamConfig = cx.decode(node.node())?;
        if config.dial.is_empty() {
            let at = cx
                .document()
                .member(node.node(), "dial")
                .unwrap_or(node.node());
            return Err(cx.reject_help(
                at,
                "an upstream without an address would swallow every byte",
                "name at least one address in \"dial\", such as [\"127.0.0.1:8080\"]",
            ));
        }
        let label: Vec<&str> = config.dial.iter().map(|text| text.as_str()).collect();
        let label: Arc<str> = label.join(",").into();
        let origin = Origin::provision(&config, cx);
        let fixed = origin.as_ref().map(Origin::fixed).unwrap_or_default();
        let tls = config
            .tls
            .map(|tls| cx.module::<PeerTransports>("tls", tls.node()))
            .transpose();
        let peers = cx.all(&config.dial, |cx, text| {
            let dial = Dial::provision(text, cx)?;
            if let Some(network) = dial
                .unix_network()
                .filter(|_| !config.local_address.is_empty())
            {
                return Err(cx.reject_help(
                    text.node(),
                    format!("local_address is not supported for Unix socket upstreams ({network})"),
                    "leave local_address out, or put the socket in an upstream of its own",
                ));
            }
            if let Ok(Some(tls)) = &tls {
                check_transport(tls.as_ref(), &dial, text, cx)?;
            }
            Ok(Peer::new(dial, checks.active, &fixed))
        });
        let limit = connection_limit(&config.max_connections, cx);
        if config.dial.len() > 1 && config.dial_mode == DialMode::All {
            let at = cx
                .document()
                .member(node.node(), "dial")
                .unwrap_or(node.node());
            cx.note(
                at,
                "every address of this list is connected to and gets all bytes; write \"dial_mode\": \"first\" to try \
                 them in order, or one upstream for each to choose among them",
            );
        }
        let (peers, tls, origin) = (peers?, tls?, origin?);
        let limit = limit?.or(checks.max_connections);
        Ok(Self {
            unconditional: limit.is_none()
                && checks.passive.is_none()
                && peers.iter().all(|peer| peer.checked().is_none()),
            peers,
            mode: config.dial_mode,
            tls,
            first_answer: Arc::new(FirstAnswer::new(label.clone())),
            passive: checks.passive,
            origin,
            limit,
            label,
            weight: config.weight.map_or(1, |weight| {
                u32::try_from((*weight).max(1)).unwrap_or(u32::MAX)
            }),
        })
    }

    /// Whether it may get `conn`: it works as far as known, and has a place. With `dial_mode` `first` one such peer is
    /// enough, otherwise all must be.
    pub fn available(&self, conn: &Connection) -> bool {
        if self.unconditional {
            return true;
        }
        let mut usable = self.peers.iter().map(|peer| self.usable(peer, conn));
        match self.mode {
            DialMode::All => usable.all(|usable| usable),
            DialMode::First => usable.any(|usable| usable),
        }
    }

    /// How many connections its peers have, those being made and those of other handlers included. `conn` tells which
    /// peers are meant where addresses have placeholders.
    pub fn connections(&self, conn: &Connection) -> usize {
        self.peers.iter().map(|peer| peer.connections(conn)).sum()
    }

    /// Its share under `weighted_round_robin`; at least 1.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// The addresses as written in the configuration, joined by commas.
    pub fn label(&self) -> &Arc<str> {
        &self.label
    }

    pub(crate) fn usable(&self, peer: &Peer, conn: &Connection) -> bool {
        peer.usable(conn, self.limit, self.passive)
    }
}

/// Refuses an address at which the transport can never work.
fn check_transport(
    transport: &dyn PeerTransport,
    dial: &Dial,
    text: &At<String>,
    cx: &mut Provision<'_>,
) -> Result<(), Rejected> {
    if dial.is_datagram() {
        return Err(cx.reject_help(
            text.node(),
            "TLS needs a stream, and this address is for datagrams; there is no DTLS",
            "leave out \"tls\", or name a tcp or unix address",
        ));
    }
    let Dial::Fixed(target) = dial else {
        return Ok(());
    };
    let host = target.host();
    transport
        .check(peer_name(&host, target))
        .map_err(|unfit| cx.reject_help(text.node(), unfit.why, unfit.remedy))
}

/// What a transport is told about a peer.
pub(crate) fn peer_name<'a>(host: &'a str, target: &Target) -> PeerName<'a> {
    PeerName {
        host,
        port: target.port(),
    }
}
