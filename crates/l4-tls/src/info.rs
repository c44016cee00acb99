//! What a finished handshake agreed on, taken from the library's session.

use l4_core::conn::TlsInfo;
use rustls::{HandshakeKind, ServerConnection};

use crate::ClientHello;
use crate::policy::iana_name;

/// What the client of the innermost terminated session had offered: an extension of the connection, for who speaks TLS
/// to its upstream.
pub(crate) struct Offered(pub(crate) ClientHello);

/// What `session` agreed on; its handshake is over.
pub(crate) fn agreed(session: &ServerConnection) -> TlsInfo {
    TlsInfo {
        version: session.protocol_version().map_or(0, u16::from),
        cipher_suite: session
            .negotiated_cipher_suite()
            .map(|suite| iana_name(suite.suite()))
            .unwrap_or_default()
            .into(),
        protocol: session.alpn_protocol().unwrap_or_default().into(),
        server_name: session.server_name().map(Into::into),
        resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
        client_certificate: session
            .peer_certificates()
            .and_then(|chain| chain.first())
            .map(|leaf| leaf.as_ref().into()),
    }
}
