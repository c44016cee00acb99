//! Which upstream is next.

mod first;
mod random;
mod round_robin;

use l4_core::registry::Kind;
use l4_core::{Connection, Registry};
use serde::Deserialize;

pub use first::First;
pub use random::Random;
pub use round_robin::RoundRobin;

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
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

pub(crate) fn register(reg: &mut Registry) {
    reg.add_inline::<SelectionPolicies, NoOptions>("random", INLINE_KEY, |_, _| {
        Ok(Box::new(Random))
    })
    .add_inline::<SelectionPolicies, NoOptions>("round_robin", INLINE_KEY, |_, _| {
        Ok(Box::new(RoundRobin::default()))
    })
    .add_inline::<SelectionPolicies, NoOptions>("first", INLINE_KEY, |_, _| Ok(Box::new(First)));
}
