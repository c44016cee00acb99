//! PostgreSQL for Conncept: the matcher `postgres`.
//!
//! A client speaks first, and its first message has no type byte but a length and a code: a request for encryption or
//! cancellation, or a StartupMessage that names user and database. Nothing behind that message is looked at. Start
//! reading at [`MatchPostgres`], then [`FirstMessage`].

mod matcher;
mod message;

pub use matcher::{MatchPostgres, PostgresConfig};
pub use message::{FirstMessage, Kind, Startup};

use l4_core::Registry;

/// Enters the modules of this crate.
pub fn register(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.matcher::<MatchPostgres>();
}
