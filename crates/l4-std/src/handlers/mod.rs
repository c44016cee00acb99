//! Handlers that belong to no protocol.

mod close;
mod echo;
mod respond;
mod subroute;
mod vars;

pub use close::{Close, CloseConfig};
pub use echo::{Echo, EchoConfig};
pub use respond::{Respond, RespondConfig};
pub use subroute::{Subroute, SubrouteConfig};
pub use vars::SetVars;
