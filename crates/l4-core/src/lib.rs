//! The engine of Conncept: a connection with its unread bytes, matchers that look at them, handlers that act on it,
//! and route lists that decide which handlers run.
//!
//! What is here: [`Connection`] and its metadata, [`Matcher`] and [`Handler`], the compiled route [`Program`],
//! the [`Registry`] that modules enter themselves in, and the configuration tree with its error messages.
//! What is not: sockets. Listening, dialling and relaying live in `l4-net`; each protocol lives in a crate of its own.
//!
//! Start reading at [`conn`], then [`matcher`], [`handler`] and [`route`]; a module author needs the [`prelude`]. What a
//! program around the engine is made of, and no module needs, is in [`engine`].

#![warn(missing_docs)]

mod app;
pub mod config;
pub mod conn;
mod embedded;
pub mod error;
mod generation;
pub mod handler;
pub mod matcher;
pub mod parsed;
pub mod placeholder;
pub mod provision;
#[cfg(feature = "regexp")]
pub mod regexp;
pub mod registry;
pub mod route;
pub mod schema;
mod server;
pub mod storage;
pub mod upstream;

pub use conn::{Addr, Connection, EndReason, Io, Layer, Record, Transport};
pub use error::{Error, Phase, Result, Side};
pub use generation::Generation;
pub use handler::{AsyncHandler, BoxFuture, Flow, Handler, Rest};
pub use matcher::{Cost, Dimension, Keys, Matcher, Verdict, View};
pub use parsed::{Fact, Parsed};
pub use placeholder::{Placeholder, Template};
pub use provision::{Provision, Rejected};
pub use registry::{AppModule, HandlerModule, Kind, MatcherModule, Origin, Registry};
pub use route::Program;
pub use schemars;
pub use storage::{Lease, Storage, Storages};

/// The parts of the engine that a program around it is made of: what loads a configuration, takes connections, and
/// counts them. For the crates of Conncept itself: modules need none of it, and it may change with every version.
pub mod engine {
    pub use crate::app::{App, DEFAULT_GRACE_PERIOD, Listen, Loaded};
    pub use crate::conn::{Raw, Record};
    pub use crate::embedded::Embedded;
    pub use crate::generation::Generation;
    pub use crate::server::{DEFAULT_IDLE_TIMEOUT, Leftover, Server};
}

/// What a module crate imports: all that a module of any namespace of this crate needs, or a namespace of one's own.
///
/// ```
/// use l4_core::prelude::*;
/// use schemars::JsonSchema;
/// use serde::Deserialize;
///
/// /// Matches a connection that begins with a text.
/// pub struct MatchStart(Vec<u8>);
///
/// #[derive(Deserialize, JsonSchema)]
/// #[serde(deny_unknown_fields)]
/// pub struct StartConfig {
///     /// The text, such as `"HELLO "`.
///     text: At<String>,
/// }
///
/// impl MatcherModule for MatchStart {
///     const NAME: &'static str = "start";
///     type Config = StartConfig;
///
///     fn provision(config: StartConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
///         if config.text.is_empty() {
///             return Err(cx.reject_help(config.text.node(), "the text is empty", "write what comes first"));
///         }
///         Ok(Self(config.text.as_bytes().to_vec()))
///     }
/// }
///
/// impl Matcher for MatchStart {
///     fn matches(&self, view: &mut View<'_>) -> Verdict {
///         Verdict::prefix(view.bytes(), &self.0)
///     }
/// }
///
/// pub fn register(reg: &mut Registry) {
///     reg.origin(l4_core::origin!());
///     reg.matcher::<MatchStart>();
/// }
/// # let mut reg = Registry::new();
/// # register(&mut reg);
/// # assert_eq!(reg.modules().next().unwrap().id, "layer4.matchers.start");
/// ```
pub mod prelude {
    pub use crate::config::{At, GoDuration, IpRanges, ModuleMap, Node, Raw as RawNode};
    pub use crate::conn::{Capture, DatagramFilter, Filtered, ReadLimit, Received, TlsInfo};
    pub use crate::placeholder::Scope;
    pub use crate::registry::{Apps, Handlers, Matchers};
    pub use crate::route::{Program, RouteConfig};
    pub use crate::schema::{InlineOf, MapOf};
    pub use crate::storage::{Lease, Storage, Storages};
    pub use crate::upstream::{Peer, PeerTransport, PeerTransports, Preamble, Preambles, Unfit};
    pub use crate::{
        Addr, AppModule, AsyncHandler, BoxFuture, Connection, Cost, Dimension, EndReason, Error,
        Fact, Flow, Generation, HandlerModule, Io, Keys, Kind, Layer, Matcher, MatcherModule,
        Origin, Parsed, Phase, Placeholder, Provision, Record, Registry, Rejected, Rest, Result,
        Side, Template, Transport, Verdict, View,
    };
}
