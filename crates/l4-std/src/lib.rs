//! The modules that belong to no protocol.
//!
//! Handlers: [`echo`](handlers::Echo), [`close`](handlers::Close), [`respond`](handlers::Respond),
//! [`subroute`](handlers::Subroute), [`vars`](handlers::SetVars).
//! Matchers: [`remote_ip`](matchers::MatchRemoteIp) (also `ip`), [`local_ip`](matchers::MatchLocalIp),
//! [`not`](matchers::MatchNot), [`vars`](matchers::MatchVars), [`vars_regexp`](matchers::MatchVarsRegexp),
//! [`regexp`](matchers::MatchRegexp), [`clock`](matchers::MatchClock).
//!
//! None of them opens a socket or parses a protocol; what does lives in a crate of its own.

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
        .matcher::<matchers::MatchVars>()
        .matcher::<matchers::MatchVarsRegexp>()
        .matcher::<matchers::MatchRegexp>()
        .matcher::<matchers::MatchClock>();
    reg.page(include_str!("../docs/handlers/close.md"));
    reg.page(include_str!("../docs/handlers/echo.md"));
    reg.page(include_str!("../docs/handlers/respond.md"));
    reg.page(include_str!("../docs/handlers/subroute.md"));
    reg.page(include_str!("../docs/handlers/vars.md"));
    reg.page(include_str!("../docs/matchers/clock.md"));
    reg.page(include_str!("../docs/matchers/ip.md"));
    reg.page(include_str!("../docs/matchers/local_ip.md"));
    reg.page(include_str!("../docs/matchers/not.md"));
    reg.page(include_str!("../docs/matchers/regexp.md"));
    reg.page(include_str!("../docs/matchers/remote_ip.md"));
    reg.page(include_str!("../docs/matchers/vars.md"));
    reg.page(include_str!("../docs/matchers/vars_regexp.md"));
}
