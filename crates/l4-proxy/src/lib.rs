//! The `proxy` handler: chooses an upstream, connects to it, and relays.
//!
//! * `config`: what operators write, and its checks.
//! * `dial`: addresses of peers, fixed or made per connection from placeholders.
//! * [`upstream`]: an upstream and whether it can take a connection, which is what a policy asks.
//! * `source`: which of our addresses, and which IP version, a peer is connected to with.
//! * `preamble`: what a peer is told before the payload.
//! * `peer`: the state of a peer, shared by everything that uses the same address.
//! * `health`: checks that connect on their own, and failures that connections met.
//! * [`policy`]: which upstream is next; the namespace `layer4.proxy.selection_policies` is open to other crates.
//! * `first_answer`: notices an upstream that does not speak the HTTP/2 that clients were told it does.
//! * `handler`: the attempt loop around them.
//!
//! Moving bytes is not here: that is `l4_net::relay`.

mod config;
mod dial;
mod first_answer;
mod handler;
mod health;
mod peer;
pub mod policy;
mod preamble;
mod source;
pub mod upstream;

use l4_core::Registry;

use handler::Proxy;

/// Enters the handler and the selection policies of this crate.
pub fn register(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.handler::<Proxy>();
    reg.page(include_str!("../docs/handlers/proxy.md"));
    policy::register(reg);
}
