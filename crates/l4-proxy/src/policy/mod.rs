//! Which upstream is next.

mod first;
mod ip_hash;
mod least_conn;
mod random;
mod random_choose;
mod round_robin;
mod weighted_round_robin;

use l4_core::registry::Kind;
use l4_core::{Connection, Registry};
use schemars::JsonSchema;
use serde::Deserialize;

pub(crate) use first::First;
pub(crate) use ip_hash::IpHash;
pub(crate) use least_conn::LeastConn;
pub(crate) use random::Random;
pub(crate) use random_choose::{RandomChoose, RandomChooseConfig};
pub(crate) use round_robin::RoundRobin;
pub(crate) use weighted_round_robin::WeightedRoundRobin;

use crate::upstream::Upstream;

/// Chooses an upstream for a connection.
pub trait Select: Send + Sync + 'static {
    /// The index of the upstream to connect to, one that is [available](Upstream::available); `None` if none is.
    fn select(&self, upstreams: &[Upstream], conn: &Connection) -> Option<usize>;
}

/// `layer4.proxy.selection_policies`
pub enum SelectionPolicies {}

impl Kind for SelectionPolicies {
    const NAMESPACE: &'static str = "layer4.proxy.selection_policies";
    type Object = dyn Select;
}

/// The member of `selection` that names the policy.
pub const INLINE_KEY: &str = "policy";

/// A policy without options.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

pub(crate) fn register(reg: &mut Registry) {
    reg.add_inline::<SelectionPolicies, NoOptions>("random", INLINE_KEY, |_, _| {
        Ok(Box::new(Random))
    })
    .add_inline::<SelectionPolicies, NoOptions>("round_robin", INLINE_KEY, |_, _| {
        Ok(Box::new(RoundRobin::default()))
    })
    .add_inline::<SelectionPolicies, NoOptions>("first", INLINE_KEY, |_, _| Ok(Box::new(First)))
    .add_inline::<SelectionPolicies, NoOptions>("ip_hash", INLINE_KEY, |_, _| Ok(Box::new(IpHash)))
    .add_inline::<SelectionPolicies, NoOptions>("least_conn", INLINE_KEY, |_, _| {
        Ok(Box::new(LeastConn))
    })
    .add_inline::<SelectionPolicies, RandomChooseConfig>(
        "random_choose",
        INLINE_KEY,
        |config, cx| Ok(Box::new(RandomChoose::provision(config, cx)?)),
    )
    .add_inline::<SelectionPolicies, NoOptions>("weighted_round_robin", INLINE_KEY, |_, _| {
        Ok(Box::new(WeightedRoundRobin::default()))
    });
}
