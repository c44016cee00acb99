//! Runtimes of one thread each, over which connections and datagram sessions are spread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{EnterGuard, Handle};

/// Runtimes over which connections and the sessions of UDP are spread. Empty: all stay where they arrive.
///
/// Accepted connections are dealt out in turn. The sockets that they come from belong to the runtime that accepts; a
/// connection belongs to one of these from its registration to its end. A UDP address has a socket on each, and the kernel
/// chooses among them by the addresses of both ends: a session belongs to that of the socket that its datagrams come to.
/// Sockets of which there can be only one, `unixgram` ones and those that the process was started with, keep their sessions
/// where connections are accepted.
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

    /// The runtimes.
    pub fn runtimes(&self) -> &[Handle] {
        &self.0.runtimes
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
