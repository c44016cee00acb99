//! Whether a peer works: what checks found out, and what connections met.

pub(crate) mod active;
pub(crate) mod passive;

use l4_core::prelude::*;

use crate::config::HealthChecksConfig;
use active::Active;
use passive::Passive;

/// The checks of one handler.
#[derive(Default)]
pub(crate) struct HealthChecks {
    pub(crate) active: Option<Active>,
    pub(crate) passive: Option<Passive>,
    /// For upstreams that set no limit themselves.
    pub(crate) max_connections: Option<usize>,
}

impl HealthChecks {
    pub(crate) fn provision(
        config: HealthChecksConfig,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let active = config
            .active
            .map(|config| Active::provision(config, cx))
            .transpose();
        let config = config.passive.unwrap_or_default();
        let max_connections = connection_limit(&config.unhealthy_connection_count, cx);
        let passive = Passive::provision(config, cx);
        Ok(Self {
            active: active?,
            passive: passive?,
            max_connections: max_connections?,
        })
    }
}

/// A limit of connections, where 0 is none.
pub(crate) fn connection_limit(
    limit: &Option<At<i64>>,
    cx: &mut Provision<'_>,
) -> Result<Option<usize>, Rejected> {
    let Some(limit) = limit else {
        return Ok(None);
    };
    match usize::try_from(**limit) {
        Ok(0) => Ok(None),
        Ok(limit) => Ok(Some(limit)),
        Err(_) => Err(cx.reject_help(
            limit.node(),
            format!("{} connections are never available", **limit),
            "write how many connections are allowed, or 0 for no limit",
        )),
    }
}
