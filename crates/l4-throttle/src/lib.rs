//! The `throttle` handler: limits how fast bytes are read from clients, each for itself and all together.
//!
//! * [`limiter`]: a token bucket as a value, with time passed in.
//! * [`handler`]: the configuration, and the limit that a connection's transport asks before each read.
//!
//! It stacks nothing on the connection: half-close, resets and datagrams pass as if it were not there. Writing to
//! clients is never limited.

pub mod handler;
pub mod limiter;

use l4_core::Registry;

pub use handler::Throttle;

/// Enters the handler.
pub fn register(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.handler::<Throttle>();
    reg.page(include_str!("../docs/handlers/throttle.md"));
}
