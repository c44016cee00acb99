use std::sync::atomic::{AtomicU32, Ordering};

use l4_core::Connection;

use super::Select;
use crate::upstream::Upstream;

/// `round_robin`: one after the other. The counter belongs to the handler and starts anew after a reload; as in the
/// reference the first choice is the second upstream.
#[derive(Default)]
pub(crate) struct RoundRobin {
    counter: AtomicU32,
}

impl Select for RoundRobin {
    fn select(&self, upstreams: &[Upstream], conn: &Connection) -> Option<usize> {
        let n = u32::try_from(upstreams.len()).ok().filter(|n| *n > 0)?;
        upstreams.iter().find_map(|_| {
            // What the increment returns is used: reading the counter again would skip and repeat under load.
            let turn = self.counter.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            let i = (turn % n) as usize;
            upstreams[i].available(conn).then_some(i)
        })
    }
}
