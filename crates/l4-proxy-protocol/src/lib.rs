//! The PROXY protocol for Conncept: the matcher and the handler `proxy_protocol`, and the header that `proxy` sends.
//!
//! * [`header`] and [`tlv`]: the header itself, pure functions over a slice.
//! * [`accept`]: the handler, which takes a header off and lets it say who the client is, or refuses it.
//! * [`preamble`]: the header in front of what a peer gets.
//! * [`MatchProxyProtocol`]: tells connections apart by whether they begin with a header; its addresses are not read.
//!
//! Headers are sent without anything behind the addresses, and none is passed on as it came. Start reading at
//! [`header::parse`].

pub mod accept;
mod guard;
pub mod header;
mod matcher;
mod placeholders;
pub mod preamble;
pub mod tlv;

pub use accept::{AcceptConfig, AcceptProxyProtocol};
pub use matcher::{MatchProxyProtocol, ProxyProtocolConfig, signature};

use l4_core::Registry;

/// Enters the modules of this crate.
pub fn register(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.matcher::<MatchProxyProtocol>();
    reg.page(include_str!("../docs/matchers/proxy_protocol.md"));
    reg.page(include_str!("../docs/handlers/proxy_protocol.md"));
    reg.handler::<AcceptProxyProtocol>();
    preamble::register(reg);
    reg.placeholders("l4.proxy_protocol.", placeholders::source);
}
