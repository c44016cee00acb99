//! Route lists: compiled once, then walked for every connection.
//!
//! The rules, in short: routes are asked in strict order, and one is taken only when every earlier one has definitely
//! said no. While an earlier route is undecided nothing after it is considered, so the same bytes give the same route
//! however they are cut into segments. When no more bytes can come, undecided counts as no and the walk is finished.

mod index;
mod program;
mod set;

pub use program::{Program, RouteConfig, Routed};
pub use set::Sets;

/// How long a list waits for the bytes that decide it, unless configured.
pub const DEFAULT_MATCHING_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);
