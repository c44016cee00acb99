//! The engine of Conncept: a connection with its unread bytes, matchers that look at them, handlers that act on it,
//! and route lists that decide which handlers run.
//!
//! What is here: [`Connection`] and its metadata, [`Matcher`] and [`Handler`], the compiled route [`Program`],
//! the [`Registry`] that modules enter themselves in, and the configuration tree with its error messages.
//! What is not: sockets. Listening, dialling and relaying live in `l4-net`; each protocol lives in a crate of its own.
//!
//! Start reading at [`conn`], then [`matcher`], [`handler`] and [`route`]; a module author needs the [`prelude`].

pub mod app;
pub mod config;
pub mod conn;
pub mod error;
pub mod generation;
pub mod handler;
pub mod matcher;
pub mod parsed;
pub mod placeholder;
pub mod provision;
pub mod regexp;
pub mod registry;
pub mod route;
pub mod server;
pub mod storage;
pub mod upstream;

pub use app::{App, Listen, Loaded};
pub use conn::{Addr, Connection, EndReason, Io, Layer, Raw, Record, Transport};
pub use error::{Error, Phase, Result, Side};
pub use generation::Generation;
pub use handler::{AsyncHandler, BoxFuture, Flow, Handler, Rest};
pub use matcher::{Cost, Dimension, Keys, Matcher, Verdict, View};
pub use parsed::{Fact, Parsed};
pub use placeholder::{Placeholder, Template};
pub use provision::{Provision, Rejected};
pub use registry::{AppModule, HandlerModule, Kind, MatcherModule, Origin, Registry};
pub use route::Program;
pub use server::Server;
pub use storage::{Lease, Storage, Storages};

/// What a module crate imports.
pub mod prelude {
    pub use crate::config::{At, GoDuration, ModuleMap, Raw as RawNode};
    pub use crate::{
        AsyncHandler, Connection, Cost, Fact, Flow, HandlerModule, Matcher, MatcherModule, Parsed,
        Provision, Registry, Rejected, Rest, Result, Template, Verdict, View,
    };
}
