//! Matchers that belong to no protocol. None of them but `not` and `regexp` needs a byte.

#[cfg(feature = "clock")]
mod clock;
mod ip;
mod not;
#[cfg(feature = "regexp")]
mod regexp;
mod vars;
#[cfg(feature = "regexp")]
mod vars_regexp;

#[cfg(feature = "clock")]
pub use clock::{ClockConfig, MatchClock};
pub use ip::{IpConfig, MatchLocalIp, MatchRemoteIp};
pub use not::{MatchNot, NotConfig};
#[cfg(feature = "regexp")]
pub use regexp::{MatchRegexp, RegexpConfig};
pub use vars::{MatchVars, VarsConfig};
#[cfg(feature = "regexp")]
pub use vars_regexp::{MatchVarsRegexp, VarsRegexpConfig};
