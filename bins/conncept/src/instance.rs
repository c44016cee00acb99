//! The running configuration, and how one follows another.
//!
//! Loading is a transaction: everything a new configuration needs is acquired while the old one serves, and only
//! when nothing can fail any more do the listeners change hands. A load that fails has changed nothing. Connections
//! and datagram sessions stay with the generation they began under; the pool keeps the socket of every address that
//! both configurations have, so that no connection is refused in between.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use l4_core::config::{ConfigError, Document, Errors};
use l4_core::engine::{App, Loaded};
use l4_core::{Addr, EndReason, Generation, Registry};
use l4_net::{BindError, ConnectionLimit, ListenError, ListenerPool, Listening, Shards};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::source::Text;

/// How long ended connections may take to notice. Ending one drops its future, so this is not about the peers.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// The configurations that have connections: the current one, and replaced ones until their last connection ends.
pub(crate) struct Instance {
    registry: Arc<Registry>,
    pool: ListenerPool,
    current: Option<Running>,
    /// Whoever holds a connection holds its generation; nobody else keeps a replaced one.
    replaced: Vec<Weak<Generation>>,
    /// Ends what is left of replaced generations that have a time limit.
    drains: JoinSet<()>,
}

struct Running {
    generation: Arc<Generation>,
    /// The document without layout, to tell whether a new one says something else.
    canonical: String,
    grace_period: Duration,
    drain_timeout: Option<Duration>,
}

/// Why a configuration is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// Somebody asked: it is loaded even if it says the same.
    Signal,
    /// The file has other bytes than before.
    Changed,
    /// It is the file that was refused before, only because somebody else had a port. What there is to warn of in it has
    /// been said.
    Again,
}

/// What a load did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing: the configuration says the same as the current one.
    Unchanged,
    /// The new configuration is the current one.
    Loaded,
}

/// Why a configuration was not loaded.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Everything that is wrong with it.
    pub(crate) errors: Errors,
    /// Only ports that somebody else has are in the way: the same text may load later.
    pub(crate) only_ports: bool,
}

impl From<Errors> for Refused {
    fn from(errors: Errors) -> Self {
        Self {
            errors,
            only_ports: false,
        }
    }
}

impl From<Refused> for Errors {
    fn from(refused: Refused) -> Self {
        refused.errors
    }
}

impl Instance {
    pub(crate) fn new(registry: Arc<Registry>, shards: Shards) -> Self {
        Self {
            registry,
            pool: ListenerPool::spread_over(shards, ConnectionLimit::from_system()),
            current: None,
            replaced: Vec::new(),
            drains: JoinSet::new(),
        }
    }

    /// Makes `text` the current configuration, unless it says the same as the one that is and nobody asked.
    ///
    /// Cancel safe: until it returns nothing has changed.
    ///
    /// # Errors
    /// Everything that is wrong with it; the current configuration runs on untouched.
    pub(crate) async fn load(&mut self, text: Text, why: Trigger) -> Result<Outcome, Refused> {
        let current = self
            .current
            .as_ref()
            .filter(|_| why != Trigger::Signal)
            .map(|running| running.canonical.clone());
        let (name, registry) = (text.name.clone(), self.registry.clone());
        // Modules read files while they are provisioned, which must not hold up connections.
        let provisioned = tokio::task::spawn_blocking(move || {
            provision(&text, &registry, current.as_deref(), why)
        });
        let provisioned = provisioned.await.unwrap_or_else(|bug| {
            Err(Errors::from(ConfigError::without_place(
                name,
                format!("bug while loading: {bug}"),
            )))
        });
        let Some(Provisioned {
            document,
            canonical,
            mut app,
        }) = provisioned?
        else {
            return Ok(Outcome::Unchanged);
        };
        let staged = self.pool.stage(&app).await.map_err(|failures| {
            let errors = failures
                .iter()
                .map(|failure| bind_error(&document, failure));
            Refused {
                errors: Errors::from(errors.collect::<Vec<_>>()),
                only_ports: failures
                    .iter()
                    .all(|failure| matches!(failure.reason(), ListenError::InUse { .. })),
            }
        })?;
        let before = self.pool.addresses();
        staged.commit();
        app.start();
        report_listeners(&before, &self.pool.addresses());
        let running = Running {
            generation: app.generation.clone(),
            canonical,
            grace_period: app.grace_period,
            drain_timeout: app.drain_timeout,
        };
        if let Some(old) = self.current.replace(running) {
            self.retire(old);
        }
        Ok(Outcome::Loaded)
    }

    /// The first TCP address that is listened on.
    pub(crate) fn first_tcp_address(&self) -> Option<SocketAddr> {
        self.pool
            .addresses()
            .iter()
            .find_map(|listening| match listening.actual {
                Addr::Tcp(address) => Some(address),
                _ => None,
            })
    }

    /// Lets the connections of a replaced configuration finish, within its own time limit.
    fn retire(&mut self, old: Running) {
        old.generation.retire();
        self.replaced
            .retain(|generation| generation.strong_count() > 0);
        self.replaced.push(Arc::downgrade(&old.generation));
        while self.drains.try_join_next().is_some() {}
        let active = old.generation.active();
        if active > 0 {
            info!(
                target: "conncept", generation = old.generation.id(), connections = active,
                "connections of the replaced configuration go on under it"
            );
        }
        if let Some(limit) = old.drain_timeout {
            // Weak, and for the whole time: a client that waited in the queue of an address that was removed is taken
            // a moment after the reload, when there may have been no connection left.
            let generation = Arc::downgrade(&old.generation);
            self.drains.spawn(async move {
                tokio::time::sleep(limit).await;
                let Some(generation) = generation.upgrade() else {
                    return;
                };
                let left = generation.active();
                if left > 0 {
                    warn!(
                        target: "conncept", generation = generation.id(), connections = left,
                        "drain_timeout is over: ending connections"
                    );
                }
                generation.end(EndReason::Drained);
            });
        }
    }

    /// Stops listening, lets connections end by themselves for the grace period, then ends them.
    pub(crate) async fn stop(self) {
        let grace_period = self
            .current
            .as_ref()
            .map_or(Duration::ZERO, |running| running.grace_period);
        self.pool.close_all().await;
        if let Some(running) = &self.current {
            running.generation.retire();
        }
        let current = self
            .current
            .iter()
            .map(|running| running.generation.clone());
        let replaced = self.replaced.iter().filter_map(Weak::upgrade);
        let generations: Vec<Arc<Generation>> = current.chain(replaced).collect();
        let waiting = active(&generations);
        if waiting > 0 {
            info!(target: "conncept", connections = waiting, ?grace_period, "waiting for connections to end");
        }
        let left = drained(&generations, grace_period).await;
        if left > 0 {
            warn!(target: "conncept", connections = left, "grace_period is over: ending connections");
            for generation in &generations {
                generation.end(EndReason::Shutdown);
            }
            drained(&generations, LAST_MOMENT).await;
        }
    }
}

/// What loading gives before any socket is opened.
struct Provisioned {
    document: Document,
    canonical: String,
    app: App,
}

/// Parses and provisions; `None` if `text` says the same as `current`.
fn provision(
    text: &Text,
    registry: &Registry,
    current: Option<&str>,
    why: Trigger,
) -> Result<Option<Provisioned>, Errors> {
    let document = Document::parse(&text.name, &text.bytes)?;
    let canonical = document.canonical(document.root());
    if current == Some(&canonical) {
        return Ok(None);
    }
    let Loaded {
        app,
        warnings,
        notes,
    } = App::load(&document, registry);
    if why != Trigger::Again {
        for warning in Errors::from(warnings).as_slice() {
            warn!(target: "conncept", place = place(warning), problem = warning.message(), "configuration warning");
        }
        for note in Errors::from(notes).as_slice() {
            info!(target: "conncept", place = place(note), note = note.message(), "configuration note");
        }
    }
    let app = app?;
    if app.listens.is_empty() {
        warn!(target: "conncept", config = text.name, "the configuration listens nowhere");
    }
    Ok(Some(Provisioned {
        document,
        canonical,
        app,
    }))
}

/// `l4.json:12:17 /apps/layer4`
pub(crate) fn place(error: &ConfigError) -> String {
    match error.position() {
        Some(position) => format!("{}:{position} {}", error.source_name(), error.pointer()),
        None => error.source_name().to_owned(),
    }
}

fn bind_error(document: &Document, failure: &BindError) -> ConfigError {
    let error = document.error(failure.node(), failure.to_string());
    let error = match failure.reason() {
        ListenError::InUse { .. } => {
            error.help("stop the other process, or listen on another address or port")
        }
        _ => error,
    };
    match failure.related() {
        Some(other) => error.related(document, other, "first listened on here"),
        None => error,
    }
}

/// Says which addresses came and which went.
fn report_listeners(before: &[Listening], now: &[Listening]) {
    let key = |listening: &Listening| {
        (
            listening.actual.network(),
            listening.actual.to_string(),
            listening.configured.to_string(),
        )
    };
    let (had, has): (BTreeSet<_>, BTreeSet<_>) = (
        before.iter().map(key).collect(),
        now.iter().map(key).collect(),
    );
    for listening in before
        .iter()
        .filter(|listening| !has.contains(&key(listening)))
    {
        info!(
            target: "conncept", address = %listening.actual, network = listening.actual.network(),
            server = listening.server.name(), "no longer listening"
        );
    }
    for listening in now
        .iter()
        .filter(|listening| !had.contains(&key(listening)))
    {
        info!(
            target: "conncept", address = %listening.actual, network = listening.actual.network(),
            server = listening.server.name(), routes = listening.server.program().len(), "listening"
        );
    }
}

fn active(generations: &[Arc<Generation>]) -> usize {
    generations
        .iter()
        .map(|generation| generation.active())
        .sum()
}

/// Waits until no connection is left in any of `generations`, not longer than `limit`. Returns how many are.
async fn drained(generations: &[Arc<Generation>], limit: Duration) -> usize {
    let deadline = Instant::now() + limit;
    for generation in generations {
        generation
            .drained(deadline.saturating_duration_since(Instant::now()))
            .await;
    }
    active(generations)
}
