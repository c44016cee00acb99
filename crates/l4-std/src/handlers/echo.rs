use l4_core::conn::Received;
use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;

/// Sends every byte back until the client ends its stream; on UDP every datagram, until the association is idle.
pub struct Echo;

/// `echo` has no fields.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EchoConfig {}

/// The largest datagram there is; a stream is echoed in pieces of this size at most.
const BUFFER: usize = 65_535;

/// Streams start with a small buffer: most connections to an echo service are checks.
const SMALL_BUFFER: usize = 4096;

impl HandlerModule for Echo {
    const NAME: &'static str = "echo";
    type Config = EchoConfig;

    fn provision(_: EchoConfig, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self)
    }
}

impl AsyncHandler for Echo {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        let mut buffer = vec![
            0;
            if conn.is_datagram() {
                BUFFER
            } else {
                SMALL_BUFFER
            }
        ];
        while let Received::Data(n) = conn.receive(&mut buffer).await? {
            conn.send(&buffer[..n]).await?;
            conn.flush().await?;
            if n == buffer.len() && n < BUFFER {
                buffer = vec![0; BUFFER];
            }
        }
        conn.shutdown().await?;
        Ok(Flow::Done)
    }

    fn terminal(&self) -> bool {
        true
    }
}
