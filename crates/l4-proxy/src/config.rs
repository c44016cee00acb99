//! Configuration of `proxy`.

use l4_core::prelude::*;
use serde::Deserialize;

/// Connects to an upstream and relays bytes, or datagrams, in both directions. Terminal.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyConfig {
    /// Upstreams to choose from; at least one.
    #[serde(default)]
    pub(crate) upstreams: Option<Vec<RawNode>>,
    /// How to choose among several upstreams, and how long to try.
    #[serde(default)]
    pub(crate) load_balancing: Option<LoadBalancingConfig>,
    /// How long connecting to one peer may take, name look-up included. Default `"10s"`; 0 is no limit.
    #[serde(default)]
    pub(crate) dial_timeout: Option<At<GoDuration>>,
    /// Ends a connection on which nothing has moved in either direction for this long. Default: no limit.
    #[serde(default)]
    pub(crate) idle_timeout: Option<At<GoDuration>>,
    /// After the upstream has ended its stream: how long the client may be silent before it is closed. Default
    /// `"60s"`; 0 is no limit.
    #[serde(default)]
    pub(crate) half_close_timeout: Option<At<GoDuration>>,
}

/// How to choose among several upstreams, and how long to try.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadBalancingConfig {
    /// The selection policy, such as `{"policy": "round_robin"}`. Default: `random`.
    #[serde(default)]
    pub(crate) selection: Option<RawNode>,
    /// How long to go on trying when no upstream can be connected to. Default 0: one attempt.
    #[serde(default)]
    pub(crate) try_duration: Option<At<GoDuration>>,
    /// How long to wait between attempts. Default `"250ms"`.
    #[serde(default)]
    pub(crate) try_interval: Option<At<GoDuration>>,
}

/// One upstream.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Addresses, `[network/]host:port`: `"10.0.0.1:443"`, `"udp/[2001:db8::1]:53"`, `"unix//run/app.sock"`.
    /// Placeholders are filled in per connection: `"{l4.tls.server_name}:443"`. See `dial_mode` for several.
    #[serde(default)]
    pub(crate) dial: Vec<At<String>>,
    /// What several addresses mean. `"all"`, the default: connect to every one, send all of them what the client sends,
    /// and merge their answers. `"first"`: try them in order until one connects.
    #[serde(default)]
    pub(crate) dial_mode: DialMode,
    /// The most connections this upstream gets at a time. Default 0: no limit.
    #[serde(default)]
    pub(crate) max_connections: Option<At<i64>>,
}

/// What several addresses of one upstream mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DialMode {
    /// Connect to every one.
    #[default]
    All,
    /// Try them in order until one connects.
    First,
}
