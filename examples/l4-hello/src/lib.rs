//! A small protocol for Conncept: the matcher `hello` and the handler `hello`.
//!
//! A client introduces itself with one line, `HELLO name`, and may then speak any other protocol. The matcher routes by
//! the name, the handler takes the line off the connection and answers it; what follows is for the handlers behind it.
//!
//! Start reading at [`Greeting`], the parser both share.

mod greeting;
mod handler;
mod matcher;

pub use greeting::Greeting;
pub use handler::{Answer, AnswerConfig};
pub use matcher::{MatchHello, MatchHelloConfig};

use l4_core::prelude::*;

/// Enters the modules of this crate.
pub fn register(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.matcher::<MatchHello>().handler::<Answer>();
}
