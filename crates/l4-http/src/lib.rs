//! The `http` matcher: routes connections by the first HTTP request they carry, before anything answers it.
//!
//! HTTP/1 and HTTP/2 with prior knowledge are read as far as the end of the first header; the rest of the connection
//! is nobody's business here. This crate serves no HTTP, changes no byte and looks at no body.
//!
//! [`HttpHead`] is the request, parsed once per connection by pure functions: `head` reads HTTP/1, `h2` finds the
//! header block in HTTP/2 frames, `hpack` decodes it, `uri` takes targets apart and `query` queries. `matcher` has
//! `http` itself, and [`request_match`] what it asks of a request: an open namespace, `http.matchers`. `placeholder` lets
//! texts read the request.
//!
//! Start reading at [`HttpHead`], then `matcher`.

mod h2;
mod head;
mod hpack;
mod matcher;
mod placeholder;
mod query;
mod request;
pub mod request_match;
mod uri;

pub use matcher::{HttpConfig, MatchHttp};
pub use request::HttpHead;

/// Enters the modules and placeholders of this crate.
pub fn register(registry: &mut l4_core::Registry) {
    registry.origin(l4_core::origin!()).matcher::<MatchHttp>();
    registry.page(include_str!("../docs/matchers/http.md"));
    request_match::register(registry);
    placeholder::register(registry);
}
