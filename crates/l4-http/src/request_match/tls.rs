//! `http.matchers.tls`

use l4_core::{Cost, Provision, Rejected};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Request, RequestMatch};

/// Requests that came through TLS which the handler `tls` has ended: `{}`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsConfig {
    /// Whether the handshake must be complete, such as `true`. At layer 4 it always is before a request can be read, so
    /// `false` never matches. Default: either.
    #[serde(default)]
    handshake_complete: Option<bool>,
}

struct MatchTls {
    possible: bool,
}

impl RequestMatch for MatchTls {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        self.possible && request.is_tls()
    }

    fn cost(&self) -> Cost {
        Cost::Meta
    }
}

pub(super) fn provision(
    config: TlsConfig,
    cx: &mut Provision<'_>,
) -> Result<Box<dyn RequestMatch>, Rejected> {
    let possible = config.handshake_complete != Some(false);
    if !possible {
        let node = cx.node();
        let at = cx
            .document()
            .member(node, "handshake_complete")
            .unwrap_or(node);
        cx.warn(
            at,
            "never matches: no request is read before the handshake is complete",
        );
    }
    Ok(Box::new(MatchTls { possible }))
}
