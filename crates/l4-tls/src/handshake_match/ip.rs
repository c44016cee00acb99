//! `remote_ip` and `local_ip`: where a hello comes from and where it was received.

use schemars::JsonSchema;
use serde::Deserialize;

use l4_core::config::{At, IpRanges};
use l4_core::conn::Capture;
use l4_core::{Provision, Rejected};

use super::{HandshakeMatch, HandshakeScope};
use crate::ClientHello;

/// Addresses that a client may and may not have.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoteIpConfig {
    /// Addresses and prefixes, such as `["10.0.0.0/8", "::1"]`, or `private_ranges`. The client must be in one of them;
    /// absent or empty, it may be anywhere. Placeholders are filled in when the configuration is loaded. Default:
    /// anywhere.
    #[serde(default)]
    ranges: Option<Vec<At<String>>>,
    /// Addresses and prefixes the client must not be in, even if it is in `ranges`. Placeholders at load. Default:
    /// none.
    #[serde(default)]
    not_ranges: Option<Vec<At<String>>>,
}

/// Addresses that a hello may be received on.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LocalIpConfig {
    /// Addresses and prefixes, such as `["192.0.2.1"]`, or `private_ranges`. The local address must be in one of them;
    /// absent or empty, any IP address will do. Placeholders are filled in when the configuration is loaded. Default:
    /// any IP address.
    #[serde(default)]
    ranges: Option<Vec<At<String>>>,
}

/// The client's address is among some and not among others. A Unix socket has none and never matches.
pub(crate) struct MatchRemoteIp {
    ranges: IpRanges,
    not_ranges: IpRanges,
}

/// The local address is among some. A Unix socket has none and never matches.
pub(crate) struct MatchLocalIp {
    ranges: IpRanges,
}

impl MatchRemoteIp {
    /// Makes the condition.
    ///
    /// # Errors
    /// [`Rejected`] once the reason was reported to `cx`.
    pub(crate) fn provision(
        config: RemoteIpConfig,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let ranges = cx.ip_ranges(&config.ranges.unwrap_or_default());
        let not_ranges = cx.ip_ranges(&config.not_ranges.unwrap_or_default());
        Ok(Self {
            ranges: ranges?,
            not_ranges: not_ranges?,
        })
    }
}

impl MatchLocalIp {
    /// Makes the condition.
    ///
    /// # Errors
    /// [`Rejected`] once the reason was reported to `cx`.
    pub(crate) fn provision(
        config: LocalIpConfig,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        Ok(Self {
            ranges: cx.ip_ranges(&config.ranges.unwrap_or_default())?,
        })
    }
}

impl HandshakeMatch for MatchRemoteIp {
    fn matches(
        &self,
        _hello: &ClientHello,
        conn: &dyn HandshakeScope,
        _captures: &mut Vec<Capture>,
    ) -> bool {
        conn.remote_ip().is_some_and(|ip| {
            (self.ranges.is_empty() || self.ranges.contains(ip)) && !self.not_ranges.contains(ip)
        })
    }
}

impl HandshakeMatch for MatchLocalIp {
    fn matches(
        &self,
        _hello: &ClientHello,
        conn: &dyn HandshakeScope,
        _captures: &mut Vec<Capture>,
    ) -> bool {
        conn.local_ip()
            .is_some_and(|ip| self.ranges.is_empty() || self.ranges.contains(ip))
    }
}
