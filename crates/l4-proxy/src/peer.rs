//! The state of a peer, and where those who use the same peer find each other's.
//!
//! A peer is known by the address that is connected to, so handlers and configurations share what they know about it:
//! after a reload a full peer is still full and one that failed is still avoided. Nobody owns the table's entries but
//! their users; a peer that no configuration and no connection uses any more is forgotten.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use l4_core::Connection;
use l4_net::dial::Target;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dial::{AddressRefused, Dial};
use crate::health::active::{Active, Health};
use crate::health::passive::{Failures, Passive};
use crate::source::Fixed;

/// How many peers with addresses from placeholders are remembered for their failures alone.
const KEPT_FOR_FAILURES: usize = 1024;

/// One address of an upstream, as a handler uses it.
pub(crate) struct Peer {
    dial: Dial,
    /// Of a fixed address; others are looked up for each connection.
    state: Option<Arc<PeerState>>,
    health: Option<Arc<Health>>,
    close_if_unhealthy: bool,
}

/// What is known about a peer.
#[derive(Debug, Default)]
pub(crate) struct PeerState {
    /// Those being made included.
    connections: AtomicUsize,
    failures: Failures,
    /// What active checks found, for each kind of settings in use.
    health: Mutex<Vec<Weak<Health>>>,
}

impl Peer {
    /// `origin` is where checks connect from.
    pub(crate) fn new(dial: Dial, active: Option<Active>, origin: &Fixed) -> Self {
        let (state, health) = match &dial {
            Dial::Fixed(target) => {
                let state = table().obtain(target);
                let health = active.map(|active| state.health(active, origin));
                (Some(state), health)
            }
            // There is nothing to connect to before there is a connection.
            Dial::Dynamic(_) => (None, None),
        };
        Self {
            dial,
            state,
            health,
            close_if_unhealthy: active.is_some_and(|active| active.close_if_unhealthy),
        }
    }

    /// What to check, if it is checked actively.
    pub(crate) fn checked(&self) -> Option<(&Target, &Arc<Health>)> {
        match (&self.dial, &self.health) {
            (Dial::Fixed(target), Some(health)) => Some((target, health)),
            _ => None,
        }
    }

    /// Whether nothing speaks against a connection to it.
    pub(crate) fn usable(
        &self,
        conn: &Connection,
        limit: Option<usize>,
        passive: Option<Passive>,
    ) -> bool {
        self.health.as_ref().is_none_or(|health| health.is_up())
            && self.known(conn).is_none_or(|state| {
                limit.is_none_or(|limit| state.connections() < limit)
                    && passive.is_none_or(|passive| {
                        !state.failures.reached(passive.max_fails, Instant::now)
                    })
            })
    }

    /// How many connections it has, those being made included.
    pub(crate) fn connections(&self, conn: &Connection) -> usize {
        self.known(conn).map_or(0, |state| state.connections())
    }

    /// Takes a place for a connection before it is made, so that many arriving at once do not exceed the limit.
    /// `None` if there is none.
    pub(crate) fn reserve(
        &self,
        conn: &Connection,
        limit: Option<usize>,
    ) -> Result<Option<Place<'_>>, AddressRefused> {
        let target = self.dial.target(conn)?;
        let state = match &self.state {
            Some(state) => state.clone(),
            None => table().obtain(&target),
        };
        let taken = state.take(limit.unwrap_or(usize::MAX));
        Ok(taken.map(|taken| Place {
            peer: self,
            target,
            taken,
        }))
    }

    fn known(&self, conn: &Connection) -> Option<Cow<'_, Arc<PeerState>>> {
        match &self.state {
            Some(state) => Some(Cow::Borrowed(state)),
            // An address that cannot be made says nothing about any peer: the attempt will say what is wrong.
            None => table()
                .find(self.dial.target(conn).ok()?.as_ref())
                .map(Cow::Owned),
        }
    }
}

impl PeerState {
    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    fn take(self: Arc<Self>, limit: usize) -> Option<Taken> {
        self.connections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < limit).then_some(n + 1)
            })
            .ok()?;
        Some(Taken(self))
    }

    /// What checks with these settings found so far, if somebody else has them, too.
    fn health(&self, active: Active, origin: &Fixed) -> Arc<Health> {
        let mut known = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|health| health.strong_count() > 0);
        let same = known
            .iter()
            .filter_map(Weak::upgrade)
            .find(|health| *health.settings() == active.settings && health.origin() == origin);
        same.unwrap_or_else(|| {
            let health = Arc::new(Health::new(active.settings, origin.clone()));
            known.push(Arc::downgrade(&health));
            health
        })
    }
}

/// A place for a connection that is being made.
pub(crate) struct Place<'p> {
    peer: &'p Peer,
    pub(crate) target: Cow<'p, Target>,
    taken: Taken,
}

impl Place<'_> {
    /// It could not be connected to.
    pub(crate) fn failed(self, passive: Option<Passive>) {
        let Some(passive) = passive else { return };
        self.taken.0.failures.add(passive, Instant::now());
        if self.peer.state.is_none() {
            table().keep(self.taken.0.clone());
        }
    }

    /// It was connected to.
    pub(crate) fn connected(self) -> Reserved {
        let closing = self.peer.health.as_ref();
        let closing = closing.filter(|_| self.peer.close_if_unhealthy);
        Reserved {
            down: closing.map(|health| health.down()),
            _taken: self.taken,
        }
    }
}

/// A place among a peer's connections, given back when dropped.
pub(crate) struct Reserved {
    /// Cancelled when the connection is to be closed because the peer is down.
    pub(crate) down: Option<CancellationToken>,
    _taken: Taken,
}

/// One connection of the count, taken back exactly once.
struct Taken(Arc<PeerState>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Every peer that somebody uses.
#[derive(Default)]
struct Table {
    peers: HashMap<Target, Weak<PeerState>>,
    /// Peers that clients chose, the one that failed last at the end: those are avoided though nobody uses them.
    failed: VecDeque<Arc<PeerState>>,
    /// How many entries there may be before the unused ones are removed.
    sweep_at: usize,
}

const SWEEP_AT_LEAST: usize = 64;

fn table() -> MutexGuard<'static, Table> {
    static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    fn find(&self, target: &Target) -> Option<Arc<PeerState>> {
        self.peers.get(target).and_then(Weak::upgrade)
    }

    fn obtain(&mut self, target: &Target) -> Arc<PeerState> {
        if let Some(state) = self.find(target) {
            return state;
        }
        // Twice as many as were in use, so that sweeping costs each new entry the same.
        if self.peers.len() >= self.sweep_at.max(SWEEP_AT_LEAST) {
            self.peers.retain(|_, state| state.strong_count() > 0);
            self.sweep_at = 2 * self.peers.len();
        }
        let state = Arc::<PeerState>::default();
        self.peers.insert(target.clone(), Arc::downgrade(&state));
        state
    }

    fn keep(&mut self, state: Arc<PeerState>) {
        self.failed.retain(|other| !Arc::ptr_eq(other, &state));
        if self.failed.len() >= KEPT_FOR_FAILURES {
            self.failed.pop_front();
        }
        self.failed.push_back(state);
    }
}

#[cfg(test)]
mod tests {
    use l4_core::config::{Address, AddressDefaults};

    use super::*;

    fn target(port: usize) -> Target {
        let text = format!("192.0.2.1:{port}");
        Target::new(&Address::parse(&text, &AddressDefaults::default()).unwrap()).unwrap()
    }

    /// Row P16 of docs/defects.md.
    #[test]
    fn everybody_who_uses_an_address_shares_its_state_and_nobody_else_keeps_it() {
        let mut table = Table::default();
        let first = table.obtain(&target(1));
        assert!(Arc::ptr_eq(&first, &table.obtain(&target(1))));
        assert!(!Arc::ptr_eq(&first, &table.obtain(&target(2))));
        drop(first);
        assert!(table.find(&target(1)).is_none());
    }

    #[test]
    fn addresses_that_clients_chose_do_not_fill_the_table() {
        let mut table = Table::default();
        let held = table.obtain(&target(1));
        for port in 2..60_000 {
            table.obtain(&target(port));
        }
        assert!(table.peers.len() <= SWEEP_AT_LEAST);
        assert!(Arc::ptr_eq(&held, &table.find(&target(1)).unwrap()));
    }

    #[test]
    fn failures_of_chosen_addresses_are_kept_in_a_bounded_list() {
        let mut table = Table::default();
        for port in 1..=KEPT_FOR_FAILURES + 10 {
            let state = table.obtain(&target(port));
            table.keep(state.clone());
            table.keep(state);
        }
        assert_eq!(table.failed.len(), KEPT_FOR_FAILURES);
        assert!(table.find(&target(10)).is_none());
        assert!(table.find(&target(11)).is_some());
    }

    /// Row P16 of docs/defects.md.
    #[test]
    fn handlers_that_check_otherwise_have_a_health_of_their_own() {
        let state = PeerState::default();
        let first = state.health(Active::falling_after(3), &Fixed::default());
        let same = state.health(Active::falling_after(3), &Fixed::default());
        let other = state.health(Active::falling_after(2), &Fixed::default());
        assert!(Arc::ptr_eq(&first, &same) && !Arc::ptr_eq(&first, &other));
    }

    #[test]
    fn a_place_is_given_back_once() {
        let state = Arc::<PeerState>::default();
        let taken = state.clone().take(1).unwrap();
        assert!(state.clone().take(1).is_none());
        drop(taken);
        assert_eq!(state.connections(), 0);
        assert!(state.take(1).is_some());
    }
}
