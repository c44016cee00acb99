//! Sockets for Conncept: listening, accepting, dialling, relaying, datagram sessions.
//!
//! What is here: `pool` owns every listening socket across reloads; `limits` says how many connections there may be;
//! [`dial`] connects to upstreams; [`relay`] moves the bytes; [`udp`] turns the datagrams of one socket into sessions.
//! What is not: configuration, routing and protocols. This crate sees addresses that were parsed and a
//! [`Server`](l4_core::engine::Server) that takes a connection; which bytes mean what is no concern of it.
//!
//! *Invariant:* this is the only crate with `unsafe` code, and there only where system calls are made and descriptors
//! change hands.
//!
//! Start reading at [`ListenerPool`], then `accept.rs`, then [`dial::connect`].

mod accept;
mod datagrams;
pub mod dial;
mod keepalive;
mod limits;
mod listener;
mod owner;
mod pool;
pub mod relay;
mod segments;
mod seqpacket;
mod shards;
pub mod sockopt;
pub mod udp;

pub use limits::{ConnectionLimit, Extra};
pub use listener::ListenError;
pub use pool::{BindError, ListenerPool, Listening, Staged};
pub use shards::Shards;
