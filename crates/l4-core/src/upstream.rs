//! What a handler that connects to peers asks of other crates, by name: a transport on top of the socket, such as TLS, and
//! a preamble in front of the payload, such as a PROXY header.
//!
//! The crate that connects and the crate that knows the protocol never depend on each other. Both know these namespaces;
//! if a build lacks the module that a configuration names, it is refused with the command that adds it.

use std::io;

use crate::registry::Kind;
use crate::{BoxFuture, Connection, Transport};

/// `layer4.proxy.transports`: what is put on top of the connection to a peer.
pub enum PeerTransports {}

impl Kind for PeerTransports {
    const NAMESPACE: &'static str = "layer4.proxy.transports";
    type Object = dyn PeerTransport;
}

/// What is put on top of the connection to a peer.
pub trait PeerTransport: Send + Sync {
    /// Whether connections to `peer` can work, as far as that is known before there is one. Asked at load about every
    /// address that is the same for all connections.
    ///
    /// # Errors
    /// Why none ever can, and what to do about it.
    fn check(&self, peer: Peer<'_>) -> Result<(), Unfit> {
        let _ = peer;
        Ok(())
    }

    /// Whether what `client` has sent decides what the peer is offered or asked for. A client can then bring about that
    /// the two do not agree, so an error of [`wrap`](Self::wrap) of the kind `InvalidData` or `InvalidInput` says nothing
    /// about the peer, and is not held against it.
    fn depends_on(&self, client: &Connection) -> bool {
        let _ = client;
        false
    }

    /// Wraps `transport`, which is connected to `peer` on behalf of `client`. Returns when bytes can be exchanged.
    ///
    /// Whoever calls it closes the connection if it takes too long; limits of the transport's own are its own to keep.
    ///
    /// # Errors
    /// Why the peer is not to be talked to. The connection to it is closed then.
    fn wrap<'a>(
        &'a self,
        transport: Transport,
        peer: Peer<'a>,
        client: &'a Connection,
    ) -> BoxFuture<'a, io::Result<Transport>>;
}

/// The peer that a connection was made to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer<'a> {
    /// The host as it was dialled: a name, an IP address without brackets, or the path of a socket file.
    pub host: &'a str,
    /// The port as it was dialled; `None` for a socket file.
    pub port: Option<u16>,
}

/// Why no connection to a peer can work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// What is wrong, as a sentence.
    pub why: String,
    /// What would be right.
    pub remedy: String,
}

/// `layer4.proxy.preambles`: what a peer is told before the payload.
pub enum Preambles {}

impl Kind for Preambles {
    const NAMESPACE: &'static str = "layer4.proxy.preambles";
    type Object = dyn Preamble;
}

/// What a peer is told before the payload: once on a stream, in front of every datagram otherwise.
pub trait Preamble: Send + Sync {
    /// The bytes that say who `client` is.
    fn bytes(&self, client: &Connection) -> Vec<u8>;
}
