//! `http.matchers.tls`

use l4_core::{Cost, Provision, Rejected};
use serde::Deserialize;

use super::{Request, RequestMatch};

/// Requests that came through TLS which this program terminated, for example `{}`. No handler of this version terminates
/// TLS, so it never matches.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Whether the handshake must be complete, which it always is before a request is read: `false` never matches.
    /// Default: either.
    #[serde(default)]
    handshake_complete: Option<bool>,
}

struct MatchTls {
    handshake_complete: Option<bool>,
}

impl RequestMatch for MatchTls {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        request.is_tls() && self.handshake_complete != Some(false)
    }

    fn cost(&self) -> Cost {
        Cost::Meta
    }
}

pub(super) fn provision(
    config: TlsConfig,
    cx: &mut Provision<'_>,
) -> Result<Box<dyn RequestMatch>, Rejected> {
    cx.warn(cx.node(), super::NO_TLS);
    Ok(Box::new(MatchTls {
        handshake_complete: config.handshake_complete,
    }))
}
