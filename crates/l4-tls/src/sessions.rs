//! What sessions of clients are resumed with: tickets, whose keys rotate, and a cache for clients that know no tickets.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::rand;
use l4_core::prelude::*;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::UnixTime;
use rustls::server::{
    NoServerSessionStorage, ProducesTickets, ServerConfig, ServerSessionMemoryCache,
    StoresServerSessions,
};
use schemars::JsonSchema;
use serde::Deserialize;

/// How sessions are resumed by tickets.
///
/// ```json
/// {"rotation_interval": "6h", "max_keys": 2}
/// ```
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TicketsConfig {
    /// Where keys come from. Default: `{"provider": "standard"}`.
    #[serde(default)]
    key_source: Option<KeySourceConfig>,
    /// How long tickets are made with one key. Default: `"12h"`.
    #[serde(default)]
    rotation_interval: Option<At<GoDuration>>,
    /// How many keys tickets are accepted of, the newest included, 1 to 64. Default: 4.
    #[serde(default)]
    max_keys: Option<At<u64>>,
    /// Gives no tickets. Sessions are then resumed only if `session_cache_size` is set. Default: `false`.
    #[serde(default)]
    disabled: Option<bool>,
    /// Leaves the keys to the TLS library, which makes one every 6 hours and accepts the one before, whatever
    /// `rotation_interval` and `max_keys` say. Default: `false`.
    #[serde(default)]
    disable_rotation: Option<bool>,
}

/// Where the keys of tickets come from.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct KeySourceConfig {
    /// `"standard"`: keys are made here and kept in memory. Nothing else is known.
    provider: At<String>,
}

/// How sessions are resumed, as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resumption {
    tickets: Tickets,
    /// Sessions kept for clients that know no tickets; of all clients where there are none.
    cache: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tickets {
    None,
    /// By keys of the TLS library.
    Library,
    /// By keys that are each used for so many seconds, the newest of which are accepted.
    Rotating {
        seconds: u64,
        keys: usize,
    },
}

impl Default for Resumption {
    fn default() -> Self {
        Self {
            tickets: Tickets::Rotating {
                seconds: DEFAULT_ROTATION.as_secs(),
                keys: DEFAULT_KEYS,
            },
            cache: DEFAULT_CACHE,
        }
    }
}

impl Resumption {
    pub(crate) fn provision(
        tickets: Option<TicketsConfig>,
        cache: Option<At<u64>>,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let tickets = match tickets {
            Some(tickets) => tickets.provision(cx),
            None => Ok(Self::default().tickets),
        };
        let cache = cache
            .map(|size| within(size, 0..=MOST_CACHED, cx))
            .transpose();
        let (tickets, cache) = (tickets?, cache?);
        let default = match tickets {
            // Whoever turns tickets off does not want sessions to be resumed, as long as nothing else is said.
            Tickets::None => 0,
            _ => DEFAULT_CACHE,
        };
        Ok(Self {
            tickets,
            cache: cache.unwrap_or(default),
        })
    }
}

impl TicketsConfig {
    fn provision(self, cx: &mut Provision<'_>) -> Result<Tickets, Rejected> {
        let source = match self.key_source {
            Some(source) if source.provider.as_str() != "standard" => Err(cx.reject_help(
                source.provider.node(),
                format!("{:?} is no source of ticket keys", *source.provider),
                "write \"standard\", or leave key_source out",
            )),
            _ => Ok(()),
        };
        let seconds = match self.rotation_interval {
            None => Ok(DEFAULT_ROTATION.as_secs()),
            Some(interval) => match interval.positive().map(|interval| interval.as_secs()) {
                Some(seconds @ 1..) => Ok(seconds),
                _ => Err(cx.reject_help(
                    interval.node(),
                    format!("{} is less than a second", *interval),
                    "write a duration such as \"12h\"",
                )),
            },
        };
        let keys = self.max_keys.map(|keys| within(keys, 1..=MOST_KEYS, cx));
        let keys = keys.transpose();
        source?;
        let (seconds, keys) = (seconds?, keys?.unwrap_or(DEFAULT_KEYS));
        Ok(match (self.disabled, self.disable_rotation) {
            (Some(true), _) => Tickets::None,
            (_, Some(true)) => Tickets::Library,
            _ => Tickets::Rotating { seconds, keys },
        })
    }
}

fn within(
    number: At<u64>,
    range: std::ops::RangeInclusive<usize>,
    cx: &mut Provision<'_>,
) -> Result<usize, Rejected> {
    match usize::try_from(*number) {
        Ok(n) if range.contains(&n) => Ok(n),
        _ => Err(cx.reject_help(
            number.node(),
            format!("{} is out of range", *number),
            format!("write a number from {} to {}", range.start(), range.end()),
        )),
    }
}

/// What sessions are resumed with.
pub(crate) struct Sessions {
    tickets: Option<Arc<dyn ProducesTickets>>,
    cache: Option<Arc<dyn StoresServerSessions>>,
}

impl Sessions {
    /// Those of this key, which configurations that have it at the same time share: a reload does not end the sessions of a
    /// policy that it leaves as it is.
    pub(crate) fn of(key: &str, resumption: Resumption) -> Result<Arc<Self>, rustls::Error> {
        static TABLE: LazyLock<Mutex<HashMap<String, Weak<Sessions>>>> =
            LazyLock::new(Mutex::default);
        let key = format!("{resumption:?} {key}");
        let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sessions) = table.get(&key).and_then(Weak::upgrade) {
            return Ok(sessions);
        }
        table.retain(|_, sessions| sessions.strong_count() > 0);
        let sessions = Arc::new(Self::new(resumption)?);
        table.insert(key, Arc::downgrade(&sessions));
        Ok(sessions)
    }

    fn new(resumption: Resumption) -> Result<Self, rustls::Error> {
        let tickets: Option<Arc<dyn ProducesTickets>> = match resumption.tickets {
            Tickets::None => None,
            Tickets::Library => Some(Ticketer::new()?),
            Tickets::Rotating { seconds, keys } => Some(Arc::new(Rotating::new(seconds, keys))),
        };
        let cache: Option<Arc<dyn StoresServerSessions>> = match resumption.cache {
            0 => None,
            size => Some(ServerSessionMemoryCache::new(size)),
        };
        Ok(Self { tickets, cache })
    }

    /// Has the sessions of `config` be resumed, unless there are none.
    pub(crate) fn enter(sessions: Option<&Self>, config: &mut ServerConfig) {
        let tickets = sessions.and_then(|sessions| sessions.tickets.clone());
        let cache = sessions.and_then(|sessions| sessions.cache.clone());
        if tickets.is_none() && cache.is_none() {
            config.send_tls13_tickets = 0;
        }
        if let Some(tickets) = tickets {
            config.ticketer = tickets;
        }
        config.session_storage = cache.unwrap_or_else(|| Arc::new(NoServerSessionStorage {}));
    }
}

/// Tickets under keys that are replaced as time passes (RFC 5077 section 5.5 and RFC 8446 section C.4 leave it to the
/// server what is in a ticket): the name of the key, a random nonce, and the session under AES-256-GCM.
struct Rotating {
    /// How long a key is the newest.
    seconds: u64,
    /// So many keys are accepted.
    most: usize,
    ring: RwLock<Ring>,
}

#[derive(Default)]
struct Ring {
    /// The newest first.
    keys: VecDeque<Key>,
    /// When the newest is to be replaced, in seconds since 1970.
    until: u64,
}

struct Key {
    name: [u8; NAME],
    key: RandomizedNonceKey,
}

impl Key {
    fn make() -> Option<Self> {
        let (mut name, mut secret) = ([0; NAME], [0; 32]);
        rand::fill(&mut name).ok()?;
        rand::fill(&mut secret).ok()?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &secret).ok()?;
        Some(Self { name, key })
    }

    fn seal(&self, session: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = session.to_vec();
        let aad = Aad::from(self.name);
        let nonce = self.key.seal_in_place_append_tag(aad, &mut sealed).ok()?;
        Some([&self.name[..], nonce.as_ref(), &sealed].concat())
    }
}

impl Rotating {
    fn new(seconds: u64, most: usize) -> Self {
        Self {
            seconds,
            most,
            ring: RwLock::default(),
        }
    }

    /// Replaces the newest key if its time is over, and forgets those that are too old. After a time without clients
    /// as many are forgotten as would have been replaced meanwhile.
    fn rotate(&self, now: u64) -> Option<()> {
        // A clock that was ahead and is set back must not keep a key in use until it is there again.
        let ahead = |ring: &Ring| ring.until > now.saturating_add(self.seconds);
        let due = |ring: &Ring| ring.keys.is_empty() || now >= ring.until || ahead(ring);
        if !due(&self.ring.read().unwrap_or_else(PoisonError::into_inner)) {
            return Some(());
        }
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        if !due(&ring) {
            return Some(());
        }
        let missed = (now.saturating_sub(ring.until) / self.seconds).saturating_add(1);
        let left = u64::try_from(self.most).unwrap_or(1).saturating_sub(missed);
        let left = usize::try_from(left).unwrap_or(0);
        ring.keys.truncate(left);
        ring.until = match ring.keys.is_empty() || ahead(&ring) {
            true => now.saturating_add(self.seconds),
            false => ring
                .until
                .saturating_add(missed.saturating_mul(self.seconds)),
        };
        ring.keys.push_front(Key::make()?);
        Some(())
    }

    fn seal(&self, session: &[u8], now: u64) -> Option<Vec<u8>> {
        self.rotate(now)?;
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        ring.keys.front()?.seal(session)
    }

    fn open(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        self.rotate(now)?;
        let (name, rest) = ticket.split_first_chunk::<NAME>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        // The name is no secret: every ticket shows it.
        let key = ring.keys.iter().find(|key| key.name == *name)?;
        let mut sealed = sealed.to_vec();
        let aad = Aad::from(*name);
        let session = key.key.open_in_place(Nonce::from(nonce), aad, &mut sealed);
        let length = session.ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

impl ProducesTickets for Rotating {
    fn enabled(&self) -> bool {
        true
    }

    /// How long a ticket made now is accepted at least; where there is only one key, at most.
    fn lifetime(&self) -> u32 {
        let most = u64::try_from(self.most).unwrap_or(1);
        let seconds = self.seconds.saturating_mul(most.saturating_sub(1).max(1));
        u32::try_from(seconds.min(WEEK)).unwrap_or(0)
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.seal(session, UnixTime::now().as_secs())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, UnixTime::now().as_secs())
    }
}

impl fmt::Debug for Rotating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the keys.
        f.debug_struct("Rotating")
            .field("seconds", &self.seconds)
            .field("most", &self.most)
            .finish_non_exhaustive()
    }
}

const NAME: usize = 16;

const DEFAULT_ROTATION: Duration = Duration::from_secs(12 * 60 * 60);
const DEFAULT_KEYS: usize = 4;
const MOST_KEYS: usize = 64;

/// As many as the library keeps by itself.
const DEFAULT_CACHE: usize = 256;
/// Room for them is taken when the configuration is loaded.
const MOST_CACHED: usize = 1_000_000;

/// The longest lifetime there is (RFC 8446 section 4.6.1).
const WEEK: u64 = 7 * 24 * 60 * 60;

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_700_000_000;

    #[test]
    fn a_ticket_opens_until_its_key_is_the_oldest_and_replaced() {
        let tickets = Rotating::new(100, 3);
        let ticket = tickets.seal(b"session", START).unwrap();
        for later in [0, 99, 100, 199, 299] {
            let opened = tickets.open(&ticket, START + later);
            assert_eq!(opened.as_deref(), Some(&b"session"[..]), "after {later} s");
        }
        assert_eq!(tickets.open(&ticket, START + 310), None);
        assert_eq!(tickets.open(&ticket, START), None, "forgotten for good");
    }

    #[test]
    fn each_key_makes_tickets_for_its_time_only() {
        let tickets = Rotating::new(100, 3);
        let name = |ticket: Option<Vec<u8>>| ticket.unwrap()[..NAME].to_vec();
        let first = name(tickets.seal(b"a", START));
        assert_eq!(name(tickets.seal(b"b", START + 99)), first);
        let second = name(tickets.seal(b"c", START + 100));
        assert_ne!(second, first);
        assert_ne!(name(tickets.seal(b"d", START + 200)), second);
        assert_eq!(tickets.ring.read().unwrap().keys.len(), 3);
    }

    #[test]
    fn a_time_without_clients_forgets_keys_as_one_with_clients_does() {
        let tickets = Rotating::new(100, 3);
        let ticket = tickets.seal(b"session", START).unwrap();
        assert_eq!(tickets.open(&ticket, START + 1000), None);
        let tickets = Rotating::new(100, 3);
        let ticket = tickets.seal(b"session", START).unwrap();
        assert!(tickets.open(&ticket, START + 250).is_some());
    }

    #[test]
    fn nothing_but_a_ticket_opens() {
        let tickets = Rotating::new(100, 2);
        let ticket = tickets.seal(b"session", START).unwrap();
        for end in 0..ticket.len() {
            assert_eq!(tickets.open(&ticket[..end], START), None, "{end}");
        }
        for changed in 0..ticket.len() {
            let mut ticket = ticket.clone();
            ticket[changed] ^= 1;
            assert_eq!(tickets.open(&ticket, START), None, "{changed}");
        }
        assert_eq!(Rotating::new(100, 2).open(&ticket, START), None);
    }

    #[test]
    fn the_lifetime_that_clients_are_told_is_one_that_holds() {
        assert_eq!(Rotating::new(100, 4).lifetime(), 300);
        assert_eq!(Rotating::new(1 << 40, 64).lifetime(), 604_800);
        // No time at all would tell clients to throw it away.
        assert_eq!(Rotating::new(100, 1).lifetime(), 100);
    }

    #[test]
    fn a_clock_that_is_set_back_keeps_no_key_in_use() {
        let tickets = Rotating::new(100, 3);
        let ticket = tickets.seal(b"session", START + 1_000_000).unwrap();
        let name = |now| tickets.seal(b"a", now).unwrap()[..NAME].to_vec();
        let first = name(START);
        assert_ne!(first, ticket[..NAME], "made in a time that has not come");
        assert_eq!(name(START + 99), first);
        assert_ne!(name(START + 100), first);
    }
}
