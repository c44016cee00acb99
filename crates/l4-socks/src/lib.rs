//! SOCKS for Conncept: the matchers `socks4` (with the extension 4a) and `socks5`, and, with the feature `server`, the
//! handler `socks5`.
//!
//! The matchers tell a SOCKS client by its first message and negotiate nothing. The handler is a server of version 5
//! (RFC 1928, with the passwords of RFC 1929); there is none of version 4. Start reading at [`MatchSocks4`] and
//! [`MatchSocks5`], and for the server at `server/dialogue.rs`, which knows neither sockets nor clock.
//!
//! The server links `socks5-proto`, which is under GPL-3.0-or-later. Without the feature nothing here is.

#[cfg(feature = "server")]
pub mod server;
mod socks4;
mod socks5;

pub use socks4::{MatchSocks4, Socks4Config};
pub use socks5::{MatchSocks5, Socks5Config};

use l4_core::Registry;

/// Enters the modules of this crate.
pub fn register(reg: &mut Registry) {
    register_socks4(reg);
    register_socks5(reg);
    #[cfg(feature = "server")]
    register_server(reg);
}

/// Enters the modules of version 4.
pub fn register_socks4(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.matcher::<MatchSocks4>();
    reg.page(include_str!("../docs/matchers/socks4.md"));
}

/// Enters the matcher of version 5.
pub fn register_socks5(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.matcher::<MatchSocks5>();
    reg.page(include_str!("../docs/matchers/socks5.md"));
}

/// Enters the server of version 5.
#[cfg(feature = "server")]
pub fn register_server(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.handler::<server::Socks5>();
    reg.page(include_str!("../docs/handlers/socks5.md"));
}
