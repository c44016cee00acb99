//! What the sockets of one address have in common.
//!
//! With shards a UDP address has a socket on every runtime (`SO_REUSEPORT`), each with a receive task and a table of its
//! own. The kernel chooses among them by a hash over the addresses of both ends, so that what a peer sends always comes to
//! the same one: as long as none of them is closed. Therefore none ends while another still has sessions.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::sync::watch;

use super::lane::Pool;
use super::stats::{DropReason, Stats};

/// The sockets of one address, which most often is one.
#[derive(Debug)]
pub(crate) struct Group {
    stats: Arc<Stats>,
    /// How many receive tasks may yet open a session, or have one.
    needed: watch::Sender<usize>,
    notices: Mutex<[Notice; LOUD.len()]>,
    /// What all sessions of the address may hold together.
    pool: OnceLock<Arc<Pool>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Notice {
    counted: u64,
    logged: Option<Instant>,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            stats: Arc::default(),
            needed: watch::Sender::new(0),
            notices: Mutex::default(),
            pool: OnceLock::new(),
        }
    }
}

impl Group {
    pub(super) fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// The room for `bytes` that the sockets have in common.
    pub(super) fn pool(&self, bytes: usize) -> Arc<Pool> {
        self.pool.get_or_init(|| Arc::new(Pool::new(bytes))).clone()
    }

    /// Whether a receive task may yet open a session, or has one.
    pub(crate) fn is_needed(&self) -> bool {
        *self.needed.borrow() > 0
    }

    /// How many datagrams were dropped that an operator must learn of.
    pub(super) fn loud_drops(&self) -> u64 {
        LOUD.iter().map(|&reason| self.stats.dropped(reason)).sum()
    }

    /// Calls `say` for each reason for which such were dropped, whichever socket dropped them, but at most once a minute.
    /// Whether all there were when it was called have been told.
    pub(super) fn tell_drops(&self, mut say: impl FnMut(DropReason, u64)) -> bool {
        let mut notices = match self.notices.try_lock() {
            Ok(notices) => notices,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Another receive task is telling.
            Err(TryLockError::WouldBlock) => return false,
        };
        let mut all = true;
        for (notice, reason) in notices.iter_mut().zip(LOUD) {
            let counted = self.stats.dropped(reason);
            let dropped = counted.saturating_sub(notice.counted);
            if dropped == 0 {
                continue;
            }
            if !is_over(notice.logged) {
                all = false;
                continue;
            }
            *notice = Notice {
                counted,
                logged: Some(Instant::now()),
            };
            say(reason, dropped);
        }
        all
    }
}

/// Drops that an operator must learn of. The others happen in good health, or are logged by the server.
const LOUD: [DropReason; 4] = [
    DropReason::SessionLimit,
    DropReason::MemoryLimit,
    DropReason::UnnamedPeer,
    DropReason::TooLong,
];

/// Whether what was logged last may be said again.
pub(super) fn is_over(logged: Option<Instant>) -> bool {
    logged.is_none_or(|at| at.elapsed() > Duration::from_secs(60))
}

/// A receive task among those of its group, from its first to its last moment.
pub(super) struct Member {
    group: Arc<Group>,
    others: watch::Receiver<usize>,
    needed: bool,
}

impl Member {
    pub(super) fn of(group: Arc<Group>) -> Self {
        Self {
            others: group.needed.subscribe(),
            group,
            needed: false,
        }
    }

    pub(super) fn group(&self) -> &Group {
        &self.group
    }

    /// Says whether this task may yet open a session, or has one. Whether any task of the group may, or has.
    pub(super) fn needs(&mut self, needed: bool) -> bool {
        if needed != self.needed {
            self.needed = needed;
            self.group.needed.send_modify(|count| match needed {
                true => *count += 1,
                false => *count -= 1,
            });
        }
        *self.others.borrow_and_update() > 0
    }

    /// Ready when [`Self::needs`] may have another answer. Cancel safe.
    pub(super) async fn changed(&mut self) {
        // The group, which this task holds, has the sender.
        let _ = self.others.changed().await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.needs(false);
    }
}

/// Which destinations are for all who listen: the kernel gives a copy of what is sent there to each socket of the port.
///
/// Remembers some for a second, so that a flood of new peers does not ask the kernel about each.
#[derive(Debug, Default)]
pub(super) struct Copies(Mutex<Vec<Known>>);

#[derive(Clone, Copy, Debug)]
struct Known {
    ip: IpAddr,
    for_all: bool,
    until: Instant,
}

impl Copies {
    /// Whether what is sent to `ip` is for all.
    pub(super) fn are_sent_to(&self, ip: IpAddr, now: Instant) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.iter().find(|known| known.ip == ip && now < known.until) {
            return known.for_all;
        }
        let for_all = is_for_all(ip);
        all.retain(|known| known.ip != ip && now < known.until);
        if all.len() >= REMEMBERED {
            all.remove(0);
        }
        let until = now + Duration::from_secs(1);
        all.push(Known { ip, for_all, until });
        for_all
    }
}

/// As many addresses as most machines have.
const REMEMBERED: usize = 8;

/// Whether what is sent to `ip` is for all who listen.
fn is_for_all(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_multicast() || ip.is_broadcast() || is_broadcast_of_a_subnet(ip),
        IpAddr::V6(ip) => ip.is_multicast(),
    }
}

/// Whether the kernel would broadcast what is sent to `ip`, which then is no address of this machine. It says so by
/// refusing to connect a socket that has not been allowed to (connect(2)); a filter in the kernel could not find it out,
/// because only frames say in their headers that they are broadcast, and an interface without those has broadcasts, too.
///
/// No, if it cannot be found out just now, for want of a descriptor or a port: that a broadcast is taken by several is what
/// datagrams may do anyway, and nobody else is to suffer.
fn is_broadcast_of_a_subnet(ip: Ipv4Addr) -> bool {
    let connected = Socket::new(Domain::IPV4, Type::DGRAM, None)
        .and_then(|socket| socket.connect(&SockAddr::from(SocketAddrV4::new(ip, DISCARD))));
    connected.is_err_and(|error| error.raw_os_error() == Some(libc::EACCES))
}

/// A port that nobody sends from. Nothing is sent to it.
const DISCARD: u16 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_and_multicast_addresses_are_for_all_and_others_are_not() {
        for ip in [
            "255.255.255.255",
            "127.255.255.255",
            "::ffff:127.255.255.255",
            "239.1.2.3",
            "ff02::1",
        ] {
            assert!(is_for_all(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "127.0.0.1",
            "127.3.2.1",
            "::ffff:127.0.0.1",
            "::1",
            "fe80::1",
        ] {
            assert!(!is_for_all(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn what_is_known_of_a_destination_is_asked_for_again_after_a_second() {
        let copies = Copies::default();
        let [here, everybody] = ["127.0.0.1", "127.255.255.255"].map(|ip| ip.parse().unwrap());
        let now = Instant::now();
        assert!(!copies.are_sent_to(here, now));
        assert!(copies.are_sent_to(everybody, now));
        assert!(copies.are_sent_to(everybody, now + Duration::from_secs(2)));
        // What was found out answers, and only for its second.
        copies.0.lock().unwrap()[0].for_all = false;
        let later = now + Duration::from_secs(2);
        assert!(!copies.are_sent_to(everybody, later));
        assert!(copies.are_sent_to(everybody, later + Duration::from_secs(1)));
    }

    #[test]
    fn some_destinations_are_remembered_side_by_side_and_not_any_number() {
        let copies = Copies::default();
        let now = Instant::now();
        let ip = |last| IpAddr::from([127, 0, 0, last]);
        for last in 1..=100 {
            assert!(!copies.are_sent_to(ip(last), now));
        }
        let known = copies.0.lock().unwrap().clone();
        assert_eq!(known.len(), REMEMBERED);
        assert_eq!(known[0].ip, ip(93));
    }

    #[test]
    fn drops_are_told_once_however_many_sockets_look_at_them() {
        let group = Group::default();
        let told = || {
            let mut told = Vec::new();
            let all = group.tell_drops(|reason, count| told.push((reason, count)));
            (told, all)
        };
        group.stats.add_dropped(DropReason::Draining, 5);
        assert_eq!(group.loud_drops(), 0);
        assert_eq!(told(), (vec![], true));
        group.stats.add_dropped(DropReason::SessionLimit, 3);
        assert_eq!(group.loud_drops(), 3);
        assert_eq!(told(), (vec![(DropReason::SessionLimit, 3)], true));
        assert_eq!(told(), (vec![], true));
        // Not again within the minute, and not forgotten.
        group.stats.add_dropped(DropReason::SessionLimit, 4);
        group.stats.add_dropped(DropReason::TooLong, 1);
        assert_eq!(told(), (vec![(DropReason::TooLong, 1)], false));
        assert_eq!(told(), (vec![], false));
    }

    #[tokio::test]
    async fn a_group_is_needed_until_its_last_member_says_otherwise_or_is_gone() {
        let group = Arc::new(Group::default());
        let [mut one, mut other] = [(); 2].map(|()| Member::of(group.clone()));
        assert!(!group.is_needed());
        assert!(one.needs(true));
        assert!(other.needs(true));
        assert!(one.needs(false));
        assert!(one.needs(false), "said twice, counted once");
        drop(other);
        one.changed().await;
        assert!(!one.needs(false));
        assert!(!group.is_needed());
    }
}
