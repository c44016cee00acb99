//! Handlers: what is done with a connection, one after the other.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Connection, Result};

/// A boxed future, as handlers return it to the engine.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How a handler leaves a connection.
pub enum Flow {
    /// Go on with the next handler of the chain, then with the routes that follow.
    Next(Connection),
    /// The connection is over.
    Done,
}

/// What module authors implement.
///
/// A handler gets the connection and gives it back with [`Flow::Next`], or keeps it until its end and answers
/// [`Flow::Done`]. Its own state is freed before the next handler runs, so a handshake costs nothing while the
/// connection is being relayed for hours.
///
/// # Cancellation
/// Dropping the future is how a connection is ended at shutdown. Hold nothing that needs an async clean-up.
///
/// ```
/// use l4_core::prelude::*;
///
/// /// Says hello before and goodbye after what follows in the chain.
/// struct Polite;
///
/// impl AsyncHandler for Polite {
///     async fn handle(&self, mut conn: Connection, rest: Rest<'_>) -> Result<Flow> {
///         conn.send(b"hello\n").await?;
///         match rest.run(conn).await? {
///             Flow::Next(mut conn) => {
///                 conn.send(b"goodbye\n").await?;
///                 Ok(Flow::Next(conn))
///             }
///             Flow::Done => Ok(Flow::Done),
///         }
///     }
/// }
/// ```
pub trait AsyncHandler: Send + Sync + 'static {
    /// Handles `conn`. `rest` is what follows in the chain; only a handler that must act *around* the others needs it.
    fn handle(&self, conn: Connection, rest: Rest<'_>)
    -> impl Future<Output = Result<Flow>> + Send;

    /// Whether it never answers [`Flow::Next`], so that nothing after it can be reached.
    fn terminal(&self) -> bool {
        false
    }
}

/// What the engine stores; implemented for every [`AsyncHandler`].
pub trait Handler: Send + Sync + 'static {
    /// See [`AsyncHandler::handle`].
    fn handle_boxed<'a>(&'a self, conn: Connection, rest: Rest<'a>) -> BoxFuture<'a, Result<Flow>>;

    /// See [`AsyncHandler::terminal`].
    fn is_terminal(&self) -> bool;
}

impl<H: AsyncHandler> Handler for H {
    fn handle_boxed<'a>(&'a self, conn: Connection, rest: Rest<'a>) -> BoxFuture<'a, Result<Flow>> {
        Box::pin(self.handle(conn, rest))
    }

    fn is_terminal(&self) -> bool {
        self.terminal()
    }
}

/// The handlers that follow in a chain.
///
/// A handler that acts around them runs them itself. What it gives back with [`Flow::Next`] then goes on behind the
/// chain, because each handler runs at most once.
pub struct Rest<'a> {
    chain: &'a [Box<dyn Handler>],
    /// Where the handler that was given these says that it ran them.
    ran: Option<&'a AtomicBool>,
}

impl<'a> Rest<'a> {
    /// A chain to run.
    pub fn new(chain: &'a [Box<dyn Handler>]) -> Self {
        Self { chain, ran: None }
    }

    /// Runs the handlers one after the other; each one's state is freed before the next starts.
    ///
    /// # Errors
    /// The first error of a handler ends the chain.
    pub async fn run(self, mut conn: Connection) -> Result<Flow> {
        if let Some(ran) = self.ran {
            ran.store(true, Ordering::Relaxed);
        }
        let ran = AtomicBool::new(false);
        for (i, handler) in self.chain.iter().enumerate() {
            let rest = Rest {
                chain: &self.chain[i + 1..],
                ran: Some(&ran),
            };
            match handler.handle_boxed(conn, rest).await? {
                Flow::Next(next) if ran.load(Ordering::Relaxed) => return Ok(Flow::Next(next)),
                Flow::Next(next) => conn = next,
                Flow::Done => return Ok(Flow::Done),
            }
        }
        Ok(Flow::Next(conn))
    }
}
