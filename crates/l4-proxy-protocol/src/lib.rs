//! The PROXY protocol for Conncept: the matcher `proxy_protocol`.
//!
//! Recognised are both versions of the header, by the bytes that nothing else begins with. Neither the addresses nor
//! the rest of the header are read here. Start reading at [`MatchProxyProtocol`].

mod matcher;

pub use matcher::{MatchProxyProtocol, ProxyProtocolConfig, signature};

use l4_core::Registry;

/// Enters the modules of this crate.
pub fn register(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.matcher::<MatchProxyProtocol>();
}
