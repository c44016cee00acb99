//! Layer-4 routes in front of a listener of your own: what no route takes is yours.
//!
//! [`Routes`] are loaded from the JSON of Conncept and wrapped around a listener. Every connection is routed in a task of
//! its own; what a route's last handler keeps is served there, and the rest comes out of [`Routed::accept`] as a
//! [`Yielded`], with every byte that was looked at in front.
//!
//! ```
//! use l4_embed::{Registry, Routes};
//! use tokio::io::AsyncReadExt as _;
//! use tokio::net::{TcpListener, TcpStream};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut registry = Registry::new();
//! l4_std::register(&mut registry);
//! let routes = Routes::from_json(
//!     &registry,
//!     r#"[{"match": [{"remote_ip": {"ranges": ["192.0.2.0/24"]}}], "handle": [{"handler": "close"}]}]"#,
//! )?;
//! let mut routed = routes.wrap(TcpListener::bind("127.0.0.1:0").await?);
//! # let to = routed.local_addr()?.socket().unwrap();
//! # tokio::spawn(async move {
//! #     use tokio::io::AsyncWriteExt as _;
//! #     TcpStream::connect(to).await.unwrap().write_all(b"hello").await.unwrap();
//! # });
//! let (mut stream, _from) = routed.accept().await?;
//! let mut said = String::new();
//! stream.read_to_string(&mut said).await?;
//! assert_eq!(said, "hello");
//! # Ok(())
//! # }
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run()).unwrap();
//! ```
//!
//! What is here: the wrapper, and [`Listener`] for what it can be put around. What is not: sockets of one's own, and
//! modules; those that the routes name are entered in the [`Registry`] by the crates that have them.
//!
//! Start reading at [`Routes`].

mod listener;
mod routed;
mod trouble;
mod yielded;

use std::path::Path;

pub use l4_core::config::{ConfigError, Errors};
pub use l4_core::conn::TlsInfo;
pub use l4_core::{Addr, Connection, Io, Registry};

use l4_core::config::Document;
use l4_core::engine::Embedded;

pub use listener::{Accepted, Listener};
pub use routed::{Control, Routed};
pub use yielded::Yielded;

/// A list of routes, loaded and checked. Nothing of it runs before it is [wrapped](Self::wrap) around a listener.
///
/// The JSON is a list of routes, or an object as a server has it, without `listen`; [all its members] are in the manual.
///
/// [all its members]: https://github.com/conncept/conncept/blob/main/docs/embedding.md#routes-in-front-of-a-listener
pub struct Routes {
    pub(crate) embedded: Embedded,
    pub(crate) max_pending: usize,
}

impl Routes {
    /// How many connections may be pending, unless [`max_pending`](Self::max_pending) says otherwise.
    pub const DEFAULT_MAX_PENDING: usize = 4096;

    /// Loads the JSON text `json` with the modules of `registry`.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its place and what would be right.
    pub fn from_json(registry: &Registry, json: &str) -> Result<Self, Errors> {
        Self::load(registry, "routes", json.as_bytes())
    }

    /// Loads a JSON file with the modules of `registry`. Reads it at once, so call it before there is something to block.
    ///
    /// # Errors
    /// It cannot be read, or everything that is wrong with it, as line and column of the file.
    pub fn from_file(registry: &Registry, path: impl AsRef<Path>) -> Result<Self, Errors> {
        let path = path.as_ref();
        let name = path.display().to_string();
        match std::fs::read(path) {
            Ok(text) => Self::load(registry, &name, &text),
            Err(error) => Err(ConfigError::without_place(name, error.to_string()).into()),
        }
    }

    fn load(registry: &Registry, name: &str, text: &[u8]) -> Result<Self, Errors> {
        let document = Document::parse(name, text)?;
        Ok(Self {
            embedded: Embedded::load(&document, registry)?,
            max_pending: Self::DEFAULT_MAX_PENDING,
        })
    }

    /// What loads but will hardly do what was meant, such as a route that can never be reached.
    pub fn warnings(&self) -> &[ConfigError] {
        &self.embedded.warnings
    }

    /// How many connections may be pending at a time, at least one: those that a route is being looked for, those that
    /// a handler is still busy with itself, and those that wait for [`Routed::accept`]. While there are so many, others
    /// wait in the listener's own queue. What a handler relays does not count.
    #[must_use]
    pub fn max_pending(mut self, connections: usize) -> Self {
        self.max_pending = connections;
        self
    }

    /// Puts the routes in front of `listener` and begins to accept. To be called within the runtime.
    pub fn wrap(self, listener: impl Listener) -> Routed {
        Routed::new(self, listener)
    }
}
