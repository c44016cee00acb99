//! Errors that end a connection, classified for operators.

use std::error::Error as StdError;
use std::fmt;

use crate::conn::EndReason;

/// The result of a handler.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The peer that connected to us.
    Client,
    /// A server we connected to.
    Upstream,
    /// Ours: configuration or a bug.
    Internal,
}

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Waiting for the bytes that decide a route.
    Match,
    /// Negotiating a protocol (TLS, SOCKS, PROXY header).
    Handshake,
    /// Connecting to an upstream.
    Dial,
    /// Moving bytes.
    Relay,
    /// Anything else a handler does.
    Handle,
}

/// Why a handler gave up on a connection. One word wide, so that `Result<Flow>` stays two.
pub struct Error(Box<Inner>);

struct Inner {
    side: Side,
    phase: Phase,
    reason: EndReason,
    source: Box<dyn StdError + Send + Sync>,
}

impl Error {
    /// An error on `side` during `phase`; the access record shows `reason`.
    pub fn new(
        side: Side,
        phase: Phase,
        reason: EndReason,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self(Box::new(Inner {
            side,
            phase,
            reason,
            source: source.into(),
        }))
    }

    /// The client did something wrong or went away.
    pub fn client(phase: Phase, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Side::Client, phase, EndReason::ClientError, source)
    }

    /// Whose fault it was.
    pub fn side(&self) -> Side {
        self.0.side
    }

    /// What was being done.
    pub fn phase(&self) -> Phase {
        self.0.phase
    }

    /// What the access record shows.
    pub fn reason(&self) -> EndReason {
        self.0.reason
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.source)?;
        let mut cause = self.0.source.source();
        while let Some(inner) = cause {
            write!(f, ": {inner}")?;
            cause = inner.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("side", &self.0.side)
            .field("phase", &self.0.phase)
            .field("reason", &self.0.reason)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.source()
    }
}

impl From<std::io::Error> for Error {
    /// An I/O error of the client's side while handling; upstream errors are made with [`Error::new`].
    fn from(error: std::io::Error) -> Self {
        let reason = match error.kind() {
            std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe => {
                EndReason::ClientReset
            }
            _ => EndReason::ClientError,
        };
        Self::new(Side::Client, Phase::Handle, reason, error)
    }
}
