//! Runtimes of one thread each, over which accepted connections are spread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{EnterGuard, Handle};

/// Runtimes over which accepted connections are spread in turn. Empty: all stay where they are accepted.
///
/// The sockets that are listened on, and with them what a reload keeps, belong to the runtime that accepts; so do sessions
/// of datagrams. An accepted connection belongs to one of these from its registration to its end.
#[derive(Clone, Debug, Default)]
pub struct Shards(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    runtimes: Box<[Handle]>,
    /// Listeners take turns together, or the first runtime would get the first connection of each.
    turn: AtomicUsize,
}

impl Shards {
    /// Spreads over `runtimes`, which must outlive the connections: those of a runtime that ends are dropped with it.
    pub fn new(runtimes: impl IntoIterator<Item = Handle>) -> Self {
        Self(Arc::new(Inner {
            runtimes: runtimes.into_iter().collect(),
            turn: AtomicUsize::new(0),
        }))
    }

    /// Makes what is registered and spawned go to the runtime whose turn it is, until what is returned is dropped.
    pub(crate) fn enter_next(&self) -> Option<EnterGuard<'_>> {
        let Inner { runtimes, turn } = &*self.0;
        if runtimes.is_empty() {
            return None;
        }
        let turn = turn.fetch_add(1, Ordering::Relaxed) % runtimes.len();
        runtimes.get(turn).map(Handle::enter)
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;

    use super::*;

    #[test]
    fn every_runtime_has_its_turn_and_without_any_nothing_changes() {
        let runtimes: Vec<_> = (0..3)
            .map(|_| Builder::new_current_thread().build().unwrap())
            .collect();
        let shards = Shards::new(runtimes.iter().map(|runtime| runtime.handle().clone()));
        for runtime in runtimes.iter().chain(&runtimes) {
            let _entered = shards.enter_next().unwrap();
            assert_eq!(Handle::current().id(), runtime.handle().id());
        }
        assert!(Shards::default().enter_next().is_none());
    }
}
