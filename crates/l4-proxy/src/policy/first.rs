use l4_core::Connection;

use super::Select;
use crate::upstream::Upstream;

/// `first`: the first upstream in the list that is available, so that later ones are spares.
pub(crate) struct First;

impl Select for First {
    fn select(&self, upstreams: &[Upstream], conn: &Connection) -> Option<usize> {
        upstreams
            .iter()
            .position(|upstream| upstream.available(conn))
    }
}
