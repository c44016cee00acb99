//! `http.matchers.remote_ip` and `http.matchers.client_ip`

use l4_core::config::{At, IpRanges};
use l4_core::{Cost, Provision, Rejected};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Request, RequestMatch};

/// Configuration of `remote_ip` and `client_ip`, which are the same here: both ask for the address of the client, which
/// is the one that a PROXY header named, if one was accepted. Header fields such as `X-Forwarded-For` are not looked at.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct IpConfig {
    /// Addresses and prefixes, such as `"10.0.0.0/8"` or `"::1"`; `"private_ranges"` stands for the private and
    /// loopback ones. The zone of an IPv6 address is ignored. Global placeholders are filled in at load. Empty or absent
    /// never matches, and neither does a client on a Unix socket. Default: none.
    #[serde(default)]
    ranges: Vec<At<String>>,
}

struct MatchIp(IpRanges);

impl RequestMatch for MatchIp {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        let ip = request.view().remote_ip();
        ip.is_some_and(|ip| self.0.contains(ip))
    }

    fn cost(&self) -> Cost {
        Cost::Meta
    }
}

pub(super) fn provision(
    config: IpConfig,
    cx: &mut Provision<'_>,
) -> Result<Box<dyn RequestMatch>, Rejected> {
    Ok(Box::new(MatchIp(cx.ip_ranges(&config.ranges)?)))
}
