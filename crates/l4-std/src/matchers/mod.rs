//! Matchers that belong to no protocol. None of them but `not` needs a byte.

mod ip;
mod not;
mod vars;

pub use ip::{IpConfig, MatchLocalIp, MatchRemoteIp};
pub use not::MatchNot;
pub use vars::{MatchVars, MatchVarsRegexp};
