use l4_core::config::IpRanges;
use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;

/// Configuration of `remote_ip` (`ip`) and `local_ip`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IpConfig {
    /// Addresses and prefixes, such as `"10.0.0.0/8"` or `"::1"`; `"private_ranges"` stands for the private and
    /// loopback ones. Global placeholders are filled in at load. Empty or absent never matches. Default: none.
    #[serde(default)]
    ranges: Vec<At<String>>,
}

/// Matches clients by address: the one a PROXY header named, if one was accepted. Never on a Unix socket.
pub struct MatchRemoteIp(IpRanges);

impl MatcherModule for MatchRemoteIp {
    const NAME: &'static str = "remote_ip";
    type Config = IpConfig;

    fn provision(config: IpConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self(cx.ip_ranges(&config.ranges)?))
    }
}

impl Matcher for MatchRemoteIp {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        Verdict::from_bool(view.remote_ip().is_some_and(|ip| self.0.contains(ip)))
    }

    fn cost(&self) -> Cost {
        Cost::Meta
    }
}

/// Matches the address that the client connected to. Never on a Unix socket.
pub struct MatchLocalIp(IpRanges);

impl MatcherModule for MatchLocalIp {
    const NAME: &'static str = "local_ip";
    type Config = IpConfig;

    fn provision(config: IpConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self(cx.ip_ranges(&config.ranges)?))
    }
}

impl Matcher for MatchLocalIp {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        Verdict::from_bool(view.local_ip().is_some_and(|ip| self.0.contains(ip)))
    }

    fn cost(&self) -> Cost {
        Cost::Meta
    }
}
