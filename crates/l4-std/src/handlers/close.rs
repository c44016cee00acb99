use l4_core::EndReason;
use l4_core::prelude::*;
use serde::Deserialize;

/// Closes the connection at once.
///
/// Bytes the client sent and nobody read make the kernel reset a TCP connection; that is meant. On UDP the association
/// ends silently, so the next datagram of the same client is routed afresh.
pub struct Close;

/// `close` has no fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseConfig {}

impl HandlerModule for Close {
    const NAME: &'static str = "close";
    type Config = CloseConfig;

    fn provision(_: CloseConfig, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self)
    }
}

impl AsyncHandler for Close {
    async fn handle(&self, conn: Connection, _: Rest<'_>) -> Result<Flow> {
        conn.end(EndReason::Closed);
        Ok(Flow::Done)
    }

    fn terminal(&self) -> bool {
        true
    }
}
