//! Configuration of `proxy`.

use l4_core::prelude::*;
use l4_core::schema::{self, InlineOf};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

use crate::policy::SelectionPolicies;

/// Connects to an upstream and relays bytes, or datagrams, in both directions. Terminal.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProxyConfig {
    /// Upstreams to choose from; at least one.
    #[serde(default)]
    #[schemars(with = "Option<Vec<UpstreamConfig>>")]
    pub(crate) upstreams: Option<Vec<RawNode>>,
    /// How to choose among several upstreams, and how long to try. Default: one attempt with a random one.
    #[serde(default)]
    pub(crate) load_balancing: Option<LoadBalancingConfig>,
    /// Keeps connections away from upstreams that do not work. Default: none.
    #[serde(default)]
    pub(crate) health_checks: Option<HealthChecksConfig>,
    /// How long one dial may take, name look-up included; TLS has a limit of its own. 0 is no limit. Default: `"10s"`.
    #[serde(default)]
    pub(crate) dial_timeout: Option<At<GoDuration>>,
    /// Ends a connection on which nothing has moved in either direction for this long. Default: no limit.
    #[serde(default)]
    pub(crate) idle_timeout: Option<At<GoDuration>>,
    /// Tells peers who the client is, by a PROXY protocol header in front of what it sends: `"v1"`, a line of text, or
    /// `"v2"`, binary, which also knows UDP and Unix sockets. A stream begins with it; every datagram has it in front.
    /// Global placeholders are filled in at load. Default: none.
    #[serde(default)]
    #[schemars(extend("examples" = ["v1", "v2"]))]
    pub(crate) proxy_protocol: Option<At<String>>,
    /// After the upstream has ended its stream: how long the client may be silent before it is closed. 0 is no limit.
    /// It counts from when the client has taken what is kept for it here: a download may be paused. Clients that never
    /// read on are ended by `idle_timeout` only. Default: `"60s"`.
    #[serde(default)]
    pub(crate) half_close_timeout: Option<At<GoDuration>>,
}

/// How to choose among several upstreams, and how long to try.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoadBalancingConfig {
    /// The selection policy, such as `{"policy": "round_robin"}`. Default: `{"policy": "random"}`.
    #[serde(default)]
    #[schemars(with = "Option<InlineOf<SelectionPolicies>>")]
    pub(crate) selection: Option<RawNode>,
    /// How long to go on trying when no upstream can be connected to. A dial ends with it, too. Default: 0, one
    /// attempt.
    #[serde(default)]
    pub(crate) try_duration: Option<At<GoDuration>>,
    /// How long to wait between attempts. 0 is the default. Default: `"250ms"`.
    #[serde(default)]
    pub(crate) try_interval: Option<At<GoDuration>>,
}

/// One upstream.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpstreamConfig {
    /// At least one address, `[network/]host:port`: `"10.0.0.1:443"`, `"udp/[2001:db8::1]:53"`, `"unix//run/app.sock"`.
    /// Placeholders are filled in per connection: `"{l4.tls.server_name}:443"`. See `dial_mode` for several.
    #[serde(default)]
    pub(crate) dial: Vec<At<String>>,
    /// What several addresses mean. `"all"`: connect to every one, send all of them what the client sends, and merge
    /// their answers. `"first"`: try them in order until one connects. Default: `"all"`.
    #[serde(default)]
    pub(crate) dial_mode: DialMode,
    /// TLS on the connections to this upstream; `{}` verifies its certificate against the authorities of the system.
    /// Default: none.
    #[serde(default)]
    #[schemars(schema_with = "tls_schema")]
    pub(crate) tls: Option<RawNode>,
    /// The most connections to each of its addresses at a time, those of other handlers to the same address included.
    /// One that is full is not chosen. Default: 0, no limit.
    #[serde(default)]
    pub(crate) max_connections: Option<At<i64>>,
    /// Addresses of this machine to connect from, `"10.0.0.9"`, `"10.0.0.9:5000"` or `"[2001:db8::9]:5000"`. Those of
    /// the IP version that is connected to are tried in order; if there is none, the system chooses. Global
    /// placeholders are filled in at load, others per connection. Not with Unix sockets. Default: the system chooses.
    #[serde(default)]
    pub(crate) local_address: Vec<At<String>>,
    /// Which IP version to connect to. `…_first` takes the other one if the name has only that. Without it both are
    /// tried, beginning with the system's choice; with `local_address`, that of the first entry if the name has it.
    /// Default: both, a little staggered, in the order of the system's resolver.
    #[serde(default)]
    #[schemars(extend("enum" = ["ipv4_only", "ipv6_only", "ipv4_first", "ipv6_first", ""]))]
    pub(crate) resolver_preference: Option<At<String>>,
    /// The share of connections it gets under the policy `weighted_round_robin`, such as `3` beside others with `1`.
    /// Less is 1. Default: 1.
    #[serde(default)]
    pub(crate) weight: Option<At<i64>>,
}

/// What several addresses of one upstream mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DialMode {
    /// Connect to every one.
    #[default]
    All,
    /// Try them in order until one connects.
    First,
}

/// How to find out that an upstream does not work.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HealthChecksConfig {
    /// Connects to every peer again and again; `{}` does so with the defaults. Addresses with placeholders of the
    /// connection are left out. Default: off.
    #[serde(default)]
    pub(crate) active: Option<ActiveConfig>,
    /// Learns from connections that could not be made. Default: off.
    #[serde(default)]
    pub(crate) passive: Option<PassiveConfig>,
}

/// Checks that connect to every peer, send nothing, and close.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ActiveConfig {
    /// Another port to connect to than the one connections use, such as `8080`. Default: 0, that of the address.
    #[serde(default)]
    pub(crate) port: Option<At<i64>>,
    /// From one check of a peer to its next. The first is made at once. Default: `"30s"`.
    #[serde(default)]
    pub(crate) interval: Option<At<GoDuration>>,
    /// How long connecting may take. Default: `"5s"`.
    #[serde(default)]
    pub(crate) timeout: Option<At<GoDuration>>,
    /// How many checks in a row must fail before the peer is down. Default: 1.
    #[serde(default)]
    pub(crate) fall: Option<At<i64>>,
    /// How many checks in a row must succeed before it is up again. Default: 1.
    #[serde(default)]
    pub(crate) rise: Option<At<i64>>,
    /// Ends the connections to a peer, their clients' included, when it is found down. Default: `false`, they go on.
    #[serde(default)]
    pub(crate) close_if_unhealthy: bool,
}

/// What connections that could not be made say about a peer.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PassiveConfig {
    /// How long a failure is remembered, such as `"30s"`. Default: 0, failures are not counted.
    #[serde(default)]
    pub(crate) fail_duration: Option<At<GoDuration>>,
    /// How many remembered failures make a peer unavailable. Only with `fail_duration`. Default: 1.
    #[serde(default)]
    pub(crate) max_fails: Option<At<i64>>,
    /// `max_connections` of every upstream that does not set its own. Default: 0, no limit.
    #[serde(default)]
    pub(crate) unhealthy_connection_count: Option<At<i64>>,
}

fn tls_schema(generator: &mut SchemaGenerator) -> Schema {
    schema::module::<PeerTransports>(generator, "tls")
}
