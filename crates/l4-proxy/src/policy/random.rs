use l4_core::Connection;

use super::Select;
use crate::upstream::Upstream;

/// `random`: any available upstream, all equally likely.
pub(crate) struct Random;

impl Select for Random {
    fn select(&self, upstreams: &[Upstream], conn: &Connection) -> Option<usize> {
        if let [only] = upstreams {
            return only.available(conn).then_some(0);
        }
        // Reservoir sampling: the k-th candidate replaces the choice with probability 1/k.
        let available = upstreams
            .iter()
            .enumerate()
            .filter(|(_, upstream)| upstream.available(conn));
        let mut chosen = None;
        for (k, (i, _)) in (1..).zip(available) {
            if fastrand::usize(..k) == 0 {
                chosen = Some(i);
            }
        }
        chosen
    }
}
