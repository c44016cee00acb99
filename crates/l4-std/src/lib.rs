//! The modules that belong to no protocol.
//!
//! Handlers: [`echo`](handlers::Echo), [`close`](handlers::Close), [`respond`](handlers::Respond),
//! [`subroute`](handlers::Subroute), [`vars`](handlers::SetVars).
//! Matchers: [`remote_ip`](matchers::MatchRemoteIp) (also `ip`), [`local_ip`](matchers::MatchLocalIp),
//! [`not`](matchers::MatchNot), [`vars`](matchers::MatchVars), [`vars_regexp`](matchers::MatchVarsRegexp),
//! [`regexp`](matchers::MatchRegexp), [`clock`](matchers::MatchClock).
//!
//! The matchers by regular expressions are there with the feature `regexp`, `clock` with the feature of that name; both
//! are on by default, and are most of the size of this crate. None of them opens a socket or parses a protocol; what does lives in a crate of its own.

pub mod handlers;
pub mod matchers;

use l4_core::Registry;

/// Enters all modules of this crate.
pub fn register(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.handler::<handlers::Echo>()
        .handler::<handlers::Close>()
        .handler::<handlers::Respond>()
        .handler::<handlers::Subroute>()
        .handler::<handlers::SetVars>();
    reg.matcher::<matchers::MatchRemoteIp>()
        .matcher_as::<matchers::MatchRemoteIp>("ip")
        .matcher::<matchers::MatchLocalIp>()
        .matcher::<matchers::MatchNot>()
        .matcher::<matchers::MatchVars>();
    #[cfg(feature = "regexp")]
    reg.matcher::<matchers::MatchVarsRegexp>()
        .matcher::<matchers::MatchRegexp>();
    #[cfg(feature = "clock")]
    reg.matcher::<matchers::MatchClock>();
    reg.page(include_str!("../docs/handlers/close.md"));
    reg.page(include_str!("../docs/handlers/echo.md"));
    reg.page(include_str!("../docs/handlers/respond.md"));
    reg.page(include_str!("../docs/handlers/subroute.md"));
    reg.page(include_str!("../docs/handlers/vars.md"));
    #[cfg(feature = "clock")]
    reg.page(include_str!("../docs/matchers/clock.md"));
    reg.page(include_str!("../docs/matchers/ip.md"));
    reg.page(include_str!("../docs/matchers/local_ip.md"));
    reg.page(include_str!("../docs/matchers/not.md"));
    #[cfg(feature = "regexp")]
    reg.page(include_str!("../docs/matchers/regexp.md"));
    reg.page(include_str!("../docs/matchers/remote_ip.md"));
    reg.page(include_str!("../docs/matchers/vars.md"));
    #[cfg(feature = "regexp")]
    reg.page(include_str!("../docs/matchers/vars_regexp.md"));
}
