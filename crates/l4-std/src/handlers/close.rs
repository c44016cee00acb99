use std::time::Duration;

use l4_core::prelude::*;
use l4_core::{EndReason, Io};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

/// Closes the connection at once.
///
/// A TCP connection whose client has sent something is reset, whether that was read for matching, or ahead of it, or is
/// still with the kernel, which would reset it then. Inside TLS the client
/// is told first (`close_notify`). On UDP the association ends silently, so the next datagram of the same client is
/// routed afresh.
pub struct Close;

/// `close` has no fields.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CloseConfig {}

/// How long the end of a layer may take to be sent.
const FAREWELL: Duration = Duration::from_secs(1);

impl HandlerModule for Close {
    const NAME: &'static str = "close";
    type Config = CloseConfig;

    fn provision(_: CloseConfig, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self)
    }
}

impl AsyncHandler for Close {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        conn.end(EndReason::Closed);
        if matches!(conn.transport().io(), Io::Layer(_)) {
            // A client that takes nothing any more is not waited for.
            let _ = timeout(FAREWELL, conn.shutdown()).await;
        } else if !conn.unread().is_empty() {
            conn.transport().reset_on_close();
        }
        Ok(Flow::Done)
    }

    fn terminal(&self) -> bool {
        true
    }
}
