use std::time::Duration;

use l4_core::EndReason;
use l4_core::conn::Received;
use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

/// Sends a fixed text and closes: health checks, refusals with a reason, "what did you see" answers.
///
/// After the text our direction is ended, and what the client still sends is read and dropped for a moment, because
/// closing a TCP socket with unread input resets it, and a reset can destroy the text before the client has read it.
pub struct Respond {
    body: Template,
}

/// Configuration of `respond`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RespondConfig {
    /// The text to send, with placeholders, such as `"hello {l4.conn.remote_addr}\r\n"`. On UDP it is one datagram.
    /// Default: empty.
    #[serde(default)]
    body: Option<At<String>>,
}

/// How long and how much is read after the text before the connection is closed for good.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 256 * 1024;

impl HandlerModule for Respond {
    const NAME: &'static str = "respond";
    type Config = RespondConfig;

    fn provision(config: RespondConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let body = match &config.body {
            Some(body) => cx.template(body)?,
            None => cx.template_at("", cx.node())?,
        };
        Ok(Self { body })
    }
}

impl AsyncHandler for Respond {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        let body = conn.expand(&self.body).into_owned();
        conn.send(body.as_bytes()).await?;
        conn.shutdown().await?;
        conn.end(EndReason::Completed);
        if !conn.is_datagram() {
            // Whatever goes wrong from here on, the text is out.
            let _ = timeout(LINGER, drain(&mut conn)).await;
        }
        Ok(Flow::Done)
    }

    fn terminal(&self) -> bool {
        true
    }
}

async fn drain(conn: &mut Connection) {
    let mut scratch = [0; 1024];
    let mut left = LINGER_BYTES;
    while left > 0 {
        match conn.receive(&mut scratch).await {
            Ok(Received::Data(n)) => left = left.saturating_sub(n),
            Ok(Received::End) | Err(_) => return,
        }
    }
}
