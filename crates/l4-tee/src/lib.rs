//! The `tee` handler: a second chain of handlers, the branch, gets what the client sends, beside the main one.
//!
//! * [`fanout`]: two ends of one client. Pure polling, no task and no clock.
//! * [`handler`]: the configuration, and the task that the branch runs in.
//!
//! Every byte reaches each side exactly once, in order. The main side reads; what it read and the branch has not taken
//! yet is at most [`fanout::BUFFER`], and then the main side waits.

pub mod fanout;
pub mod handler;

use l4_core::Registry;

pub use handler::Tee;

/// Enters the handler.
pub fn register(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.handler::<Tee>();
    reg.page(include_str!("../docs/handlers/tee.md"));
}
