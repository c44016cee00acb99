//! PostgreSQL for Conncept: the matcher `postgres` and the handler `postgres_tls`.
//!
//! A client speaks first, and its first message has no type byte but a length and a code: a request for encryption or
//! cancellation, or a StartupMessage that names user and database. Nothing behind that message is looked at, and TLS
//! itself is another handler's. Start reading at [`MatchPostgres`], then [`FirstMessage`], then [`PostgresTls`].

mod matcher;
mod message;
mod tls;

pub use matcher::{MatchPostgres, PostgresConfig};
pub use message::{FirstMessage, Kind, Startup};
pub use tls::{PostgresTls, PostgresTlsConfig, Turn};

use l4_core::Registry;

/// Enters the modules of this crate.
pub fn register(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.matcher::<MatchPostgres>();
    reg.handler::<PostgresTls>();
    reg.page(include_str!("../docs/matchers/postgres.md"));
    reg.page(include_str!("../docs/handlers/postgres_tls.md"));
}
