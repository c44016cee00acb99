//! SOCKS for Conncept: the matchers `socks4` (with the extension 4a) and `socks5`.
//!
//! They tell a SOCKS client by its first message. Nothing is negotiated here. Start reading at [`MatchSocks4`] and
//! [`MatchSocks5`].

mod socks4;
mod socks5;

pub use socks4::{MatchSocks4, Socks4Config};
pub use socks5::{MatchSocks5, Socks5Config};

use l4_core::Registry;

/// Enters the modules of both versions.
pub fn register(reg: &mut Registry) {
    register_socks4(reg);
    register_socks5(reg);
}

/// Enters the modules of version 4.
pub fn register_socks4(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.matcher::<MatchSocks4>();
}

/// Enters the modules of version 5.
pub fn register_socks5(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.matcher::<MatchSocks5>();
}
