//! Configuration text, from bytes to typed values, with a place for every complaint.
//!
//! A configuration is one JSON value. It is read in two steps:
//!
//! 1. [`Document::parse`] turns bytes into a tree whose every [`Node`] knows its JSON pointer, its
//!    line and its column. It is strict: no comments, no trailing commas, no duplicate keys.
//! 2. [`decode`] turns one node into one Rust type through serde and reports every error it finds,
//!    each with the place in the text, what was expected there in words of JSON, and the nearest
//!    valid name.
//!
//! Parts whose type is known only at run time (the module in a route's `handle` list, the matchers
//! of a set) stay undecoded in step 2: [`Raw`], [`ModuleMap`] and [`At`] keep their nodes, and the
//! module that owns them decodes them later with the same function and the same quality of message.
//!
//! The small languages inside the strings live here too: [`GoDuration`] (`"1m30s"`) and
//! [`Address`] (`"udp/:53"`, `"unix//run/a.sock|0660"`).
//!
//! Not here: what the settings mean. Which modules exist, how they are provisioned and how
//! placeholders are replaced is decided elsewhere; nothing in this module opens a file, a socket or
//! a clock.
//!
//! Start reading at [`Document`], then [`decode`], then [`ConfigError`].

mod address;
mod de;
mod document;
mod duration;
mod error;
mod fault;
mod ip_ranges;
mod node;
mod source;
pub mod suggest;
mod syntax;

pub use self::address::{Address, AddressDefaults, AddressError, Family, Network, PortRange};
pub(crate) use self::de::decode_beside;
pub use self::de::{decode, decode_sound};
pub use self::document::{Document, Node, Value};
pub use self::duration::{DurationError, GoDuration};
pub use self::error::{ConfigError, Errors};
pub use self::ip_ranges::IpRanges;
pub use self::node::{At, ModuleMap, Raw};
pub use self::source::Position;
