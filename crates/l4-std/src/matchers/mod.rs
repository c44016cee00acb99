//! Matchers that belong to no protocol. None of them but `not` and `regexp` needs a byte.

mod clock;
mod ip;
mod not;
mod regexp;
mod vars;

pub use clock::{ClockConfig, MatchClock};
pub use ip::{IpConfig, MatchLocalIp, MatchRemoteIp};
pub use not::{MatchNot, NotConfig};
pub use regexp::{MatchRegexp, RegexpConfig};
pub use vars::{MatchVars, MatchVarsRegexp, VarsConfig, VarsRegexpConfig};
