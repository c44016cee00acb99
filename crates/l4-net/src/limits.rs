//! How many connections there may be, and how many descriptors that takes.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Semaphore;
use tracing::warn;

/// Descriptors kept for everything that is not a connection: listeners, logs, certificates, name lookups.
const RESERVED: usize = 256;

/// How many accepted stream connections the process may have at a time, over all listeners.
///
/// A listener asks before it accepts. What is over the limit therefore waits in the kernel's queue, where it costs
/// nothing here, and is served when another connection ends.
///
/// The datagram sessions of all sockets draw on the same descriptors: one for a session, two for a connection. They get
/// half of them at most, because the addresses that open sessions can be forged, and those that connections need must
/// not be used up by a flood. The further sockets of an address that has several are taken off before, up to a quarter.
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    max: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Two for a connection, one for a session.
    descriptors: Semaphore,
    sessions: AtomicUsize,
    /// What connections take beyond their two, and sockets that are listened on.
    extra: AtomicUsize,
    /// The latter of these.
    listening: AtomicUsize,
    /// The limit was reached, this was logged, and there has not been much room since.
    reached: AtomicBool,
}

impl ConnectionLimit {
    /// At most `max` connections, at least one.
    pub fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS / 2);
        let shared = Shared {
            descriptors: Semaphore::new(2 * max),
            sessions: AtomicUsize::new(0),
            extra: AtomicUsize::new(0),
            listening: AtomicUsize::new(0),
            reached: AtomicBool::new(false),
        };
        Self {
            max,
            shared: Arc::new(shared),
        }
    }

    /// That of the [process](Self::process), after raising the process's own limit of descriptors as far as it may.
    pub fn from_system() -> Self {
        raise_descriptor_limit();
        Self::process().clone()
    }

    /// As many as the descriptors of this process allow when it is first asked for: some are kept back, and a proxied
    /// connection takes two. There is one, so that what no listener counts can be counted, too.
    pub fn process() -> &'static Self {
        static PROCESS: OnceLock<ConnectionLimit> = OnceLock::new();
        PROCESS.get_or_init(|| Self::new(connections_for(descriptors())))
    }

    /// The limit.
    pub fn max(&self) -> usize {
        self.max
    }

    /// How many connections there are.
    pub fn in_use(&self) -> usize {
        let taken = 2 * self.max - self.shared.descriptors.available_permits();
        let extra = self.shared.extra.load(Ordering::Relaxed);
        taken.saturating_sub(self.sessions() + extra) / 2
    }

    /// How many datagram sessions there are, on all sockets.
    pub fn sessions(&self) -> usize {
        self.shared.sessions.load(Ordering::Relaxed)
    }

    /// Room for `descriptors` that a connection takes beyond its two, such as those of a second upstream, if there is any
    /// now. They count as long as what is returned lives.
    pub fn extra(&self, descriptors: u32) -> Option<Extra> {
        let permit = self.shared.descriptors.try_acquire_many(descriptors).ok()?;
        permit.forget();
        let descriptors = descriptors as usize;
        self.shared.extra.fetch_add(descriptors, Ordering::Relaxed);
        Some(Extra {
            shared: self.shared.clone(),
            descriptors,
        })
    }

    /// Room for `descriptors` of a socket that is listened on and could be spared, if all such take a quarter at most. Those
    /// that connections have just now are not waited for, and then never counted.
    pub(crate) fn listening(&self, descriptors: u32) -> Option<ListeningPermit> {
        let more = descriptors as usize;
        let all = &self.shared.listening;
        let counted = all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| {
            (all + more <= self.max / 2).then_some(all + more)
        });
        counted.ok()?;
        Some(ListeningPermit {
            extra: self.extra(descriptors),
            shared: self.shared.clone(),
            descriptors: more,
        })
    }

    /// Waits until there is room for one more. Cancel safe.
    pub(crate) async fn acquire(&self) -> Permit {
        let shared = &self.shared;
        if let Ok(permit) = shared.descriptors.try_acquire_many(2) {
            permit.forget();
            let room = shared.descriptors.available_permits();
            if shared.reached.load(Ordering::Relaxed) && room > self.max / 5 {
                shared.reached.store(false, Ordering::Relaxed);
            }
            return Permit(shared.clone());
        }
        if !shared.reached.swap(true, Ordering::Relaxed) {
            warn!(
                limit = self.max,
                "connection limit reached: new connections wait in the kernel until others end"
            );
        }
        // Never closed, so always granted.
        if let Ok(permit) = shared.descriptors.acquire_many(2).await {
            permit.forget();
        }
        Permit(shared.clone())
    }

    /// Room for one more datagram session, if there is any now.
    pub(crate) fn session(&self) -> Option<SessionPermit> {
        let shared = &self.shared;
        let half = self.max - shared.listening.load(Ordering::Relaxed) / 2;
        let counted =
            (shared.sessions).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sessions| {
                (sessions < half).then_some(sessions + 1)
            });
        counted.ok()?;
        let Ok(permit) = shared.descriptors.try_acquire() else {
            shared.sessions.fetch_sub(1, Ordering::Relaxed);
            return None;
        };
        permit.forget();
        Some(SessionPermit(shared.clone()))
    }
}

/// The right to one connection, until dropped.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Shared>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.descriptors.add_permits(2);
    }
}

/// The right to one datagram session, until dropped.
#[derive(Debug)]
pub(crate) struct SessionPermit(Arc<Shared>);

impl Drop for SessionPermit {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
        self.0.descriptors.add_permits(1);
    }
}

/// The right to descriptors beyond those of connections, until dropped.
#[derive(Debug)]
#[must_use = "dropping it gives the descriptors back"]
pub struct Extra {
    shared: Arc<Shared>,
    descriptors: usize,
}

impl Drop for Extra {
    fn drop(&mut self) {
        let Self {
            shared,
            descriptors,
        } = self;
        shared.extra.fetch_sub(*descriptors, Ordering::Relaxed);
        shared.descriptors.add_permits(*descriptors);
    }
}

/// The right to the descriptors of a socket that is listened on, until dropped.
#[derive(Debug)]
pub(crate) struct ListeningPermit {
    /// What of them is taken from connections.
    #[expect(dead_code, reason = "held")]
    extra: Option<Extra>,
    shared: Arc<Shared>,
    descriptors: usize,
}

impl Drop for ListeningPermit {
    fn drop(&mut self) {
        let all = &self.shared.listening;
        all.fetch_sub(self.descriptors, Ordering::Relaxed);
    }
}

/// How many connections fit into `descriptors`.
fn connections_for(descriptors: usize) -> usize {
    // A small limit is not eaten up by the reserve.
    (descriptors - RESERVED.min(descriptors / 4)) / 2
}

/// Raises the soft limit of open descriptors to the hard limit, and returns what it is then.
///
/// Programs that use `select(2)` need the traditional 1024; this one does not, and starts none that would.
fn raise_descriptor_limit() -> usize {
    let raised = descriptor_limit().and_then(|mut limit| {
        if limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            set_descriptor_limit(&limit)?;
        }
        Ok(())
    });
    if let Err(error) = raised {
        warn!(%error, "the limit of open files stays as it is");
    }
    descriptors()
}

/// How many descriptors this process may have.
fn descriptors() -> usize {
    // Without an answer, what every Linux system grants at least.
    let limit = descriptor_limit().map_or(1024, |limit| limit.rlim_cur);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[allow(unsafe_code)]
fn descriptor_limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live value of the type the call writes.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => Ok(limit),
        _ => Err(io::Error::last_os_error()),
    }
}

#[allow(unsafe_code)]
fn set_descriptor_limit(limit: &libc::rlimit) -> io::Result<()> {
    // SAFETY: the pointer is to a live value of the type the call reads.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn two_descriptors_for_each_connection_and_a_reserve() {
        assert_eq!(connections_for(1024), 384);
        assert_eq!(connections_for(1 << 20), (1 << 19) - 128);
        assert_eq!(connections_for(8), 3);
        assert_eq!(ConnectionLimit::new(connections_for(0)).max(), 1);
        assert_eq!(
            ConnectionLimit::new(usize::MAX).max(),
            Semaphore::MAX_PERMITS / 2
        );
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = raise_descriptor_limit();
        let limit = descriptor_limit().unwrap();
        assert_eq!(limit.rlim_cur, limit.rlim_max);
        assert_eq!(raised as u64, limit.rlim_cur);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_over_the_limit_waits_for_another_to_end() {
        let limit = ConnectionLimit::new(2);
        let first = limit.acquire().await;
        let second = limit.acquire().await;
        assert_eq!(limit.in_use(), 2);
        let wait = Duration::from_secs(1);
        assert!(tokio::time::timeout(wait, limit.acquire()).await.is_err());
        drop(first);
        let third = tokio::time::timeout(wait, limit.acquire()).await.unwrap();
        assert_eq!(limit.in_use(), 2);
        drop((second, third));
        assert_eq!(limit.in_use(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_connection_takes_beyond_its_two_is_room_for_no_other() {
        let limit = ConnectionLimit::new(2);
        let first = limit.acquire().await;
        let extra = limit.extra(1).unwrap();
        assert_eq!(limit.in_use(), 1);
        assert!(limit.extra(2).is_none());
        let wait = Duration::from_secs(1);
        assert!(tokio::time::timeout(wait, limit.acquire()).await.is_err());
        drop(extra);
        let second = tokio::time::timeout(wait, limit.acquire()).await.unwrap();
        assert_eq!(limit.in_use(), 2);
        drop((first, second));
        assert_eq!(limit.shared.descriptors.available_permits(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_take_half_of_the_descriptors_at_most_and_none_that_connections_have() {
        let limit = ConnectionLimit::new(4);
        let mut sessions: Vec<_> = (0..4).map(|_| limit.session().unwrap()).collect();
        assert!(limit.session().is_none());
        assert_eq!((limit.sessions(), limit.in_use()), (4, 0));
        // The other half is for connections.
        let connections = [limit.acquire().await, limit.acquire().await];
        let wait = Duration::from_secs(1);
        assert!(tokio::time::timeout(wait, limit.acquire()).await.is_err());
        // One session less is not room enough for a connection, two are.
        sessions.pop();
        assert!(tokio::time::timeout(wait, limit.acquire()).await.is_err());
        sessions.pop();
        let third = tokio::time::timeout(wait, limit.acquire()).await.unwrap();
        assert_eq!((limit.sessions(), limit.in_use()), (2, 3));
        assert!(limit.session().is_none());
        drop((connections, third, sessions));
        assert_eq!((limit.sessions(), limit.in_use()), (0, 0));
        assert_eq!(limit.shared.descriptors.available_permits(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn sockets_that_could_be_spared_take_a_quarter_and_the_rest_is_halved() {
        let limit = ConnectionLimit::new(8);
        let mut sockets: Vec<_> = (0..2).map(|_| limit.listening(2).unwrap()).collect();
        assert!(limit.listening(2).is_none());
        assert!(limit.listening(1).is_none());
        assert_eq!((limit.sessions(), limit.in_use()), (0, 0));
        let sessions: Vec<_> = (0..6).map(|_| limit.session().unwrap()).collect();
        assert!(limit.session().is_none());
        let mut connections = Vec::new();
        for _ in 0..3 {
            connections.push(limit.acquire().await);
        }
        assert_eq!((limit.sessions(), limit.in_use()), (6, 3));
        drop(sessions);
        sockets.pop();
        sockets.push(limit.listening(2).unwrap());
        drop(sockets);
        connections.clear();
        assert_eq!(limit.shared.descriptors.available_permits(), 16);
        assert_eq!(limit.shared.listening.load(Ordering::Relaxed), 0);
        // A load while there are as many connections as there may be.
        for _ in 0..8 {
            connections.push(limit.acquire().await);
        }
        let socket = limit.listening(2).unwrap();
        assert_eq!(limit.in_use(), 8);
        drop((connections, socket));
        assert_eq!(limit.shared.descriptors.available_permits(), 16);
        assert_eq!(limit.shared.listening.load(Ordering::Relaxed), 0);
    }
}
