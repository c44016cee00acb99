use l4_core::Program;
use l4_core::prelude::*;
use l4_core::route::RouteConfig;
use schemars::JsonSchema;
use serde::Deserialize;

/// Routes inside a route: runs a list of its own on the connection, with the bytes read so far.
///
/// A terminal handler inside ends the connection. If no route matched, or the last one that did was not terminal, the
/// handlers after the subroute run. A list that could not be decided in time ends the connection.
pub struct Subroute {
    program: Program,
}

/// Configuration of `subroute`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubrouteConfig {
    /// Routes, asked in this order, as in a server. Default: none.
    #[serde(default)]
    #[schemars(with = "Option<Vec<RouteConfig>>")]
    routes: Option<Vec<RawNode>>,
    /// How long this list waits for the bytes that decide it. Its clock is its own: the outer list's stands still
    /// meanwhile. Default: `"3s"`.
    #[serde(default)]
    matching_timeout: Option<GoDuration>,
}

impl HandlerModule for Subroute {
    const NAME: &'static str = "subroute";
    type Config = SubrouteConfig;

    fn provision(config: SubrouteConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let routes = config.routes.unwrap_or_default();
        Ok(Self {
            program: Program::provision(&routes, config.matching_timeout, cx)?,
        })
    }
}

impl AsyncHandler for Subroute {
    async fn handle(&self, conn: Connection, _: Rest<'_>) -> Result<Flow> {
        self.program.run(conn).await
    }
}
