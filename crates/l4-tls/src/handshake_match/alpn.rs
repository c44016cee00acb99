//! `alpn`: the protocols that the client offers.

use schemars::JsonSchema;
use serde::Deserialize;

use l4_core::config::At;
use l4_core::conn::Capture;
use l4_core::{Provision, Rejected, Template};

use super::{HandshakeMatch, HandshakeScope};
use crate::ClientHello;

/// Protocol names, such as `["h2", "http/1.1"]`. The condition holds if the client offers one of them by ALPN,
/// compared byte by byte; with an empty list it never holds. May contain placeholders, filled in per connection.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct AlpnConfig(Vec<At<String>>);

/// The client offers one of some protocols.
pub(crate) struct MatchAlpn {
    protocols: Vec<Template>,
}

impl MatchAlpn {
    /// Makes the condition.
    ///
    /// # Errors
    /// [`Rejected`] once the reason was reported to `cx`.
    pub(crate) fn provision(config: AlpnConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self {
            protocols: cx.all(&config.0, |cx, protocol| cx.template(protocol))?,
        })
    }
}

impl HandshakeMatch for MatchAlpn {
    fn matches(
        &self,
        hello: &ClientHello,
        conn: &dyn HandshakeScope,
        _captures: &mut Vec<Capture>,
    ) -> bool {
        self.protocols.iter().any(|protocol| {
            let protocol = conn.expand(protocol);
            hello.alpn().any(|offered| offered == protocol.as_bytes())
        })
    }
}
