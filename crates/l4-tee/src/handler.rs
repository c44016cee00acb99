//! The handler, and the task that its branch runs in.

use std::sync::Arc;
use std::time::Duration;

use l4_core::prelude::*;
use l4_core::registry::Handlers;
use l4_core::schema::InlineOf;
use l4_core::{Handler, Side};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::sleep;
use tracing::{debug, error};

use crate::fanout::split;

/// The `tee` handler.
pub struct Tee {
    branch: Arc<[Box<dyn Handler>]>,
}

/// Gives what the client sends to a second chain of handlers, too, which runs beside the handlers that follow.
///
/// Both chains may answer the client. The chain that follows sets the pace: a branch that stops reading without ending
/// stops it after 64 KiB. A branch that ends or fails is left behind, and the connection goes on without it; when the
/// connection ends, the branch gets what was read until then, the end of the stream, and a minute to finish. The
/// branch starts with a copy of the variables. On UDP both chains get every datagram.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TeeConfig {
    /// The handlers of the branch, run in this order; a terminal one ends it. Default: none, which does nothing.
    /// Example: `[{"handler": "proxy", "upstreams": [{"dial": ["127.0.0.1:9000"]}]}]`.
    #[serde(default)]
    #[schemars(with = "Option<Vec<InlineOf<Handlers>>>")]
    branch: Option<Vec<RawNode>>,
}

/// How long the branch may take to finish when the connection is over.
const FAREWELL: Duration = Duration::from_secs(60);

impl HandlerModule for Tee {
    const NAME: &'static str = "tee";
    type Config = TeeConfig;

    fn provision(config: TeeConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let nodes = config.branch.unwrap_or_default();
        let branch = cx.all(&nodes, |cx, handler| {
            cx.inline::<Handlers>(handler.node(), "handler")
        })?;
        if branch.is_empty() {
            cx.warn(cx.node(), "tee without handlers in its branch does nothing");
        }
        let terminal = branch.iter().position(|handler| handler.is_terminal());
        if let Some(node) = terminal.and_then(|i| nodes.get(i + 1)) {
            cx.warn(
                node.node(),
                "this handler can never be reached: the one before it ends the branch",
            );
        }
        Ok(Self {
            branch: branch.into(),
        })
    }
}

impl AsyncHandler for Tee {
    async fn handle(&self, conn: Connection, _: Rest<'_>) -> Result<Flow> {
        if self.branch.is_empty() {
            return Ok(Flow::Next(conn));
        }
        let mut over = None;
        let (main, branch) = conn.fork(|below| {
            let (main, branch, gone) = split(below);
            over = Some(gone);
            (main, branch)
        });
        let handlers = self.branch.clone();
        main.spawn_beside(async move {
            let farewell = async {
                if let Some(over) = over {
                    // Nothing is ever sent: it ends when the other side is dropped.
                    let _ = over.await;
                }
                sleep(FAREWELL).await;
            };
            // Cancel safe: a handler is ended by dropping it, and nothing follows.
            tokio::select! {
                () = run(&handlers, branch) => {}
                () = farewell => {}
            }
        });
        Ok(Flow::Next(main))
    }
}

async fn run(handlers: &[Box<dyn Handler>], branch: Connection) {
    let record = branch.record().clone();
    let remote = branch.remote().clone();
    let Err(failure) = Rest::new(handlers).run(branch).await else {
        return;
    };
    let conn = record.id();
    // That the client is gone, or that the main chain ended before the branch, is nothing to be alarmed about.
    if failure.side() == Side::Client {
        debug!(
            target: "layer4.handlers.tee",
            conn, %remote, error = %failure, "handling connection in branch"
        );
    } else {
        error!(
            target: "layer4.handlers.tee",
            conn, %remote, error = %failure, "handling connection in branch"
        );
    }
}
