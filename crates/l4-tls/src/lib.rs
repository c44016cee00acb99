//! TLS for Conncept: recognising a ClientHello and routing by what it says.
//!
//! The matcher `tls` and the modules of `tls.handshake_match` that it is made of, the placeholders
//! `{l4.tls.server_name}` and `{l4.tls.version}`, and the parser behind them. Nothing here decrypts: a hello is read
//! from the unread bytes and stays there for whoever handles the connection.
//!
//! Start reading at [`ClientHello`], then [`MatchTls`], then [`HandshakeMatch`], the trait that a further condition on
//! a hello implements.

mod client_hello;
mod handshake_match;
mod matcher;
mod placeholders;
mod records;

pub use client_hello::ClientHello;
pub use handshake_match::{
    AlpnConfig, HandshakeMatch, HandshakeMatchers, HandshakeScope, LocalIpConfig, MatchAlpn,
    MatchLocalIp, MatchRemoteIp, MatchSni, MatchSniRegexp, RemoteIpConfig, SniConfig,
    SniRegexpConfig,
};
pub use matcher::MatchTls;

use l4_core::Registry;

/// Enters the modules of this crate.
pub fn register(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.matcher::<MatchTls>();
    handshake_match::register(reg);
    reg.placeholders("l4.tls.", placeholders::source);
}
